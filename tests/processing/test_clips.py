"""Clips: which frames are looked at, as transformers' processors have it, and what a file of any kind ends in."""

from __future__ import annotations

import itertools
import logging
import random
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clips_made import noise, shades, shades_in, write_clip
from PIL import Image
from raising import refused

from divprune_edge.errors import UserError
from divprune_edge.manifest import Clips, Patches, Preprocessing
from divprune_edge.processing import video_file as module
from divprune_edge.processing.clips import load_clip, sample
from divprune_edge.processing.patches import clip_bounds, fitted_size, most_of_clip
from divprune_edge.processing.sources import Video, clips_of

PLAIN: dict[str, Any] = {"resample": 3, "rescale_factor": 1.0, "mean": (0, 0, 0), "std": (1, 1, 1)}
PATCHES = Patches(patch=4, merge=2, temporal=2, min_pixels=300, max_pixels=64 * 40)
KINDS = ("even", "steps", "ends")


def facts(sampling: str = "even", **changes: Any) -> Clips:
    if sampling == "even":
        given: dict[str, Any] = {"frame": Preprocessing(resize="none", **PLAIN), "count": 8}
    else:
        frame = Preprocessing(resize="area", patches=changes.pop("patches", PATCHES), **PLAIN)
        given = {"frame": frame, "fps": 2.0, "min_frames": 4, "tokens": 8192, "whole": sampling == "ends"}
        given |= {"tokens_per_second": 2.0} if sampling == "steps" else {}
    return Clips.model_validate({"sampling": sampling, "frames": 32, **given, **changes})


def both(clips: Clips, *sizes: tuple[int, int]) -> Preprocessing:
    """Return facts of images, which may have sizes, and of clips."""
    assert clips.frame.patches is not None
    largest = {"max_pixels": 1 << 20, "sizes": sizes}
    return clips.frame.model_copy(
        update={"patches": clips.frame.patches.model_copy(update=largest), "clips": clips}
    )


def look(path: Path, count: int = 8, **asked: Any) -> list[int]:
    return shades_in(load_clip(Video(path, **asked), facts(count=count, frames=100)).frames)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_what_transformers_does(kind: str) -> None:
    pytest.importorskip("transformers")
    from video_reference import sampled

    numbers = random.Random(3)
    for _ in range(150):
        total, rate = numbers.randint(2, 3000), numbers.choice([24.0, 25.0, 29.97, 30000 / 1001, 10.0])
        fps, most = numbers.choice([0.1, 1.0, 2.0, 7.3]), 768 if kind == "even" else numbers.choice([8, 32])
        wanted = sampled(kind, total, rate, fps=fps, max_frames=most)
        found = sample(total, rate, facts(kind, frames=768, max_frames=most), Video("", fps=fps)).tolist()
        if len(wanted) <= 768:  # one of the processors knows no most
            assert found == wanted
        count = numbers.randint(2, min(total, 768))
        if kind != "steps" or round(count / 2) * 2 <= total:
            wanted = sampled(kind, total, rate, num_frames=count)
            assert sample(total, rate, facts(kind, frames=768), Video("", frames=count)).tolist() == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_few_frames_and_many(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    assert sample(1, 25.0, facts(kind), Video("a")).tolist() == [0]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        found = sample(900, 30.0, facts(kind, frames=6, fps=2.0, count=None), Video("a"))
    assert len(found) == 6
    assert "6 frames, the most that the bundle takes, instead of 60" in caplog.text
    with refused("clip-frames-out-of-range", "33 frames", "at most 32", "--frames"):
        sample(900, 30.0, facts(kind), Video("a", frames=33))
    with refused("clip-sampling", "fps 2.0", "frames 3"):
        sample(900, 30.0, facts(kind), Video("a", 2.0, 3))


@pytest.mark.parametrize("cap", [None, 3, 90])
@pytest.mark.parametrize("kind", ["steps", "ends"])
def test_frames_have_the_size_that_transformers_gives_them(kind: str, cap: int | None) -> None:
    pytest.importorskip("transformers")
    from video_reference import processed_size

    sizes = [(40, 50), (33, 120), (8, 8), (5, 90), (7, 3), (200, 151), (64, 64), (300, 9)]
    for patches in (PATCHES, PATCHES.model_copy(update={"min_pixels": 9000, "max_pixels": 64 * 400})):
        clips = facts(kind, cap=cap, patches=patches)
        for count, size in itertools.product((2, 3, 4, 7, 32), sizes):
            own = clip_bounds(both(clips), count)
            found = fitted_size(*size, own, count if clips.whole else None)
            wanted = processed_size(kind, count, size, patches, cap, (patches.min_pixels, patches.max_pixels))
            assert found == wanted, (count, size)


@pytest.mark.parametrize("kind", ["steps", "ends"])
def test_no_clip_has_more_tokens_than_there_are_rows(kind: str) -> None:
    numbers = random.Random(7)
    for _ in range(60):
        least, most = sorted(numbers.randint(64, 64 * 300) for _ in range(2))
        patches = PATCHES.model_copy(update={"min_pixels": least, "max_pixels": most})
        cap = numbers.choice([None, 2, 50])
        clips = facts(kind, patches=patches, tokens=numbers.choice([5, 100, 8192]), cap=cap, frames=9)
        sizes = [
            (8 * numbers.randint(1, 30), 8 * numbers.randint(1, 30)) for _ in range(numbers.randint(0, 5))
        ]
        preprocessing = both(clips, *sizes)
        rows, of_grid = most_of_clip(preprocessing)
        for _ in range(60):
            count, height = numbers.randint(1, 9), numbers.randint(1, 400)
            width = numbers.randint(max(1, height // 190), height * 190)
            try:
                down, across = fitted_size(
                    height, width, clip_bounds(preprocessing, count), count if clips.whole else None
                )
            except UserError:
                continue
            tokens = down * across // patches.factor**2
            assert tokens <= of_grid and -(-count // 2) * tokens <= rows
            assert not sizes or (down, across) in sizes


@pytest.mark.parametrize("kind", ["steps", "ends"])
def test_frames_have_the_nearest_size_that_is_within_the_limits_of_their_number(kind: str) -> None:
    """The more frames, the smaller; where none is small enough, the smallest."""
    clips = facts(kind, patches=PATCHES.model_copy(update={"max_pixels": 64 * 100}), tokens=120)
    preprocessing = both(clips, (80, 80), (40, 80), (80, 40), (40, 40))
    found = []
    for count in (2, 4, 6, 8, 32):
        own = clip_bounds(preprocessing, count)
        limit = 64 * 100 // (count if kind == "ends" else 1)
        assert all(h * w <= limit for h, w in own.sizes) or own.sizes == ((40, 40),)
        found.append(fitted_size(90, 200, own, count if clips.whole else None))
    if kind == "steps":  # 100 tokens of a frame, and 120 of all grids
        assert found == [(40, 80), (40, 80), (40, 40), (40, 40), (40, 40)]
        assert most_of_clip(preprocessing) == (400, 100)
    else:  # 100 tokens of all frames
        assert found == [(40, 80), (40, 40), (40, 40), (40, 40), (40, 40)]
        assert most_of_clip(preprocessing) == (400, 50)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.ts", "mpeg2video")],
)
def test_a_file_shows_its_frames(tmp_path: Path, name: str, codec: str) -> None:
    pytest.importorskip("av")
    path = write_clip(tmp_path / name, shades(24), codec=codec, rate=25)
    clip = load_clip(Video(path), facts(count=6))
    assert shades_in(clip.frames) == [0, 4, 8, 12, 16, 20]
    assert clip.times == tuple(i / 25 for i in (0, 4, 8, 12, 16, 20))
    assert clip.rate == pytest.approx(6.25)
    assert look(path, fps=5.0) == [0, 6, 12, 18]


def test_seeking_finds_what_is_found_without(tmp_path: Path) -> None:
    pytest.importorskip("av")
    for keys, options in ((1, {}), (7, {}), (12, {"x264-params": "open-gop=1:bframes=3"}), (50, {})):
        path = write_clip(tmp_path / f"{keys}.mp4", shades(24) * 2, codec="libx264", keys=keys, **options)
        assert look(path, 48) == [*range(24)] * 2
        assert look(path, 5) == [0, 9, 19, 4, 14]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_variable_rate_goes_by_time(tmp_path: Path, name: str) -> None:
    """Ten frames of which one is shown from 0.3 to 1.3 s, and one from then to 2.3 s."""
    pytest.importorskip("av")
    times = [0, 100, 200, 300, 1300, 2300, 2400, 2500, 2600, 2700]
    path = write_clip(tmp_path / name, shades(10), times=times)
    assert look(path, 10) == [0, 3, 3, *look(path, 10)[3:7], 5, 6, 9]
    assert look(path, 10)[3:7] in ([4, 4, 4, 4], [4, 4, 4, 5])


def test_a_folder_and_arrays(tmp_path: Path) -> None:
    for i in (1, 2, 9, 10, 11):
        Image.fromarray(shades(12)[i]).save(tmp_path / f"f{i}.png")
    (tmp_path / ".hidden").write_text("none")
    clip = load_clip(Video(tmp_path, fps=4.0), facts())
    assert (clip.times, clip.rate) == ((0, 0.25, 0.5, 0.75, 1.0), 4.0)
    assert shades_in(clip.frames) == [1, 2, 9, 10, 11]
    assert look(tmp_path, frames=2) == [1, 9]
    for source in (np.stack(shades(4)), shades(4), [Image.fromarray(one) for one in shades(4)]):
        assert shades_in(load_clip(Video(source), facts()).frames) == [0, 1, 2, 3]
    with refused("clip-frames-out-of-range", "5 frames", "at most 4"):
        load_clip(Video(tmp_path), facts(frames=4))
    with refused("clip-frame-sizes", "64 x 48", "9 x 8"):
        list(load_clip(Video([*shades(2), shades(1, (8, 9))[0]]), facts()).frames)


def test_a_turned_picture_is_turned_back(tmp_path: Path) -> None:
    pytest.importorskip("av")
    top = np.zeros((48, 64, 3), np.uint8)
    top[:24] = 200
    data = bytearray(write_clip(tmp_path / "a.mp4", [top] * 3).read_bytes())
    matrix = data.find(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data)
    (frame,) = load_clip(Video(tmp_path / "a.mp4", frames=1), facts()).frames
    assert frame.size == (48, 64)
    assert np.asarray(frame)[:, 30:].min() > 150 > 50 > np.asarray(frame)[:, :18].max()


def test_what_is_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    path = write_clip(tmp_path / "a.mp4", shades(3))
    (tmp_path / "words.mp4").write_text("no clip at all " * 99)
    (tmp_path / "empty.mp4").write_bytes(b"")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.mp4").write_text(playlist)
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile {path.name}\n")
    for name in ("words.mp4", "empty.mp4", "list.mp4", "list.ffconcat"):
        with refused("clip-format-unknown", name, "MP4"):
            look(tmp_path / name)
    with refused("clip-missing", "none.mp4"):
        look(tmp_path / "none.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    with refused("clip-unreadable", f"'{tmp_path / 'loop.mp4'}'"):
        look(tmp_path / "loop.mp4")
    with refused("clip-not-a-file", "/dev/null"):
        look(Path("/dev/null"))
    with refused("image-is-address", "http://a/b.mp4"):
        load_clip(Video("http://a/b.mp4"), facts())
    (tmp_path / "folder").mkdir()
    with refused("clip-empty", "folder"):
        look(tmp_path / "folder")
    with refused("clip-too-long", "36000 s", "2 hours"):
        look(write_clip(tmp_path / "long.mkv", shades(3), times=[0, 1000, 36_000_000]))
    monkeypatch.setattr(module, "MAX_CLIP_FRAMES", 2)
    with refused("clip-too-long", "2 frames"):
        look(path)
    monkeypatch.setattr(module, "MAX_CLIP_BYTES", 100)
    with refused("clip-too-large", path.stat().st_size, 100):
        look(path)
    with refused("image-too-large", "64 x 48 pixels"):
        monkeypatch.undo()
        monkeypatch.setattr("divprune_edge.processing.images.MAX_PIXELS", 1000)
        look(path)


def test_sound_alone_has_no_frames(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    container = av.open(str(tmp_path / "a.mp4"), "w")
    stream = container.add_stream("aac", rate=44100)
    frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
    frame.rate = 44100
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    container.close()
    with refused("clip-empty", "a.mp4"):
        look(tmp_path / "a.mp4")


def test_damage_is_told(tmp_path: Path) -> None:
    pytest.importorskip("av")
    whole = write_clip(tmp_path / "a.mp4", noise(60), codec="libx264", movflags="faststart").read_bytes()
    damaged = bytearray(whole)
    for at in range(len(whole) // 3, len(whole) // 2):
        damaged[at] = random.Random(at).randrange(256)
    matroska = write_clip(tmp_path / "b.mkv", noise(600, (16, 16)), codec="libx264", keys=20).read_bytes()
    for data in (whole[: len(whole) // 2], bytes(damaged), matroska[: len(matroska) // 2]):
        (tmp_path / "c.mp4").write_bytes(data)
        with refused("clip-damaged", "c.mp4", "complete copy"):
            look(tmp_path / "c.mp4", 30)


def test_without_pyav_only_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "av", None)
    with refused("video-not-installed", "a.mp4", "python -m pip install av"):
        look(tmp_path / "a.mp4")
    assert shades_in(load_clip(Video(shades(2)), facts()).frames) == [0, 1]


def test_arguments() -> None:
    one = Video("a.mp4", fps=1.0)
    assert clips_of(None, None, None) == []
    assert clips_of(one, None, None) == clips_of([one], None, None) == [one]
    (made,) = clips_of("a.mp4", 2.0, None)
    assert (made.source, made.fps, made.frames) == ("a.mp4", 2.0, None)
    for wrong, code in (
        (lambda: clips_of(None, 2.0, None), "clip-option-misplaced"),
        (lambda: clips_of([one], None, 3), "clip-option-misplaced"),
        (lambda: clips_of([one, "b.mp4"], None, None), "argument-type"),
        (lambda: clips_of(5, None, None), "argument-type"),  # type: ignore[arg-type]
        (lambda: Video("a", fps="2"), "argument-type"),  # type: ignore[arg-type]
        (lambda: Video("a", fps=0), "fps-out-of-range"),
        (lambda: Video("a", fps=float("nan")), "fps-out-of-range"),
        (lambda: Video("a", frames=0), "frames-out-of-range"),
        (lambda: load_clip(Video(np.zeros((2, 4, 4), np.uint8)), facts()), "clip-type-unsupported"),
        (lambda: load_clip(Video(np.zeros((0, 4, 4, 3), np.uint8)), facts()), "clip-empty"),
        (lambda: load_clip(Video(SimpleNamespace()), facts()), "argument-type"),  # type: ignore[arg-type]
    ):
        with refused(code):
            wrong()
