"""A FAKE device: host memory that plays the GPU's part, and ONNX Runtime that plays TensorRT's. For tests only.

It says nothing about speed, or about what TensorRT makes of a graph. It holds the backend to what a GPU would:
work is done when it is waited for and not before; every tensor is bound, on 256 bytes, inside of live memory, with a
shape that its profile allows; nothing is written over what is read but a cache in place; a graph holds the addresses
that it was captured with, and dies with a change of its context; nothing that waits or allocates is captured.

A plan is one of ``FakeEngines``; or, with a bundle, one that was built: its ONNX file is run in its place.

What was allocated holds no numbers until it is written, what was freed does not either, and what was cleared holds
a finite value instead of zero: whoever reads a row that is not alive gets another answer.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from divprune_edge.export.check.graph import read_graph
from divprune_edge.manifest import GraphInfo, Manifest, SelectorInfo
from divprune_edge.models.profiles import (
    ALIGNMENT,
    ASSEMBLE,
    VISION,
    assemble_profiles,
    language_engines,
    language_profiles,
    make_limits,
    selector_profiles,
    vision_profiles,
)
from divprune_edge.models.selectors.divprune import DIVPRUNE
from divprune_edge.models.tensorrt import TENSORRT, Edition
from divprune_edge.plugins import abi
from divprune_edge.plugins.abi import Append, Problem
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.opening import Engines

NOT_A_NUMBER, CLEARED = 0xFF, 0x47
SCRATCH = 4096
Work = Callable[[], None]


@dataclass
class FakeMemory:
    """Bytes on 256 bytes; ``kind`` is device or host."""

    kind: str
    nbytes: int
    raw: np.ndarray = field(repr=False)

    @property
    def array(self) -> np.ndarray:
        start = -self.raw.ctypes.data % ALIGNMENT
        return self.raw[start : start + self.nbytes]

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)


class Handle:
    """What the backend holds: the memory is freed with it."""

    def __init__(self, device: FakeDevice, memory: FakeMemory) -> None:
        self.address, self.nbytes, self.array = memory.address, memory.nbytes, memory.array
        weakref.finalize(self, device.free, memory).atexit = False


class FakeDevice:
    """See the module's text. ``counts`` and ``copies`` tell what was done."""

    name = "a fake device"

    def __init__(
        self, free: int = 1 << 40, library: Any = None, run: bool = True, bundle: Path | None = None
    ) -> None:
        self.live: dict[int, FakeMemory] = {}
        # Freed memory is kept, so that its address cannot come back and hide a use of it.
        self.freed: list[FakeMemory] = []
        self.queue: list[Work] = []
        self.recording: list[Work] | None = None
        self.graph: FakeGraph | None = None
        self.counts: Counter[str] = Counter()
        self.copies: list[tuple[str, int]] = []
        self.library, self.run, self.bundle = library, run, bundle
        self._free = free

    def free_bytes(self) -> int:
        return self._free - sum(
            memory.nbytes for memory in tuple(self.live.values()) if memory.kind == "device"
        )

    def allocate(self, nbytes: int) -> Handle:
        self.counts["allocations"] += 1
        return self._memory("device", nbytes)

    def pinned(self, nbytes: int) -> Handle:
        self.counts["pinned"] += 1
        return self._memory("host", nbytes)

    def _memory(self, kind: str, nbytes: int) -> Handle:
        assert self.recording is None, "memory is allocated inside of a capture"
        assert nbytes > 0
        memory = FakeMemory(kind, nbytes, np.full(nbytes + ALIGNMENT, NOT_A_NUMBER, np.uint8))
        self.live[memory.address] = memory
        return Handle(self, memory)

    def free(self, memory: FakeMemory) -> None:
        # As cudaFree does, after what was asked for.
        if self.recording is None and self.queue:
            self.synchronize()
        memory.array[...] = NOT_A_NUMBER
        self.freed.append(self.live.pop(memory.address))

    def at(self, address: int, nbytes: int, kind: str) -> np.ndarray:
        """Return the bytes at an address, which must be inside of one piece of live memory."""
        # A copy: what is collected meanwhile frees its memory.
        for memory in tuple(self.live.values()):
            if memory.address <= address and address + nbytes <= memory.address + memory.nbytes:
                assert memory.kind == kind, f"{memory.kind} memory where {kind} memory belongs"
                start = address - memory.address
                return memory.array[start : start + nbytes]
        dead = any(m.address <= address < m.address + m.nbytes for m in self.freed)
        raise AssertionError(f"{nbytes} bytes are not in {kind} memory" + (" any more" if dead else ""))

    def host_at(self, address: int, nbytes: int) -> np.ndarray:
        """Page-locked memory; outside of a capture also any other, which the caller keeps alive."""
        try:
            return self.at(address, nbytes, "host")
        except AssertionError:
            assert self.recording is None, "a copy inside of a capture needs page-locked memory"
            return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def ask(self, work: Work) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def clear(self, address: int, nbytes: int) -> None:
        self.at(address, nbytes, "device")
        self.ask(lambda: self.at(address, nbytes, "device").fill(CLEARED))

    def upload(self, to: int, source: int, nbytes: int) -> None:
        self.upload_pieces(to, nbytes, source, nbytes, nbytes, 1)

    def download(self, to: int, source: int, nbytes: int) -> None:
        self.download_pieces(to, nbytes, source, nbytes, nbytes, 1)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        for address in (to, source):
            self.at(address, nbytes, "device")

        def work() -> None:
            self.copies.append(("copy", nbytes))
            self.at(to, nbytes, "device")[:] = self.at(source, nbytes, "device")

        self.ask(work)

    def upload_pieces(
        self, to: int, to_step: int, source: int, source_step: int, nbytes: int, count: int
    ) -> None:
        self.host_at(source, source_step * (count - 1) + nbytes)
        self.at(to, to_step * (count - 1) + nbytes, "device")
        source_view = self.host_at(source, source_step * (count - 1) + nbytes)

        def work() -> None:
            self.copies.append(("upload", nbytes * count))
            target = self.at(to, to_step * (count - 1) + nbytes, "device")
            for i in range(count):
                target[i * to_step : i * to_step + nbytes] = source_view[
                    i * source_step : i * source_step + nbytes
                ]

        self.ask(work)

    def download_pieces(
        self, to: int, to_step: int, source: int, source_step: int, nbytes: int, count: int
    ) -> None:
        target = self.host_at(to, to_step * (count - 1) + nbytes)

        def work() -> None:
            self.copies.append(("download", nbytes * count))
            found = self.at(source, source_step * (count - 1) + nbytes, "device")
            for i in range(count):
                target[i * to_step : i * to_step + nbytes] = found[i * source_step : i * source_step + nbytes]

        self.at(source, source_step * (count - 1) + nbytes, "device")
        self.ask(work)

    def copy_pieces(
        self, to: int, to_step: int, source: int, source_step: int, nbytes: int, count: int
    ) -> None:
        spans = (to, to_step * (count - 1) + nbytes), (source, source_step * (count - 1) + nbytes)
        for span in spans:
            self.at(*span, "device")

        def work() -> None:
            self.copies.append(("copy", nbytes * count))
            target, found = (self.at(*span, "device") for span in spans)
            for i in range(count):
                piece = found[i * source_step : i * source_step + nbytes]
                target[i * to_step : i * to_step + nbytes] = piece

        self.ask(work)

    def append_rows(self, sizes: Append, new_rows: int, caches: int, position: int) -> None:
        def work() -> None:
            self.counts["appends"] += 1
            cache, rows = (
                self.at(at, (sizes.tensors - 1) * stride + sizes.heads * held * sizes.row_bytes, "device")
                for at, stride, held in (
                    (caches, sizes.cache_stride, sizes.capacity),
                    (new_rows, sizes.rows_stride, sizes.rows),
                )
            )
            row = self.at(position, 8, "device")
            if self.library is not None:
                status = self.library.divprune_append_rows(sizes, new_rows, caches, position, None)
                assert status == 0
                return
            first = int(row.view(np.int64)[0])
            if first == sizes.capacity:  # behind the last row: of a slot without a step, nothing is written
                return
            assert 0 <= first <= sizes.capacity - sizes.rows, "rows are appended outside of the cache"
            views = []
            for buffer, stride, held in (
                (cache, sizes.cache_stride, sizes.capacity),
                (rows, sizes.rows_stride, sizes.rows),
            ):
                views.append(
                    np.lib.stride_tricks.as_strided(
                        buffer,
                        (sizes.tensors, sizes.heads, held, sizes.row_bytes),
                        (stride, held * sizes.row_bytes, sizes.row_bytes, 1),
                    )
                )
            views[0][:, :, first : first + sizes.rows] = views[1]

        self.ask(work)

    def max_min_bytes(self, sizes: Problem) -> int:
        return SCRATCH if self.library is None else abi.workspace_bytes(self.library, sizes)

    def max_min(
        self, sizes: Problem, workspace: Any, tokens: int, valid: int, kept_tokens: int, kept_indices: int
    ) -> None:
        (dtype,) = (np.dtype(name) for name, code in abi.DTYPES.items() if code == sizes.dtype)
        row = sizes.width * dtype.itemsize
        places = {
            tokens: sizes.candidates * row,
            valid: sizes.candidates,
            kept_tokens: sizes.keep * row,
            kept_indices: 8 * sizes.keep,
            workspace.address: self.max_min_bytes(sizes),
        }

        def work() -> None:
            self.counts["max_min"] += 1
            read, mask, kept, indices, scratch = (self.at(*place, "device") for place in places.items())
            scratch.fill(NOT_A_NUMBER)
            if self.library is not None:
                size = workspace.nbytes
                abi.check(self.library, self.library.divprune_max_min(sizes, *places, size, None))
                return
            rows = read.view(dtype).reshape(sizes.candidates, sizes.width)
            picks = DIVPRUNE.reference(rows, mask.view(np.bool_), sizes.keep)
            indices.view(np.int64)[:] = picks
            kept.view(dtype).reshape(sizes.keep, sizes.width)[:] = rows[picks]

        for place in places.items():
            self.at(*place, "device")
        self.ask(work)

    def capture(self, work: Work) -> FakeGraph:
        self.begin_capture()
        try:
            work()
        finally:
            graph = self.end_capture()
        return graph

    def begin_capture(self) -> None:
        self.counts["captures"] += 1
        assert self.recording is None
        self.graph = FakeGraph()
        self.recording = self.graph.work

    def end_capture(self) -> FakeGraph:
        graph = self.graph
        assert graph is not None
        self.recording = self.graph = None
        return graph

    def launch(self, graph: FakeGraph) -> None:
        self.counts["launches"] += 1
        for context, version in graph.contexts:
            assert context.version == version, "a context was changed under a graph that was captured of it"
        self.queue.extend(graph.work)

    def synchronize(self) -> None:
        assert self.recording is None, "a capture cannot wait"
        self.counts["waits"] += 1
        queue, self.queue = self.queue, []
        for work in queue:
            work()

    def load(self, plan: Any, title: str, key: str, library: Any = None) -> FakePlan:
        self.counts[f"load {title}"] += 1
        return FakePlan(
            self, self._built(bytes(plan), key) if self.bundle else json.loads(bytes(plan)), title
        )

    def _built(self, plan: bytes, key: str) -> dict[str, Any]:
        """Return what a plan was built from, as the bundle's record says: a stripped file's sibling can be run."""
        assert hashlib.sha256(plan).hexdigest() == key
        assert self.bundle is not None
        records = [json.loads(path.read_text()) for path in self.bundle.glob("engines/*/engines.json")]
        info = next(one for record in records for one in record["plans"].values() if one["sha256"] == key)
        return {
            "file": str(self.bundle / info["graph"].replace("/stripped/", "/")),
            "profiles": info["profiles"],
        }


@dataclass
class FakeGraph:
    """Recorded work, and the contexts as they were."""

    work: list[Work] = field(default_factory=list)
    contexts: list[tuple[FakeContext, int]] = field(default_factory=list)


class FakePlan:
    """An "engine" that is a path of an ONNX file and profiles."""

    scratch_bytes = SCRATCH

    def __init__(self, device: FakeDevice, plan: dict[str, Any], title: str) -> None:
        self.device, self.title, self.shapes = device, title, plan["profiles"]
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(plan["file"], options, providers=["CPUExecutionProvider"])
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        self.outputs = {node.name: node for node in self.session.get_outputs()}
        self.names: Sequence[str] = [*self.inputs, *self.outputs]
        self.profiles = len(self.shapes)
        self.file, self.inferred = Path(plan["file"]), {}

    def infer(self, name: str, sizes: dict[str, int]) -> tuple[int, ...]:
        """Return an output's shape as it follows from the graph."""
        key = tuple(sorted(sizes.items()))
        if key not in self.inferred:
            self.inferred[key] = read_graph(self.file, sizes)
        shape = next(one.shape for one in self.inferred[key].outputs if one.name == name)
        assert shape is not None
        assert None not in shape
        return tuple(int(size or 0) for size in shape)

    def shape(self, name: str) -> tuple[int, ...]:
        node = {**self.inputs, **self.outputs}[name]
        return tuple(size if isinstance(size, int) else -1 for size in node.shape)

    def limits(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        found = self.shapes[profile][name]
        return tuple(found["min"]), tuple(found["max"])

    def context(self, profile: int, scratch: Any, *, varying: bool = False) -> FakeContext:
        assert scratch.nbytes >= self.scratch_bytes
        assert scratch.address % ALIGNMENT == 0
        return FakeContext(self, profile, scratch)


class FakeContext:
    """Bindings of one profile; ``version`` counts what a graph must not see change."""

    def __init__(self, plan: FakePlan, profile: int, scratch: Any) -> None:
        self.plan, self.profile, self.scratch = plan, profile, scratch
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.version = 0
        self.ran_version = -1

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        least, most = self.plan.limits(name, self.profile)
        fits = len(shape) == len(least) and all(
            a <= b <= c for a, b, c in zip(least, shape, most, strict=True)
        )
        assert fits, f"'{name}' {shape} is not between {least} and {most} in profile {self.profile}"
        if self.shapes.get(name) != shape:
            self.shapes[name] = shape
            self.version += 1

    def set_address(self, name: str, address: int) -> None:
        assert name in self.plan.names, f"{self.plan.title} has no '{name}'"
        assert address % ALIGNMENT == 0, f"'{name}' is not on {ALIGNMENT} bytes"
        if self.addresses.get(name) != address:
            self.addresses[name] = address
            self.version += 1

    def enqueue(self) -> None:
        device, plan = self.plan.device, self.plan
        device.counts[plan.title] += 1
        assert set(self.addresses) == set(plan.names), f"not bound: {set(plan.names) - set(self.addresses)}"
        assert set(self.shapes) >= set(plan.inputs), f"no shape: {set(plan.inputs) - set(self.shapes)}"
        if device.graph is not None:
            assert self.ran_version == self.version, "a context is captured that has not run as it is"
            device.graph.contexts.append((self, self.version))
        self.ran_version = self.version
        bound = {name: self._bound(name) for name in plan.names}
        self._check_overlaps(bound)
        scratch = (self.scratch.address, self.scratch.nbytes)

        def work() -> None:
            device.at(*scratch, "device").fill(NOT_A_NUMBER)
            binding = plan.session.io_binding()
            for name, (address, dtype, shape, nbytes) in bound.items():
                device.at(address, nbytes, "device")
                bind = binding.bind_input if name in plan.inputs else binding.bind_output
                bind(name, "cpu", 0, dtype, shape, address)
            if device.run:
                plan.session.run_with_iobinding(binding)

        if device.run:
            device.ask(work)

    def _bound(self, name: str) -> tuple[int, Any, tuple[int, ...], int]:
        node = self.plan.inputs.get(name) or self.plan.outputs[name]
        shape = self.shapes[name] if name in self.plan.inputs else self._resolve(name, node.shape)
        dtype = DTYPES[node.type]
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        self.plan.device.at(self.addresses[name], nbytes, "device")
        return self.addresses[name], dtype, shape, nbytes

    def _resolve(self, name: str, shape: Sequence[int | str]) -> tuple[int, ...]:
        sizes = {
            symbol: size
            for name, node in self.plan.inputs.items()
            for symbol, size in zip(node.shape, self.shapes[name], strict=True)
            if isinstance(symbol, str)
        }
        if not sizes.keys() >= {size for size in shape if isinstance(size, str)}:
            return self.plan.infer(name, sizes)
        return tuple(sizes[size] if isinstance(size, str) else size for size in shape)

    def _check_overlaps(self, bound: dict[str, tuple[int, Any, tuple[int, ...], int]]) -> None:
        """A cache is written where it is read; nothing else is."""
        spans = {name: (address, address + nbytes) for name, (address, _, _, nbytes) in bound.items()}
        for name in self.plan.outputs:
            source = name.replace("present.", "past_key_values.")
            if source != name:
                assert spans[name] == spans[source], f"'{name}' is not in the place of '{source}'"
            for other in self.plan.names:
                if other not in (name, source):
                    apart = spans[name][1] <= spans[other][0] or spans[other][1] <= spans[name][0]
                    assert apart, f"'{name}' lies over '{other}'"


DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
}


@dataclass(frozen=True)
class FakePlanInfo:
    """The part of ``PlanInfo`` that the backend reads."""

    plugin: bool
    sha256: str


class FakeEngines:
    """Stands for ``open_engines``: the ONNX files of a bundle, with the profiles that the builder would give them."""

    def __init__(
        self,
        bundle: Bundle,
        selectors: Sequence[str] = (),
        max_prompt: int | None = None,
        slots: int = 1,
        images: int = 1,
        edition: Edition = TENSORRT,
        kernel: bool = False,
    ) -> None:
        """``selectors`` are ids, ``none`` for no pruning; by default all of the bundle's and none.

        Profiles are those for an ``edition``; with ``kernel`` our kernel is called in the selectors' places.
        """
        manifest: Manifest = bundle.manifest
        ids = list(selectors) or [*(s.id for s in manifest.selectors), "none"]
        chosen = [
            None if name == "none" else next(s for s in manifest.selectors if s.id == name) for name in ids
        ]
        self.bundle, self.opened = bundle, 0
        self.apart, self.kernel = edition.shares_weights, kernel
        self.limits = make_limits(manifest, chosen, max_prompt, slots, images)

    def __call__(self, selector: SelectorInfo | None, *, before: Engines | None = None) -> Engines:
        self.opened += 1
        manifest = self.bundle.manifest
        info = manifest.language_model
        plans = {}
        if before is None:
            plans[VISION] = self._plan(manifest.vision_encoder, vision_profiles(manifest, apart=self.apart))
            if manifest.assemble is not None:
                plans[ASSEMBLE] = self._plan(manifest.assemble, assemble_profiles(manifest))
            for name, graph, group in zip(language_engines(info), info.graphs, info.groups, strict=True):
                profiles = language_profiles(graph, self.limits, group, apart=self.apart)
                plans[name] = self._plan(graph, profiles)
        if selector is not None and not self.kernel:
            plans[selector.id] = self._plan(selector, selector_profiles(selector))
        info = {name: FakePlanInfo(plugin=False, sha256=f"digest of {name}") for name in plans}
        return Engines(Path("fake"), None, self.limits, plans, info, None, self.kernel)  # type: ignore[arg-type]

    def _plan(self, graph: GraphInfo, profiles: Any) -> bytes:
        shapes = [{name: s.model_dump() for name, s in profile.items()} for profile in profiles]
        return json.dumps({"file": str(self.bundle.file(graph.file)), "profiles": shapes}).encode()
