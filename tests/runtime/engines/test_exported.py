"""The profiles of real bundles: every shape that an engine is built for is one that the graph takes."""

from __future__ import annotations

import pytest
from checkpoints import make_checkpoint
from exporting import export, open_session, plan_of, run_with

from divprune_edge.models.profiles import DECODE, make_limits
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.graphs import chosen_selectors, graphs_of


@pytest.fixture(scope="module", params=["static", "decomposed"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = make_checkpoint(folder / "checkpoint")
    export(plan_of(checkpoint, keep=9, dialect=request.param, capacity=80), folder / "bundle")
    return Bundle.open(folder / "bundle", "always")


def test_every_shape_of_every_profile_runs(bundle: Bundle) -> None:
    selectors = chosen_selectors(bundle, "all,none")
    limits = make_limits(bundle.manifest, selectors, None)
    graphs = graphs_of(bundle, selectors, limits, "10.16.2")
    assert [graph.name for graph in graphs] == ["divprune-9", "vision_encoder", "language_model"]
    for graph in graphs:
        session = open_session(bundle.file(graph.file))
        for profile in graph.profiles:
            assert set(profile) == {one.name for one in session.get_inputs()}
            for end in ("min", "opt", "max"):
                run_with(session, {name: getattr(shapes, end) for name, shapes in profile.items()})


def test_a_shape_beyond_the_profile_is_noticed(bundle: Bundle) -> None:
    """The test above can fail: the cache has the graph's capacity, and not one row more."""
    selectors = chosen_selectors(bundle, None)
    graph = graphs_of(bundle, selectors, make_limits(bundle.manifest, selectors, None), "10.16.2")[-1]
    session = open_session(bundle.file(graph.file))
    shapes = {name: shapes.max for name, shapes in graph.profiles[DECODE].items()}
    batch, heads, rows, width = shapes["past_key_values.0.key"]
    with pytest.raises(Exception, match=r"past_key_values\.0\.key"):
        run_with(session, shapes | {"past_key_values.0.key": (batch, heads, rows + 1, width)})
