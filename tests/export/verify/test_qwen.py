"""Verification of Qwen2.5-VL and Qwen3-VL can fail: in the tower, its mergers, features behind tokens, positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting import export, failures, plan_of
from qwen_checkpoints import QWEN, make_qwen_checkpoint

from divprune_edge.export import language
from divprune_edge.export.plan import ExportPlan
from divprune_edge.models.families.qwen_vl import encoder, model, reading
from divprune_edge.models.rope import RopeSpec
from divprune_edge.processing import patches

TOKENS, PREFILL = "vision: visual tokens", "language: prefill"
QWEN2_5, QWEN3 = QWEN


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportPlan]:
    """Return a plan with five decoder layers, two of them followed by features where there are any."""

    @cache
    def get(family: str) -> ExportPlan:
        folder = tmp_path_factory.mktemp(family) / "tiny"
        # A whole row of windows, and some that are not.
        vision = {"depth": 4, "fullatt_block_indexes": [2]} if family == QWEN2_5 else {}
        text = {"num_hidden_layers": 5}
        return plan_of(make_qwen_checkpoint(folder, family=family, text=text, vision=vision))

    return get


def mistaken(plan: ExportPlan, folder: Path, patch: Callable[[pytest.MonkeyPatch], None]) -> set[str]:
    """Export while something is wrong; return what fails once it is put right."""
    with pytest.MonkeyPatch.context() as wrong:
        patch(wrong)
        bundle = export(plan, folder / "bundle").folder
    return failures(plan, bundle)


@pytest.mark.parametrize("family", QWEN)
@pytest.mark.parametrize("layers", [None, 4])
def test_the_sound_bundle_passes(
    family: str, layers: int | None, plans: Callable[[str], ExportPlan], tmp_path: Path
) -> None:
    plan = plans(family)
    assert failures(plan, export(plan, tmp_path / "bundle").folder, layers=layers) == set()


# --- features behind tokens ------------------------------------------------------------------------------------


Parts = Callable[[Any, list[Any]], list[Any]]
FEATURES: dict[str, Parts] = {
    "after the next layer": lambda g, parts: [parts[0], nothing(g, parts[1]), *parts[1:]],
    "in the other order": lambda g, parts: [parts[0], *parts[:0:-1]],
    "the first one twice": lambda g, parts: [parts[0], parts[1], parts[1]],
    "not the last": lambda g, parts: parts[:-1],
    "at the beginning": lambda g, parts: [g.op("Add", parts[0], parts[1]), *parts[2:]],
}


def nothing(g: Any, value: Any) -> Any:
    return g.op("Mul", value, g.constant(0.0, "float32"))


@pytest.mark.parametrize(
    ("mistake", "layers"), [*((mistake, None) for mistake in FEATURES), ("after the next layer", 4)]
)
def test_features_are_added_elsewhere(
    mistake: str, layers: int | None, plans: Callable[[str], ExportPlan], tmp_path: Path
) -> None:
    plan, table = plans(QWEN3), language._token_table
    assert plan.spec.stacked == 2

    def wrong(g: Any, *rest: Any) -> list[Any]:
        return FEATURES[mistake](g, table(g, *rest))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "_token_table", wrong)
        bundle = export(plan, tmp_path / "bundle").folder
        # A copy that is run has the mistake as well.
        assert PREFILL in failures(plan, bundle, layers=layers)
    if layers is not None:
        assert "structure: unlike what was run" in failures(plan, bundle, layers=layers)


def test_features_of_the_tower_are_in_another_order(
    plans: Callable[[str], ExportPlan], tmp_path: Path
) -> None:
    write = encoder.write_qwen_encoder

    def wrong(*inputs: Any) -> dict[str, Any]:
        found = write(*inputs)
        found["deepstack.0"], found["deepstack.1"] = found["deepstack.1"], found["deepstack.0"]
        return found

    assert TOKENS in mistaken(
        plans(QWEN3), tmp_path, lambda patch: patch.setattr(model, "write_qwen_encoder", wrong)
    )


# --- the tower -------------------------------------------------------------------------------------------------


def merge(norms: str) -> Callable[..., Any]:
    """Return a merger of the tower's weights whose norm is elsewhere, wherever shapes do not show it."""

    def wrong(g: Any, layers: Any, x: Any, spec: Any, name: str) -> Any:
        norm, first, second = spec.merger_layers(name)
        main = name == encoder.MERGER
        with g.scope(name):
            if main and norms != "none":
                x = encoder._norm(layers, x, spec, norm)
            x = g.op("Reshape", x, g.constant([0, -1, spec.merged]))
            if not main and norms == "before":
                x = encoder._norm(layers, x, spec, norm)
            x = layers.linear(x, first)
            if not main and norms == "after the first layer":
                x = encoder._norm(layers, x, spec, norm)
            x = layers.activation(x, "gelu")
            if not main and norms == "after the activation":
                x = encoder._norm(layers, x, spec, norm)
            return layers.linear(x, second, gated=True)

    return wrong


@pytest.mark.parametrize(
    ("family", "norms"),
    [
        (QWEN3, "none"),
        (QWEN2_5, "none"),
        (QWEN3, "after the first layer"),
        (QWEN3, "after the activation"),
    ],
)
def test_the_norm_of_a_merger_is_elsewhere(
    family: str, norms: str, plans: Callable[[str], ExportPlan], tmp_path: Path
) -> None:
    found = mistaken(plans(family), tmp_path, lambda patch: patch.setattr(encoder, "_merge", merge(norms)))
    assert TOKENS in found
    assert ("weights: left out" in found) == (norms == "none")
    if family == QWEN2_5:
        return
    sound = mistaken(
        plans(family), tmp_path / "2", lambda patch: patch.setattr(encoder, "_merge", merge("before"))
    )
    assert TOKENS not in sound


def with_vision(plan: ExportPlan, **changes: Any) -> ExportPlan:
    spec: Any = plan.spec
    return dataclasses.replace(
        plan, spec=dataclasses.replace(spec, vision=dataclasses.replace(spec.vision, **changes))
    )


@pytest.mark.parametrize(
    ("family", "change"),
    [
        (QWEN2_5, {"full": (1,)}),
        (QWEN2_5, {"full": ()}),
        (QWEN2_5, {"full": (2, 3)}),
        (QWEN2_5, {"activation": "gelu"}),
        (QWEN2_5, {"theta": 9000.0}),
        (QWEN3, {"theta": 9000.0}),
        (QWEN3, {"deepstack": (0, 1)}),
        (QWEN3, {"deepstack": (1, 2)}),
        (QWEN3, {"activation": "gelu"}),
    ],
)
def test_a_setting_of_the_tower_is_another(
    family: str, change: dict[str, Any], plans: Callable[[str], ExportPlan], tmp_path: Path
) -> None:
    wrong = with_vision(plans(family), **change)
    bundle = export(wrong, tmp_path / "bundle").folder
    # Whoever reads the config is wrong, and what is verified is what was meant.
    assert TOKENS in failures(wrong, bundle)


GRIDS: dict[str, tuple[str, Callable[..., dict[str, Any]]]] = {
    "rows for columns": (QWEN3, lambda told: {**told, patches.AXES: told[patches.AXES][:, ::-1].copy()}),
    "rows for columns, in windows": (
        QWEN2_5,
        lambda told: {**told, patches.AXES: told[patches.AXES][:, ::-1].copy()},
    ),
    "places off by one": (
        QWEN3,
        lambda told: {**told, patches.PLACE_ROWS: np.maximum(told[patches.PLACE_ROWS] - 1, 0)},
    ),
    "the nearest place": (
        QWEN3,
        lambda told: {**told, patches.PLACE_WEIGHTS: told[patches.PLACE_WEIGHTS].round()},
    ),
    "windows joined in another order": (
        QWEN2_5,
        lambda told: {**told, patches.WINDOW_OF: told[patches.WINDOW_OF][::-1].copy()},
    ),
    "a window of all": (
        QWEN2_5,
        lambda told: {**told, patches.WINDOWS: np.roll(told[patches.WINDOWS], 1, axis=0)},
    ),
}


@pytest.mark.parametrize("mistake", GRIDS)
def test_the_tower_is_told_of_another_grid(
    mistake: str, plans: Callable[[str], ExportPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, wrong = GRIDS[mistake]
    bundle = export(plans(family), tmp_path / "bundle").folder
    told = patches.grid_inputs
    monkeypatch.setattr(reading, "grid_inputs", lambda *grid: wrong(told(*grid)))
    assert TOKENS in failures(plans(family), bundle)


# --- positions -------------------------------------------------------------------------------------------------


def with_rope(plan: ExportPlan, **changes: Any) -> ExportPlan:
    decoder = plan.spec.decoder
    return dataclasses.replace(
        plan,
        spec=plan.spec.with_decoder(
            dataclasses.replace(decoder, rope=dataclasses.replace(decoder.rope, **changes))
        ),
    )


@pytest.mark.parametrize(
    ("family", "change", "dialect", "layers"),
    [
        (QWEN3, {"interleaved": False}, "portable", None),
        (QWEN3, {"interleaved": False}, "portable", 4),
        (QWEN3, {"interleaved": False}, "onnxruntime", None),
        (QWEN2_5, {"interleaved": True}, "portable", None),
        (QWEN2_5, {"interleaved": True}, "onnxruntime", 4),
        (QWEN3, {"sections": (4, 3, 1)}, "portable", None),
        # The last angle alone, the slowest to turn.
        (QWEN3, {"sections": (2, 3, 3)}, "portable", None),
        (QWEN2_5, {"sections": (3, 2, 3)}, "portable", None),
        (QWEN2_5, {"sections": (8, 0, 0)}, "portable", None),
    ],
)
def test_angles_are_of_another_position(
    family: str,
    change: dict[str, Any],
    dialect: str,
    layers: int | None,
    plans: Callable[[str], ExportPlan],
    tmp_path: Path,
) -> None:
    sound = plan_of(plans(family).checkpoint.folder, dialect=dialect)
    wrong = with_rope(sound, **change)
    bundle = export(wrong, tmp_path / "bundle").folder
    assert any(found.startswith("language: ") for found in failures(wrong, bundle, layers=layers))
    if layers is not None:
        assert "structure: unlike what was run" in failures(sound, bundle, layers=layers)


@pytest.mark.parametrize("family", QWEN)
@pytest.mark.parametrize("axes", [(0, 2, 1), (1, 0, 2), (0, 0, 2), (0, 1, 1)])
def test_a_position_is_swapped(
    family: str, axes: tuple[int, ...], plans: Callable[[str], ExportPlan], tmp_path: Path
) -> None:
    axis_of = RopeSpec.axis_of

    def wrong(self: RopeSpec, head_dim: int) -> Any:
        return np.array(axes)[axis_of(self, head_dim)]

    found = mistaken(plans(family), tmp_path, lambda patch: patch.setattr(RopeSpec, "axis_of", wrong))
    assert {PREFILL, "language: chunked prefill", "language: ragged batch"} <= found


@pytest.mark.parametrize("family", QWEN)
def test_another_base_of_angles(family: str, plans: Callable[[str], ExportPlan], tmp_path: Path) -> None:
    wrong = with_rope(plans(family), theta=4990.0)
    found = failures(wrong, export(wrong, tmp_path / "bundle").folder)
    assert {"language: rotary tables", PREFILL} <= found


def test_heads_are_not_normalised(plans: Callable[[str], ExportPlan], tmp_path: Path) -> None:
    plan = plans(QWEN3)
    decoder = dataclasses.replace(plan.spec.decoder, qk_norm=False)
    wrong = dataclasses.replace(plan, spec=plan.spec.with_decoder(decoder))
    found = failures(plan, export(wrong, tmp_path / "bundle").folder)
    assert {"weights: left out", PREFILL} <= found
