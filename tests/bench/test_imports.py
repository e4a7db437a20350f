"""Every benchmark can be imported: they are run by hand, and the product moves on under them."""

from __future__ import annotations

import importlib

import pytest
from conftest import ROOT

FILES = sorted(path for path in (ROOT / "bench").rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_imports(path: object) -> None:
    name = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")  # type: ignore[attr-defined]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert not str(error.name).startswith(("bench", "divprune_edge")), error
