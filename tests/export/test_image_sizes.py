"""``--resolution`` and ``--max-pixels``: what images of any size are resized to, settled before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint
from conftest import run_module
from exporting import export, failures, plan_of
from qwen_checkpoints import LEAST, MOST, QWEN, make_qwen_checkpoint
from raising import refused

from divprune_edge.manifest import MOST_SIZES, read_manifest
from divprune_edge.processing.patches import usual_sizes

MANY = ",".join(
    f"{8 * width}x{8 * height}" for width in range(3, 11) for height in range(2, 7) if width * height >= LEAST
)
"""More sizes than an engine has profiles for."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def get(family: str) -> Path:
        make = make_checkpoint if family == "llava" else make_qwen_checkpoint
        return make(tmp_path_factory.mktemp(family) / "tiny", family=family)

    return get


def sizes_of(folder: Path, **options: Any) -> tuple[tuple[int, int], ...]:
    patches = plan_of(folder, 9, **options).preprocessing.patches
    assert patches is not None
    return patches.sizes


def test_sizes_that_are_asked_for(checkpoint: Callable[[str], Path]) -> None:
    """Width by height, each once, in the order given; N is that of the largest."""
    folder = checkpoint("qwen3_vl")
    asked = {"resolution": "64x32, 48x48,64x32,40x24"}
    for dialect in ("portable", "onnxruntime", "static", "decomposed"):
        plan = plan_of(folder, 9, dialect=dialect, **asked)
        assert plan.preprocessing.patches is not None
        assert plan.preprocessing.patches.sizes == ((32, 64), (48, 48), (24, 40))
        assert plan.preprocessing.patches.max_pixels == 48 * 48
        assert plan.candidates == plan.spec.tokens == 36


def test_sizes_that_follow(checkpoint: Callable[[str], Path]) -> None:
    """From the bound where shapes are fixed; elsewhere an image keeps its own."""
    folder = checkpoint("qwen2_5_vl")
    for dialect in ("portable", "onnxruntime"):
        assert sizes_of(folder, dialect=dialect) == sizes_of(folder, dialect=dialect, max_pixels=2000) == ()
    for dialect in ("static", "decomposed"):
        plan = plan_of(folder, 9, dialect=dialect, max_pixels=40 * 64)
        patches = plan.preprocessing.patches
        assert patches is not None
        assert patches.sizes == usual_sizes(patches)
        assert max(height * width for height, width in patches.sizes) <= 40 * 64
        assert plan.candidates == max(height * width for height, width in patches.sizes) // 64
        assert len(sizes_of(folder, dialect=dialect)) >= len(patches.sizes) > 3


@pytest.mark.parametrize(
    ("resolution", "code", "told"),
    [
        ("64", "option-invalid", ("'64'",)),
        ("", "option-invalid", ("''",)),
        ("48x48,", "option-invalid", ("''",)),
        ("64X64", "option-invalid", ("'64X64'",)),
        ("-64x64", "option-invalid", ("'-64x64'",)),
        ("64x64x3", "option-invalid", ("'64x64x3'",)),
        ("50x48", "resolution-out-of-range", ("50x48", "8 pixels", "give 48x48")),
        ("0x48", "resolution-out-of-range", ("0x48", "give 8x48")),
        ("3x100", "resolution-out-of-range", ("3x100", "give 8x96")),
        ("8x8", "resolution-out-of-range", (64, LEAST * 64, MOST * 64)),
        ("48x48,800x800", "resolution-out-of-range", ("800x800", 640000, MOST * 64)),
        (
            MANY,
            "resolution-out-of-range",
            (f"at most {MOST_SIZES}",),
        ),
    ],
)
def test_what_is_not_possible(
    checkpoint: Callable[[str], Path], resolution: str, code: str, told: tuple[object, ...]
) -> None:
    with refused(code, *told):
        plan_of(checkpoint("qwen3_vl"), 9, resolution=resolution)


def test_one_of_both(checkpoint: Callable[[str], Path]) -> None:
    with refused("options-exclusive", "--resolution", "--max-pixels"):
        plan_of(checkpoint("qwen3_vl"), 9, resolution="48x48", max_pixels=4000)


def test_a_model_whose_images_have_a_size(checkpoint: Callable[[str], Path]) -> None:
    with refused("resolution-without-sizes", "336x336"):
        plan_of(checkpoint("llava"), 9, resolution="336x336")
    with refused("max-pixels-without-sizes", 10000):
        plan_of(checkpoint("llava"), 9, max_pixels=10000)


def test_a_refusal_in_a_real_process(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Before any work."""
    arguments = ("--model", str(checkpoint("qwen3_vl")), "--resolution", "50x48", "--keep", "9")
    done = run_module("export", "llava", *arguments, "--output", str(tmp_path / "bundle"))
    assert done.returncode == 2
    assert "error[resolution-out-of-range]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("family", QWEN)
@pytest.mark.parametrize("dialect", ["portable", "onnxruntime", "static", "decomposed"])
@pytest.mark.parametrize("numbering", ["original", "compact"])
def test_bundles_verify(
    checkpoint: Callable[[str], Path], tmp_path: Path, family: str, dialect: str, numbering: Any
) -> None:
    """With three positions a token, in every dialect: weights, wiring, tokens, selection, prefill, steps, chunks."""
    pytest.importorskip("transformers")
    plan = plan_of(
        checkpoint(family), 9, dialect=dialect, resolution="64x40,40x64,48x48", numbering=numbering
    )
    bundle = export(plan, tmp_path / "bundle")
    assert failures(plan, bundle.folder) == set()
    patches = read_manifest(bundle.folder).preprocessing.patches
    assert patches is not None
    assert patches.sizes == ((40, 64), (64, 40), (48, 48))
