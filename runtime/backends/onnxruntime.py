"""ONNX Runtime on the CPU or on CUDA.

Tensors are ``OrtValue``s: tokens and the KV cache stay on the device from step to step, and on the CPU they
are handed over without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.errors import UserError
from divprune_edge.manifest import GraphInfo, LanguageInfo, Manifest, SelectorInfo
from divprune_edge.runtime.backends.base import CacheRows, DeviceTensor, Encoded, LanguageSession
from divprune_edge.runtime.backends.in_place import CACHE_TYPES, InPlaceLanguage, run_bound
from divprune_edge.runtime.bundle import Bundle

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_INSTALL = {"cpu": "cpu", "cuda": "gpu"}
_ERRORS_ONLY = 3


class OnnxRuntimeBackend:
    """The graphs of one bundle as ONNX Runtime sessions, created when first needed."""

    def __init__(self, bundle: Bundle, device: str, threads: int | None) -> None:
        self._bundle = bundle
        self._device = device
        self._threads = threads
        self._sessions: dict[str, ort.InferenceSession] = {}
        _require_provider(_PROVIDERS[device])
        _require_kernels(bundle.manifest, device)

    @property
    def name(self) -> str:
        """See :class:`~divprune_edge.runtime.backends.base.Backend`, also for what follows."""
        return f"onnxruntime-{self._device}"

    def load(self, selector: SelectorInfo | None) -> None:
        """Create what is missing, side by side."""
        manifest = self._bundle.manifest
        graphs: list[GraphInfo] = [manifest.vision_encoder, manifest.language_model]
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

    def encode(self, pixels: npt.NDArray[np.uint8], signals: Sequence[str] = ()) -> Encoded:
        """Return ``OrtValue``s on the device."""
        graph = self._bundle.manifest.vision_encoder
        binding = _Binding(self._session(graph), self._device)
        binding.input("pixels", ort.OrtValue.ortvalue_from_numpy(pixels))
        outputs = binding.run(["visual_tokens", *signals])
        return Encoded(outputs.pop("visual_tokens"), outputs)

    def select(
        self, encoded: Encoded, selector: SelectorInfo | None, valid: npt.NDArray[np.bool_]
    ) -> tuple[DeviceTensor, npt.NDArray[np.int64]]:
        """Return the kept tokens on the device and their indices on the host."""
        if selector is None:
            return encoded.tokens, np.tile(np.arange(valid.shape[1], dtype=np.int64), (valid.shape[0], 1))
        rows = int(valid.sum(axis=1).min())
        if rows < selector.keep:
            raise UserError(
                f"Selector '{selector.id}' keeps {selector.keep} tokens, but the picture has only {rows} "
                "that count: choose a smaller budget with --keep."
            )
        binding = _Binding(self._session(selector), self._device)
        binding.input("visual_tokens", encoded.tokens)
        binding.input("valid", ort.OrtValue.ortvalue_from_numpy(valid))
        for name in selector.signals:
            binding.input(name, encoded.signals[name])
        outputs = binding.run(["kept_tokens"], host=["kept_indices"])
        return outputs["kept_tokens"], outputs["kept_indices"].numpy()

    def to_host(self, tensor: DeviceTensor) -> npt.NDArray[Any]:
        """Copy from the device; on the CPU nothing is copied."""
        array: npt.NDArray[Any] = tensor.numpy()
        return array

    def to_device(self, array: npt.NDArray[Any]) -> DeviceTensor:
        """Copy to the device."""
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device)

    def language(self, visual: DeviceTensor, rows: CacheRows | None = None) -> LanguageSession:
        """Begin a sequence that shares the language model's session."""
        graph = self._bundle.manifest.language_model
        kind = InPlaceLanguage if graph.dialect == "onnxruntime" else OnnxRuntimeLanguage
        return kind(self._session(graph), self._device, graph, visual, rows)

    def _session(self, graph: GraphInfo) -> ort.InferenceSession:
        if graph.file not in self._sessions:
            self._sessions[graph.file] = self._build(graph)
        return self._sessions[graph.file]

    def _build(self, graph: GraphInfo) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = self._threads or 0
        # Three pools share the cores: one that has finished its run must not spin against the next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        provider = _PROVIDERS[self._device]
        # fp32 means fp32: TF32 would change which tokens a selector keeps.
        settings = {"use_tf32": "0"} if self._device == "cuda" else {}
        providers = [(provider, settings)]
        if self._device != "cpu":
            providers.append((_PROVIDERS["cpu"], {}))  # shape arithmetic stays on the host
        try:
            session = ort.InferenceSession(str(self._bundle.file(graph.file)), options, providers=providers)
        except Exception as error:  # ONNX Runtime has an exception class per status code, all of them private
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"ONNX Runtime {ort.__version__} cannot load '{graph.file}' on {self._device} ({reason}): "
                "upgrade onnxruntime or export the bundle again."
            ) from error
        if session.get_providers()[0] != provider:
            raise UserError(
                f"ONNX Runtime fell back from {provider} to {session.get_providers()[0]} for '{graph.file}': "
                "check the driver, CUDA and cuDNN, or use '--backend cpu'."
            )
        return session


class OnnxRuntimeLanguage:
    """One sequence on the ``portable`` dialect: a step takes past keys and values and returns them longer."""

    def __init__(
        self,
        session: ort.InferenceSession,
        device: str,
        info: LanguageInfo,
        visual: DeviceTensor,
        rows: CacheRows | None = None,
    ) -> None:
        self._session = session
        self._device = device
        self._info = info
        self._visual = visual
        self._length = rows[0].shape[2] if rows else 0
        names = [f"{i}.{part}" for i in range(info.layers) for part in ("key", "value")]
        self._past = [f"past_key_values.{name}" for name in names]
        self._present = [f"present.{name}" for name in names]
        empty = np.zeros((1, info.kv_heads, 0, info.head_dim), CACHE_TYPES[info.cache_dtype])
        start = rows or tuple(empty for _ in names)
        self._cache = [ort.OrtValue.ortvalue_from_numpy(value, device) for value in start]
        # One sequence: a step's mask and positions are slices of these two.
        self._mask = np.ones((1, info.context), np.bool_)
        self._positions = np.arange(info.context, dtype=np.int64)[None]

    @property
    def length(self) -> int:
        """See :class:`~divprune_edge.runtime.backends.base.LanguageSession`, also for what follows."""
        return self._length

    def extend(self, ids: Sequence[int], chunk: int | None = None) -> npt.NDArray[np.float32]:
        """Run one step per chunk."""
        row = np.asarray(ids, dtype=np.int64)[None]
        step = chunk or row.shape[1]
        pieces = [row[:, start : start + step] for start in range(0, row.shape[1], step)]
        for piece in pieces[:-1]:
            self._step(piece)
        return self._step(pieces[-1])

    def truncate(self, length: int) -> None:
        """Cut the cache's tensors."""
        if length < self._length:
            # Through the host, also on CUDA: once per question, against once per token.
            kept = self.rows(length)
            self._cache = [ort.OrtValue.ortvalue_from_numpy(value, self._device) for value in kept]
            self._length = length

    def rows(self, length: int) -> CacheRows:
        """Copy through the host."""
        return tuple(np.array(value.numpy()[:, :, :length]) for value in self._cache)

    def _step(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        total = self._length + ids.shape[1]
        binding = _Binding(self._session, self._device)
        binding.array("input_ids", np.ascontiguousarray(ids))
        binding.array("logits_index", np.array([ids.shape[1] - 1], np.int64))
        binding.array("attention_mask", self._mask[:, :total])
        binding.array("position_ids", self._positions[:, self._length : total])
        binding.input("visual_tokens", self._visual)
        for name, value in zip(self._past, self._cache, strict=True):
            binding.input(name, value)
        outputs = binding.run(self._present, host=["logits"])
        self._cache = [outputs[name] for name in self._present]
        self._length = total
        logits: npt.NDArray[np.float32] = outputs["logits"].numpy()[0]
        return logits


class _Binding:
    """One run of a session: inputs by name, outputs left on the device or brought to the host."""

    def __init__(self, session: ort.InferenceSession, device: str) -> None:
        self._session = session
        self._device = device
        self._binding = session.io_binding()
        self._held: list[ort.OrtValue] = []

    def input(self, name: str, value: ort.OrtValue) -> None:
        self._held.append(value)
        self._binding.bind_ortvalue_input(name, value)

    def array(self, name: str, value: npt.NDArray[Any]) -> None:
        self.input(name, ort.OrtValue.ortvalue_from_numpy(value))

    def run(self, device: Sequence[str], host: Sequence[str] = ()) -> dict[str, ort.OrtValue]:
        for name in device:
            self._binding.bind_output(name, self._device)
        for name in host:
            self._binding.bind_output(name, "cpu")
        run_bound(self._session, self._binding)
        return dict(zip([*device, *host], self._binding.get_outputs(), strict=True))


def _require_provider(provider: str) -> None:
    available = ort.get_available_providers()
    if provider not in available:
        extra = next(_INSTALL[device] for device, name in _PROVIDERS.items() if name == provider)
        raise UserError(
            f"{provider} was asked for, but this ONNX Runtime {ort.__version__} offers only "
            f"{', '.join(available)}: install 'divprune-edge[{extra}]' in place of the other onnxruntime."
        )


def _require_kernels(manifest: Manifest, device: str) -> None:
    """Refuse what ONNX Runtime has no CUDA kernel for, and would run on the CPU without a word."""
    if device != "cuda":
        return
    language = manifest.language_model
    if language.dialect == "onnxruntime" and language.cache_dtype == "float32":
        raise UserError(
            "The bundle's language model is in dialect 'onnxruntime' with a float32 cache, for which ONNX Runtime "
            "has no CUDA kernel: export it with --precision fp16, or with --dialect portable."
        )
    if "int8" in (manifest.vision_encoder.precision, language.precision):
        raise UserError(
            "The bundle is in int8 with unsigned activations, for which ONNX Runtime has no CUDA kernel: export it "
            "with --precision fp16 or int4."
        )
