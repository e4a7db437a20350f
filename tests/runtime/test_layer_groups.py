"""Sessions of a part of the layers: a model of four, cut in two that each keep a cache of their own.

The first two layers hand the hidden state of each id out as its logits, the others take it as a visual token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from checkpoints import make_checkpoint
from exporting import export, open_session, plan_of
from fake_device import SCRATCH, FakeDevice, FakePlan
from onnx_ir.passes.common import RemoveUnusedNodesPass
from raising import refused

from divprune_edge.manifest import LanguageInfo, LayerGroup, read_manifest
from divprune_edge.models.dialects import DIALECTS
from divprune_edge.models.profiles import EngineLimits, language_profiles
from divprune_edge.runtime.backends.block import BlockSession
from divprune_edge.runtime.backends.graph_facts import check_session
from divprune_edge.runtime.backends.growing import GrowingSession
from divprune_edge.runtime.backends.memory import DeviceMemory
from divprune_edge.runtime.backends.tensorrt_language import TensorRtLanguage
from divprune_edge.runtime.engines.memory import cache_bytes
from divprune_edge.runtime.engines.pool import Pool

CAPACITIES, WIDTH = (80, 73), 40
IDS = (1, 7, 9, 30, 4, 11, 5, 8)
DROPPED = (2, 3, 5)
"""Positions of the ids that the last two layers do not get to see."""

Exported = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A random model of four layers; its cache has so many rows where they are part of the graph."""
    folder = tmp_path_factory.mktemp("four")
    checkpoint = make_checkpoint(folder / "checkpoint", text={"num_hidden_layers": 4})

    def get(dialect: str = "portable", capacity: int | None = None) -> Path:
        rows = capacity if DIALECTS[dialect].for_tensorrt else None
        bundle = folder / f"{dialect}-{rows}"
        if not bundle.exists():
            export(plan_of(checkpoint, dialect=dialect, capacity=rows), bundle)
        return bundle

    return get


@dataclass
class Part:
    """Two layers as a graph of their own."""

    file: Path
    info: LanguageInfo
    group: LayerGroup

    def begin(self, backend: str, visual: np.ndarray) -> Any:
        """Return a session with a sequence in slot 0 whose visual tokens are those [K, D]."""
        session, to_device = self._over_fake_device() if backend == "tensorrt" else self._over_onnxruntime()
        assert session.add(to_device(visual[None])) == 0
        return session

    def _over_onnxruntime(self) -> tuple[Any, Any]:
        kind = GrowingSession if DIALECTS[self.info.dialect].grows else BlockSession
        session = kind(open_session(self.file), DeviceMemory("cpu"), self.info, self.group, 1)
        return session, ort.OrtValue.ortvalue_from_numpy

    def _over_fake_device(self) -> tuple[Any, Any]:
        device: Any = FakeDevice()
        profiles = language_profiles(self.info, EngineLimits(max_prompt=16, kept=(1, 1, 100)))
        shapes = [{name: one.model_dump() for name, one in profile.items()} for profile in profiles]
        plan: Any = FakePlan(device, {"file": str(self.file), "profiles": shapes}, self.file.stem)
        model = TensorRtLanguage(device, plan, self.info, self.group)
        model.reserve(device.allocate(SCRATCH))

        def upload(array: np.ndarray) -> Any:
            tensor = Pool(device).take(array.shape, array.dtype)
            device.upload(tensor.address, array.ctypes.data, array.nbytes)
            device.synchronize()
            return tensor

        return model.session(1), upload


def cut(bundle: Path, first: int) -> Part:
    """Cut out the two layers from ``first`` on; their tensors keep the names that they have in the whole."""
    info = read_manifest(bundle).language_model
    group = LayerGroup(first, 2, info.capacity)
    model = ir.load(bundle / info.file)
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    hidden = values["/language_model/layers.2/input_layernorm/Add_output_0"]
    logits = values["logits"]
    if first:
        hidden.replace_all_uses_with(values["/language_model/embed_tokens/Where_output_0"])
    else:
        logits.name, logits = "logits of the whole", values["/language_model/last/GatherND_output_0"]
        logits.producer().replace_input_with(0, hidden)
        info = info.model_copy(update={"vocabulary": WIDTH})
        logits.name, logits.dtype = "logits", ir.DataType.FLOAT
        logits.shape = ir.Shape(["batch", WIDTH])

    def own(tensor: Any) -> bool:
        name = tensor.name.partition(".")[2]
        return not name or name in group.cache_tensors

    graph.outputs[:] = [logits, *(value for value in graph.outputs if "." in value.name and own(value))]
    RemoveUnusedNodesPass()(model)
    graph.inputs[:] = [*filter(own, graph.inputs)]
    file = bundle / f"layers-{first}.onnx"
    ir.save(model, file)
    return Part(file, info.model_copy(update={"inputs": tuple(filter(own, info.inputs))}), group)


_FIXED = [(dialect, backend) for dialect in ("static", "decomposed") for backend in ("cpu", "tensorrt")]
FIXED = pytest.mark.parametrize(("dialect", "backend"), _FIXED)
KINDS = pytest.mark.parametrize(("dialect", "backend"), [("portable", "cpu"), *_FIXED])


@KINDS
def test_two_groups_in_a_row_are_the_whole(exported: Exported, dialect: str, backend: str) -> None:
    """The same logits of every id, and each has the rows of its own layers."""
    front, back, visual_ids = chain(exported, dialect, backend, IDS)
    info = read_manifest(exported()).language_model
    whole = Part(exported() / info.file, info, *info.groups).begin("cpu", np.zeros((1, WIDTH), np.float32))
    for one, token in zip(visual_ids, IDS, strict=True):
        assert np.allclose(back.extend(0, [one]).logits, whole.extend(0, [token]).logits, atol=1e-4)
    rows = [*front.rows(0, len(IDS)), *back.rows(0, len(IDS))]
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(rows, whole.rows(0, len(IDS)), strict=True))


@KINDS
@pytest.mark.parametrize("original", [False, True])
def test_each_group_counts_rows_and_positions_of_its_own(
    exported: Exported, dialect: str, backend: str, original: bool
) -> None:
    """The second drops ids, and numbers the others anew or not: the same as its graph, fed by hand."""
    front, back, visual_ids = chain(exported, dialect, backend, IDS)
    kept = [i for i in range(len(IDS)) if i not in DROPPED]
    places = kept if original else None
    found = back.extend(0, [visual_ids[i] for i in kept], places, chunk=2).logits
    assert (front.length(0), back.length(0)) == (len(IDS), len(kept))
    hidden = hidden_of(cut(exported(), 0).begin("cpu", np.zeros((1, WIDTH), np.float32)), IDS)
    assert np.allclose(
        found, at_once(cut(exported(), 2), hidden[kept], places or range(len(kept))), atol=1e-4
    )


@FIXED
def test_each_group_has_room_of_its_own(exported: Exported, dialect: str, backend: str) -> None:
    """The second is full, the first is not; rows that are given up make room in their group alone."""
    most, rest = CAPACITIES[1], 2
    front, back, visual_ids = chain(exported, dialect, backend, [5 + i % 40 for i in range(most + rest)])
    back.extend(0, visual_ids[:most])
    with refused("sequence-too-long", most + 1, most, "--capacity"):
        back.extend(0, visual_ids[most:][:1])
    back.truncate(0, most - rest)
    back.extend(0, visual_ids[most:])
    assert (front.length(0), back.length(0)) == (most + rest, most)


def chain(
    exported: Exported, dialect: str, backend: str, ids: Sequence[int]
) -> tuple[Any, Any, Sequence[int]]:
    """Return a session that has been fed ``ids``, the session behind it, and what the second calls these ids."""
    first, second = (cut(exported(dialect, rows), 2 * i) for i, rows in enumerate(CAPACITIES))
    front = first.begin(backend, np.zeros((1, WIDTH), np.float32))
    rows = second.info.embedding_rows
    return front, second.begin(backend, hidden_of(front, ids)), range(rows, rows + len(ids))


def hidden_of(front: Any, ids: Sequence[int]) -> np.ndarray:
    return np.stack([front.step({0: token})[0].logits.copy() for token in ids])


def at_once(part: Part, hidden: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    """Feed a graph of dialect ``portable`` by hand."""
    count, info = len(hidden), part.info
    empty = np.zeros((1, info.kv_heads, 0, info.head_dim), np.float32)
    feed = {
        "input_ids": info.embedding_rows + np.arange(count)[None],
        "visual_tokens": hidden[None],
        "logits_index": np.array([count - 1]),
        "attention_mask": np.ones((1, count), np.bool_),
        "position_ids": np.array([positions]),
    }
    feed |= {f"past_key_values.{i}.{what}": empty for i in (2, 3) for what in ("key", "value")}
    (logits,) = open_session(part.file).run(["logits"], feed)
    return logits[0]  # type: ignore[no-any-return]


def test_numbers_of_the_manifest_are_those_of_all_groups(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a build needs and what a graph is held against; two layers have another number of rows than two."""
    bundle = exported("static", CAPACITIES[0])
    manifest = read_manifest(bundle)
    info = manifest.language_model
    session = open_session(bundle / info.file)
    row = 2 * 4 * 10 * 4  # keys and values, heads, their width, bytes
    assert cache_bytes(info, 16) == 4 * 80 * row
    check_session(manifest, info, session)
    groups = [LayerGroup(2 * i, 2, rows) for i, rows in enumerate(CAPACITIES)]
    monkeypatch.setattr(LanguageInfo, "groups", groups)
    assert cache_bytes(info, 16) == 2 * (80 + 73) * row
    with refused(
        "manifest-does-not-fit", "capacity 73", "'past_key_values.2.key' has the shape [?, 4, 80, 10]"
    ):
        check_session(manifest, info, session)
