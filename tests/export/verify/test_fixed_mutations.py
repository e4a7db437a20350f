"""Caches of fixed size bring mistakes of their own: each is made here in a sound graph, and must be caught."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import make_checkpoint
from exporting import Bundle, export, failures, plan_of

CAPACITY = 128
LATE = 3
"""The last decoder layer."""

SoundBundle = Callable[[str], Bundle]


@pytest.fixture(scope="module")
def sound_of(tmp_path_factory: pytest.TempPathFactory) -> SoundBundle:
    """Return a bundle of four decoder layers and grouped queries in a dialect; nobody may write to it."""
    text = {"num_hidden_layers": 4, "num_key_value_heads": 2}
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("deep") / "tiny", text=text)

    @cache
    def get(dialect: str) -> Bundle:
        plan = plan_of(checkpoint, dialect=dialect, capacity=CAPACITY)
        return export(plan, tmp_path_factory.mktemp("sound") / "bundle")

    return get


class Surgery:
    """Puts nodes between a value and those who read it."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._count = 0

    def constant(self, value: Any) -> str:
        name = f"wrong/const_{len(self._graph.initializer)}"
        self._graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node in front of all others; call in reverse order where one reads another."""
        self._count += 1
        output = f"wrong/{kind}_{self._count}"
        self._graph.node.append(onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def rolled(self, value: str, axis: int, rows: int) -> str:
        """Return ``value`` with each row of ``axis`` one further on, the last in the place of the first."""
        ends = [self.constant([n]) for n in (0, rows - 1, rows)]
        last, rest = (
            self.node("Slice", value, start, end, self.constant([axis]))
            for start, end in ((ends[1], ends[2]), (ends[0], ends[1]))
        )
        return self.node("Concat", last, rest, axis=axis)

    def reroute(self, value: str, other: str, readers: str = "") -> None:
        """Let every old node under the path ``readers`` read ``other`` in the place of ``value``."""
        found = 0
        for node in self._graph.node:
            if node.name.startswith("wrong/") or not node.name.startswith(readers):
                continue
            for i, name in enumerate(node.input):
                if name == value:
                    node.input[i] = other
                    found += 1
        assert found, value


def mistakes(
    bundle: Bundle, folder: Path, edit: Callable[[Surgery], None], layers: int | None = None
) -> set[str]:
    """Make a mistake in a copy of a sound bundle and return the checks that fail."""
    staged = shutil.copytree(bundle.folder, folder / "bundle")
    path = staged / "language_model.onnx"
    model = onnx.load(path, load_external_data=False)
    nodes = list(model.graph.node)
    edit(Surgery(model.graph))
    new = model.graph.node[len(nodes) :]
    ordered = _in_order(nodes, new, {value.name for value in model.graph.input} | _initializers(model))
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    onnx.save(model, path)
    onnx.checker.check_model(str(path))
    return failures(bundle.plan, staged, layers=layers)


def _initializers(model: Any) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def _in_order(old: Sequence[Any], new: Sequence[Any], known: set[str]) -> list[Any]:
    """Place each new node as soon as what it reads is there."""
    waiting, placed = list(new), []

    def place(node: Any) -> None:
        placed.append(node)
        known.update(node.output)
        for candidate in list(waiting):
            if candidate in waiting and set(candidate.input) <= known:
                waiting.remove(candidate)
                place(candidate)

    for candidate in list(waiting):
        if candidate in waiting and set(candidate.input) <= known:
            waiting.remove(candidate)
            place(candidate)
    for node in old:
        place(node)
    assert not waiting
    return placed


@pytest.mark.parametrize("dialect", ["static", "decomposed"])
@pytest.mark.parametrize("layers", [None, 2])
def test_the_sound_bundle_passes(
    dialect: str, layers: int | None, sound_of: SoundBundle, tmp_path: Path
) -> None:
    bundle = sound_of(dialect)
    assert mistakes(bundle, tmp_path, lambda surgery: None, layers) == set()


@pytest.mark.parametrize(("dialect", "mask"), [("static", "attention_mask"), ("decomposed", "cache_mask")])
def test_the_mask_is_off_by_one(dialect: str, mask: str, sound_of: SoundBundle, tmp_path: Path) -> None:
    found = mistakes(
        sound_of(dialect), tmp_path, lambda s: s.reroute(mask, s.rolled(mask, axis=3, rows=CAPACITY))
    )
    assert {"language: 16 decode steps", "language: chunked prefill", "language: ragged batch"} <= found


def test_new_keys_are_seen_one_too_early(sound_of: SoundBundle, tmp_path: Path) -> None:
    """Decode has one new key and would not tell; prefill does."""

    def shift(s: Surgery) -> None:
        # Row i of the mask in the place of row i - 1: a query sees the key behind it.
        first, rest = (
            s.node("Slice", "new_mask", s.constant([start]), s.constant([end]), s.constant([2]))
            for start, end in ((0, 1), (1, 2**31))
        )
        # The last query sees what the first did, itself not included, but in a step of one.
        s.reroute("new_mask", s.node("Concat", rest, first, axis=2))

    found = mistakes(sound_of("decomposed"), tmp_path, shift)
    assert {"language: prefill", "language: chunked prefill", "language: ragged batch"} <= found


def test_rows_are_written_one_too_far(sound_of: SoundBundle, tmp_path: Path) -> None:
    found = mistakes(
        sound_of("static"),
        tmp_path,
        lambda s: s.reroute("write_indices", s.node("Add", "write_indices", s.constant(np.int64(1)))),
    )
    assert {"language: prefill", "language: 16 decode steps"} <= found


@pytest.mark.parametrize("part", ["key", "value"])
@pytest.mark.parametrize("layers", [None, 2])
def test_a_late_layer_reads_the_cache_one_row_off(
    part: str, layers: int | None, sound_of: SoundBundle, tmp_path: Path
) -> None:
    """In a run of two layers the wiring tells."""
    name = f"past_key_values.{LATE}.{part}"
    found = mistakes(
        sound_of("decomposed"), tmp_path, lambda s: s.reroute(name, s.rolled(name, 2, CAPACITY)), layers
    )
    if layers is None:
        assert "language: 16 decode steps" in found
        assert "language: prefill" not in found, "an empty cache is not read"
    else:
        assert "structure: layers unlike" in found


@pytest.mark.parametrize("dialect", ["static", "decomposed"])
def test_positions_begin_anew_with_every_step(dialect: str, sound_of: SoundBundle, tmp_path: Path) -> None:
    def anew(s: Surgery) -> None:
        first = s.node("Slice", "position_ids", s.constant([0]), s.constant([1]), s.constant([1]))
        s.reroute("position_ids", s.node("Sub", "position_ids", first))

    found = mistakes(sound_of(dialect), tmp_path, anew)
    assert {"language: 16 decode steps", "language: chunked prefill"} <= found


def test_keys_are_turned_one_position_too_far(sound_of: SoundBundle, tmp_path: Path) -> None:
    """One of the two in one layer: turned both alike, their products would be the same."""
    key = f"/language_model/layers.{LATE}/self_attn/RotaryEmbedding_1"

    def further(s: Surgery) -> None:
        s.reroute("position_ids", s.node("Add", "position_ids", s.constant(np.int64(1))), readers=key)

    found = mistakes(sound_of("static"), tmp_path, further)
    assert {"structure: layers unlike", "language: prefill"} <= found


def test_the_rotation_turns_backwards(sound_of: SoundBundle, tmp_path: Path) -> None:
    """Sine negated behind the table, which is right itself."""

    def backwards(s: Surgery) -> None:
        sine = "/rope/Unsqueeze_1_output_0"
        s.reroute(sine, s.node("Neg", sine), readers=f"/language_model/layers.{LATE}/self_attn/rope/Mul_1")

    found = mistakes(sound_of("decomposed"), tmp_path, backwards)
    assert {"structure: layers unlike", "language: prefill"} <= found


@pytest.mark.parametrize("part", ["key", "value"])
def test_the_new_rows_of_another_layer_are_given_out(
    part: str, sound_of: SoundBundle, tmp_path: Path
) -> None:
    """Prefill is right, for it reads no cache."""
    bundle = sound_of("decomposed")
    staged = shutil.copytree(bundle.folder, tmp_path / "bundle")
    path = staged / "language_model.onnx"
    model = onnx.load(path, load_external_data=False)
    names = [f"new_key_values.{i}.{part}" for i in (1, 2)]
    swapped = dict(zip(names, reversed(names), strict=True))
    for node in model.graph.node:
        for values in (node.input, node.output):
            for i, name in enumerate(values):
                values[i] = swapped.get(name, name)
    onnx.save(model, path)
    found = failures(bundle.plan, staged)
    assert {"language: 16 decode steps", "language: chunked prefill"} <= found
    assert "language: prefill" not in found
