"""Devices that a bundle can be made for: software versions, memory, bandwidth and peak rates, each with its source.

Rates are *dense* ones (data sheets like to print those with 2:4 sparsity, twice as high), of the GPU alone: a
Jetson's deep-learning accelerators (DLA) run none of our graphs. A Jetson's clocks depend on its power mode; the
rates are those of the fastest mode, so that no measurement beats a roofline drawn from them, and ``sources`` says
what the slower mode makes of them. What a source calls "from memory" has not been compared with the document; other
figures were, or with a page that quotes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.manifest import Dialect
from divprune_edge.models.tensorrt import EDITIONS, TENSORRT_RTX, Edition, Name

GIB = 2**30
HALF = "fp16"
INT4 = "vision=fp16,language=int4"
"""The default precision where a 7B model's 14 GB in float16 would take more than half of the memory."""


@dataclass(frozen=True)
class Target:
    """One device with one software release, and what an export for it defaults to.

    Attributes:
        name: as given to ``--target``.
        title: for people.
        backend: what runs the graphs.
        sm: CUDA compute capability times ten; None where it is any of :attr:`sms`.
        jetpack: the Jetson release that the versions come from.
        tensorrt: version, major and minor; of TensorRT-RTX where that is the backend.
        cuda: version of the toolkit that belongs to it; None where several do.
        python: version of the interpreter that TensorRT's bindings come for; None where several.
        memory_bytes: as sold; on a Jetson shared by CPU, GPU and system.
        shared_memory: CPU and GPU share the memory.
        bandwidth: of the memory, in bytes per second.
        rates: peak dense operations per second (a multiply-add is two) by element type; ``fp32`` is without tensor
            cores, ``tf32`` with.
        dialect: of the language model.
        precision: default of ``--precision``.
        opset: newest ONNX operator set that this target's default export uses.
        sources: fact -> the document that states it.
    """

    name: str
    title: str
    backend: Literal["cpu", "cuda"] | Name
    sm: int | None
    jetpack: str | None
    tensorrt: str | None
    cuda: str | None
    python: str | None
    memory_bytes: int | None
    shared_memory: bool
    bandwidth: float | None
    rates: Mapping[str, float]
    dialect: Dialect
    precision: str
    opset: int
    sources: Mapping[str, str]

    @property
    def edition(self) -> Edition | None:
        """The edition of TensorRT that runs its engines; None where none does."""
        return EDITIONS.get(self.backend)

    @property
    def sms(self) -> tuple[int, ...]:
        """The compute capabilities that engines for it are for: one, those of every RTX card, or none."""
        if self.sm is not None:
            return (self.sm,)
        return () if self.edition is None else self.edition.sms

    @property
    def software(self) -> str:
        """What runs its graphs, of TensorRT with the version."""
        return "ONNX Runtime" if self.edition is None else f"{self.edition.title} {self.tensorrt}"


def find_target(name: str) -> Target:
    """Return the target called ``name``.

    Raises:
        UserError: there is none.
    """
    try:
        return TARGETS[name]
    except KeyError:
        raise UserError(
            f"There is no target '{name}'{did_you_mean(name, TARGETS)}: choose among {', '.join(TARGETS)}.",
            code="target-unknown",
        ) from None


_JETPACK_6 = (
    "JetPack 6.2 release notes: Jetson Linux 36.4, CUDA 12.6, TensorRT 10.3, Ubuntu 22.04 with Python 3.10"
)
_JETPACK_7 = "JetPack 7.2 release notes: CUDA 13.2, TensorRT 10.16, Ubuntu 24.04 with Python 3.12"
_TENSORRT = "chosen: the newest 10.x, as in JetPack 7.2; support matrix of TensorRT 10.16"
_TENSORRT_RTX = (
    f"package {TENSORRT_RTX.package} 1.7.1, whose parser and builder take these graphs (docs/engines.md)"
)
_CAPABILITY = "NVIDIA, list of CUDA GPUs and their compute capability"
_ORT = "docs/performance.md of this project"


def _host(name: Literal["cpu", "cuda"], title: str, precision: str, why: str) -> Target:
    """A target without a device of its own: whatever ONNX Runtime finds."""
    return Target(
        name=name,
        title=title,
        backend=name,
        sm=None,
        jetpack=None,
        tensorrt=None,
        cuda=None,
        python=None,
        memory_bytes=None,
        shared_memory=False,
        bandwidth=None,
        rates=MappingProxyType({}),
        dialect="onnxruntime",
        precision=precision,
        opset=23,
        sources=MappingProxyType({"dialect": _ORT, "precision": why}),
    )


def _jetson(
    name: str,
    title: str,
    gigabytes: int,
    bandwidth: float,
    rates: Mapping[str, float],
    sources: dict[str, str],
) -> Target:
    """An Orin with JetPack 6.2; ``bandwidth`` in GB/s, ``rates`` in tera-operations per second."""
    return Target(
        name=name,
        title=f"{title}, JetPack 6.2",
        backend="tensorrt",
        sm=87,
        jetpack="6.2",
        tensorrt="10.3",
        cuda="12.6",
        python="3.10",
        memory_bytes=gigabytes * GIB,
        shared_memory=True,
        bandwidth=bandwidth * 1e9,
        rates=_tera(rates),
        dialect="decomposed",
        precision=_precision(gigabytes * GIB),
        opset=20,
        sources=MappingProxyType({"software": _JETPACK_6, "sm": _CAPABILITY, **sources}),
    )


def _jetpack_7(target: Target) -> Target:
    """The same board with JetPack 7.2."""
    return replace(
        target,
        name=f"{target.name}-jp7",
        title=target.title.replace("JetPack 6.2", "JetPack 7.2"),
        jetpack="7.2",
        tensorrt="10.16",
        cuda="13.2",
        python="3.12",
        dialect="static",
        opset=24,
        sources=MappingProxyType({**target.sources, "software": _JETPACK_7}),
    )


def _card(
    name: str,
    title: str,
    sm: int,
    gigabytes: int,
    bandwidth: float,
    rates: Mapping[str, float],
    sources: dict[str, str],
) -> Target:
    """A graphics card with TensorRT 10.16; memory counted as 10^9 bytes, of which the driver shows no less."""
    return Target(
        name=name,
        title=title,
        backend="tensorrt",
        sm=sm,
        jetpack=None,
        tensorrt="10.16",
        cuda=None,
        python=None,
        memory_bytes=gigabytes * 10**9,
        shared_memory=False,
        bandwidth=bandwidth * 1e9,
        rates=_tera(rates),
        dialect="static",
        precision=_precision(gigabytes * 10**9),
        opset=24,
        sources=MappingProxyType({"software": _TENSORRT, "sm": _CAPABILITY, **sources}),
    )


def _rtx(target: Target, *, shared: bool = False) -> Target:
    """The same card with TensorRT-RTX."""
    sources = {**target.sources, "software": _TENSORRT_RTX}
    return replace(
        target,
        backend="tensorrt-rtx",
        tensorrt="1.7",
        shared_memory=shared,
        sources=MappingProxyType(sources),
    )


def _tera(rates: Mapping[str, float]) -> Mapping[str, float]:
    return MappingProxyType({dtype: rate * 1e12 for dtype, rate in rates.items()})


SEVEN_BILLION = 14_101_657_600
"""Bytes of LLaVA-1.5-7B in float16: 7,050,828,800 parameters, the encoder's last layer, which is unused, left out."""


def _precision(memory: int) -> str:
    return HALF if memory // 2 >= SEVEN_BILLION else INT4


_NANO = _jetson(
    "orin-nano-8gb",
    "Jetson Orin Nano 8GB",
    8,
    102,
    {"fp32": 2.09, "fp16": 16.7, "int8": 33.4},
    {
        "memory": "Jetson Orin Nano Series data sheet: 8 GB 128-bit LPDDR5, shared",
        "bandwidth": "Jetson Orin Nano Super Developer Kit data sheet: 102 GB/s; 68 GB/s in the modes up to 15 W "
        "(Jetson Orin Nano Series data sheet)",
        "rates": "Jetson Orin Nano Super Developer Kit data sheet: 67 sparse INT8 TOPS at 1020 MHz, so 33.4 dense, "
        "half of it in FP16; 1024 CUDA cores. Mode MAXN_SUPER; up to 15 W the GPU ends at 625 MHz: 61 % of these "
        "rates (40 sparse, 20 dense INT8 TOPS). A board that was flashed for the super modes starts in 25 W, another "
        "in 15 W (Jetson Linux Developer Guide 36.4)",
    },
)
_NX = _jetson(
    "orin-nx-16gb",
    "Jetson Orin NX 16GB",
    16,
    102.4,
    {"fp32": 2.40, "fp16": 19.2, "int8": 38.4},
    {
        "memory": "Jetson Orin NX Series data sheet DS-10712-001: 16 GB 128-bit LPDDR5, shared",
        "bandwidth": "Jetson Orin NX Series data sheet DS-10712-001: 128 bits at 3200 MHz, printed as 102 GB/s",
        "rates": "1024 CUDA cores and 32 tensor cores of the Jetson Orin NX Series data sheet, at the 1173 MHz of "
        "MAXN_SUPER (NVIDIA's announcement of JetPack 6.2), computed as for the Orin Nano; 918 MHz without super modes "
        "(data sheet): 78 % of these rates. Without the DLAs, which are in the 157 (sparse) TOPS of the advertisement",
    },
)
_AGX = _jetson(
    "agx-orin-64gb",
    "Jetson AGX Orin 64GB",
    64,
    204.8,
    {"fp32": 5.3, "fp16": 42.5, "int8": 85.0},
    {
        "memory": "Jetson AGX Orin Series data sheet: 64 GB 256-bit LPDDR5, shared",
        "bandwidth": "Jetson AGX Orin Series data sheet DS-10662-001: up to 204.8 GB/s",
        "rates": "Jetson AGX Orin Series technical brief: 5.3 FP32 TFLOPS and 170 sparse INT8 TOPS of the GPU at "
        "1.3 GHz (MAXN), so 85 dense, half of it in FP16. Without the DLAs (105 sparse TOPS). A fresh board starts in "
        "30 W, which is slower (Jetson Linux Developer Guide 36.4)",
    },
)
_THOR = Target(
    name="thor",
    title="Jetson AGX Thor (T5000), JetPack 7.2",
    backend="tensorrt",
    sm=110,
    jetpack="7.2",
    tensorrt="10.16",
    cuda="13.2",
    python="3.12",
    memory_bytes=128 * GIB,
    shared_memory=True,
    bandwidth=273e9,
    rates=_tera({"fp32": 8.06, "fp16": 258.8, "fp8": 517.5, "fp4": 1035.0}),
    dialect="static",
    precision=HALF,
    opset=24,
    sources=MappingProxyType(
        {
            "software": _JETPACK_7,
            "sm": _CAPABILITY,
            "memory": "Jetson AGX Thor developer kit, NVIDIA's product page: 128 GB LPDDR5X, shared",
            "bandwidth": "Jetson Thor technical brief TB-12572-001: 273 GB/s",
            "rates": "Jetson Thor technical brief TB-12572-001: 1035 dense FP4 and 517 dense FP8 TFLOPS, FP16 half of "
            "that again; FP32 from 2560 CUDA cores (20 SMs) at 1575 MHz, printed as 1.57 GHz. MAXN; INT8 left out, no "
            "engine here computes in it",
        }
    ),
)
_HOPPER = {"fp32": 66.9, "tf32": 494.7, "fp16": 989.4, "fp8": 1978.9, "int8": 1978.9}
_HOPPER_RATES = "NVIDIA H100 Tensor Core GPU Architecture white paper: SXM5, peak rates without sparsity"

_ALL = (
    _host(
        "cpu",
        "CPU, ONNX Runtime",
        "int8",
        f"{_ORT}: int8 with this dialect is the fastest to the first token",
    ),
    _host("cuda", "CUDA, ONNX Runtime", HALF, "chosen: its GroupQueryAttention for CUDA takes no float32"),
    _NANO,
    _NX,
    _AGX,
    _jetpack_7(_NANO),
    _jetpack_7(_NX),
    _jetpack_7(_AGX),
    _THOR,
    _card(
        "a100",
        "A100 80GB SXM",
        80,
        80,
        2039,
        {"fp32": 19.5, "tf32": 156, "fp16": 312, "int8": 624},
        {
            "memory": "NVIDIA A100 Tensor Core GPU data sheet: 80 GB HBM2e",
            "bandwidth": "NVIDIA A100 Tensor Core GPU data sheet: 2,039 GB/s",
            "rates": "NVIDIA A100 Tensor Core GPU data sheet, without sparsity",
        },
    ),
    _card(
        "h100",
        "H100 80GB SXM",
        90,
        80,
        3350,
        _HOPPER,
        {
            "memory": "NVIDIA H100 Tensor Core GPU data sheet: 80 GB HBM3",
            "bandwidth": "NVIDIA H100 Tensor Core GPU data sheet: 3.35 TB/s",
            "rates": _HOPPER_RATES,
        },
    ),
    _card(
        "h200",
        "H200 141GB SXM",
        90,
        141,
        4800,
        _HOPPER,
        {
            "memory": "NVIDIA H200 Tensor Core GPU data sheet: 141 GB HBM3e",
            "bandwidth": "NVIDIA H200 Tensor Core GPU data sheet: 4.8 TB/s",
            "rates": f"{_HOPPER_RATES}; the H200's data sheet prints the same rates",
        },
    ),
    _card(
        "l4",
        "L4 24GB",
        89,
        24,
        300,
        {"fp32": 30.3, "tf32": 60.0, "fp16": 121.0, "fp8": 242.5, "int8": 242.5},
        {
            "memory": "NVIDIA L4 Tensor Core GPU data sheet: 24 GB GDDR6",
            "bandwidth": "NVIDIA L4 Tensor Core GPU data sheet: 300 GB/s",
            "rates": "NVIDIA L4 Tensor Core GPU data sheet: 120, 242 and 485 with sparsity, halved. At 72 W the "
            "clocks that these need do not last (from memory)",
        },
    ),
    _rtx(
        _card(
            "rtx3090",
            "GeForce RTX 3090 24GB",
            86,
            24,
            936,
            {"fp32": 35.6, "tf32": 35.6, "fp16": 71.0, "int8": 284.0},
            {
                "memory": "NVIDIA Ampere GA102 GPU Architecture white paper: 24 GB GDDR6X (from memory)",
                "bandwidth": "NVIDIA Ampere GA102 GPU Architecture white paper: 936 GB/s (from memory)",
                "rates": "NVIDIA Ampere GA102 GPU Architecture white paper: without sparsity, FP16 with FP32 "
                "accumulation (from memory)",
            },
        )
    ),
    _rtx(
        _card(
            "rtx4090",
            "GeForce RTX 4090 24GB",
            89,
            24,
            1008,
            {"fp32": 82.6, "tf32": 82.6, "fp16": 165.2, "fp8": 330.3, "int8": 660.6},
            {
                "memory": "NVIDIA Ada GPU Architecture white paper: 24 GB GDDR6X",
                "bandwidth": "NVIDIA Ada GPU Architecture white paper: 1008 GB/s",
                "rates": "NVIDIA Ada GPU Architecture white paper: without sparsity, FP16 and FP8 with FP32 "
                "accumulation (twice as fast with FP16 accumulation)",
            },
        )
    ),
    _rtx(
        _card(
            "rtx5090",
            "GeForce RTX 5090 32GB",
            120,
            32,
            1792,
            {"fp32": 104.8, "tf32": 104.8, "fp16": 209.5, "fp8": 419.0, "int8": 838.0, "fp4": 1676.0},
            {
                "memory": "NVIDIA RTX Blackwell GPU Architecture white paper: 32 GB GDDR7, as reviews quote it",
                "bandwidth": "NVIDIA RTX Blackwell GPU Architecture white paper: 1792 GB/s, as reviews quote it",
                "rates": "NVIDIA RTX Blackwell GPU Architecture white paper: without sparsity, FP16 and FP8 with FP32 "
                "accumulation (from memory; reviews quote 3352 sparse FP4 TOPS)",
            },
        )
    ),
    _rtx(
        _card(
            "dgx-spark",
            "DGX Spark 128GB (GB10)",
            121,
            128,
            273,
            {"fp32": 31.0, "fp16": 125.0, "fp8": 250.0, "fp4": 500.0},
            {
                "memory": "NVIDIA DGX Spark, product page: 128 GB LPDDR5x, shared by CPU and GPU",
                "bandwidth": "NVIDIA DGX Spark, product page: 273 GB/s",
                "rates": "NVIDIA DGX Spark, product page: 1 PFLOP of sparse FP4, so 500 TFLOPS dense, FP8 and FP16 "
                "half and a quarter of it (computed); 31 in FP32 from NVIDIA's talk at Hot Chips 2025, as reported",
            },
        ),
        shared=True,
    ),
    replace(
        _THOR,
        name="rtx",
        title="RTX cards of compute capability 8.0 to 12.1",
        backend="tensorrt-rtx",
        sm=None,
        jetpack=None,
        tensorrt="1.7",
        cuda=None,
        python=None,
        memory_bytes=None,
        shared_memory=False,
        bandwidth=None,
        rates=MappingProxyType({}),
        dialect="static",
        precision=HALF,
        opset=24,
        sources=MappingProxyType(
            {
                "software": _TENSORRT_RTX,
                "precision": "chosen: whatever the card; INT4 halves what a 7B model takes",
            }
        ),
    ),
)
TARGETS: dict[str, Target] = {target.name: target for target in _ALL}
