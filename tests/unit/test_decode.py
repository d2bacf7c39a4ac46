"""The picture decoder: every format and mode as Pillow shows it, and errors that name the file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfdetr.datasets import decode as module
from rfdetr.datasets.annotations import picture_size
from rfdetr.datasets.decode import decode, decode_bytes, decode_reduced, reduced


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
    if mode == "I;16":
        # Pillow would cut off what is above 255.
        expected = np.repeat((np.asarray(deep) // 256).astype(np.uint8)[..., None], 3, axis=2)
    found = decode_bytes(data, "x")
    assert (found.shape, found.dtype) == ((13, 17, 3), np.uint8)
    assert np.array_equal(found, expected)


def test_fractions_are_refused():
    data = encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF")
    with pytest.raises(ValueError, match="picture x cannot be decoded: its pixels are fractions; save it with 8 or 16"):
        decode_bytes(data, "x")


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


# A JPEG of an odd size too: what is decoded must not depend on which of the two decoders is there.
@pytest.mark.parametrize("hw", [(400, 600), (401, 603), (398, 605), (17, 23)])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_reduced_jpeg_is_the_same_in_both_decoders(hw, factor, mode, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
    blocks = Image.fromarray(noise).resize((9, 7), Image.Resampling.BOX).resize(hw[::-1], Image.Resampling.BICUBIC)
    for image in (Image.fromarray(noise), blocks):
        for options in ({"quality": 90}, {"subsampling": 0}, {"progressive": True, "subsampling": 2}):
            data = encoded(image.convert(mode), "JPEG", **options)
            fast, fast_hw = decode_reduced(data, "x", lambda _: factor)
            with monkeypatch.context() as patch:
                patch.setattr(module, "_turbo", lambda: None)
                plain, plain_hw = decode_reduced(data, "x", lambda _: factor)
            assert fast_hw == plain_hw == hw
            assert fast.shape == plain.shape == (*reduced(hw, factor), 3)
            assert np.array_equal(fast, plain)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_reduced_picture_is_the_mean_of_its_blocks(kind):
    rows, columns = np.mgrid[:60, :80]
    smooth = np.stack([rows * 4, columns * 3, rows + columns], axis=2).astype(np.uint8)
    data = encoded(Image.fromarray(smooth), kind, **({"quality": 98, "subsampling": 0} if kind == "JPEG" else {}))
    for factor in (1, 2, 4):
        found, _ = decode_reduced(data, "x", lambda _, factor=factor: factor)
        means = smooth.reshape(60 // factor, factor, 80 // factor, factor, 3).mean(axis=(1, 3))
        assert np.abs(found - means).max() <= (4 if kind == "JPEG" else 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_damaged_bytes_are_a_picture_or_an_error_with_the_name(kind):
    rng = np.random.default_rng(3)
    data = np.frombuffer(encoded(picture(40, 50), kind), np.uint8)
    for _ in range(150):
        damaged = data.copy()
        places = rng.integers(0, min(len(data), 10 ** int(rng.integers(1, 5))), int(rng.integers(1, 6)))
        damaged[places] = rng.integers(0, 256, len(places))
        damaged = damaged[: rng.integers(1, len(data))] if rng.random() < 0.2 else damaged
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert decode_bytes(damaged.tobytes(), "some.pic").ndim == 3
            except ValueError as error:
                assert "some.pic" in str(error)
            picture_size(io.BytesIO(damaged.tobytes()))
