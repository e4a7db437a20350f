"""Forwards ``python -m runtime …`` to ``divprune-edge runtime …``; nothing else lives under this name."""

from divprune_edge.runtime.cli import main

if __name__ == "__main__":
    main()
