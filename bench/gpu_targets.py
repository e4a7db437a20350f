"""What the figures of :mod:`bench.gpu_all` are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

UNCAPTURED = "fp16 without CUDA graphs"
WARPGROUPS = "float16, wgmma"
Result = Mapping[str, Any]
Figure = Callable[[Result], float]


@dataclass(frozen=True)
class Target:
    """A figure of the result, and the most or the least that it may be; without either it is only reported."""

    name: str
    of: Figure
    most: float | None = None
    least: float | None = None

    @property
    def bound(self) -> str:
        """What it may be, in words."""
        if self.most is not None:
            return f"{'' if self.least is None else f'at least {self.least:g}, '}at most {self.most:g}"
        return "no target" if self.least is None else f"at least {self.least:g}"

    def judged(self, result: Result, *, verdict: bool = True) -> dict[str, Any]:
        """Return the figure and whether it meets the target: None where it has none, or nothing may be said of it."""
        try:
            value = self.of(result)
        except (KeyError, IndexError, TypeError, StopIteration, ZeroDivisionError):
            return {"target": self.name, "bound": self.bound, "measured": None, "met": None}
        met = None
        if verdict and (self.most is not None or self.least is not None):
            met = (self.most is None or value <= self.most) and (self.least is None or value >= self.least)
        return {"target": self.name, "bound": self.bound, "measured": value, "met": met}


def line(one: Mapping[str, Any]) -> str:
    """Return a judged target as a line."""
    if one["measured"] is None:
        return f"  –    {one['target']}: not measured ({one['bound']})"
    verdict = {True: "met ", False: "MISS", None: "    "}[one["met"]]
    return f"  {verdict} {one['target']}: {one['measured']:.3g} ({one['bound']})"


def _row(result: Result, size: str, dtype: str) -> Any:
    return next(row for row in result["selector"][dtype]["rows"] if row["size"].startswith(size))


def _selector(size: str, dtype: str = "float16", form: str = "kernel") -> Figure:
    return lambda result: float(_row(result, size, dtype)["us"][form])


def _over_chain(size: str) -> Figure:
    """The picks' kernel over the shortest chain of as many dependent steps that was found."""

    def find(result: Result) -> float:
        row = _row(result, size, "float16")
        return float(row["kernels_us"]["pick_kernel"] / row["floor_us"]["chain"])

    return find


def _variant(result: Result, precision: str, variant: int) -> Any:
    return result["models"][precision]["variants"][variant]


def _stage(precision: str, variant: int, stage: str) -> Figure:
    return lambda result: _stages(_variant(result, precision, variant))[stage]


def _stages(variant: Mapping[str, Any]) -> dict[str, float]:
    return {one["stage"]: float(one["ms"]["median"]) for one in variant["stages"]}


def _eager(ours: str, variant: int, theirs: str) -> Figure:
    return lambda result: _stage("fp16", variant, ours)(result) / result["eager"][theirs]


def _against(precision: str, other: str, stage: str) -> Figure:
    return lambda result: _stage(precision, 0, stage)(result) / _stage(other, 0, stage)(result)


def _as_modelled(result: Result) -> float:
    """How many times sooner pruning brings the first token, over what the rooflines of the GPU's stages say."""
    pruned, full = (_variant(result, "fp16", number) for number in (0, 1))
    bounds = [
        sum(one["roofline"]["ms"] for one in variant["stages"][:-1] if one["roofline"])
        for variant in (full, pruned)
    ]
    times = [variant["ttft_ms"]["median"] - _stages(variant)["preprocess"] for variant in (full, pruned)]
    return float(times[0] / times[1] / (bounds[0] / bounds[1]))


def _cold(result: Result) -> float:
    variant = _variant(result, "fp16", 0)
    return float(variant["cold_ttft_ms"] / variant["ttft_ms"]["median"])


def _probed(name: str) -> Figure:
    return lambda result: float(result["probe"][name])


SMALL, MIDDLE, LARGE = "576->58 x 4096", "2880->288 x 4096", "6272->627 x 3584"
TARGETS = (
    Target("selector 576 → 58 × 4096, µs", _selector(SMALL), most=50),
    Target("selector 576 → 58 × 4096, µs, stretch", _selector(SMALL), most=42),
    Target("selector 2880 → 288 × 4096, µs", _selector(MIDDLE), most=300),
    Target("selector 6272 → 627 × 3584, µs", _selector(LARGE), most=900),
    Target("selector 576 → 58 × 4096, float32, µs", _selector(SMALL, "float32"), most=178),
    Target("selector 2880 → 288 × 4096 by warpgroups, µs", _selector(MIDDLE, WARPGROUPS), most=300),
    Target("selector 6272 → 627 × 3584 by warpgroups, µs", _selector(LARGE, WARPGROUPS), most=900),
    Target(
        "PyTorch loop over selector, 576 → 58",
        lambda r: float(_row(r, SMALL, "float16")["speedup"]),
        least=60,
    ),
    Target("picks over the shortest chain, 576 → 58", _over_chain(SMALL)),
    Target("picks over the shortest chain, 2880 → 288", _over_chain(MIDDLE)),
    Target(
        "selector 576 → 58, launches counted", lambda r: float(_row(r, SMALL, "float16")["launches"]), most=2
    ),
    Target("selection in ONNX Runtime, ms", _stage("fp16", 0, "select"), most=0.15),
    Target("prefill pruned, ms", _stage("fp16", 0, "prefill"), most=5),
    Target("prefill unpruned, ms", _stage("fp16", 1, "prefill"), most=14),
    Target("prefill of a length not seen before, ms", _probed("new_prefill_ms")),
    Target("decode step, ms", _stage("fp16", 0, "decode step"), most=4.5),
    Target("bytes to and from the host in a step", _probed("step_bytes"), most=1024),
    Target("decode step over one without CUDA graphs", _against("fp16", UNCAPTURED, "decode step"), most=1),
    Target("decode step in int4 over float16", _against("int4", "fp16", "decode step"), most=1),
    Target("TTFT's saving over the rooflines'", _as_modelled, most=1.15, least=0.85),
    Target("first TTFT over later ones", _cold),
    Target("vision over eager PyTorch", _eager("vision", 0, "vision"), most=1),
    Target("prefill pruned over eager PyTorch", _eager("prefill", 0, "prefill"), most=1),
    Target("prefill unpruned over eager PyTorch", _eager("prefill", 1, "prefill unpruned"), most=1),
    Target("decode step over eager PyTorch", _eager("decode step", 0, "decode step"), most=1),
)
