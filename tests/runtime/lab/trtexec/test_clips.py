"""``python -m runtime trtexec --video``: every stage gets the clip at hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_reference import FAMILIES, ONEVISION, make_clip_checkpoint
from clips_made import noise
from exporting import export, open_session, plan_of
from PIL import Image
from raising import assert_told
from trtexec_lines import lines_of, shapes_of, values_of

from divprune_edge import Pipeline
from divprune_edge.runtime.bundle import Bundle

DIALECTS = {"qwen2_5_vl": ("decomposed", "10.3")}
KEPT, FRAMES = 4, 5


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that picks from each frame, and the frames of a clip in a folder beside it."""
    folder, family = tmp_path_factory.mktemp(request.param), request.param
    checkpoint = make_clip_checkpoint(folder / "checkpoint", family)
    dialect, _ = DIALECTS.get(family, ("static", "10.16.2"))
    sizes = {} if family == ONEVISION else {"resolution": "56x48,40x32,32x40"}
    plan = plan_of(checkpoint, KEPT, dialect=dialect, frames=FRAMES, per="frame", capacity=256, **sizes)
    made = export(plan, folder / "bundle").folder
    (folder / "frames").mkdir()
    for i, frame in enumerate(noise(FRAMES)):
        Image.fromarray(frame).save(folder / "frames" / f"{i}.png")
    return Bundle.open(made)


@pytest.mark.parametrize("real", [True, False], ids=["real", "made up"])
def test_every_stage_gets_the_clip_at_hand(
    bundle: Bundle,
    command: Any,
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    real: bool,
) -> None:
    manifest, clip = bundle.manifest, bundle.path.parent / "frames"
    assert manifest.assemble is not None
    pipeline, question = Pipeline(bundle, threads=1), "What is in the picture?"
    answer = pipeline.ask(None, question, video=str(clip), max_tokens=1)
    if not real:
        monkeypatch.setitem(sys.modules, "divprune_edge.runtime.backends.onnxruntime", None)
    _, version = DIALECTS.get(manifest.family, ("static", "10.16.2"))
    found = lines_of(command, bundle, version, library, tmp_path / "out", "--video", clip)
    folder, grids = tmp_path / "out" / "inputs", -(-FRAMES // (1 if manifest.family == ONEVISION else 2))
    (shapes,) = shapes_of(found["measure vision"], "shapes")
    given = values_of(folder, bundle, "vision", shapes)
    at_once = manifest.tiles_at_once
    assert len(given["pixels"]) == min(grids, at_once)
    (seen,) = open_session(bundle.file(manifest.vision_encoder.file)).run(None, given)
    (shapes,) = shapes_of(found["measure assemble"], "shapes")
    rows = values_of(folder, bundle, "assemble", shapes)
    (largest,) = shapes_of(found["build assemble"], "maxShapes")
    tokens = rows["tile_tokens"]
    assert all(a <= b for a, b in zip(tokens.shape, largest["tile_tokens"], strict=True))
    assert tokens.shape[0] * tokens.shape[1] == grids * seen.shape[1]
    assert len(rows["rows"]) == grids
    (table,) = open_session(bundle.file(manifest.assemble.file)).run(None, rows)
    (shapes,) = shapes_of(found["measure select"], "shapes")
    asked = values_of(folder, bundle, "select", shapes)
    open_session(bundle.file(manifest.selectors[0].file)).run(None, asked)
    if real:
        assert np.allclose(seen.reshape(-1), tokens.reshape(-1)[: seen.size], atol=1e-5)
        assert any(np.allclose(one, asked["visual_tokens"][0], atol=1e-5) for one in table)
    record = json.loads((tmp_path / "out" / "trtexec.json").read_text())
    assert (record["visual_tokens"], record["prompt_tokens"]) == (KEPT * grids, answer.prompt_tokens)
    runs = -(-grids // at_once)
    assert [f"runs {runs} times" in note for note in record["notes"]].count(True) == (runs > 1)
    ids = np.fromfile(folder / "prefill.input_ids.bin", np.int64)
    assert (ids >= manifest.language_model.embedding_rows).sum() == KEPT * grids


def test_one_of_both(bundle: Bundle, command: Any) -> None:
    told = command("trtexec", bundle.path, "--tensorrt", "10.3", "--image", "a.png", "--video", "b.mp4")
    assert_told(told.code, told.err, "options-exclusive", "--image", "--video")
