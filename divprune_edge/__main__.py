"""``python -m divprune_edge``."""

from divprune_edge.cli import main

if __name__ == "__main__":
    main()
