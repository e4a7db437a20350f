"""The process in which TensorRT-RTX is asked: a fault in its builder ends this one, and not the check.

``python -m divprune_edge.export.check.asking BUNDLE SMS BUILD DONE EVENTS`` writes a JSON object per line to the file
EVENTS: who is asked and about which files, then an answer per graph after the first DONE ones.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.models.profiles import make_limits
from divprune_edge.models.tensorrt import TENSORRT_RTX
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines import edition
from divprune_edge.runtime.engines.facts import facts_ahead
from divprune_edge.runtime.engines.graphs import BuildJob, chosen_selectors, graphs_of
from divprune_edge.runtime.engines.memory import check_build_memory, graph_bytes
from divprune_edge.runtime.engines.progress import BuildProgress


def events(bundle: Path, sms: tuple[int, ...], *, build: bool, done: int) -> Iterator[dict[str, Any]]:
    """Yield who is asked, why nothing is built (None where it is), and the files; then what it says of each file.

    Args:
        bundle: its folder; its language model is in a dialect for TensorRT.
        sms: compute capabilities, times ten, that TensorRT-RTX builds for.
        build: parse alone if False, and where the machine's memory is too small.
        done: how many of the graphs are not asked about again.

    Raises:
        UserError: no bundle, or a damaged one.
    """
    edition.use(TENSORRT_RTX)
    from divprune_edge.runtime.engines import compile as compiler

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    facts = facts_ahead(TENSORRT_RTX, sms)
    selectors = chosen_selectors(opened, "all,none")
    graphs = graphs_of(
        opened, selectors, make_limits(manifest, selectors, None), facts.tensorrt, TENSORRT_RTX
    )
    unbuilt = None if build else "--no-build"
    try:
        check_build_memory([graph_bytes(manifest, graph.file, graph.data) for graph in graphs], None, facts)
    except UserError as error:
        unbuilt = str(error)
    yield {"library": facts.library, "unbuilt": unbuilt, "files": [graph.file for graph in graphs]}
    for graph in graphs[done:]:
        data = tuple(map(opened.file, graph.data))
        job = BuildJob(
            graph.name, opened.file(graph.file), graph.profiles, False, None, None, data, facts.sms
        )
        answer: dict[str, Any] = {"file": graph.file}
        start = time.monotonic()
        try:
            if unbuilt is not None:
                compiler.check_graph(job)
            else:
                answer["size"] = memoryview(compiler.make_engine(job, None, BuildProgress())).nbytes
                answer["seconds"] = round(time.monotonic() - start, 3)
        except DivpruneError as error:
            answer["words"] = str(error).removesuffix(compiler.ADVICE)
        yield answer


def main(bundle: str, sms: str, build: str, done: str, file: str) -> None:
    """Write the events, each as soon as it is known."""
    asked = tuple(map(int, sms.split(",")))
    with Path(file).open("w", encoding="utf-8") as out:
        try:
            for event in events(Path(bundle), asked, build=build == "build", done=int(done)):
                print(json.dumps(event), file=out, flush=True)
        except UserError as error:
            print(json.dumps({"refused": str(error), "code": error.code}), file=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
