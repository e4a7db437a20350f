"""``ask --show-kept`` and ``compare-selectors``: what is drawn is what was kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from raising import assert_told, refused

from divprune_edge.models.demo import IMAGE
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.comparison import compare, write_page
from divprune_edge.runtime.lab.drawing import draw_selection, turn_color
from divprune_edge.runtime.lab.inspection import Selection, inspect_selection, square_grid
from divprune_edge.runtime.pipeline import Pipeline


def selection(picks: list[int], patches: int = 4, first: int = 0, tokens: int = 16) -> Selection:
    pixels = np.full((40, 40, 3), 200, np.uint8)
    return Selection("test-3", tokens, pixels, np.array(picks), square_grid(patches, first), 0.25, 0.5)


def patch_of(image: Image.Image, patch: int) -> Any:
    """The middle of a patch of a 4 x 4 grid."""
    side = image.width // 4
    row, column = divmod(patch, 4)
    return np.asarray(image)[
        row * side + 10 : (row + 1) * side - 10, column * side + 10 : (column + 1) * side - 10
    ]


def test_kept_patches_are_bright_and_framed_the_rest_is_dim() -> None:
    image = draw_selection(selection([5, 0, 15]), caption=False)
    assert image.width == image.height >= 576
    for patch in range(16):
        middle = patch_of(image, patch)
        assert (middle == (200 if patch in (0, 5, 15) else 70)).all(), patch
    side = image.width // 4
    assert image.getpixel((side, side)) == turn_color(0, 3)  # corner of patch 5, picked first
    assert image.getpixel((0, 0)) == turn_color(1, 3)
    assert len({turn_color(i, 58) for i in range(58)}) == 58


def test_class_token_is_no_patch() -> None:
    """With a class token in front, token 1 is the first patch; -1 stands for none."""
    image = draw_selection(selection([0, 1, -1], first=1, tokens=17), caption=False)
    assert (patch_of(image, 0) == 200).all()
    assert (patch_of(image, 1) == 70).all()


def test_caption() -> None:
    assert selection([5, 0, 15]).caption == "test-3: 3 of 16 visual tokens, coverage radius 0.250"
    with_text = draw_selection(selection([5, 0, 15]))
    assert with_text.height > with_text.width


def test_inspection_keeps_what_ask_keeps(demo_bundle: Path) -> None:
    pipeline = Pipeline(demo_bundle)
    found = inspect_selection(pipeline, IMAGE)
    answer = pipeline.ask(IMAGE, "What is there?", max_tokens=1)
    assert np.array_equal(np.sort(found.picks), answer.kept_indices)
    assert not np.array_equal(found.picks, answer.kept_indices)  # they are in the order of picking
    assert (len(found.places.boxes), found.tokens) == (576, 576)
    assert 0 < found.coverage < 2
    whole = inspect_selection(pipeline.with_selector("none"), IMAGE)
    assert whole.caption == "all 576 visual tokens"
    assert whole.coverage == 0


def test_show_kept(demo_bundle: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    out = tmp_path / "kept.png"
    result = command("ask", demo_bundle, "--image", IMAGE, "--show-kept", out, "--max-tokens", 1, "What?")
    assert result.code == 0, result.err
    assert f"kept patches drawn into {out}" in result.err.replace("\n", " ")
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.width >= 576
    wrong = command("ask", demo_bundle, "--image", IMAGE, "--show-kept", tmp_path / "kept.txt", "What?")
    assert_told(wrong.code, wrong.err, "option-invalid", "kept.txt", ".png")
    nowhere = command(
        "ask",
        demo_bundle,
        "--image",
        IMAGE,
        "--show-kept",
        tmp_path / "no" / "kept.png",
        "--max-tokens",
        1,
        "?",
    )
    assert_told(nowhere.code, nowhere.err, "output-unwritable", "kept.png", "--show-kept")
    assert nowhere.out == "", "it is told before the question is asked"


class _Page(HTMLParser):
    """Counts articles and notes everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.articles = 0
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.articles += tag == "article"
        self.fetched += [
            v or "" for k, v in attrs if k in ("src", "href") and not (v or "").startswith("data:")
        ]
        assert tag != "script"


def test_compare_selectors(demo_bundle: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    page = tmp_path / "page.html"
    question = "Is a < b & c > d?"
    result = command(
        "compare-selectors", demo_bundle, "--image", IMAGE, "-o", page, "--max-tokens", 2, question, "What?"
    )
    assert result.code == 0, result.err
    parser, text = _Page(), page.read_text(encoding="utf-8")
    parser.feed(text)
    assert (parser.articles, parser.fetched) == (2, [])
    assert "Is a &lt; b &amp; c &gt; d?" in text
    assert re.search(r"58 of 576 visual tokens</span><span>coverage radius 0\.\d{3}", text)


def test_compare_refuses_what_is_not_there(demo_bundle: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(Bundle.open(demo_bundle), "none")
    with refused("selector-not-in-bundle", "holov"):
        compare(pipeline, IMAGE, ["What?"], ["holov"], max_tokens=1)
    with refused("selector-not-in-bundle", 29, "divprune-58"):
        compare(pipeline, IMAGE, ["What?"], keep=29, max_tokens=1)
    panels = compare(pipeline, IMAGE, ["What?"], ["divprune"], max_tokens=1)
    with refused("output-unwritable"):
        write_page(panels, ["What?"], "t", tmp_path / "no" / "page.html")
