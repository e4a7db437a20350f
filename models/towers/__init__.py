"""Vision towers that families share: their specs, their graphs, and what signals look at in them."""
