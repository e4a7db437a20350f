"""Forwards ``python -m export …`` to ``divprune-edge export …``; nothing else lives under this name."""

from divprune_edge.export.cli import main

if __name__ == "__main__":
    main()
