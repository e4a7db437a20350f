"""ONNX Runtime on the CPU or on CUDA.

Tensors are ``OrtValue``s: tokens and the KV cache stay on the device from step to step, and on the CPU they
are handed over without a copy.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.errors import UserError
from divprune_edge.manifest import VISUAL_TOKENS, GraphInfo, Manifest, SelectorInfo, tile_input
from divprune_edge.models.dialects import DIALECTS, option
from divprune_edge.models.precisions import PRECISIONS
from divprune_edge.plugins.loader import BUILD_OPERATORS, OFF, OPERATORS_VARIABLE, SERVED, find_operators
from divprune_edge.processing.image_input import Groups
from divprune_edge.runtime.backends.backend import Encoded
from divprune_edge.runtime.backends.binding import Binding
from divprune_edge.runtime.backends.block import BlockSession
from divprune_edge.runtime.backends.captured import wants_graphs
from divprune_edge.runtime.backends.graph_facts import check_session
from divprune_edge.runtime.backends.growing import GrowingSession
from divprune_edge.runtime.backends.memory import PROVIDERS, DeviceMemory, dtype_of
from divprune_edge.runtime.backends.session import DeviceTensor, LanguageSession
from divprune_edge.runtime.backends.steady import Lease, SteadyRuns, open_capturing
from divprune_edge.runtime.bundle import Bundle

_ERRORS_ONLY = 3
_log = logging.getLogger("divprune_edge")


class OnnxRuntimeBackend:
    """The graphs of one bundle as ONNX Runtime sessions, created when first needed."""

    images_at_once = 4
    """The encoder's memory grows with them, its speed hardly."""

    def __init__(self, bundle: Bundle, device: str, threads: int | None) -> None:
        self._bundle = bundle
        self._device = device
        self._threads = threads
        self._sessions: dict[str, ort.InferenceSession] = {}
        self.memory = DeviceMemory(device)
        self.memory.captures = wants_graphs(device)
        self._steady: SteadyRuns | None = None
        self._free: dict[int, list[LanguageSession]] = {}
        _require_provider(PROVIDERS[device])
        if device == "cuda":
            _preload()
        _require_kernels(bundle.manifest, device)
        self._dialect = DIALECTS[bundle.manifest.language_model.dialect]

    @property
    def name(self) -> str:
        """See :class:`~divprune_edge.runtime.backends.backend.Backend`, also for what follows."""
        return f"onnxruntime-{self._device}"

    @property
    def computes_beside(self) -> bool:
        """Not where CUDA graphs are captured: memory that another thread reserves meanwhile ends a capture."""
        return not self.memory.captures

    def load(self, selector: SelectorInfo | None) -> None:
        """Create what is missing, side by side."""
        manifest = self._bundle.manifest
        graphs: list[GraphInfo] = [*manifest.seeing, *manifest.language_model.graphs]
        if selector is not None:
            graphs.append(selector)
        missing = [graph for graph in graphs if graph.file not in self._sessions]
        # Building a session releases the interpreter's lock: the graphs are optimised side by side.
        with ThreadPoolExecutor(max_workers=3) as pool:
            built: list[tuple[str, Future[ort.InferenceSession]]] = [
                (graph.file, pool.submit(self._build, graph)) for graph in missing
            ]
        for file, future in built:
            self._sessions[file] = future.result()

    def encode(self, inputs: Mapping[str, npt.NDArray[Any]], signals: Sequence[str] = ()) -> Encoded:
        """Return ``OrtValue``s on the device."""
        graph, names = self._bundle.manifest.vision_encoder, [VISUAL_TOKENS, *signals]
        session = self._session(graph)
        if self.memory.captures_of(session):
            if self._steady is None:
                self._steady = SteadyRuns(session, self.memory)
            return Encoded(self._steady.run(inputs, names))
        binding = Binding(session, self.memory)
        binding.arrays(inputs)
        return Encoded(binding.make(names))

    def stack(self, runs: Iterable[Encoded], shapes: Mapping[str, Sequence[int]]) -> Encoded:
        """Copy on the device."""
        whole: dict[str, DeviceTensor] = {}
        filled = dict.fromkeys(shapes, 0)
        for run in runs:
            for name, value in run.outputs.items():
                if name not in whole:
                    whole[name] = self.memory.empty(shapes[name], dtype_of(value))
                filled[name] = self.memory.put(value, whole[name], filled[name])
            del run, value  # before the next one is made
        return Encoded(whole)

    def assemble(self, encoded: Encoded, groups: Groups) -> Encoded:
        """Return ``OrtValue``s on the device."""
        graph = self._bundle.manifest.assemble
        assert graph is not None
        binding = Binding(self._session(graph), self.memory)
        for name, value in encoded.outputs.items():
            binding.input(tile_input(name), value)
        binding.array("rows", groups.rows)
        if graph.sources > 1:
            binding.array("weights", groups.weights)
        return Encoded(binding.make([*encoded.outputs]))

    def part(self, encoded: Encoded, index: int) -> Encoded:
        """Copy on the device."""

        def one(tensor: DeviceTensor) -> DeviceTensor:
            return tensor if tensor.shape()[0] == 1 else self.memory.take(tensor, [index], axis=0)

        return Encoded({name: one(value) for name, value in encoded.outputs.items()})

    def select(
        self, encoded: Encoded, selector: SelectorInfo, valid: npt.NDArray[np.bool_]
    ) -> tuple[DeviceTensor, npt.NDArray[np.int64]]:
        """Return the kept tokens on the device and their indices on the host."""
        binding = Binding(self._session(selector), self.memory)
        for name in (VISUAL_TOKENS, *selector.signals):
            binding.input(name, encoded.outputs[name])
        binding.array("valid", valid)
        kept = np.empty((valid.shape[0], selector.keep), np.int64)
        binding.landing("kept_indices", kept)
        return binding.make(["kept_tokens"])["kept_tokens"], kept

    def take(self, tensor: DeviceTensor, rows: npt.NDArray[np.int64]) -> DeviceTensor:
        """Copy on the device."""
        return self.memory.take(tensor, rows)

    def join(self, tensors: Sequence[DeviceTensor], shape: Sequence[int]) -> DeviceTensor:
        """Copy on the device, where there are several or the shape is another one."""
        if len(tensors) == 1 and tensors[0].shape() == list(shape):
            return tensors[0]
        return self.memory.join(tensors, shape)

    def to_host(self, tensor: DeviceTensor) -> npt.NDArray[Any]:
        """Copy from the device; on the CPU nothing is copied."""
        return self.memory.download(tensor)

    def to_device(self, array: npt.NDArray[Any]) -> DeviceTensor:
        """Copy, on the CPU as well: what a value over an array's memory gives to the host does not hold on to that."""
        return self.memory.upload(array)

    def session(self, slots: int = 1) -> LanguageSession:
        """Return slots that share the language model's graph."""
        info = self._bundle.manifest.language_model
        kind = GrowingSession if self._dialect.grows else BlockSession
        if info.schedule is not None:
            from divprune_edge.runtime.backends.chain import ChainSession

            groups = [
                kind(self._session(graph), self.memory, part, group, slots)
                for graph, part, group in zip(info.graphs, info.parts, info.groups, strict=True)
            ]
            return ChainSession(groups, self.memory, info)
        (group,) = info.groups
        if self._dialect.grows or not self.memory.captures_of(self._session(info)):
            return kind(self._session(info), self.memory, info, group, slots)
        free = self._free.setdefault(slots, [])
        held = free.pop() if free else kind(self._session(info), self.memory, info, group, slots)
        return cast("LanguageSession", Lease(held, free))

    def _session(self, graph: GraphInfo) -> ort.InferenceSession:
        if graph.file not in self._sessions:
            self._sessions[graph.file] = self._build(graph)
        return self._sessions[graph.file]

    def _build(self, graph: GraphInfo) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = self._threads or 0
        if graph is not self._bundle.manifest.language_model:
            # The pools share the cores: one that has finished its run must not spin against the next. What follows a
            # step of the language model is its next step, which finds the threads awake; but of a chain the next graph.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if isinstance(graph, SelectorInfo) and graph.name in SERVED:
            _add_operators(options, self._device)
        provider, file = PROVIDERS[self._device], str(self._bundle.file(graph.file))
        try:
            session = open_capturing(file, options, self.memory) if self._wants_capture(graph) else None
            if session is None:
                session = ort.InferenceSession(file, options, providers=self.memory.providers)
                self.memory.uncaptured.add(session)
        except Exception as error:  # ONNX Runtime has an exception class per status code, all of them private
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"ONNX Runtime {ort.__version__} cannot load '{graph.file}' on {self._device} ({reason})"
                f"{_remedy(reason)}.",
                code="onnxruntime-refuses-graph",
            ) from error
        if session.get_providers()[0] != provider:
            raise UserError(
                f"ONNX Runtime fell back from {provider} to {session.get_providers()[0]} for '{graph.file}': "
                f"check the driver, CUDA and cuDNN ({_LIBRARIES}), or use '--backend cpu'.",
                code="onnxruntime-fell-back",
            )
        check_session(self._bundle.manifest, graph, session)
        return session

    def _wants_capture(self, graph: GraphInfo) -> bool:
        manifest = self._bundle.manifest
        steady = graph is manifest.vision_encoder or (
            graph is manifest.language_model and not self._dialect.grows
        )
        return self.memory.captures and steady


def _add_operators(options: ort.SessionOptions, device: str) -> None:
    """Let our kernels take the nodes that they know; the others keep the functions in their file."""
    library = find_operators()
    if device == "cuda" and (library is None or library.record.cuda is None):
        # Operators of the CPU alone would take the node from the GPU.
        if os.environ.get(OPERATORS_VARIABLE) != OFF:
            _log.warning(
                "The selection runs as a loop of ONNX Runtime, which is many times slower than our kernel: build that "
                "with '%s' where nvcc is.",
                BUILD_OPERATORS,
            )
        return
    if library is None:
        return
    try:
        options.register_custom_ops_library(str(library.path))
    except Exception as error:  # of a class that is private to ONNX Runtime
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"ONNX Runtime {ort.__version__} does not accept the operators of '{library.path}' ({reason}): build them "
            f"again with '{BUILD_OPERATORS}', or set {OPERATORS_VARIABLE}={OFF} to do without.",
            code="operators-not-accepted",
        ) from error


_LIBRARIES = "their libraries come with 'python -m pip install onnxruntime-gpu[cuda,cudnn]'"


def _preload() -> None:
    """Load the libraries of CUDA and cuDNN that lie beside ONNX Runtime as packages, wherever the loader looks.

    Those that it does not find may be on the loader's own path; what is then missing, the session says.
    """
    load = getattr(ort, "preload_dlls", None)
    if load is not None:
        with redirect_stdout(StringIO()) as said:  # where it says what it did not find
            load()
        if said.getvalue():
            _log.debug("%s", said.getvalue())


_REMEDIES = (
    (r"alloc|out of memory", ": free memory, or export with a smaller --precision"),
    (r"CUDA|CUDNN|CUBLAS", ": check the driver, CUDA and cuDNN, or use '--backend cpu'"),
    (
        r"NOT_IMPLEMENTED|not a registered function|opset|IR version|No Op registered|Unrecognized attribute",
        ": it is older than the operators of this graph, upgrade it",
    ),
    (r"NO_SUCHFILE|[Pp]ermission|No such file", ": make the file readable, or copy the bundle again"),
)


def _remedy(reason: str) -> str:
    """Return what follows from what ONNX Runtime said; nothing where it does not tell. The file itself is proven."""
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, reason)), "")


def _require_provider(provider: str) -> None:
    available = ort.get_available_providers()
    if provider not in available:
        package, other = (
            ("onnxruntime", "onnxruntime-gpu")
            if provider == PROVIDERS["cpu"]
            else ("onnxruntime-gpu", "onnxruntime")
        )
        raise UserError(
            f"{provider} was asked for, but this ONNX Runtime {ort.__version__} offers only "
            f"{', '.join(available)}: 'python -m pip uninstall {other}', then 'python -m pip install {package}'.",
            code="onnxruntime-without-provider",
        )


def _require_kernels(manifest: Manifest, device: str) -> None:
    """Refuse what ONNX Runtime has no CUDA kernel for, and would run on the CPU without a word."""
    if device != "cuda":
        return
    language = manifest.language_model
    if language.capacity is not None:
        raise UserError(
            f"The bundle's language model is in dialect '{language.dialect}', which is made for TensorRT and which "
            f"ONNX Runtime runs on the CPU only: use --backend tensorrt or cpu, or export for '--backend {device}' "
            f"with {option(lambda one: language.cache_dtype in one.cuda)}.",
            code="dialect-with-backend",
        )
    if language.cache_dtype not in DIALECTS[language.dialect].cuda:
        raise UserError(
            f"The bundle's language model is in dialect '{language.dialect}' with a {language.cache_dtype} cache, for "
            "which ONNX Runtime has no CUDA kernel: export it with --precision fp16, or with "
            f"{option(lambda one: language.cache_dtype in one.cuda)}.",
            code="onnxruntime-without-kernel",
        )
    for graph in (manifest.vision_encoder, language):
        why = PRECISIONS[graph.precision].refusals.get(device)
        if why is not None:
            raise UserError(
                f"'{graph.file}' is in {graph.precision}, but {why}: export the bundle with --precision fp16 or int4.",
                code="onnxruntime-without-kernel",
            )
