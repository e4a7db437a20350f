"""Every method: its reference against PyTorch in transformers' layers, its graph against that, its schedule."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from eager_schedules import EAGER, Eager, eager_transprune, run, run_layer, tiny_decoder
from exporting import open_session
from raising import refused
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from divprune_edge.export.graph import GraphBuilder
from divprune_edge.models.schedules import METHODS, Cut, Schedule, View, schedule_of
from divprune_edge.models.schedules.method import query_rows
from divprune_edge.models.schedules.transprune import transprune_picks
from divprune_edge.models.schedules.vla_pruner import temporal_guide, vla_picks

LAYERS = 12
BEFORE, VISUAL, AFTER = 5, 24, 9
LOOKS = [name for name, method in METHODS.items() if method.watches]
"""Methods that look at something."""


def schedule(name: str) -> Schedule:
    """The published schedule in :data:`LAYERS` layers, or for fitprune some recipe."""
    if name == "fitprune":
        return Schedule(name, VISUAL, (Cut(2, 17), Cut(5, 11), Cut(6, 4)), "original")
    return schedule_of(name, LAYERS, VISUAL)


def eager(plan: Schedule) -> Eager:
    if plan.method == "transprune":
        return eager_transprune(plan.since, plan.cuts[-1].before - 1)
    return EAGER[plan.method]


def some_rows(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(BEFORE + VISUAL + AFTER, 32)


# References.


def view_of(decoder: Any, index: int, x: torch.Tensor, positions: torch.Tensor, is_visual: Any) -> View:
    """What a reference sees of a layer that transformers runs on rows [n, D]."""
    layer = decoder.layers[index]
    found = run_layer(decoder, layer, x, positions)
    normed, attention = found.attention[0], layer.self_attn
    q, k = (
        projection(normed).view(1, len(x), -1, attention.head_dim).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, *decoder.rotary_emb(x[None], positions[None]))
    middle = x + found.attention[1]
    arrays = [value.numpy() for value in (q[0], k[0], x, middle, found.after)]
    rows = np.flatnonzero(is_visual), np.flatnonzero(~is_visual)
    return View(*arrays, *rows, (normed.numpy(), found.mlp[0].numpy()))


def chosen(model: Any, embeddings: torch.Tensor, schedule: Schedule) -> list[list[int]]:
    """What a method's references leave after each cut, over hidden states that transformers computes."""
    method, decoder = METHODS[schedule.method], model.model
    at = {cut.before: cut.keep for cut in schedule.cuts}
    x, places = embeddings, np.arange(len(embeddings))
    is_visual = (places >= BEFORE) & (places < BEFORE + VISUAL)
    positions = torch.from_numpy(places)
    summed: dict[str, Any] = {}
    views: list[View] = []
    kept: list[list[int]] = []
    for index in range(len(decoder.layers)):
        if index in at:
            seen = [*views, view_of(decoder, index, x, positions, is_visual)]
            values = {
                watch.name: summed[watch.name] if watch.summed else watch.reference(seen[watch.offset - 2])
                for watch in method.watches
            }
            picks = np.sort(method.picks(values, int(is_visual.sum()), at[index]))
            summed = {name: value[picks] for name, value in summed.items()}
            left = np.sort(np.concatenate([np.flatnonzero(~is_visual), np.flatnonzero(is_visual)[picks]]))
            x, places, is_visual = x[left], places[left], is_visual[left]
            positions = torch.arange(len(left)) if schedule.numbering == "compact" else positions[left]
            kept.append(places[is_visual].tolist())
        views.append(view_of(decoder, index, x, positions, is_visual))
        for watch in method.watches:
            if watch.summed and index >= schedule.since:
                summed[watch.name] = summed.get(watch.name, 0) + watch.reference(views[-1])
        x = torch.from_numpy(views[-1].after)
    return kept


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("name", LOOKS)
def test_references_choose_what_pytorch_chooses(name: str, kind: str) -> None:
    model, plan = tiny_decoder(kind, LAYERS), schedule(name)
    # Where all visual tokens leave there is nothing to choose.
    cuts = tuple(cut for cut in plan.cuts if cut.keep)
    plan = Schedule(name, VISUAL, cuts, plan.numbering, plan.since)
    visual = range(BEFORE, BEFORE + VISUAL)
    for seed in range(4):
        rows = some_rows(seed)
        with torch.no_grad():
            found = chosen(model, rows, plan)
        wanted = run(
            model,
            rows,
            [visual],
            [(cut.before, cut.keep) for cut in cuts],
            eager(plan),
            renumber=plan.numbering == "compact",
        )
        assert found == wanted.kept, (name, seed)
        assert [len(each) for each in found] == [cut.keep for cut in cuts]


def test_what_pytorch_runs_is_the_model() -> None:
    """Without cuts the layers give transformers' own logits, prefill and decode."""
    for kind in ("llama", "qwen2"):
        model, rows = tiny_decoder(kind), some_rows(0)
        found = run(model, rows, [], [], EAGER["fastv"], renumber=False, steps=3)
        with torch.no_grad():
            asked = torch.cat([rows, model.model.embed_tokens(torch.tensor(found.tokens))])
            wanted = model(inputs_embeds=asked[None]).logits[0, len(rows) - 1 :]
        torch.testing.assert_close(found.logits, wanted, rtol=1e-4, atol=1e-4)
        assert found.lengths == [len(asked)] * 8


def test_no_two_methods_keep_the_same() -> None:
    model, rows, cuts = tiny_decoder("llama", LAYERS), some_rows(1), (Cut(4, 10), Cut(7, 5))
    with torch.no_grad():
        kept = {
            name: chosen(model, rows, Schedule(name, VISUAL, cuts, "original", since=2)) for name in LOOKS
        }
    assert kept.pop("lazyllm") == kept["fastv"], "LazyLLM is FastV in several cuts"
    for one, two in combinations(kept, 2):
        assert kept[one] != kept[two], (one, two)


# Graphs.


class PlainLayer:
    """A layer of which everything is an input of the graph."""

    def __init__(self, g: GraphBuilder, view: View) -> None:
        assert view.normed is not None
        self._g = g
        self.feed: dict[str, Any] = {}
        self._visual = g.constant(view.visual)
        names: Any = ("last", "asked", "text", "visual", "all")
        self._rows = {name: g.constant(view.rows(name)) for name in names}
        self.attention = self._given("attention", view.attention)
        self.before, self.middle, self.after = (
            self._given(name, getattr(view, name)[None]) for name in ("before", "middle", "after")
        )
        self.normed = tuple(self._given(f"normed{i}", x[None]) for i, x in enumerate(view.normed))

    def _given(self, name: str, value: Any) -> ir.Value:
        self.feed[name] = np.ascontiguousarray(value, np.float32)
        return self._g.input(name, "float32", list(value.shape))

    def shares(self, queries: str) -> ir.Value:
        rows = self._g.op("Gather", self.attention, self._rows[queries], axis=1)
        return self._g.op("Gather", rows, self._visual, axis=2)

    def of_visual(self, hidden: ir.Value) -> ir.Value:
        return self._g.op(
            "Squeeze", self._g.op("Gather", hidden, self._visual, axis=1), self._g.constant([0])
        )

    def of(self, queries: str, hidden: ir.Value) -> ir.Value:
        rows = self._g.op("Gather", hidden, self._rows[queries], axis=1)
        return self._g.op("Squeeze", rows, self._g.constant([0]))


def random_view(seed: int, questions: int) -> View:
    """A view of random numbers whose shares are uneven."""
    random = np.random.default_rng(seed)
    n = BEFORE + VISUAL + questions

    def rows(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    visual = np.arange(BEFORE, BEFORE + VISUAL)
    return View(
        2 * rows(4, n, 8),
        2 * rows(2, n, 8),
        *(rows(n, 16) for _ in range(3)),
        visual,
        np.setdiff1d(np.arange(n), visual),
        (rows(n, 16), rows(n, 16)),
    )


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize(
    ("name", "watch"),
    [(name, watch) for name in LOOKS for watch in METHODS[name].watches],
    ids=lambda x: getattr(x, "name", x),
)
def test_graphs_read_what_references_read(name: str, watch: Any, opset: int) -> None:
    for seed, questions in ((0, AFTER), (1, 1), (2, 0)):
        view = random_view(seed, questions)
        g = GraphBuilder("watch")
        layer = PlainLayer(g, view)
        g.output(watch.body(g, layer), "score", "float32", ["m"])
        session = open_session(ir.to_proto(g.model(opset)).SerializeToString())
        (found,) = session.run(None, layer.feed)
        wanted = watch.reference(view)
        assert wanted.dtype == np.float32
        assert wanted.shape == (VISUAL,)
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-7, err_msg=f"{questions} questions")


# Schedules.


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("pyramiddrop", [(8, 288), (16, 144), (24, 72)]),
        ("fastv", [(2, 288)]),
        ("v2drop", [(3, 288), (17, 144), (22, 1)]),
        ("transprune", [(7, 504), (9, 360), (12, 72)]),
        ("todre-2", [(28, 0)]),
        ("aim", [(14, 504), (15, 432), (16, 360), (17, 288), (18, 216), (19, 144), (20, 72), (21, 0)]),
        ("sparsevlm", [(3, 300), (7, 200), (16, 110)]),
        ("lazyllm", [(10, 403), (19, 282), (29, 198)]),
        ("catp", [(6, 128)]),
        ("vla-pruner", [(3, 144)]),
        ("spatten", [(8, 288), (16, 144), (24, 72)]),
    ],
)
def test_published_schedules_of_32_layers_and_576_tokens(name: str, cuts: list[tuple[int, int]]) -> None:
    found = schedule_of(name, 32, 576)
    assert [(cut.before, cut.keep) for cut in found.cuts] == cuts
    assert found.since == (6 if name == "transprune" else 0)


@pytest.mark.parametrize(
    ("name", "layers", "cuts"),
    [
        ("aim", 28, [(15, 504), (16, 432), (17, 360), (18, 288), (19, 216), (20, 144), (21, 72), (22, 0)]),
        ("catp", 28, [(6, 128)]),
        ("catp", 40, [(10, 128)]),
        ("v2drop", 28, [(3, 144), (16, 7), (22, 1)]),
        ("fastv", 40, [(2, 288)]),
        ("vla-pruner", 40, [(3, 144)]),
        # Published for 32 layers alone: the same fractions.
        ("v2drop", 40, [(4, 288), (21, 144), (28, 1)]),
        ("aim", 24, [(10, 504), (11, 432), (12, 360), (13, 288), (14, 144), (15, 72), (16, 0)]),
        ("pyramiddrop", 40, [(10, 288), (20, 144), (30, 72)]),
        ("sparsevlm", 28, [(3, 300), (6, 200), (14, 110)]),
    ],
)
def test_schedules_of_other_depths(name: str, layers: int, cuts: list[tuple[int, int]]) -> None:
    assert [(cut.before, cut.keep) for cut in schedule_of(name, layers, 576).cuts] == cuts


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"fitprune"}))
def test_published_schedules_fit_every_size(name: str) -> None:
    for layers in (2, 3, 6, 12, 24, 28, 40, 80):
        for visual in (1, 2, 9, 58, 144, 576, 2880):
            cuts = METHODS[name].published(layers, visual)
            if cuts:
                Schedule(name, visual, cuts, "original", METHODS[name].since(layers)).check(layers)
            else:
                assert visual < 9


def test_a_file_that_cuts_early_sums_what_is_before(tmp_path: Path) -> None:
    """TransPrune's usual first layer is the seventh of 32."""
    file = tmp_path / "own.json"
    for before, since in ((2, 1), (1, 0), (12, 6)):
        file.write_text(f'{{"method": "transprune", "cuts": [{{"before": {before}, "keep": 9}}]}}')
        assert schedule_of(str(file), 32, 576).since == since


@pytest.mark.parametrize(("layers", "visual"), [(40, 576), (32, 144), (32, 2880)])
def test_fitprune_has_to_be_fitted(layers: int, visual: int) -> None:
    """Where it is not LLaVA-1.5-7B, whose recipe is published."""
    with refused("schedule-to-be-fitted", layers, visual, "export fit"):
        schedule_of("fitprune", layers, visual)


def test_each_states_its_source_and_its_deviations() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.citation
        assert all(sentence.endswith(".") for sentence in method.deviations)
        assert len({watch.name for watch in method.watches}) == len(method.watches)


# By hand.


def f32(*values: float) -> Any:
    return np.array(values, np.float32)


def test_transprune_weighs_two_shares_alike() -> None:
    """Of 8 asked 1/2, 1/4, 1/8 and 1/8; of 100 transitions .1, .2, .5 and .2: sums .6, .45, .625, .325."""
    values = {"asked": f32(4, 2, 1, 1), "transition": f32(10, 20, 50, 20)}
    assert transprune_picks(values, 4, 2).tolist() == [2, 0]


def test_vla_takes_the_best_of_both_rankings() -> None:
    values = {"received": f32(5, 4, 3, 2, 1), "history": f32(0, 0, 1, 3, 2)}
    # Ranks received 0 1 2 3 4, and by the history 3 4 2 0 1: the better ones are 0 1 2 0 1.
    assert vla_picks(values, 5, 2).tolist() == [0, 3]
    assert vla_picks(values, 5, 3).tolist() == [0, 3, 1]
    assert vla_picks({"received": values["received"]}, 5, 2).tolist() == [0, 1]


def test_the_guide_of_time_forgets() -> None:
    """The last three of four steps, weighing .64, .8 and 1."""
    steps = [f32(9, 9), f32(1, 0), f32(0, 1), f32(1, 1)]
    np.testing.assert_allclose(temporal_guide(steps), f32(1.64 / 2.44, 1.8 / 2.44), rtol=1e-6)
    np.testing.assert_allclose(temporal_guide(steps[:1]), f32(9, 9))
    for wrong in ([], [f32(1, 2), f32(1)], [f32(1, np.nan)], [f32(1, 2)[None]]):
        with refused("schedule-values"):
            temporal_guide(wrong)


def test_rows_asked_about() -> None:
    """Text behind the last visual token; the last row where there is none."""
    assert query_rows("asked", np.array([2, 3]), np.array([0, 1, 4, 5])).tolist() == [4, 5]
    assert query_rows("asked", np.array([2, 3]), np.array([0, 1])).tolist() == [3]
