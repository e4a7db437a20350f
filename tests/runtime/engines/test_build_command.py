"""``python -m runtime build``: what it prints, and one sentence with exit code 2 for every mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from engine_bundles import refresh
from plugins_emulation import ROOT
from raising import assert_told

from divprune_edge.manifest import read_manifest
from divprune_edge.models.budget import PROMPT
from divprune_edge.models.tensorrt import TENSORRT, TENSORRT_RTX, Edition
from divprune_edge.runtime.cli import app
from divprune_edge.runtime.engines import builder, facts, target
from divprune_edge.runtime.engines.store import read_record, rebuild_command

RTX = "1.7.1.116"
EVERY = "sm_80, sm_86, sm_89, sm_120 or sm_121"
Command = Any
Here = Any


@pytest.mark.parametrize(
    ("edition", "line"),
    [(TENSORRT, "sm_87, TensorRT 10.3.0, CUDA 12.6"), (TENSORRT_RTX, f"sm_89, TensorRT-RTX {RTX}")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_build(command: Command, here: Here, bundle: Path, edition: Edition, line: str) -> None:
    done = command("build", bundle, "--max-prompt", 200, "--workspace", 64, "--optimization-level", 2)
    assert done.code == 0, done.err
    folder, device, limits = done.out.splitlines()
    assert Path(folder).parent == bundle / "engines"
    assert device == line
    assert limits == "prompts of up to 200 tokens at once, up to 58 of them visual"
    assert [line for line in done.err.splitlines() if "..." in line] == [
        "(1 of 3) divprune-58 ...",
        "(2 of 3) vision_encoder ...",
        "(3 of 3) language_model ...",
    ]
    asked = json.loads((Path(folder) / "engines.json").read_text())["asked"]
    assert (asked["workspace"], asked["optimization_level"]) == (64 << 20, 2)
    again = command("build", bundle, "--max-prompt", 200)
    assert_told(again.code, again.err, "engines-exist", folder)
    assert again.out == ""
    assert command("build", bundle, "--max-prompt", 200, "--force", "--selector", "uniform").code == 0


def test_a_build_for_several_images(command: Command, here: Here, bundle: Path) -> None:
    """Named by its visual tokens, remembered with its options, and told."""
    done = command("build", bundle, "--images", 3, "--slots", 2)
    assert done.code == 0, done.err
    folder, _, limits = done.out.splitlines()
    assert limits == (
        f"prompts of up to {3 * 58 + PROMPT} tokens at once, up to 174 of them visual (3 images); "
        "2 sequences decoded together"
    )
    record = read_record(Path(folder))
    assert (record.facts.limits.images, record.facts.limits.kept) == (3, (1, 58, 174))
    assert rebuild_command(bundle, record.asked).endswith(f"{bundle} --slots 2 --images 3")
    failed = command("build", bundle, "--images", 0)
    assert_told(failed.code, failed.err, "images-out-of-range", "--images is 0", "from 1 to 703")


@pytest.mark.parametrize(
    ("target", "sms"),
    [
        ("rtx3090", "sm_86"),
        ("rtx4090", "sm_89"),
        ("rtx5090", "sm_120"),
        ("dgx-spark", "sm_121"),
        ("rtx", EVERY),
    ],
)
def test_a_build_for_cards_that_are_not_here(
    command: Command, here: Here, bundle: Path, target: str, sms: str
) -> None:
    """No GPU is asked; one engine of each graph serves all that were named."""
    refresh(bundle, read_manifest(bundle), target=None)
    here.facts = None
    done = command("build", bundle, "--target", target, "--selector", "none")
    assert done.code == 0, done.err
    folder, device, _ = done.out.splitlines()
    assert device == f"{sms}, TensorRT-RTX {RTX}"
    assert len(list(Path(folder).glob("*.plan"))) == 2
    assert list((bundle / "engines").iterdir()) == [Path(folder)], "nothing was timed"


def test_the_bundles_own_target_is_the_default(command: Command, here: Here, bundle: Path) -> None:
    refresh(bundle, read_manifest(bundle), target="rtx")
    done = command("build", bundle, "--selector", "none")
    assert done.out.splitlines()[1] == f"{EVERY}, TensorRT-RTX {RTX}"
    one = command("build", bundle, "--selector", "none", "--target", "rtx5090")
    assert one.out.splitlines()[1] == f"sm_120, TensorRT-RTX {RTX}"


@pytest.mark.parametrize(
    ("made_for", "asked", "words"),
    [
        (
            "rtx4090",
            "rtx",
            "is GeForce RTX 4090 24GB (sm_89, TensorRT-RTX 1.7), but engines for sm_80, sm_86,",
        ),
        ("rtx4090", "rtx5090", "(sm_89, TensorRT-RTX 1.7), but engines for sm_120 with TensorRT-RTX"),
        ("h100", "rtx", "is H100 80GB SXM (TensorRT 10.16), but engines for RTX cards"),
    ],
)
def test_a_target_that_the_bundle_was_not_made_for(
    command: Command, here: Here, bundle: Path, made_for: str, asked: str, words: str
) -> None:
    refresh(bundle, read_manifest(bundle), target=made_for)
    failed = command("build", bundle, "--target", asked)
    assert_told(failed.code, failed.err, "target-mismatch", words)
    assert (failed.out, len(failed.err.splitlines())) == ("", 1)
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize("edition", [TENSORRT])
def test_verbose_shows_what_tensorrt_says(
    command: Command, here: Here, bundle: Path, edition: Edition
) -> None:
    here.world.capability = "SM75"
    failed = command("build", bundle, "--verbose")
    told = [line for line in failed.err.splitlines() if line.startswith("[TensorRT] ")]
    assert [line for line in told if "FP32 GEMM is not supported" in line]
    assert_told(failed.code, failed.err, "engine-build-failed", expected=1)


@pytest.mark.parametrize(
    ("edition", "name"),
    [(TENSORRT, "TensorRT"), (TENSORRT_RTX, "TensorRT-RTX")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_without_tensorrt(
    command: Command, here: Here, bundle: Path, monkeypatch: pytest.MonkeyPatch, edition: Edition, name: str
) -> None:
    monkeypatch.setattr(target, "device_facts", facts.device_facts)
    monkeypatch.setitem(sys.modules, edition.module, None)
    failed = command("build", bundle)
    assert_told(failed.code, failed.err, "tensorrt-missing", f"{name}'s")
    assert (failed.out, len(failed.err.splitlines())) == ("", 1)
    assert ("'.[rtx]'" in failed.err) == (edition is TENSORRT_RTX)
    assert not (bundle / "engines").exists()


def test_interrupted(command: Command, here: Here, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(builder, "_build", press)
    stopped = command("build", bundle)
    assert stopped.code == 130
    assert list((bundle / "engines").iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (("--max-prompt", 0), "max-prompt-out-of-range"),
        (("--workspace", 0), "usage"),
        (("--optimization-level", 6), "usage"),
        (("--target", "nowhere"), "target-unknown"),
        (("--selector", "x"), "selector-not-in-bundle"),
    ],
)
def test_wrong_values(command: Command, here: Here, bundle: Path, wrong: tuple[Any, ...], code: str) -> None:
    failed = command("build", bundle, *wrong)
    assert_told(failed.code, failed.err, code, wrong[1])
    assert len(failed.err.splitlines()) == 1
    assert not (bundle / "engines").exists()


def test_every_option_is_documented() -> None:
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    command = typer.main.get_command(app).get_command(None, "build")  # type: ignore[attr-defined]
    options = {name for option in command.params for name in option.opts if name.startswith("--")}
    assert {"--selector", "--force"} <= options
    for option in options - {"--verify-hashes", "--help"}:
        assert f"| `{option}" in page
