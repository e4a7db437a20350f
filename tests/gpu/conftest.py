"""Tests that need a GPU: elsewhere they skip themselves, and the summary of the whole run says how many did.

They need torch with CUDA and a library for the GPU at hand, built by ``python -m plugins build`` (or only carried
there: the folder ``plugins/lib`` is enough).
"""

from __future__ import annotations

import importlib.util

import pytest


def _why_not() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    from divprune_edge.errors import UserError
    from divprune_edge.plugins.loader import find_library

    try:
        find_library()
    except UserError as error:
        return str(error)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip every test below this folder where it cannot run."""
    here = [item for item in items if "tests/gpu/" in item.path.as_posix()]
    reason = _why_not() if here else None
    if reason is not None:
        for item in here:
            item.add_marker(pytest.mark.skip(reason=reason))
