"""Selectors judged on answers: question sets, the run that asks them, and what comes of it."""
