"""``next_id``: the largest logit that may be sampled, the smallest of equals, as NumPy's argmax says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting import Silent, export, open_session, plan_of
from raising import failed, refused

from divprune_edge.export.bundle import export_bundle
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.greedy import next_id
from divprune_edge.export.verify import verify_bundle
from divprune_edge.ids import Ids
from divprune_edge.manifest import Verification, read_manifest
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.runtime.backends import open_backend
from divprune_edge.runtime.bundle import Bundle

VOCABULARY, FORBIDDEN = 12, Ids([3, [9, 11]])
LARGEST = float(np.finfo(np.float32).max)


@pytest.fixture(scope="module")
def said() -> Any:
    import onnx_ir as ir

    g = GraphBuilder("greedy")
    next_id(g, g.input("logits", "float32", ["batch", VOCABULARY]), VOCABULARY, FORBIDDEN)
    session = open_session(ir.serde.serialize_model(g.model(20)).SerializeToString())
    return lambda logits: session.run(None, {"logits": np.asarray(logits, np.float32)})[0].tolist()


def test_as_numpy_says_it(said: Any) -> None:
    logits = np.random.default_rng(0).standard_normal((200, VOCABULARY)).astype(np.float32).round(1)
    allowed = logits.copy()
    allowed[:, list(FORBIDDEN)] = -np.inf
    assert said(logits) == allowed.argmax(axis=1).tolist()
    assert len({*said(logits)} & {*FORBIDDEN}) == 0
    assert (np.sort(allowed, axis=1)[:, -1] == np.sort(allowed, axis=1)[:, -2]).any(), "no ties were tried"


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({5: 2.0, 2: 2.0, 7: 2.0}, 2),
        ({3: 9.0, 9: 9.0, 4: 1.0}, 4),  # what is forbidden does not count, whatever it is
        ({3: np.nan, 11: np.inf, 4: 1.0}, 4),
        ({1: -np.inf, 4: 1.0}, 4),
        ({1: np.nan, 4: 1.0}, VOCABULARY),
        ({1: np.inf, 4: 1.0}, VOCABULARY),
        ({1: LARGEST, 4: 1.0}, VOCABULARY),  # so near the end that the host looks itself
        (dict.fromkeys(range(VOCABULARY), -np.inf), VOCABULARY),
        (dict.fromkeys(range(VOCABULARY), np.nan), VOCABULARY),
    ],
)
def test_what_is_no_number_is_left_to_the_host(said: Any, values: dict[int, float], wanted: int) -> None:
    logits = np.full(VOCABULARY, -1.0)
    logits[list(values)] = list(values.values())
    assert said([logits, np.arange(VOCABULARY)]) == [wanted, 8]


@pytest.mark.parametrize("dialect", ["portable", "onnxruntime", "static", "decomposed"])
def test_verification_covers_it(tmp_path: Path, dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(CHECKPOINT, 58, dialect=dialect, greedy=True)
    manifest = export_bundle(plan, tmp_path / "b", force=False, verify=_check, report=Silent())
    (found,) = [one for one in manifest.verification.checks if one.name == "next ids"]
    assert (found.value, found.passed) == (0, True)
    assert int(found.unit.split()[-1]) > 60
    if dialect == "portable":
        monkeypatch.setattr("divprune_edge.export.language.next_id", _smallest)
        with failed("verification-failed", "next ids"):
            export_bundle(plan, tmp_path / "c", force=False, verify=_check, report=Silent())


def _check(plan: Any, folder: Path) -> Verification:
    return verify_bundle(plan, folder, lambda name: None)


def _smallest(g: Any, logits: Any, vocabulary: int, forbidden: Ids) -> None:
    next_id(g, g.op("Neg", logits), vocabulary, forbidden)


def test_a_manifest_that_forbids_other_ids_is_refused(tmp_path: Path) -> None:
    bundle = export(plan_of(CHECKPOINT, 58, greedy=True), tmp_path / "b")
    manifest = read_manifest(bundle.folder)
    prompt = manifest.prompt.model_copy(update={"forbidden_ids": Ids([4, 7])})
    other = Bundle(bundle.folder, manifest.model_copy(update={"prompt": prompt}))
    with refused("manifest-does-not-fit", "forbidden_ids is [4, 7]", "[4]"):
        open_backend(other, "cpu").load(None)


def test_graphs_without_it_are_as_they_were(tmp_path: Path) -> None:
    outputs = export(plan_of(CHECKPOINT, 58), tmp_path / "b").manifest.language_model.outputs
    assert [one.name for one in outputs if "." not in one.name] == ["logits"]
