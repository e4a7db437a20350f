"""A bundle's graphs as models of Triton: a backend whose tensors are arrays, and which calls the server for each run.

``triton_python_backend_utils`` exists inside of Triton's Python backend alone, and is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import DivpruneError
from divprune_edge.manifest import VISUAL_TOKENS, LanguageInfo, Manifest, SelectorInfo, tile_input
from divprune_edge.processing.image_input import Groups
from divprune_edge.runtime.backends.backend import Encoded
from divprune_edge.runtime.backends.session import CacheRows, Ints, Prediction, SlotTable, along, best_of

Array = npt.NDArray[Any]
Run = Callable[[str, Mapping[str, Any], Sequence[str]], dict[str, Any]]
"""Model, inputs by name (arrays or Triton's tensors), names of outputs -> these, as Triton's tensors."""
ENCODER, ASSEMBLE, LANGUAGE = "vision_encoder", "assemble", "language_model"


def model_name(bundle: str, graph: str) -> str:
    """Return what Triton calls a graph of a bundle; of a selector its id."""
    return f"{bundle}-{graph}"


def runner(utils: Any, bundle: str) -> Run:
    """Return what asks Triton to run a graph."""

    def run(graph: str, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        tensors = [
            utils.Tensor(name, np.ascontiguousarray(value))
            if isinstance(value, np.ndarray)
            # The same memory under another name: a cache is not copied here.
            else utils.Tensor.from_dlpack(name, value)
            for name, value in inputs.items()
        ]
        request = utils.InferenceRequest(
            model_name=model_name(bundle, graph),
            requested_output_names=[*outputs],
            inputs=tensors,
            preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU),
        )
        response = request.exec()
        if response.has_error():
            raise DivpruneError(
                f"Triton could not run '{model_name(bundle, graph)}' ({response.error().message()}).",
                code="triton-graph-failed",
            )
        return {name: utils.get_output_tensor_by_name(response, name) for name in outputs}

    return run


class TritonGraphs:
    """See :class:`~divprune_edge.runtime.backends.backend.Backend`; the language model is in dialect ``portable``."""

    name = "triton"
    images_at_once = 4
    computes_beside = True

    def __init__(self, manifest: Manifest, run: Run) -> None:
        self._manifest, self._run = manifest, run

    def load(self, selector: SelectorInfo | None) -> None:
        """Triton has loaded all of them."""

    def encode(self, inputs: Mapping[str, Array], signals: Sequence[str] = ()) -> Encoded:
        """Run the encoder's model."""
        return self._encoded(ENCODER, inputs, [VISUAL_TOKENS, *signals])

    def stack(self, runs: Iterable[Encoded], shapes: Mapping[str, Sequence[int]]) -> Encoded:
        """Copy."""
        parts = [run.outputs for run in runs]
        whole = {
            name: np.concatenate([part[name].reshape(-1, *shape[2:]) for part in parts]).reshape(shape)
            for name, shape in shapes.items()
        }
        return Encoded(whole)

    def assemble(self, encoded: Encoded, groups: Groups) -> Encoded:
        """Run that graph's model."""
        graph = self._manifest.assemble
        assert graph is not None
        inputs = {tile_input(name): value for name, value in encoded.outputs.items()} | {"rows": groups.rows}
        if graph.sources > 1:
            inputs["weights"] = groups.weights
        return self._encoded(ASSEMBLE, inputs, [*encoded.outputs])

    def part(self, encoded: Encoded, index: int) -> Encoded:
        """Of one group nothing is taken apart."""
        part = {
            name: value if len(value) == 1 else value[index : index + 1]
            for name, value in encoded.outputs.items()
        }
        return Encoded(part)

    def select(
        self, encoded: Encoded, selector: SelectorInfo, valid: npt.NDArray[np.bool_]
    ) -> tuple[Array, Ints]:
        """Run the selector's model."""
        inputs = {name: encoded.outputs[name] for name in (VISUAL_TOKENS, *selector.signals)}
        inputs["valid"] = valid
        found = self._run(selector.id, inputs, ["kept_tokens", "kept_indices"])
        return _array(found["kept_tokens"]), _array(found["kept_indices"])

    def take(self, tensor: Array, rows: Ints) -> Array:
        """Copy."""
        return tensor[:, rows]

    def join(self, tensors: Sequence[Array], shape: Sequence[int]) -> Array:
        """Copy, where there are several."""
        whole = np.concatenate([tensor.reshape(-1) for tensor in tensors]).reshape(shape)
        return tensors[0] if len(tensors) == 1 and tensors[0].shape == tuple(shape) else whole

    def to_host(self, tensor: Array) -> Array:
        """It is there."""
        return tensor

    def to_device(self, array: Array) -> Array:
        """Copy, as what is given may change."""
        return array.copy()

    def session(self, slots: int = 1) -> TritonSession:
        """Return slots, which the model runs one after the other."""
        return TritonSession(self._manifest.language_model, self._run, slots)

    def _encoded(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Encoded:
        found = self._run(graph, inputs, outputs)
        return Encoded({name: _array(value) for name, value in found.items()})


@dataclass
class _Sequence:
    """A sequence's cache: key and value of each layer, [1, kv_heads, 1 + rows, head_dim], as Triton's or as arrays.

    Its first row is none: it is masked, as no tensor of Triton should be empty.
    """

    cache: list[Any]


class TritonSession(SlotTable):
    """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`; a step runs the model for each sequence."""

    def __init__(self, info: LanguageInfo, run: Run, slots: int) -> None:
        (group,) = info.groups
        super().__init__(info, group, slots)
        self._run = run
        self._past = [f"past_key_values.{name}" for name in group.cache_tensors]
        self._present = [f"present.{name}" for name in group.cache_tensors]
        self._outputs = ["logits", *(["next_id"] if info.says_next else []), *self._present]
        self._sequences: dict[int, _Sequence] = {}

    def add(self, visual: Array, rows: CacheRows | None = None) -> int:
        """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`, also for what follows."""
        slot, info = self.take(visual), self._info
        nothing = np.zeros((1, info.kv_heads, 1, info.head_dim), info.cache_dtype)
        cache = [np.concatenate((nothing, part), axis=2) for part in rows or ()]
        self._sequences[slot] = _Sequence(cache or [nothing] * len(self._past))
        self.lengths[slot] = rows[0].shape[2] if rows else 0
        return slot

    def remove(self, slot: int) -> None:
        """Let go of its cache."""
        del self._sequences[slot]
        super().remove(slot)

    def step(
        self, ids: Mapping[int, int], positions: Mapping[int, int] | None = None
    ) -> dict[int, Prediction]:
        """Run the model for each sequence."""
        for slot in ids:
            self.check_room(slot, 1)
        found = {}
        for slot, token in ids.items():
            place = self.length(slot) if positions is None else positions[slot]
            found[slot] = self.prefill(slot, np.array([[token]]), np.array([[place]]))
            self.lengths[slot] += 1
        return found

    def truncate(self, slot: int, length: int) -> None:
        """Copy what stays."""
        if length < self.length(slot):
            sequence = self._sequences[slot]
            sequence.cache = [_array(part)[:, :, : 1 + length].copy() for part in sequence.cache]
            super().truncate(slot, length)

    def rows(self, slot: int, length: int) -> CacheRows:
        """Copy."""
        return [_array(part)[:, :, 1 : 1 + length].copy() for part in self._sequences[slot].cache]

    def prefill(self, slot: int, ids: Ints, positions: Ints) -> Prediction:
        """Run the model."""
        sequence = self._sequences[slot]
        mask = np.ones((1, 1 + self.length(slot) + ids.shape[1]), np.bool_)
        mask[0, 0] = False
        inputs = {
            "input_ids": ids,
            "logits_index": np.array([ids.shape[1] - 1]),
            "attention_mask": mask,
            "position_ids": along(positions, self._axes),
            VISUAL_TOKENS: self.visual[slot],
            **dict(zip(self._past, sequence.cache, strict=True)),
        }
        found = self._run(LANGUAGE, inputs, self._outputs)
        sequence.cache = [found[name] for name in self._present]
        logits = _array(found["logits"])[0].copy()
        best = None
        if self._info.says_next:
            best = best_of(int(_array(found["next_id"])[0]), self._info.vocabulary)
        return Prediction(best, partial(np.asarray, logits))


def _array(tensor: Any) -> Array:
    found: Array = tensor if isinstance(tensor, np.ndarray) else tensor.as_numpy()
    return found
