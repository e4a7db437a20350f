"""``python -m plugins`` from a clone; the installed wheel has a shim that does the same."""

from divprune_edge.plugins.cli import main

if __name__ == "__main__":
    main()
