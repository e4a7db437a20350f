"""Verification of images in tiles can fail: in the graph that makes rows of their tokens, and in what it is fed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import TILED_VARIATIONS, make_checkpoint
from exporting import Bundle, export, failures, plan_of
from onnx import helper, numpy_helper

from divprune_edge.processing.assembly import Assembly, assembly

NEXT, ONEVISION = "llava_next, plain", "llava_onevision, at most 1 tiles"
KINDS = {
    "next": (NEXT, "image"),
    "next, per tile": (NEXT, "tile"),
    "onevision": (ONEVISION, "image"),
    "onevision, per tile": (ONEVISION, "tile"),
}
TOKENS = "vision: visual tokens"
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """Return a sound bundle with all signals; nobody may write to it."""

    @cache
    def checkpoint(name: str) -> Path:
        return make_checkpoint(tmp_path_factory.mktemp("tiled") / "tiny", **TILED_VARIATIONS[name])

    @cache
    def get(kind: str) -> Bundle:
        name, per = KINDS[kind]
        plan = plan_of(checkpoint(name), 5, per=per, signals="all")
        return export(plan, tmp_path_factory.mktemp("tiled") / "bundle")

    return get


def damaged(bundle: Bundle, folder: Path, edit: Callable[[Any], None]) -> set[str]:
    """Return what fails in a copy whose assemble graph is edited."""
    copy = shutil.copytree(bundle.folder, folder / "bundle")
    model = onnx.load(copy / "assemble.onnx", load_external_data=False)
    edit(model.graph)
    onnx.save(model, copy / "assemble.onnx")
    return failures(bundle.plan, copy)


def before(graph: Any, node: Any, name: str, op: str, *others: str) -> None:
    """Put an operator between a node and its input ``name``."""
    node.input[list(node.input).index(name)] = "damaged"
    graph.node.insert(list(graph.node).index(node), helper.make_node(op, [name, *others], ["damaged"]))


def constant(graph: Any, name: str, value: Any) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"/{name}"))
    return f"/{name}"


def reader_of(graph: Any, op: str, made_of: str) -> Any:
    """Return the first node of a kind that depends on an input of the graph."""
    known = {made_of}
    for node in graph.node:
        if known & set(node.input):
            if node.op_type == op:
                return node
            known |= set(node.output)
    raise AssertionError(f"no {op} depends on {made_of}")


@every_kind
def test_the_sound_bundle_passes(kind: str, tiled: Callable[[str], Bundle]) -> None:
    bundle = tiled(kind)
    assert failures(bundle.plan, bundle.folder) == set()


# --- the graph -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "found"), [(1.0000002, {"weights: changed"}), (1.5, {"weights: changed", TOKENS})]
)
def test_another_newline(
    factor: float, found: set[str], tiled: Callable[[str], Bundle], tmp_path: Path
) -> None:
    def change(graph: Any) -> None:
        (newline,) = (tensor for tensor in graph.initializer if tensor.name.endswith("image_newline"))
        value = numpy_helper.to_array(newline) * np.float32(factor)
        newline.CopyFrom(numpy_helper.from_array(value, newline.name))

    assert found <= damaged(tiled("next"), tmp_path, change)


@every_kind
def test_rows_are_off_by_one(kind: str, tiled: Callable[[str], Bundle], tmp_path: Path) -> None:
    def shift(graph: Any) -> None:
        """Negative indices count from the end."""
        gather = reader_of(graph, "Gather", "tile_tokens")
        before(graph, gather, gather.input[1], "Add", constant(graph, "step", -1))

    assert TOKENS in damaged(tiled(kind), tmp_path, shift)


@pytest.mark.parametrize("kind", ["onevision", "onevision, per tile"])
def test_weights_are_ignored(kind: str, tiled: Callable[[str], Bundle], tmp_path: Path) -> None:
    def ignore(graph: Any) -> None:
        scale = reader_of(graph, "Mul", "tile_tokens")
        before(graph, scale, scale.input[1], "Sign")

    assert TOKENS in damaged(tiled(kind), tmp_path, ignore)


def test_the_newline_stands_behind_the_tokens(tiled: Callable[[str], Bundle], tmp_path: Path) -> None:
    def swap(graph: Any) -> None:
        table = reader_of(graph, "Concat", "tile_tokens")
        table.input[0], table.input[1] = table.input[1], table.input[0]

    assert TOKENS in damaged(tiled("next"), tmp_path, swap)


@every_kind
@pytest.mark.parametrize("signal", ["keys", "attention_received"])
def test_a_signal_is_of_other_rows_than_its_token(
    kind: str, signal: str, tiled: Callable[[str], Bundle], tmp_path: Path
) -> None:
    def shift(graph: Any) -> None:
        gather = reader_of(graph, "Gather", f"tile_{signal}")
        before(graph, gather, gather.input[1], "Add", constant(graph, "step", -1))

    assert damaged(tiled(kind), tmp_path, shift) == {f"vision: rows of {signal}"}


def test_the_class_token_is_that_of_another_tile(tiled: Callable[[str], Bundle], tmp_path: Path) -> None:
    def next_tile(graph: Any) -> None:
        gather = reader_of(graph, "Gather", "tile_cls_token")
        before(graph, gather, gather.input[1], "Add", constant(graph, "step", -1))

    assert damaged(tiled("next, per tile"), tmp_path, next_tile) == {"vision: rows of cls_token"}


# --- what it is fed --------------------------------------------------------------------------------------------


def swapped_tiles(made: Assembly) -> Assembly:
    """The last two tiles change places."""
    tile, last = (made.rows - 1) // 25, int(made.tile_of.max())
    turned = np.where(tile == last, -25, np.where(tile == last - 1, 25, 0))
    return dataclasses.replace(made, rows=np.where(made.rows == 0, 0, made.rows + turned))


def column_by_column(made: Assembly) -> Assembly:
    """The features of each tile are transposed."""
    inside = (made.rows - 1) % 25
    rows = made.rows - inside + inside % 5 * 5 + inside // 5
    return dataclasses.replace(made, rows=np.where(made.rows == 0, 0, rows))


def without_newlines(made: Assembly) -> Assembly:
    kept = made.rows[:, 0] != 0
    fields = (field.name for field in dataclasses.fields(Assembly))
    return Assembly(**{name: getattr(made, name)[kept] for name in fields})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (swapped_tiles, TOKENS),
        (column_by_column, TOKENS),
        (without_newlines, "vision: rows of an image"),
    ],
)
@pytest.mark.parametrize("kind", ["next", "onevision, per tile"])
def test_tiles_are_put_together_wrongly(
    kind: str,
    change: Callable[[Assembly], Assembly],
    found: str,
    tiled: Callable[[str], Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The code that the runtime shares is wrong."""
    bundle = tiled(kind)
    monkeypatch.setattr(
        "divprune_edge.models.families.llava.reading.assembly",
        lambda *arguments, **options: change(assembly(*arguments, **options)),
    )
    assert found in failures(bundle.plan, bundle.folder)


@pytest.mark.parametrize(
    ("change", "found"),
    [({"max_tiles": 2}, "vision: rows of an image"), ({"max_tiles": None}, "vision: rows of an image")],
)
def test_the_reader_of_the_config_is_wrong(
    change: dict[str, Any], found: str, tiled: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """The plan that verifies has the mistake, too."""
    plan = tiled("onevision").plan
    tiling = plan.spec.tiling.model_copy(update=change)
    wrong = dataclasses.replace(
        plan,
        spec=dataclasses.replace(plan.spec, tiling=tiling),
        preprocessing=plan.preprocessing.model_copy(update={"tiling": tiling}),
    )
    assert found in failures(wrong, export(wrong, tmp_path / "bundle").folder)


def test_fp16_passes(tmp_path: Path) -> None:
    for name in (NEXT, ONEVISION):
        folder = make_checkpoint(tmp_path / name, **TILED_VARIATIONS[name])
        bundle = export(plan_of(folder, 5, precision="fp16", signals="all"), tmp_path / f"{name} bundle")
        assert failures(bundle.plan, bundle.folder) == set()
