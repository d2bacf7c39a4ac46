"""The picture decoder: every format and mode as Pillow shows it, and errors that name the file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfdetr.datasets import decode as module
from rfdetr.datasets.decode import decode, decode_bytes


def picture(height: int = 13, width: int = 17) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 15, columns * 11, rows + columns], axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_lossless_formats_give_the_pixels_back():
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert np.array_equal(decode_bytes(encoded(picture(), kind), kind), np.asarray(picture())), kind


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16", "I", "CMYK", "YCbCr", "F"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(mode):
    deep = Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 200)
    image = deep if mode == "I;16" else picture().convert(mode)
    data = encoded(image, "TIFF" if mode in ("I", "CMYK", "YCbCr", "F") else "PNG")
    with Image.open(io.BytesIO(data)) as again:
        expected = np.asarray(again.convert("RGB"))
    found = decode_bytes(data, "x")
    assert (found.shape, found.dtype) == ((13, 17, 3), np.uint8)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("turbo", [True, False])
def test_jpegs_decode_as_pillow_decodes_them(mode, turbo, monkeypatch):
    if not turbo:
        monkeypatch.setattr(module, "_turbo", lambda: None)
    data = encoded(picture(50, 70).convert(mode), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as again:
        assert np.array_equal(decode_bytes(data, "x"), np.asarray(again.convert("RGB")))


def test_a_palette_with_transparency_loses_it():
    image = picture().convert("P")
    assert decode_bytes(encoded(image, "PNG", transparency=0), "x").shape == (13, 17, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow on palettes whose transparency is a list
        assert decode_bytes(encoded(image, "PNG", transparency=bytes(range(200))), "x").shape == (13, 17, 3)


def test_the_orientation_entry_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_bytes(encoded(picture(), "JPEG", exif=exif.tobytes()), "x").shape == (13, 17, 3)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_bytes_that_are_no_picture_are_refused_by_name(data):
    with pytest.raises(ValueError, match=r"picture some\.jpg cannot be decoded"):
        decode_bytes(data, "some.jpg")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_file_is_refused_by_name(kind, tmp_path):
    path = tmp_path / "cut.img"
    path.write_bytes(encoded(picture(200, 200), kind)[:-300])
    with pytest.raises(ValueError, match=rf"{path} cannot be decoded"):
        decode(path)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png: there is no such file"):
        decode(Path("nowhere.png"))


def test_a_picture_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"big\.png cannot be decoded"):
        decode_bytes(encoded(picture(), "PNG"), "big.png")


def test_pixels_can_be_written_to():
    for kind in ("PNG", "JPEG"):
        assert decode_bytes(encoded(picture(), kind), "x").flags.writeable
