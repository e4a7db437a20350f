"""Images from outside: what is refused, and what becomes RGB exactly as transformers makes it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import run_code
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from raising import refused

from divprune_edge.errors import UserError
from divprune_edge.processing import images
from divprune_edge.processing.images import load_image

RNG = np.random.default_rng(3)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.fromarray(noise(12, 10, 3)) for _ in range(2)]
    several = {"save_all": True, "append_images": frames[1:]} if suffix in ("gif", "webp", "tiff") else {}
    frames[0].save(buffer, suffix, **several)
    return buffer.getvalue()


WHOLE = {
    suffix: encoded(suffix) for suffix in ("jpeg", "png", "gif", "webp", "bmp", "tiff", "ppm", "jpeg2000")
}


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("https://example.org/cat.jpg", "'https://example.org/cat.jpg'"),
        (Path("http://example.org/cat.jpg"), "'http://example.org/cat.jpg'"),
        ("s3://bucket/cat.jpg", "'s3://bucket/cat.jpg'"),
        ("file:///tmp/cat.jpg", "'file://tmp/cat.jpg'"),
        ("data:image/png;base64," + "A" * 9000, "'data:image/png;base64,"),
    ],
)
def test_an_address_is_no_path(source: str | Path, shown: str) -> None:
    with refused("image-is-address", shown) as caught:
        load_image(source)
    assert len(str(caught.value)) < 250


def test_path_object_and_array_agree(tmp_path: Path) -> None:
    pixels = noise(9, 13, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels):
        assert np.array_equal(np.asarray(load_image(source)), pixels)
    assert np.array_equal(np.asarray(load_image(pixels[..., ::-1], bgr=True)), pixels)


def test_grey_array_is_spread_over_the_channels() -> None:
    grey = noise(5, 4)
    assert np.array_equal(np.asarray(load_image(grey)), np.repeat(grey[..., None], 3, axis=-1))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        noise(4, 4, 4),
        noise(4),
        noise(3, 4, 4),
        noise(1, 4, 4, 3),
        noise(0, 4, 3),
        np.zeros((4, 4), np.int64),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with refused("image-type-unsupported", "[height, width, 3]"):
        load_image(array)


def test_bgr_is_for_arrays(image: Path) -> None:
    with refused("image-bgr-misplaced"):
        load_image(image, bgr=True)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LA", "RGBA", "PA"])
def test_modes_convert_as_transformers_does(mode: str) -> None:
    convert_to_rgb = pytest.importorskip("transformers.image_transforms").convert_to_rgb
    start = Image.fromarray(noise(8, 10, 4), "RGBA")
    if mode in ("RGBA", "LA"):
        image = start.convert(mode)
    elif mode == "PA":
        image = start.convert("P").convert("PA")
    else:
        image = start.convert("RGB").convert(mode)
    assert np.array_equal(np.asarray(load_image(image)), convert_to_rgb(image, return_numpy=True))


def test_transparent_palette_converts_as_transformers_does(tmp_path: Path) -> None:
    convert_to_rgb = pytest.importorskip("transformers.image_transforms").convert_to_rgb
    image = Image.fromarray(noise(6, 6) % 4, "P")
    image.putpalette(bytes(noise(12)))
    image.save(tmp_path / "p.png", transparency=1)
    with Image.open(tmp_path / "p.png") as reopened:
        expected = convert_to_rgb(reopened, return_numpy=True)
    assert np.array_equal(np.asarray(load_image(tmp_path / "p.png")), expected)


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    eight = noise(6, 7)
    Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    loaded = np.asarray(load_image(tmp_path / "deep.png"))
    assert np.array_equal(loaded, np.repeat(eight[..., None], 3, axis=-1))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_8_bits_in_16_stay_as_in_transformers(tmp_path: Path, kind: str) -> None:
    load = pytest.importorskip("transformers.image_utils").load_image
    path = tmp_path / f"wide.{kind}"
    Image.fromarray(noise(6, 7).astype(np.uint16)).save(path)
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(load(str(path))))


def test_12_bits_in_16_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(noise(6, 7).astype(np.uint16) * 16).save(tmp_path / "twelve.png")
    assert np.asarray(load_image(tmp_path / "twelve.png")).max() <= 16
    assert "fill 12: it is dark" in caplog.text


def test_orientation_of_a_file_is_applied(tmp_path: Path) -> None:
    load = pytest.importorskip("transformers.image_utils").load_image
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(8, 16, 3)).save(tmp_path / "turned.jpg", exif=exif)
    loaded = load_image(tmp_path / "turned.jpg")
    assert loaded.size == (8, 16)
    assert np.array_equal(np.asarray(loaded), np.asarray(load(str(tmp_path / "turned.jpg"))))


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff", "png"])
def test_first_frame_of_several(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.fromarray(np.full((4, 6, 3), value, np.uint8)) for value in (0, 255, 128)]
    path = tmp_path / f"moving.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert not np.asarray(load_image(path)).any()
    assert "holds 3 frames: the first one is used" in caplog.text


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff", "ppm", "jp2"])
def test_truncated_file_is_one_sentence(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise(64, 64, 3)).save(path)
    whole = path.read_bytes()
    load_image(path)
    for length in (len(whole) // 2, 40, 10, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError) as error:
            load_image(path)
        assert f"'{path}'" in str(error.value)
        assert error.value.code in {"image-format-unknown", "image-damaged", "image-unreadable"}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_raise_anything_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind = data.draw(st.sampled_from(sorted(WHOLE)))
    damaged = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        image = load_image(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert image.mode == "RGB"


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with refused("image-format-unknown", "notes.jpg"):
        load_image(tmp_path / "notes.jpg")
    with refused("image-missing"):
        load_image(tmp_path / "nothing.png")
    with refused("image-not-a-file"):
        load_image(tmp_path)
    with refused("image-type-unsupported", "int"):
        load_image(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "number"),
    [((30000, 30000), "900000000 pixels"), ((20000, 20), "20000 x 20"), ((10000, 10000), "10000 x 10000")],
)
def test_size_is_bounded_before_decoding(
    tmp_path: Path,
    size: tuple[int, int],
    number: str,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    monkeypatch.setattr(images, "_decode", lambda *a, **k: pytest.fail("was decoded"))
    (tmp_path / "huge.png").write_bytes(png_header(*size))
    with refused("image-too-large", number, 16384, 64):
        load_image(tmp_path / "huge.png")
    assert not recwarn.list


def test_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    with refused("image-too-large", 10):
        load_image(image)


def test_common_formats_do_not_import_every_reader(image: Path) -> None:
    code = (
        "import sys\nfrom divprune_edge.processing.images import load_image\n"
        f"load_image({str(image)!r})\nsys.exit('PIL.TiffImagePlugin' in sys.modules)"
    )
    run_code(code)
