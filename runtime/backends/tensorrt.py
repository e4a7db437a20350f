"""TensorRT: engines that run back to back on one stream and hand each other device memory.

Nothing that belongs to a token leaves the device: the encoder's output is the selector's input, the selector's output
is what the language model reads. See docs/engines.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import AssembleInfo, GraphInfo, SelectorInfo
from divprune_edge.plugins.abi import DTYPES, Problem
from divprune_edge.processing.image_input import Groups
from divprune_edge.runtime.backends.backend import Encoded, check_rows
from divprune_edge.runtime.backends.session import LanguageSession
from divprune_edge.runtime.backends.tensorrt_language import TensorRtLanguage
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.device import Context, Device, HostMemory, Memory, Plan, Shape
from divprune_edge.runtime.engines.edition import Name
from divprune_edge.runtime.engines.memory import mib
from divprune_edge.runtime.engines.opening import Engines
from divprune_edge.runtime.engines.pool import Pool, Tensor
from divprune_edge.runtime.engines.profiles import ASSEMBLE, LANGUAGE, VISION
from divprune_edge.runtime.graph_facts import check_plan


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

    def __init__(
        self, bundle: Bundle, device: Device, open_engines: OpenEngines, name: Name = "tensorrt"
    ) -> None:
        self._bundle, self._device, self._open, self._name = bundle, device, open_engines, name
        self._pool = Pool(device)
        self._engines: Engines | None = None
        self._plans: dict[str, Plan] = {}
        self._contexts: dict[str, Context] = {}
        self._scratch: Memory | None = None
        self._language: TensorRtLanguage | None = None
        self._host: dict[str, HostMemory] = {}
        # Selectors that are our kernel and no engine, and the workspace that it takes.
        self._kernels: dict[str, int] = {}

    @property
    def name(self) -> str:
        """See :class:`~divprune_edge.runtime.backends.backend.Backend`, also for what follows."""
        return self._name

    def load(self, selector: SelectorInfo | None) -> None:
        """Deserialise what is missing, and allocate all that a question with ``selector`` needs."""
        manifest = self._bundle.manifest
        vision, tokens = manifest.vision_encoder, manifest.candidates
        names = (*self._seeing, LANGUAGE, *([selector.id] if selector else []))
        if any(name not in self._plans and name not in self._kernels for name in names):
            engines = self._open(selector, before=self._engines)
            self._load_plans(engines)
            if selector is not None and engines.kernel:
                self._kernels[selector.id] = self._device.max_min_bytes(self._sizes(selector))
        tiles = manifest.tiles_at_once
        pixels = (tiles, vision.image_height, vision.image_width, 3)
        tensors: list[tuple[Shape, Any]] = [*self._outputs(vision, tiles), (pixels, np.uint8)]
        if manifest.assemble is not None:
            tensors += self._tiled(manifest.assemble, selector)
        if selector is not None:
            tensors += [*self._outputs(selector), ((1, tokens), np.bool_)]
            tensors += [((self._kernels[one],), np.uint8) for one in (selector.id,) if one in self._kernels]
        scratch = self._allocate(tensors)
        self._model.check_kept(manifest.visual_tokens(selector))
        self._model.reserve(scratch)

    def encode(self, pixels: npt.NDArray[np.uint8], signals: Sequence[str] = ()) -> Encoded:
        """Run the vision encoder; its outputs stay on the device."""
        most = self._bundle.manifest.tiles_at_once
        if len(pixels) > most:
            raise UserError(
                f"There are {len(pixels)} images, but backend '{self._name}' takes {most} at a time.",
                code="batch-with-backend",
            )
        graph = self._bundle.manifest.vision_encoder
        read = self._upload("pixels", pixels, most)
        outputs = self._run(VISION, graph, {"pixels": read}, len(pixels), most)
        # The times of an answer are told by stage, so each stage ends before the next begins.
        self._device.synchronize()
        return Encoded(outputs["visual_tokens"], {name: outputs[name] for name in signals})

    def assemble(self, encoded: Encoded, groups: Groups) -> Encoded:
        """Run the engine that makes rows of tiles' tokens."""
        graph, most = self._bundle.manifest.assemble, self._bundle.manifest.groups
        assert graph is not None
        inputs = {"tile_tokens": encoded.tokens, "rows": self._upload("rows", groups.rows, most)}
        inputs |= {f"tile_{name}": value for name, value in encoded.signals.items()}
        if graph.sources > 1:
            inputs["weights"] = self._upload("weights", groups.weights, most)
        outputs = self._run(ASSEMBLE, graph, inputs, len(groups.rows), most)
        self._device.synchronize()
        return Encoded(outputs["visual_tokens"], {name: outputs[name] for name in encoded.signals})

    def part(self, encoded: Encoded, index: int) -> Encoded:
        """Copy on the device."""

        def one(tensor: Tensor) -> Tensor:
            if tensor.shape[0] == 1:
                return tensor
            taken = self._pool.take((1, *tensor.shape[1:]), tensor.dtype)
            self._device.copy(taken.address, tensor.address + index * taken.nbytes, taken.nbytes)
            return taken

        return Encoded(one(encoded.tokens), {name: one(value) for name, value in encoded.signals.items()})

    def select(
        self, encoded: Encoded, selector: SelectorInfo | None, valid: npt.NDArray[np.bool_]
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Return the kept tokens on the device; the indices alone come to the host, where the answer reports them."""
        if selector is None:
            return encoded.tokens, np.tile(np.arange(valid.shape[1], dtype=np.int64), (valid.shape[0], 1))
        check_rows(selector, valid)
        inputs = {"visual_tokens": encoded.tokens, "valid": self._upload("valid", valid), **encoded.signals}
        run = self._pick if selector.id in self._kernels else self._run
        outputs = run(selector.id, selector, {tensor.name: inputs[tensor.name] for tensor in selector.inputs})
        return outputs["kept_tokens"], self._download("kept_indices", outputs["kept_indices"])

    def first(self, tensor: Tensor, rows: int) -> Tensor:
        """Copy on the device."""
        taken = self._pool.take((1, rows, *tensor.shape[2:]), tensor.dtype)
        self._device.copy(taken.address, tensor.address, taken.nbytes)
        return taken

    def join(self, tensors: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """Copy on the device where there are several."""
        if len(tensors) == 1:
            return replace(tensors[0], shape=tuple(shape), base=tensors[0])
        info = self._bundle.manifest.assemble
        joined = self._pool.take(tuple(shape), tensors[0].dtype, info.tiles if info and shape[0] > 1 else 0)
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
        return self._model.session(slots)

    def _load_plans(self, engines: Engines) -> None:
        for name, plan in engines.plans.items():
            library = engines.library if engines.info[name].plugin else None
            loaded = self._device.load(plan, name, engines.info[name].sha256, library)
            manifest = self._bundle.manifest
            graphs = {
                VISION: manifest.vision_encoder,
                ASSEMBLE: manifest.assemble,
                LANGUAGE: manifest.language_model,
            }
            graph = graphs.get(name) or self._bundle.selector(name)
            if graph is not None:
                check_plan(manifest, graph, {tensor: loaded.shape(tensor) for tensor in loaded.names})
            self._plans[name] = loaded
        # What was deserialised is not needed as bytes any more.
        self._engines = self._engines or replace(engines, plans={})

    @property
    def _model(self) -> TensorRtLanguage:
        assert self._language is not None, "load comes first"
        return self._language

    @property
    def _seeing(self) -> tuple[str, ...]:
        return (VISION, ASSEMBLE) if self._bundle.manifest.assemble is not None else (VISION,)

    def _outputs(self, graph: GraphInfo, count: int = 1) -> list[tuple[Shape, Any]]:
        return [(_fixed(tensor.shape, count), tensor.dtype) for tensor in graph.outputs]

    def _tiled(self, rows: AssembleInfo, selector: SelectorInfo | None) -> list[tuple[Shape, Any]]:
        """Return what an image of the most tiles takes beyond one run of the encoder and one of the selector."""
        manifest, groups = self._bundle.manifest, self._bundle.manifest.groups
        vision, runs = manifest.vision_encoder, -(-rows.tiles // manifest.tiles_at_once)
        found = self._outputs(vision, manifest.tiles_at_once) * (runs - 1)
        found += self._outputs(vision, rows.tiles) if runs > 1 else []
        uploads = [tensor for tensor in rows.inputs if tensor.name in ("rows", "weights")]
        found += [(_fixed(tensor.shape, groups), tensor.dtype) for tensor in uploads]
        found += self._outputs(rows, groups)
        if selector is not None and groups > 1:
            # A group's part while the one before is not let go; what is kept of each, and all of it together.
            found += self._outputs(rows) * 2
            kept = self._outputs(selector)[0]
            found += [kept] * (groups - 1) + [((groups, *kept[0][1:]), kept[1])]
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
        info, images = self._bundle.manifest.language_model, self._engines.limits.images
        (group,) = info.groups
        language = self._language or TensorRtLanguage(
            self._device, self._plans[LANGUAGE], info, group, images
        )
        if self._language is None:
            needed["KV cache and what a step takes"] = language.memory_bytes(1)
        self._require(needed)
        self._language = language
        if self._scratch is None or larger:
            # Contexts that were made before keep what they got.
            self._scratch = self._device.allocate(activations)
        for name, plan in self._plans.items():
            if name != LANGUAGE and name not in self._contexts:
                self._contexts[name] = plan.context(0, self._scratch)
        self._pool.reserve(tensors)
        return self._scratch

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
        self, name: str, graph: GraphInfo, inputs: Mapping[str, Tensor], count: int = 1, most: int = 1
    ) -> dict[str, Tensor]:
        """Run an engine; ``count`` is its outputs' first size, ``most`` the largest that this can be."""
        context = self._contexts[name]
        outputs = self._take_outputs(graph, count, most)
        for tensor, value in inputs.items():
            context.set_shape(tensor, value.shape)
        for tensor, value in {**inputs, **outputs}.items():
            context.set_address(tensor, value.address)
        context.enqueue()
        return outputs

    def _pick(self, name: str, graph: SelectorInfo, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Do what :meth:`_run` does, by the kernel."""
        outputs = self._take_outputs(graph)
        workspace = self._pool.take((self._kernels[name],), np.uint8)
        places = (inputs["visual_tokens"], inputs["valid"], outputs["kept_tokens"], outputs["kept_indices"])
        self._device.max_min(self._sizes(graph), workspace.memory, *(tensor.address for tensor in places))
        return outputs

    def _take_outputs(self, graph: GraphInfo, count: int = 1, most: int = 1) -> dict[str, Tensor]:
        taken = (self._pool.take(*tensor, most) for tensor in self._outputs(graph, count))
        return dict(zip((tensor.name for tensor in graph.outputs), taken, strict=True))

    def _sizes(self, selector: SelectorInfo) -> Problem:
        vision, dtype = self._bundle.manifest.vision_encoder, self._bundle.manifest.token_dtype
        return Problem(1, selector.candidates, vision.width, selector.keep, DTYPES[dtype], 0, 0)

    def _upload(self, use: str, array: npt.NDArray[Any], most: int = 1) -> Tensor:
        tensor = self._pool.take(array.shape, array.dtype, most)
        host = self._staging(use, tensor.nbytes)
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


def _fixed(shape: Sequence[int | str], count: int = 1) -> Shape:
    """Return a shape with so many images, tiles or groups in it."""
    return tuple(count if isinstance(size, str) else size for size in shape)
