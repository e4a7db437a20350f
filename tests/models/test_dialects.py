"""What is said of dialects is what their records say."""

from __future__ import annotations

from typing import get_args, get_type_hints

from divprune_edge.export.cli import llava
from divprune_edge.manifest import Dialect
from divprune_edge.models.dialects import DIALECTS, FOR_ANY_TENSORRT, FOR_TENSORRT, option
from divprune_edge.models.targets import TARGETS


def help_of(name: str) -> str:
    """Return what ``python -m export llava --help`` says of an option."""
    (asked,) = get_type_hints(llava, include_extras=True)[name].__metadata__
    return str(asked.help)


def test_every_dialect_of_a_manifest_has_a_record() -> None:
    assert tuple(DIALECTS) == get_args(Dialect)


def test_options_name_those_that_would_do() -> None:
    assert option(lambda one: one.grows) == "--dialect portable"
    assert option(lambda one: one.for_tensorrt) == "--dialect static or decomposed"
    assert option(lambda one: one.takes_positions) == "--dialect portable, static or decomposed"
    assert option(lambda one: "float16" in one.cuda) == "--dialect portable or onnxruntime"


def test_one_is_for_every_tensorrt() -> None:
    assert FOR_ANY_TENSORRT in FOR_TENSORRT
    for target in TARGETS.values():
        assert target.tensorrt is None or DIALECTS[FOR_ANY_TENSORRT].taken_by(target.backend, target.tensorrt)


def test_the_help_names_them_all() -> None:
    """It is written out: records are not read for a command that is not asked for."""
    said = help_of("dialect")
    for name, facts in DIALECTS.items():
        assert name in said
        major, minor = facts.tensorrt.get("tensorrt", (10, 0))
        assert minor == 0 or f"{name} ({major}.{minor} and newer)" in said
    assert [name for name in DIALECTS if name in help_of("capacity")] == list(FOR_TENSORRT)
