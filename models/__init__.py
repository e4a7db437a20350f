"""What a model family is: typed specs, selection algorithms, budgets. NumPy only."""
