"""The version: a module of its own, as the package itself offers what lies above all others."""

__version__ = "0.1.0"
