"""The pages in a real browser: they render, fetch nothing and leave its console empty. Skipped where there is none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import run_module
from PIL import Image
from trtexec_made_up import made_up_layers, made_up_profile, made_up_times

from divprune_edge.models.demo import IMAGE
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.comparison import compare, write_page
from divprune_edge.runtime.lab.evaluation.page import sweep_page
from divprune_edge.runtime.lab.evaluation.results import Row, Share
from divprune_edge.runtime.lab.evaluation.sweep import Entry
from divprune_edge.runtime.lab.trtexec.summary import read_report
from divprune_edge.runtime.pipeline import Pipeline

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

# A page is looked at, nothing else: the browser asks nobody for updates, accounts or news.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium to look at the pages with")


def screenshot(page: Path) -> tuple[Image.Image, list[str]]:
    """Return what the page looks like and what its console says."""
    shot = page.with_suffix(".png")
    result = subprocess.run(
        [
            str(BROWSER),
            *FLAGS,
            "--enable-logging=stderr",
            "--window-size=1200,900",
            f"--user-data-dir={page.parent / 'profile'}",  # a new one: the folder is the test's own
            f"--screenshot={shot}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    with Image.open(shot) as image:
        return image.convert("RGB"), re.findall(r".*CONSOLE.*", result.stderr)


def test_console_errors_are_found(tmp_path: Path) -> None:
    """The check itself can fail."""
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><title>bad</title><script>missing()</script>", encoding="utf-8")
    assert screenshot(page)[1]


def test_sweep_page(tmp_path: Path) -> None:
    share = Share(70, 100)
    entries = [
        Entry(
            "fp32",
            Row(
                method=f"{name}-{keep}",
                name=name,
                keep=keep,
                reference=False,
                all=share,
                kinds={"all": share},
                macro=0.7,
                ttft_ms=10.0 * keep,
                total_ms=9.0,
                coverage=0.4,
                smallest=0.1,
            ),
        )
        for name, keep in (("none", 576), ("divprune", 58), ("random", 58))
    ]
    page = tmp_path / "sweep.html"
    page.write_text(sweep_page(entries, {"model": "demo"}, None), encoding="utf-8")
    image, said = screenshot(page)
    assert said == []
    colors = {color for _, color in image.getcolors(1 << 20) or []}
    assert (0, 114, 178) in colors  # divprune's point
    assert len(colors) > 20


def test_comparison_page(demo_bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    panels = compare(Pipeline(Bundle.open(demo_bundle), "none"), IMAGE, ["What?"], max_tokens=1)
    write_page(panels, ["What?"], "demo", page)
    image, said = screenshot(page)
    assert said == []
    assert len(image.getcolors(1 << 20) or []) > 1000  # the images are there


def test_profile_page(demo_bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "profile.html"
    options = ("--runs", "2", "--warmup", "1", "--answer-tokens", "1,3", "--html", str(page))
    result = run_module("runtime", "profile", str(demo_bundle), *options)
    assert result.returncode == 0, result.stderr
    image, said = screenshot(page)
    assert said == []
    colors = {color for _, color in image.getcolors(1 << 20) or []}
    assert {(0, 114, 178), (230, 159, 0), (204, 121, 167)} <= colors  # preprocess, vision and prefill


def test_trtexec_page(tmp_path: Path) -> None:
    layers = {f"/vision_encoder/layers.0/{part}/MatMul": 1.0 for part in ("q_proj", "k_proj")}
    stage = {"name": "vision", "engine": "vision_encoder"}
    facts = {"bundle": "b", "tensorrt": "10.3", "target": None, "precision": "fp16", "visual_tokens": 58}
    (tmp_path / "trtexec.json").write_text(json.dumps({**facts, "prompt_tokens": None, "stages": [stage]}))
    (tmp_path / "vision.times.json").write_text(made_up_times([3.0]))
    (tmp_path / "vision.profile.json").write_text(made_up_profile(layers))
    (tmp_path / "vision.layers.json").write_text(made_up_layers(list(layers)))
    page = tmp_path / "trtexec.html"
    page.write_text(read_report(tmp_path).to_html(), encoding="utf-8")
    image, said = screenshot(page)
    assert said == []
    assert (0, 114, 178) in {color for _, color in image.getcolors(1 << 20) or []}
