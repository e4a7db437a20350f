"""Bundles whose images have tiles: what is drawn, evaluated, profiled and handed to trtexec is of the image at hand."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import NEXT, ONEVISION, make_checkpoint
from exporting import export, plan_of
from images_made import noise_image
from plugins_emulation import write_library

from divprune_edge.export.add_selector import add_selector
from divprune_edge.manifest import Manifest
from divprune_edge.models.cost import max_min_flops
from divprune_edge.models.selectors import find_selector
from divprune_edge.models.selectors.divprune import cosine_distances
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.runtime.budgets import Budgets, coverage_radius
from divprune_edge.runtime.lab.comparison import compare, write_page
from divprune_edge.runtime.lab.drawing import draw_selection
from divprune_edge.runtime.lab.evaluation.dataset import load_dataset
from divprune_edge.runtime.lab.evaluation.evaluate import evaluate
from divprune_edge.runtime.lab.evaluation.methods import choose_methods
from divprune_edge.runtime.lab.inspection import inspect_selection
from divprune_edge.runtime.lab.profiling.roofline import costs
from divprune_edge.runtime.lab.rows import rows_of
from divprune_edge.runtime.pipeline import Pipeline
from divprune_edge.runtime.vision import Vision, groups_of

FAMILIES = {"next": NEXT, "onevision": ONEVISION}
KEEP = {
    ("next", "image"): 60,
    ("next", "tile"): 27,
    ("onevision", "image"): 60,
    ("onevision", "tile"): 14,
}
"""Of images of 70 x 70 and 12 x 70: of some of them, or of some of their tiles, all rows are kept."""
SIZES = {"large.png": (70, 70), "flat.png": (12, 70)}
QUESTION = "what is there ?"


@pytest.fixture(scope="module", params=KEEP, ids="-".join)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle in either dialect and two pictures."""
    family, per = request.param
    place = tmp_path_factory.mktemp(family)
    checkpoint = make_checkpoint(place / "checkpoint", **FAMILIES[family])
    for name, dialect, capacity in (("bundle", "portable", None), ("static", "static", 512)):
        plan = plan_of(
            checkpoint, KEEP[family, per], per=per, signals="all", dialect=dialect, capacity=capacity
        )
        export(plan, place / name)
        add_selector(place / name, "uniform", keep=KEEP[family, per], prune=None, force=False, verify=False)
    for name, size in SIZES.items():
        noise_image(*size, seed=7).save(place / name)
    return place


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline(folder / "bundle", threads=1)


def read(pipeline: Pipeline, path: Path) -> tuple[Vision, ImageInput, Manifest]:
    vision = Vision(pipeline.bundle, pipeline.backend)
    return vision, vision.read([path])[0], pipeline.bundle.manifest


@pytest.mark.parametrize("name", SIZES)
def test_the_rows_of_an_image_in_reading_order(folder: Path, pipeline: Pipeline, name: str) -> None:
    vision, image, _ = read(pipeline, folder / name)
    assert image.assembly is not None
    candidates = vision.encode([image], [pipeline.selector])
    rows = rows_of(pipeline.backend, candidates)
    tiles = pipeline.backend.to_host(vision.tiles(image).tokens)
    table = np.concatenate([np.full((1, tiles.shape[2]), np.nan), tiles.reshape(-1, tiles.shape[2])])
    wanted = (table[image.assembly.rows] * image.assembly.weights[..., None]).sum(axis=1)
    ends = image.assembly.rows[:, 0] == 0
    assert np.allclose(rows.tokens[~ends], wanted[~ends], atol=1e-5)
    (newline,) = np.unique(rows.tokens[ends], axis=0) if ends.any() else [None]
    assert newline is None or np.isfinite(newline).all()
    assert pipeline.selector is not None
    seen = vision.select(candidates, pipeline.selector)
    picked = rows.picked(find_selector("divprune").reference, pipeline.selector.keep)
    assert np.array_equal(np.sort(np.concatenate(picked)), seen.kept_indices)
    tokens = pipeline.backend.to_host(seen.tokens)[0, seen.rows]
    assert np.allclose(tokens, rows.tokens[seen.kept_indices])
    assert np.array_equal(vision.select(candidates, None).kept_indices, np.arange(len(rows.tokens)))


def test_an_evaluation_counts_what_each_image_has(folder: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    """Also what a baseline without a graph keeps, and what one with a graph does: the same."""
    data = tmp_path / "set"
    data.mkdir()
    for name in SIZES:
        (data / name).write_bytes((folder / name).read_bytes())
    lines = [{"image": name, "question": QUESTION, "answer": "red"} for name in SIZES]
    (data / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    bundle = pipeline.bundle
    methods = choose_methods(bundle)
    assert [(m.id, m.is_reference) for m in methods][1:] == [
        (f"divprune-{bundle.manifest.selectors[0].keep}", False),
        (f"uniform-{bundle.manifest.selectors[0].keep}", False),
        (f"random-{bundle.manifest.selectors[0].keep}", True),
    ]
    assert methods[0].keep == bundle.manifest.visual_tokens(None)
    rows = evaluate(bundle, load_dataset(str(data)), methods, tmp_path / "out", threads=1, max_tokens=3)
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()[1:]]
    totals: dict[str, list[int]] = {}
    for record in records:
        _, image, manifest = read(pipeline, folder / record["image"])
        groups = groups_of(manifest, image).valid.sum(axis=1)
        assert record["candidates"] == groups.sum()
        keep = next(m.keep for m in methods if m.id == record["method"])
        kept = groups.sum() if record["method"] == "none" else np.minimum(groups, keep).sum()
        assert record["visual_tokens"] == kept
        # Rows at the ends of lines are all the same: one of them covers the others.
        assert record["coverage"] == 0 or kept < groups.sum()
        totals.setdefault(record["method"], []).append(int(kept))
    for row in rows:
        assert row.visual_tokens == np.mean(totals[row.method])
        assert row.candidates == np.mean(totals["none"])
    by_name = {(r["image"], r["method"].split("-")[0]): r for r in records}
    for name in SIZES:
        if by_name[name, "divprune"]["visual_tokens"] == by_name[name, "none"]["visual_tokens"]:
            answers = {tuple(by_name[name, m]["answers"]) for m in ("none", "divprune", "uniform", "random")}
            assert len(answers) == 1, "all keep all rows of this image"


def test_coverage_is_of_the_rows_that_count(folder: Path, pipeline: Pipeline) -> None:
    found = inspect_selection(pipeline, folder / "large.png")
    vision, image, _ = read(pipeline, folder / "large.png")
    rows = rows_of(pipeline.backend, vision.encode([image], [pipeline.selector]))
    assert found.tokens == len(rows.tokens) < len(rows.valid.reshape(-1)) + 1
    assert found.coverage == coverage_radius(rows.tokens, np.sort(found.picks))


def test_a_budget_covers_the_rows_that_count_of_each_group(folder: Path, pipeline: Pipeline) -> None:
    vision, image, manifest = read(pipeline, folder / "large.png")
    candidates, (last, first, *_) = vision.encode([image], [None]), manifest.selectors
    distances = cosine_distances(rows_of(pipeline.backend, candidates).tokens)
    found, radius = vision.select(candidates, first).kept_indices, 0.0
    for reading, valid in zip(candidates.reading, candidates.valid, strict=True):
        kept, dropped = np.intersect1d(reading[valid], found), np.setdiff1d(reading[valid], found)
        if len(dropped):
            radius = max(radius, float(distances[np.ix_(dropped, kept)].min(axis=1).max()))
    assert radius > 0
    for allowed, wanted in ((radius * 1.001, first), (radius * 0.999, last)):
        assert vision.fitting(candidates, Budgets((first, last), allowed)) == wanted


def test_what_is_kept_is_drawn_over_the_image(folder: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    found = inspect_selection(pipeline, folder / "large.png")
    assert found.pixels.shape == (*SIZES["large.png"], 3)
    drawn = draw_selection(found, caption=False)
    assert drawn.width > drawn.height >= 576, "a square image: the whole beside its tiles"
    side = drawn.height
    boxes, fine, ends = found.places.boxes, found.places.fine, found.places.ends
    bright = np.asarray(drawn).astype(int).sum(axis=2)
    kept = np.zeros(found.tokens, np.bool_)
    kept[found.picks] = True
    whole = np.asarray(
        draw_selection(inspect_selection(pipeline.with_selector("none"), folder / "large.png"), caption=False)
    )
    assert whole.shape == (side, side, 3)
    seen = 0
    for token in np.flatnonzero(~ends):
        top, left, bottom, right = (round(edge * side) for edge in boxes[token])
        shift = fine[token] * (drawn.width - side)
        inside = slice(top + 4, bottom - 4), slice(left + 4 + shift, right - 4 + shift)
        plain = whole[top + 4 : bottom - 4, left + 4 : right - 4].astype(int).sum(axis=2)
        if plain.size == 0:
            continue
        seen += 1
        assert np.array_equal(bright[inside], plain) == kept[token], token
    assert seen > 50
    assert f"({ends[found.picks].sum()} of them line ends)" in found.caption
    panels = compare(pipeline, folder / "large.png", [QUESTION], ["divprune"], max_tokens=2)
    write_page(panels, [QUESTION], "t", tmp_path / "page.html")
    assert found.kept in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_picks_of_tiles_are_drawn_in_turn(folder: Path, pipeline: Pipeline) -> None:
    found = inspect_selection(pipeline, folder / "large.png")
    vision, image, manifest = read(pipeline, folder / "large.png")
    rows = rows_of(pipeline.backend, vision.encode([image], [pipeline.selector]))
    assert manifest.assemble is not None
    groups = len(rows.groups)
    assert (groups > 1) == (manifest.assemble.per == "tile")
    of = np.full(found.tokens, -1)
    for group, (reading, valid) in enumerate(zip(rows.reading, rows.valid, strict=True)):
        of[reading[valid]] = group
    assert sorted(of[found.picks[:groups]]) == list(range(groups)), "the first picks of all come first"


def test_a_flat_image_keeps_all(folder: Path, pipeline: Pipeline) -> None:
    found = inspect_selection(pipeline, folder / "flat.png")
    _, image, manifest = read(pipeline, folder / "flat.png")
    counts = groups_of(manifest, image).valid.sum(axis=1)
    assert found.tokens == counts.sum()
    assert pipeline.selector is not None
    assert len(found.picks) == np.minimum(counts, pipeline.selector.keep).sum()


def test_a_profile_counts_the_image_s_tiles(
    folder: Path, pipeline: Pipeline, tmp_path: Path, command: Callable[..., Any]
) -> None:
    for name in SIZES:
        done = command(
            *("profile", folder / "bundle", "--image", folder / name, "--runs", 2, "--warmup", 1),
            *("--answer-tokens", 2, "--json", tmp_path / "p.json", "--question", QUESTION),
        )
        assert done.code == 0, done.err
        report = json.loads((tmp_path / "p.json").read_text())
        vision, image, _ = read(pipeline, folder / name)
        assert report["about"]["image"] == f"{name} ({len(image.pixels)} tiles)"
        for said, selector in zip(report["variants"], (pipeline.selector, None), strict=True):
            assert said["visual_tokens"] == vision.count(image, selector)
            assert said["prompt_tokens"] > said["visual_tokens"]
        for saving in report["savings"]:
            full, pruned = (vision.count(image, selector) for selector in (None, pipeline.selector))
            assert saving["dropped"] == pytest.approx(1 - pruned / full)
            if pruned == full:  # a small image: no pruning, nothing that it could save
                assert saving["limit"] is None
            else:
                assert saving["measured"]["median"] <= saving["limit"]["high"]


def test_costs_by_hand(pipeline: Pipeline) -> None:
    manifest, selector = pipeline.bundle.manifest, pipeline.selector
    assert selector is not None
    one, five = (costs(pipeline.bundle, selector, 9, 1, tiles, tiles) for tiles in (1, 5))
    flops, vision = manifest.vision_encoder.flops, manifest.vision_encoder
    assert flops is not None
    assert (one["vision"].flops, five["vision"].flops) == (flops, 5 * flops)
    tile = 35 * 35 * 3 + vision.tokens * vision.width * 4
    assert five["vision"].bytes - one["vision"].bytes == 4 * tile, "the weights are read once"
    picked = max_min_flops(selector.candidates, vision.width, selector.keep)
    assert (one["select"].flops, five["select"].flops) == (picked, 5 * picked)
    assert "select" not in costs(pipeline.bundle, selector, 9, 1, 1, 0)


@pytest.fixture
def lines(
    folder: Path, tmp_path: Path, command: Callable[..., Any]
) -> Callable[[str], tuple[dict[str, list[str]], str]]:
    """Title -> arguments of the lines for a picture, and what was noted."""

    def get(name: str) -> tuple[dict[str, list[str]], str]:
        (tmp_path / "library").mkdir()
        library = write_library(tmp_path / "library")
        done = command(
            *("trtexec", folder / "static", "--tensorrt", "10.16", "--image", folder / name),
            *("--library", library, "--output", tmp_path / "out"),
        )
        assert done.code == 0, done.err
        text = done.out.splitlines()
        return {t[2:]: shlex.split(line) for t, line in zip(text[::2], text[1::2], strict=True)}, done.err

    return get


def loaded(arguments: list[str]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Input -> its shape and the bytes of its file."""
    (shapes,) = [a.split("=", 1)[1] for a in arguments if a.startswith("--shapes=")]
    (files,) = [a.split("=", 1)[1] for a in arguments if a.startswith("--loadInputs=")]
    sizes = dict(part.split(":", 1) for part in files.split(","))
    found = {}
    for part in shapes.split(","):
        name, shape = part.rsplit(":", 1)
        found[name] = tuple(int(size) for size in shape.split("x")), Path(sizes[name]).stat().st_size
    return found


@pytest.mark.parametrize("real", [True, False], ids=["real", "made up"])
@pytest.mark.parametrize("name", SIZES)
def test_trtexec_gets_the_image_s_tiles(
    folder: Path,
    pipeline: Pipeline,
    tmp_path: Path,
    lines: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    *,
    real: bool,
) -> None:
    vision, image, manifest = read(pipeline, folder / name)
    if not real:
        monkeypatch.setitem(sys.modules, "divprune_edge.runtime.backends.onnxruntime", None)
    found, noted = lines(name)
    assert ("random numbers" in noted) != real
    selector, rows = pipeline.selector, manifest.assemble
    assert selector is not None
    assert rows is not None
    groups = groups_of(manifest, image)
    picks = (groups.valid.sum(axis=1) > selector.keep).any()
    assert list(found) == [
        *("build vision_encoder", "measure vision", "build assemble", "measure assemble"),
        f"build {selector.id}",
        *(["measure select"] if picks else []),
        *("build language_model", "measure prefill", "measure decode"),
    ]
    assert ("the selection is not measured" in noted) == (not picks)
    at_once = min(len(image.pixels), manifest.tiles_at_once)
    assert loaded(found["measure vision"]) == {"pixels": ((at_once, 35, 35, 3), at_once * 35 * 35 * 3)}
    tokens = (len(image.pixels), manifest.vision_encoder.tokens, manifest.vision_encoder.width)
    given = loaded(found["measure assemble"])
    assert set(given) == {tensor.name for tensor in rows.inputs}
    assert given["tile_tokens"] == (tokens, 4 * np.prod(tokens))
    assert given["rows"] == (groups.rows.shape, 8 * groups.rows.size)
    stored = np.fromfile(tmp_path / "out" / "inputs" / "assemble.rows.bin", np.int64)
    assert np.array_equal(stored.reshape(groups.rows.shape), groups.rows)
    if picks:
        assert loaded(found["measure select"])["valid"] == ((1, rows.rows), rows.rows)
        valid = np.fromfile(tmp_path / "out" / "inputs" / "select.valid.bin", np.bool_)
        assert valid.sum() == groups.valid.sum(axis=1).max()
    shape, _ = loaded(found["measure prefill"])["visual_tokens"]
    assert shape == (1, len(groups.valid) * selector.keep, manifest.vision_encoder.width)
    ids = np.fromfile(tmp_path / "out" / "inputs" / "prefill.input_ids.bin", np.int64)
    visual = ids[ids >= manifest.language_model.embedding_rows] - manifest.language_model.embedding_rows
    seen = vision.see([image], selector).rows
    assert sorted(visual) == sorted(seen) if not real else list(visual) == list(seen)
    record = json.loads((tmp_path / "out" / "trtexec.json").read_text())
    assert record["visual_tokens"] == len(seen)
    flops = {stage["name"]: stage["flops"] for stage in record["stages"]}
    assert flops["vision"] == at_once * (manifest.vision_encoder.flops or 0)
    assert flops["assemble"] is None
