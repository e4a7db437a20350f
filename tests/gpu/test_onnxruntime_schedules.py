"""ONNX Runtime on CUDA: a chain keeps the visual tokens that it keeps on the CPU, and answers as it does there."""

from __future__ import annotations

from pathlib import Path

import pytest
from exporting import export, plan_of
from images_made import noise_pixels

from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.runtime.pipeline import Pipeline

ort = pytest.importorskip("onnxruntime")
if "CUDAExecutionProvider" not in ort.get_available_providers():
    pytest.skip("onnxruntime-gpu is not installed", allow_module_level=True)

QUESTION = "what color is the circle?"


@pytest.mark.parametrize("method", ["pyramiddrop", "fastv", "v2drop"])
@pytest.mark.parametrize(
    ("dialect", "precision"), [("portable", "fp32"), ("portable", "fp16"), ("onnxruntime", "fp16")]
)
def test_what_stays_and_what_follows(method: str, dialect: str, precision: str, tmp_path: Path) -> None:
    """The same chain on both; float32 is float32 on the GPU, too."""
    plan = plan_of(
        CHECKPOINT, 144, schedule=method, dialect=dialect, precision=precision, numbering="compact"
    )
    folder = export(plan, tmp_path / "bundle").folder
    pipelines = [Pipeline(folder, backend=backend) for backend in ("cuda", "cpu")]
    pixels = noise_pixels(90, 90)
    chats = [pipeline.chat(pixels) for pipeline in pipelines]
    ours, theirs = (chat.ask(QUESTION, max_tokens=8, ignore_eos=True) for chat in chats)
    found, wanted = (chat._session.kept(chat._slot) for chat in chats)
    for a, b in zip(found, wanted, strict=True):
        # In 16 bits the last ones of a cut may be others.
        assert len(set(a.tolist()) ^ set(b.tolist())) <= (0 if precision == "fp32" else len(a) // 4)
    if precision == "fp32":
        assert ours.token_ids == theirs.token_ids
