"""What TensorRT's own parser and builder say of a bundle: TensorRT-RTX, where it is installed. No GPU is needed.

Its parser is that of TensorRT's newer versions, so what it refuses is a fault whatever the target. What it takes proves
engines for the GPUs that it was asked for, and nothing of another TensorRT's parser or engines (evidence level E2b).
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.models.targets import RTX_SMS, Target

EVIDENCE = "E2b"


@dataclass(frozen=True)
class Answer:
    """What it said of one graph: seconds and bytes of the engine, None where it only parsed; words if it refused."""

    file: str
    seconds: float | None = None
    size: int | None = None
    words: str | None = None


@dataclass(frozen=True)
class Asked:
    """Who was asked, for which compute capabilities (times ten), and what it said.

    ``unbuilt`` is why graphs were parsed and not built, None where they were built.
    """

    library: str
    sms: tuple[int, ...]
    answers: tuple[Answer, ...]
    unbuilt: str | None = None


def ask_tensorrt(bundle: Path, target: Target, *, build: bool = True) -> Asked | None:
    """Let TensorRT-RTX parse and build the graphs of a bundle; None where it is not installed.

    Args:
        bundle: its folder; its language model is in a dialect for TensorRT.
        target: a device that runs TensorRT of either edition. Where TensorRT-RTX builds nothing for its GPU, the
            nearest older one stands for it.
        build: parse alone if False, and where the machine's memory is too small.

    Raises:
        UserError: no bundle, or a damaged one.
    """
    if not is_installed():
        return None
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.engines import edition
    from divprune_edge.runtime.engines.facts import facts_ahead
    from divprune_edge.runtime.engines.graphs import Job, chosen_selectors, graphs_of
    from divprune_edge.runtime.engines.memory import check_build_memory, graph_bytes
    from divprune_edge.runtime.engines.profiles import make_limits
    from divprune_edge.runtime.engines.progress import Silent

    rtx = edition.TENSORRT_RTX
    facts = facts_ahead(rtx, _sms(target))
    edition.use(rtx)
    from divprune_edge.runtime.engines import compile as compiler

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    selectors = chosen_selectors(opened, "all,none")
    limits = make_limits(manifest, selectors, None)
    graphs = graphs_of(opened, selectors, limits, facts.tensorrt, rtx)
    asked = Asked(facts.library, facts.sms, (), None if build else "--no-build")
    try:
        check_build_memory([graph_bytes(manifest, graph.file, graph.data) for graph in graphs], None, facts)
    except UserError as error:
        asked = replace(asked, unbuilt=str(error))
    with tempfile.TemporaryDirectory(prefix="divprune-check-") as folder:
        plan, timings = Path(folder) / "engine.plan", Path(folder) / "none"
        for graph in graphs:
            data = tuple(map(opened.file, graph.data))
            job = Job(graph.name, opened.file(graph.file), graph.profiles, False, None, None, data, facts.sms)
            answer, start = Answer(graph.file), time.monotonic()
            try:
                if asked.unbuilt is not None:
                    compiler.check_graph(job)
                else:
                    compiler.compile_engine(job, plan, timings, Silent())
                    answer = Answer(graph.file, round(time.monotonic() - start, 3), plan.stat().st_size)
            except DivpruneError as error:
                answer = Answer(graph.file, words=str(error))
            asked = replace(asked, answers=(*asked.answers, answer))
    return asked


def is_installed() -> bool:
    """Whether TensorRT-RTX is here, and Polygraphy, which drives it."""
    return all(importlib.util.find_spec(name) is not None for name in ("tensorrt_rtx", "polygraphy"))


def _sms(target: Target) -> tuple[int, ...]:
    """Return a target's own compute capabilities, or the nearest older one that TensorRT-RTX builds for."""
    if set(target.sms) <= set(RTX_SMS):
        return target.sms
    return (max(sm for sm in RTX_SMS if sm <= target.sms[0]),)
