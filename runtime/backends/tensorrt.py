"""TensorRT: engines that run back to back on one stream and hand each other device memory.

Nothing that belongs to a token leaves the device: the encoder's output is the selector's input, the selector's output
is what the language model reads. See docs/engines.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import (
    VISUAL_TOKENS,
    AssembleInfo,
    GraphInfo,
    SelectorInfo,
    TensorInfo,
    tile_input,
)
from divprune_edge.models.profiles import (
    ASSEMBLE,
    HIDDEN,
    VISION,
    Shape,
    is_language,
    is_within,
    language_engines,
)
from divprune_edge.models.tensorrt import Name
from divprune_edge.plugins.abi import DTYPES, Problem
from divprune_edge.processing.image_input import Groups
from divprune_edge.processing.patches import PIXELS, ROWS, held_dimensions, most_dimensions
from divprune_edge.runtime.backends.backend import Encoded
from divprune_edge.runtime.backends.graph_facts import check_plan
from divprune_edge.runtime.backends.session import LanguageSession
from divprune_edge.runtime.backends.tensorrt_language import TensorRtLanguage
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.device import Context, Device, HostMemory, Memory, Plan
from divprune_edge.runtime.engines.memory import mib
from divprune_edge.runtime.engines.opening import Engines
from divprune_edge.runtime.engines.pool import Pool, Tensor


class OpenEngines(Protocol):
    """:func:`~divprune_edge.runtime.engines.opening.open_engines` of one bundle."""

    def __call__(self, selector: SelectorInfo | None, *, before: Engines | None) -> Engines:
        """Return checked engines for a selector; those that ``before`` has are left out."""
        ...


class TensorRtBackend:
    """The engines of one bundle on one device.

    Args:
        bundle: with a language model in dialect ``static`` or ``decomposed``.
        device: what they run on.
        open_engines: where their engines come from.
        name: of the edition of TensorRT.
    """

    images_at_once = 1
    computes_beside = False
    """All contexts share the activations' memory, and one stream."""

    def __init__(
        self, bundle: Bundle, device: Device, open_engines: OpenEngines, name: Name = "tensorrt"
    ) -> None:
        self._bundle, self._device, self._open, self._name = bundle, device, open_engines, name
        self._pool = Pool(device)
        self._engines: Engines | None = None
        self._plans: dict[str, Plan] = {}
        # Of each engine one for each of its profiles.
        self._contexts: dict[str, list[Context]] = {}
        self._scratch: Memory | None = None
        # One, or one for each graph of a chain.
        self._language: list[TensorRtLanguage] = []
        self._host: dict[str, HostMemory] = {}
        # Selectors that are our kernel and no engine, and the workspace that it takes.
        self._kernels: dict[str, int] = {}
        manifest = bundle.manifest
        self._most = {
            "batch": 1,
            "tiles": manifest.tiles_at_once,
            "frames": manifest.tiles_at_once,
            "groups": manifest.groups,
            **most_dimensions(manifest.preprocessing.patches),
        }
        # Of all tiles together.
        self._held = held_dimensions(manifest.preprocessing)
        if manifest.assemble is not None:
            self._held["tiles"] = manifest.assemble.tiles

    @property
    def name(self) -> str:
        """See :class:`~divprune_edge.runtime.backends.backend.Backend`, also for what follows."""
        return self._name

    def load(self, selector: SelectorInfo | None) -> None:
        """Deserialise what is missing, and allocate all that a question with ``selector`` needs."""
        manifest = self._bundle.manifest
        language = language_engines(manifest.language_model)
        names = (*self._seeing, *language, *([selector.id] if selector else []))
        if any(name not in self._plans and name not in self._kernels for name in names):
            engines = self._open(selector, before=self._engines)
            self._load_plans(engines)
            if selector is not None and engines.kernel:
                self._kernels[selector.id] = self._device.max_min_bytes(self._problem(selector))
        vision = manifest.vision_encoder
        tensors = self._shapes((*vision.outputs, *vision.inputs))
        if manifest.assemble is not None:
            tensors += self._tiled(manifest.assemble, selector)
        if selector is not None:
            tensors += [*self._shapes(selector.outputs), ((1, manifest.candidates), np.bool_)]
            if selector.id in self._kernels:
                tensors += self._beside_kernel(selector)
        scratch = self._allocate([*tensors, *self._hidden()])
        self._language[0].check_kept(manifest.visual_tokens(selector))
        for model in self._language:
            model.reserve(scratch)

    def encode(self, inputs: Mapping[str, npt.NDArray[Any]], signals: Sequence[str] = ()) -> Encoded:
        """Run the vision encoder; its outputs stay on the device."""
        most = self._bundle.manifest.tiles_at_once
        tiles = len(inputs["pixels"])
        if tiles > most:
            raise UserError(
                f"There are {tiles} images, but backend '{self._name}' takes {most} at a time.",
                code="batch-with-backend",
            )
        graph, patches = self._bundle.manifest.vision_encoder, self._bundle.manifest.preprocessing.patches
        read = {
            info.name: self._upload(info.name, inputs[info.name], self._room(info)) for info in graph.inputs
        }
        rows = {} if patches is None else {ROWS: read[PIXELS].shape[1] // patches.merge**2}
        outputs = self._run(VISION, graph, read, rows)
        # The times of an answer are told by stage, so each stage ends before the next begins.
        self._device.synchronize()
        return Encoded({name: outputs[name] for name in (VISUAL_TOKENS, *signals)})

    def stack(self, runs: Iterable[Encoded], shapes: Mapping[str, Sequence[int]]) -> Encoded:
        """Copy on the device."""
        rows = self._bundle.manifest.assemble
        assert rows is not None
        room = {tensor.name: self._room(tensor, self._held) for tensor in rows.inputs}
        whole = {}
        for tensor in self._bundle.manifest.vision_encoder.outputs:
            shape = tuple(shapes[tensor.name])
            whole[tensor.name] = self._pool.take(shape, tensor.dtype, room[tile_input(tensor.name)])
        places = {name: tensor.address for name, tensor in whole.items()}
        for run in runs:
            for name, value in run.outputs.items():
                self._device.copy(places[name], value.address, value.nbytes)
                places[name] += value.nbytes
            del run, value  # the next one may take its place: the copy comes before it
        return Encoded(whole)

    def assemble(self, encoded: Encoded, groups: Groups) -> Encoded:
        """Run the engine that makes rows of tiles' tokens."""
        graph = self._bundle.manifest.assemble
        assert graph is not None
        inputs = {tile_input(name): value for name, value in encoded.outputs.items()}
        for info in graph.inputs:
            if info.name not in inputs:
                inputs[info.name] = self._upload(info.name, getattr(groups, info.name), self._room(info))
        outputs = self._run(ASSEMBLE, graph, inputs)
        self._device.synchronize()
        return Encoded({name: outputs[name] for name in encoded.outputs})

    def part(self, encoded: Encoded, index: int) -> Encoded:
        """Copy on the device."""

        def one(tensor: Tensor) -> Tensor:
            if tensor.shape[0] == 1:
                return tensor
            taken = self._pool.take((1, *tensor.shape[1:]), tensor.dtype)
            self._device.copy(taken.address, tensor.address + index * taken.nbytes, taken.nbytes)
            return taken

        return Encoded({name: one(value) for name, value in encoded.outputs.items()})

    def select(
        self, encoded: Encoded, selector: SelectorInfo, valid: npt.NDArray[np.bool_]
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Return the kept tokens on the device; the indices alone come to the host, where the answer reports them."""
        inputs = {"valid": self._upload("valid", valid), **encoded.outputs}
        if selector.id in self._kernels:
            return self._pick(selector, inputs["visual_tokens"], inputs["valid"])
        read = {tensor.name: inputs[tensor.name] for tensor in selector.inputs}
        outputs = self._run(selector.id, selector, read)
        return outputs["kept_tokens"], self._download("kept_indices", outputs["kept_indices"])

    def take(self, tensor: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
        """Copy on the device."""
        taken = self._pool.take((1, rows.size, *tensor.shape[2:]), tensor.dtype)
        self._copy_rows(taken.address, tensor.address, rows, taken.nbytes // rows.size)
        return taken

    def join(self, tensors: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """Copy on the device where there are several."""
        if len(tensors) == 1:
            return replace(tensors[0], shape=tuple(shape), base=tensors[0])
        room = (self._bundle.manifest.groups, *shape[1:]) if shape[0] > 1 else ()
        joined = self._pool.take(tuple(shape), tensors[0].dtype, room)
        place = joined.address
        for tensor in tensors:
            self._device.copy(place, tensor.address, tensor.nbytes)
            place += tensor.nbytes
        return joined

    def to_host(self, tensor: Tensor) -> npt.NDArray[Any]:
        """Copy from the device."""
        return self._download(f"{tensor.shape} {tensor.dtype}", tensor)

    def to_device(self, array: npt.NDArray[Any]) -> Tensor:
        """Copy to the device, in the type of the visual tokens if it is one of their kind."""
        wanted = self._bundle.manifest.token_dtype if array.dtype.kind == "f" else array.dtype
        tensor = self._upload(f"{array.shape} {wanted}", np.ascontiguousarray(array, wanted))
        self._device.synchronize()
        return tensor

    def session(self, slots: int = 1) -> LanguageSession:
        """Return the slots of a session that is gone, else new ones."""
        assert self._language, "load comes first"
        info = self._bundle.manifest.language_model
        if info.schedule is None:
            return self._language[0].session(slots)
        from divprune_edge.runtime.backends.chain import ChainSession

        return ChainSession([model.session(slots) for model in self._language], _Between(self), info)

    def take_hidden(self, hidden: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return some rows of the hidden states of a prompt [1, seq, W], in the order given."""
        width = hidden.shape[2]
        taken = self._pool.take((1, rows.size, width), hidden.dtype, self._hidden_room(width))
        self._copy_rows(taken.address, hidden.address, rows, width * hidden.dtype.itemsize)
        return taken

    def _hidden_room(self, width: int) -> Shape:
        assert self._engines is not None
        return (1, self._engines.limits.max_prompt, width)

    def _hidden(self) -> list[tuple[Shape, Any]]:
        """Return what the hidden states that a cut leaves are held in between two graphs; one at a time."""
        handed = [
            one
            for graph in self._bundle.manifest.language_model.segments
            for one in graph.inputs
            if one.name == HIDDEN
        ]
        widths = {int(one.shape[2]): one.dtype for one in handed}
        return [(self._hidden_room(width), dtype) for width, dtype in widths.items()]

    def _load_plans(self, engines: Engines) -> None:
        for name, plan in engines.plans.items():
            library = engines.library if engines.info[name].plugin else None
            loaded = self._device.load(plan, name, engines.info[name].sha256, library)
            manifest = self._bundle.manifest
            language = manifest.language_model
            graphs: dict[str, GraphInfo | None] = {
                VISION: manifest.vision_encoder,
                ASSEMBLE: manifest.assemble,
                **dict(zip(language_engines(language), language.graphs, strict=True)),
            }
            graph = graphs.get(name) or self._bundle.selector(name)
            if graph is not None:
                check_plan(manifest, graph, {tensor: loaded.shape(tensor) for tensor in loaded.names})
            self._plans[name] = loaded
        # What was deserialised is not needed as bytes any more.
        self._engines = self._engines or replace(engines, plans={})

    @property
    def _seeing(self) -> tuple[str, ...]:
        return (VISION, ASSEMBLE) if self._bundle.manifest.assemble is not None else (VISION,)

    def _room(self, tensor: TensorInfo, sizes: Mapping[str, int] | None = None) -> Shape:
        """Return the shape of an input or output with these sizes, the largest of others."""
        return _fixed(tensor.shape, {**self._most, **(sizes or {})})

    def _shapes(self, tensors: Iterable[TensorInfo], **sizes: int) -> list[tuple[Shape, Any]]:
        return [(self._room(tensor, sizes), tensor.dtype) for tensor in tensors]

    def _tiled(self, rows: AssembleInfo, selector: SelectorInfo | None) -> list[tuple[Shape, Any]]:
        """Return what an image or clip of the most tiles takes beyond a run of the encoder and one of the selector."""
        manifest, groups = self._bundle.manifest, self._bundle.manifest.groups
        given = {tile_input(tensor.name) for tensor in manifest.vision_encoder.outputs}
        found = self._shapes(tensor for tensor in rows.inputs if tensor.name not in given)
        if rows.tiles > manifest.tiles_at_once:
            stacked = (tensor for tensor in rows.inputs if tensor.name in given)
            found += self._shapes(stacked, **self._held)
        found += self._shapes(rows.outputs)
        if selector is not None and groups > 1:
            # A group's part while the one before is not let go; what is kept of each, and all of it together.
            found += self._shapes(rows.outputs, groups=1) * 2
            kept = self._shapes(selector.outputs)[0]
            found += [kept] * (groups - 1) + [((groups, *kept[0][1:]), kept[1])]
        return found

    def _beside_kernel(self, selector: SelectorInfo) -> list[tuple[Shape, Any]]:
        """Return what our kernel works in; where rows are wider than what it looks at, that and what it keeps of it."""
        vision, dtype = self._bundle.manifest.vision_encoder, self._bundle.manifest.token_dtype
        found: list[tuple[Shape, Any]] = [((self._kernels[selector.id],), np.uint8)]
        if vision.looked_at < vision.width:
            found += [((1, rows, vision.looked_at), dtype) for rows in (selector.candidates, selector.keep)]
        return found

    def _allocate(self, tensors: list[tuple[Shape, Any]]) -> Memory:
        """Allocate activations and tensors, or say what is too much before any of it is; return the activations."""
        activations = max(1, *(plan.scratch_bytes for plan in self._plans.values()))
        larger = self._scratch is None or self._scratch.nbytes < activations
        needed = {
            "activations": activations if larger else 0,
            "tensors between the engines": self._pool.missing(tensors),
        }
        assert self._engines is not None
        language = self._language or self._open_language(self._engines.limits.images)
        if not self._language:
            needed["KV cache and what a step takes"] = sum(model.memory_bytes(1) for model in language)
        self._require(needed)
        self._language = language
        if self._scratch is None or larger:
            # Contexts that were made before keep what they got.
            self._scratch = self._device.allocate(activations)
        for name, plan in self._plans.items():
            if not is_language(name) and name not in self._contexts:
                varying = name == VISION and self._bundle.manifest.preprocessing.patches is not None
                self._contexts[name] = [
                    plan.context(profile, self._scratch, varying=varying) for profile in range(plan.profiles)
                ]
        self._pool.reserve(tensors)
        return self._scratch

    def _open_language(self, images: int) -> list[TensorRtLanguage]:
        info = self._bundle.manifest.language_model
        return [
            TensorRtLanguage(self._device, self._plans[name], part, group, images)
            for name, part, group in zip(language_engines(info), info.parts, info.groups, strict=True)
        ]

    def _require(self, needed: Mapping[str, int]) -> None:
        total, free = sum(needed.values()), self._device.free_bytes()
        if total > free:
            parts = ", ".join(f"{name} {mib(size)}" for name, size in needed.items() if size)
            raise UserError(
                f"The engines run with {mib(total)} MiB beside their weights ({parts}), but {self._device.name} has "
                f"{mib(free)} MiB free: close other programs, keep fewer visual tokens, or export with a smaller "
                "--capacity.",
                code="gpu-memory-too-small",
            )

    def _run(
        self,
        name: str,
        graph: GraphInfo,
        inputs: Mapping[str, Tensor],
        sizes: Mapping[str, int] | None = None,
    ) -> dict[str, Tensor]:
        """Run an engine; ``sizes`` are dimensions of its outputs that no input has."""
        known = {**(sizes or {})}
        for info in graph.inputs:
            pairs = zip(info.shape, inputs[info.name].shape, strict=True)
            known |= {symbol: size for symbol, size in pairs if isinstance(symbol, str)}
        context = self._context(name, {tensor: value.shape for tensor, value in inputs.items()})
        outputs = self._take_outputs(graph, known)
        for tensor, value in inputs.items():
            context.set_shape(tensor, value.shape)
        for tensor, value in {**inputs, **outputs}.items():
            context.set_address(tensor, value.address)
        context.enqueue()
        return outputs

    def _context(self, name: str, shapes: Mapping[str, Shape]) -> Context:
        """Return the context of the engine's first profile that takes these shapes.

        Raises:
            UserError: there is none.
        """
        contexts, plan = self._contexts[name], self._plans[name]
        if len(contexts) == 1:
            return contexts[0]
        for profile, context in enumerate(contexts):
            limits = {tensor: plan.limits(tensor, profile) for tensor in shapes}
            if all(is_within(shape, *limits[tensor]) for tensor, shape in shapes.items()):
                return context
        raise UserError(
            f"The engine of the {name.replace('_', ' ')} was not built for {shapes[PIXELS][1]} patches: build it again "
            "with 'python -m runtime build BUNDLE --force'.",
            code="engine-image-size",
        )

    def _pick(
        self, selector: SelectorInfo, tokens: Tensor, valid: Tensor
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Do what the selector's engine does, by the kernel.

        ::

            tokens [1, N, D · (1 + stacked)] ─► first D values ─► kernel ─► indices ─► rows of tokens
        """
        outputs, problem = self._take_outputs(selector, {}), self._problem(selector)
        workspace, *narrow = (self._pool.take(*one) for one in self._beside_kernel(selector))
        kept, indices = outputs["kept_tokens"], outputs["kept_indices"]
        read, written = narrow or (tokens, kept)
        row, looked_at = tokens.nbytes // problem.candidates, read.nbytes // problem.candidates
        if narrow:
            self._device.copy_pieces(
                read.address, looked_at, tokens.address, row, looked_at, problem.candidates
            )
        places = (read, valid, written, indices)
        self._device.max_min(problem, workspace.memory, *(tensor.address for tensor in places))
        picked = self._download("kept_indices", indices)
        if narrow:
            self._copy_rows(kept.address, tokens.address, picked[0], row)
        return kept, picked

    def _copy_rows(self, to: int, source: int, rows: npt.NDArray[np.int64], nbytes: int) -> None:
        """Copy rows of so many bytes; neighbours lie behind each other here as there, and are one copy."""
        for run in np.split(np.arange(rows.size), np.flatnonzero(np.diff(rows) != 1) + 1):
            begin = to + int(run[0]) * nbytes
            self._device.copy(begin, source + int(rows[run[0]]) * nbytes, len(run) * nbytes)

    def _take_outputs(self, graph: GraphInfo, sizes: Mapping[str, int]) -> dict[str, Tensor]:
        return {
            info.name: self._pool.take(self._room(info, sizes), info.dtype, self._room(info))
            for info in graph.outputs
        }

    def _problem(self, selector: SelectorInfo) -> Problem:
        vision, dtype = self._bundle.manifest.vision_encoder, self._bundle.manifest.token_dtype
        return Problem(1, selector.candidates, vision.looked_at, selector.keep, DTYPES[dtype], 0, 0)

    def _upload(self, use: str, array: npt.NDArray[Any], room: Shape = ()) -> Tensor:
        tensor = self._pool.take(array.shape, array.dtype, room)
        host = self._staging(use, tensor.memory.nbytes)
        host.array[: tensor.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._device.upload(tensor.address, host.address, tensor.nbytes)
        return tensor

    def _download(self, use: str, tensor: Tensor) -> npt.NDArray[Any]:
        """Wait for a tensor and return a copy, which the next question does not write over."""
        host = self._staging(use, tensor.nbytes)
        self._device.download(host.address, tensor.address, tensor.nbytes)
        self._device.synchronize()
        values: npt.NDArray[Any] = host.array[: tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
        return values.copy()

    def _staging(self, use: str, nbytes: int) -> HostMemory:
        """Return page-locked memory for one use; its last use is over, because every stage ends with a wait."""
        held = self._host.get(use)
        if held is None or held.nbytes < nbytes:
            held = self._host[use] = self._device.pinned(nbytes)
        return held


class _Between:
    """What a chain does with hidden states; what a graph reads of layers is on the host when its run is over."""

    def __init__(self, backend: TensorRtBackend) -> None:
        self._backend = backend

    def take(self, tensor: Tensor, rows: npt.NDArray[np.int64], axis: int = 1) -> Tensor:
        """See :class:`~divprune_edge.runtime.backends.chain.Tensors`, also for what follows."""
        assert axis == 1, "slots are always stepped in one order"
        return self._backend.take_hidden(tensor, rows)

    def download(self, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return it."""
        return tensor


def _fixed(shape: Sequence[int | str], sizes: Mapping[str, int]) -> Shape:
    """Return a shape with these sizes of its symbolic dimensions."""
    return tuple(sizes[size] if isinstance(size, str) else size for size in shape)
