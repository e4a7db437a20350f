"""The registry, and that nobody goes around it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raising import refused

from divprune_edge.models.families import FAMILIES, family_named, family_of, reader_of
from divprune_edge.models.families.family import Family, WeightNames

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("divprune_edge", "models", "export", "plugins", "runtime")
ALLOWED = ("models/families/", "models/demo/")
SUBCOMMAND = ("export/cli.py", "llava")
"""The command's name is the user's, not a comparison."""


def test_a_config_and_a_manifest_find_the_same_family() -> None:
    for name in FAMILIES:
        family = family_named(name)
        assert isinstance(family, Family)
        assert family.name == name
        assert family_of({"model_type": name}) is family
        assert reader_of(name) is family.reader
        for preset in family.presets.values():
            assert family.spec(preset).tokens


def test_an_unknown_family_is_one_sentence() -> None:
    with refused("family-unknown", "'ufo'", *FAMILIES):
        reader_of("ufo")


def test_weights_know_their_part() -> None:
    names = WeightNames({"tower": "model.", "projector": "model.projector."}, "text.", "head.weight")
    assert names.split("model.layers.0.weight") == ("tower", "layers.0.weight")
    assert names.split("model.projector.weight") == ("projector", "weight"), "the longest prefix"
    assert names.split("text.norm.weight") == ("language_model", "norm.weight")
    assert names.split("head.weight") == ("", "head.weight")
    assert names.in_encoder("model.x")
    assert not names.in_encoder("text.x")


def names_in(tree: ast.AST) -> Iterator[str]:
    """Yield the identifiers of a module, and the strings that may be compared with a family's name."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            value: Any = getattr(node, field, None)
            if isinstance(value, str):
                yield value
        if isinstance(node, ast.Constant) and node.value in FAMILIES:
            yield node.value


def test_no_module_outside_the_families_names_one() -> None:
    found, modules = set(), 0
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            if not file.startswith(ALLOWED):
                modules += 1
                for name in names_in(ast.parse(path.read_text(encoding="utf-8"))):
                    found |= {(file, name) for family in FAMILIES if family in name.lower()}
    assert modules > 150
    assert found == {SUBCOMMAND}
