"""Every selector's graph against its NumPy reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from checkpoints import make_checkpoint
from exporting import Bundle, export, failures, open_session, plan_of
from raising import refused
from selectors_cases import KINDS, WIDTH, make_signals, make_tokens, signal_infos, some_valid

from divprune_edge.export.add_selector import add_selector, add_selectors
from divprune_edge.export.selector import DOMAIN, build_selector
from divprune_edge.models.selectors import SELECTORS, Selector, regret_of

SIZES = [(4, 1), (4, 3), (25, 1), (25, 9), (25, 24), (64, 26), (144, 40)]
"""(N, K); K = N is the identity."""

# Replays that differ in the last bits of their distances: relative to values of about 1, or of K distances.
REGRET = 1e-4


def session_of(selector: Selector, n: int, keep: int, dtype: str = "float32") -> Any:
    model = build_selector(selector, n, keep, WIDTH, dtype, signals=signal_infos(selector, n, dtype))
    return open_session(ir.to_proto(model).SerializeToString())


def run(session: Any, tokens: Any, valid: Any, signals: dict[str, Any]) -> tuple[Any, Any]:
    feed = {"visual_tokens": tokens[None], "valid": valid[None]}
    kept, indices = session.run(None, feed | {name: value[None] for name, value in signals.items()})
    return kept[0], indices[0]


@pytest.mark.parametrize(("n", "keep"), SIZES)
@pytest.mark.parametrize("name", SELECTORS)
def test_graph_and_reference_keep_the_same(name: str, n: int, keep: int) -> None:
    selector = SELECTORS[name]
    session = session_of(selector, n, keep)
    random = np.random.default_rng(n * 1000 + keep)
    for case in range(4 * len(KINDS)):
        kind = KINDS[case % len(KINDS)]
        tokens = make_tokens(kind, n, random)
        valid = some_valid(n, keep, random) if case % 2 else np.ones(n, bool)
        signals = make_signals(selector, n, random, flat=case % 5 == 4)
        kept, indices = run(session, tokens, valid, signals)
        wanted = selector.reference(tokens, valid, keep, **signals)
        assert kept.shape == (keep, WIDTH)
        if selector.merge is None:
            assert (np.diff(indices) > 0).all()
            assert valid[indices].all()
            assert kept.tobytes() == tokens[indices].tobytes()
        if np.array_equal(indices, wanted):
            expected = selector.kept(tokens, valid, keep, **signals)
            assert np.allclose(kept, expected, rtol=1e-5, atol=1e-5), kind
        else:  # a tie that rounding broke: only where cosines are not exact, and only as good as the reference
            assert kind != "signs"
            assert selector.values is not None, kind
            assert regret_of(selector, tokens, valid, indices, **signals) <= REGRET * max(1, keep), kind


@pytest.mark.parametrize("name", SELECTORS)
def test_576_tokens_in_a_batch(name: str) -> None:
    """The size of LLaVA-1.5; each image of a batch is selected by itself."""
    selector = SELECTORS[name]
    session = session_of(selector, 576, 58)
    random = np.random.default_rng(2)
    tokens = np.stack([make_tokens(kind, 576, random) for kind in ("random", "clustered")])
    valid = np.stack([np.ones(576, bool), some_valid(576, 58, random)])
    signals = [make_signals(selector, 576, random) for _ in range(2)]
    together = {signal: np.stack([s[signal] for s in signals]) for signal in selector.signals}
    kept, indices = session.run(None, {"visual_tokens": tokens, "valid": valid} | together)
    for i in range(2):
        assert np.array_equal(indices[i], selector.reference(tokens[i], valid[i], 58, **signals[i]))
        alone = run(session, tokens[i], valid[i], signals[i])
        assert np.array_equal(alone[1], indices[i])
        assert np.allclose(alone[0], kept[i], atol=1e-5)


@pytest.mark.parametrize("name", SELECTORS)
def test_float16_tokens(name: str) -> None:
    selector = SELECTORS[name]
    session = session_of(selector, 36, 9, "float16")
    random = np.random.default_rng(6)
    tokens = make_tokens("random", 36, random).astype(np.float16)
    signals = make_signals(selector, 36, random)
    if "cls_token" in signals:
        signals["cls_token"] = signals["cls_token"].astype(np.float16)
    valid = np.ones(36, bool)
    kept, indices = run(session, tokens, valid, signals)
    assert kept.dtype == np.float16
    assert np.array_equal(indices, selector.reference(tokens, valid, 9, **signals))
    wanted = selector.kept(tokens, valid, 9, **signals)
    assert wanted.dtype == np.float16
    assert np.allclose(kept.astype(np.float32), wanted.astype(np.float32), atol=2e-3)


@pytest.mark.parametrize("name", SELECTORS)
def test_the_file(tmp_path: Path, name: str) -> None:
    """One node of its own name with every declared signal as an input; the checker accepts it."""
    selector = SELECTORS[name]
    model = ir.to_proto(build_selector(selector, 25, 9, WIDTH, "float32", signals=signal_infos(selector, 25)))
    onnx.checker.check_model(model, full_check=True)
    (node,) = model.graph.node
    assert (node.domain, node.op_type) == (DOMAIN, selector.op_type)
    assert [i.name for i in model.graph.input] == ["visual_tokens", "valid", *selector.signals]
    assert list(node.input) == ["visual_tokens", "valid", *selector.signals]
    assert {n.domain for n in model.functions[0].node} == {""}


@pytest.mark.parametrize("name", SELECTORS)
def test_all_tokens_are_the_identity(name: str) -> None:
    selector = SELECTORS[name]
    random = np.random.default_rng(0)
    tokens, valid = make_tokens("random", 16, random), np.ones(16, bool)
    kept, indices = run(session_of(selector, 16, 16), tokens, valid, make_signals(selector, 16, random))
    assert np.array_equal(kept, tokens)
    assert np.array_equal(indices, np.arange(16))


def test_every_node_has_its_own_name() -> None:
    assert len({selector.op_type for selector in SELECTORS.values()}) == len(SELECTORS)


@pytest.fixture(scope="module")
def bundle_with_signals(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = make_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    plan = plan_of(folder, signals="all")
    bundle = export(plan, tmp_path_factory.mktemp("bundles") / "bundle")
    return bundle


@pytest.mark.parametrize("name", SELECTORS)
def test_each_can_be_added_to_a_bundle_and_is_verified(bundle_with_signals: Bundle, name: str) -> None:
    manifest, entry, checks = add_selector(
        bundle_with_signals.folder, name, keep=7, prune=None, force=True, verify=True
    )
    assert checks
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
    assert entry.id == f"{name}-7"
    assert entry.signals == SELECTORS[name].signals
    assert [i.name for i in entry.inputs] == ["visual_tokens", "valid", *entry.signals]
    assert entry.parameters == SELECTORS[name].parameters
    assert entry.id in {selector.id for selector in manifest.selectors}


def test_missing_signals_get_the_command_that_adds_them(tmp_path: Path) -> None:
    bundle = export(plan_of(make_checkpoint(tmp_path / "checkpoint")), tmp_path / "bundle")
    with refused(
        "signals-missing",
        "visionzip",
        "cls_attention, keys, cls_token",
        "python -m export llava --model PATH/checkpoint --signals all --output",
        "bundle --force",
    ):
        add_selector(bundle.folder, "visionzip", keep=7, prune=None, force=False, verify=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastervlm", "visionzip"])
def test_an_export_with_signals_is_verified(tmp_path: Path, name: str) -> None:
    plan = plan_of(make_checkpoint(tmp_path / "checkpoint"), selector=name)
    assert plan.signals == SELECTORS[name].signals
    bundle = export(plan, tmp_path / "bundle")
    assert failures(plan, bundle.folder) == set()


def test_several_selectors_at_several_budgets(bundle_with_signals: Bundle) -> None:
    folder = bundle_with_signals.folder
    options = {"force": False, "verify": False}
    added = [entry.id for _, entry, _ in add_selectors(folder, "uniform, dart", "5,3", **options)]
    assert added == ["uniform-5", "uniform-3", "dart-5", "dart-3"]
    assert [entry.id for _, entry, _ in add_selectors(folder, "dart", "5,4", **options)] == ["dart-4"]
    assert [entry.id for _, entry, _ in add_selectors(folder, "dart,dart", "6,6", **options)] == ["dart-6"]
    assert len(list(add_selectors(folder, "all", "2", **options))) == len(SELECTORS)
    for names, budgets, code, given in (
        ("darts", "5", "selector-unknown", "darts"),
        ("dart", "5,x", "option-invalid", "5,x"),
        ("dart", "26", "keep-out-of-range", "26"),
    ):
        with refused(code, given):
            list(add_selectors(folder, names, budgets, **options))
