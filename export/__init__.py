"""Checkpoint to bundle: graph builder, layers, dialects, verification."""
