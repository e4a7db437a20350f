"""Forwards ``python -m plugins …`` to ``divprune-edge plugins …``; nothing else lives under this name."""

from divprune_edge.plugins.cli import main

if __name__ == "__main__":
    main()
