"""Everything that becomes a picture, with its pixels, and everything that does not, with its error."""

from __future__ import annotations

import http.server
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from rfdetr.inference.images import load_image, load_images, to_uint8
from rfdetr.inference.predictor import check_shape

H, W = 9, 12
RGB = np.random.default_rng(3).integers(0, 256, (H, W, 3), np.uint8)
GREY = RGB[..., 0]


def pixels(image: Any) -> np.ndarray:
    found = load_image(image, "the picture")
    assert found.shape == (H, W, 3)
    assert found.dtype in (np.uint8, np.float32)
    return to_uint8(found)


def png(array: np.ndarray = RGB) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def alpha(array: np.ndarray) -> np.ndarray:
    return np.dstack([array, np.full((H, W), 7, array.dtype)])


def chw(dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(RGB / 255.0).to(dtype).permute(2, 0, 1)


SAME = {
    "uint8": RGB,
    "negative strides": np.ascontiguousarray(RGB[:, :, ::-1])[:, :, ::-1],
    "columns first": np.asfortranarray(RGB),
    "read only": np.frombuffer(RGB.tobytes(), np.uint8).reshape(H, W, 3),
    "with alpha": alpha(RGB),
    "float64": RGB / 255,
    "float32": (RGB / 255).astype(np.float32),
    "big endian": (RGB / 255).astype(">f4"),
    "uint16": RGB.astype(np.uint16) * 257,
    "uint16 big endian": (RGB.astype(np.uint16) * 257).astype(">u2"),
    "int64": RGB.astype(np.int64),
    "uint32": RGB.astype(np.uint32),
    "tensor float32": chw(torch.float32),
    "tensor float64": chw(torch.float64),
    "tensor uint8": torch.from_numpy(RGB).permute(2, 0, 1),
    "tensor uint16": (torch.from_numpy(RGB).int() * 257).to(torch.uint16).permute(2, 0, 1),
    "tensor with gradient": chw(torch.float32).requires_grad_(),
    "PIL": Image.fromarray(RGB),
    "PIL with alpha": Image.fromarray(alpha(RGB)),
    "bytes": png(),
    "bytearray": bytearray(png()),
    "file": io.BytesIO(png()),
}


@pytest.mark.parametrize("kind", SAME)
def test_every_kind_of_picture_gives_the_same_pixels(kind):
    assert np.array_equal(pixels(SAME[kind]), RGB)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_what_it_can(dtype):
    assert np.abs(pixels(chw(dtype)).astype(int) - RGB).max() <= 1
    if dtype == torch.float16:
        assert np.abs(pixels((RGB / 255).astype(np.float16)).astype(int) - RGB).max() <= 1


@pytest.mark.parametrize(
    "grey",
    [
        GREY,
        GREY[..., None],
        Image.fromarray(GREY),
        torch.from_numpy(GREY)[None],
        png(GREY),
        GREY / 255,
    ],
)
def test_grey_is_replicated(grey):
    assert np.array_equal(pixels(grey), np.repeat(GREY[..., None], 3, 2))


@pytest.mark.parametrize("array", [GREY > 100, torch.from_numpy(GREY > 100)[None], Image.fromarray(GREY > 100)])
def test_truth_values_are_black_and_white(array):
    assert np.array_equal(pixels(array), np.repeat((GREY > 100)[..., None] * np.uint8(255), 3, 2))


def test_files_are_read_by_any_path(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for path in (tmp_path / "a.png", str(tmp_path / "a.png"), "a.png", Path("a.png"), "~/a.png"):
        assert np.array_equal(pixels(path), RGB)
    with (tmp_path / "a.png").open("rb") as handle:
        assert np.array_equal(pixels(handle), RGB)


def test_addresses_are_fetched_and_a_failure_names_them(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(b"no picture")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert np.array_equal(pixels(f"{url}/a.png"), RGB)
        with pytest.raises(ConnectionError, match=f"{url}/gone.png could not be fetched: .*404"):
            pixels(f"{url}/gone.png")
        with pytest.raises(UnidentifiedImageError, match=f"{url}/b.png"):
            pixels(f"{url}/b.png")
        server.shutdown()
    with pytest.raises(ConnectionError, match=f"{url}/a.png could not be fetched"):
        pixels(f"{url}/a.png")


BAD = {
    "channels first": (np.zeros((3, H, W)), ValueError, r"shape \(3, 9, 12\).*channels first\? transpose"),
    "two channels": (np.zeros((H, W, 2), np.uint8), ValueError, r"shape \(9, 12, 2\); arrays are"),
    "no pixels": (np.zeros((0, W, 3), np.uint8), ValueError, r"shape \(0, 12, 3\)"),
    "one axis": (np.zeros(5), ValueError, r"shape \(5, 1\)|shape \(5,\)"),
    "five axes": (np.zeros((1, 1, H, W, 3)), ValueError, "shape"),
    "float 0..255": (RGB.astype(np.float32), ValueError, "some are above 1 or below 0; divide by 255"),
    "negative": (RGB / 255 - 1, ValueError, "below 0"),
    "infinite": (np.full((H, W, 3), np.inf), ValueError, "above 1"),
    "int over 255": (RGB.astype(np.int32) * 3, ValueError, "they must lie in 0..255.*divide by 255"),
    "int negative": (RGB.astype(np.int32) - 1, ValueError, "whole numbers from -1"),
    "NaN": (np.where(RGB > 128, np.nan, 0.5), ValueError, "contains NaN"),
    "tensor NaN": (torch.full((3, H, W), float("nan")), ValueError, "contains NaN"),
    "tensor channels last": (torch.zeros(H, W, 3), ValueError, r"use \.permute\(2, 0, 1\)"),
    "tensor two axes": (torch.zeros(H, W), ValueError, r"tensors are \(3, H, W\)"),
    "tensor four channels": (torch.zeros(4, H, W), ValueError, r"shape \(4, 9, 12\)"),
    "tensor 0..255": (chw(torch.float32) * 255, ValueError, "divide by 255"),
    "texts": (np.full((H, W, 3), "a"), TypeError, "array of <U1"),
    "objects": (np.full((H, W, 3), None), TypeError, "array of object"),
    "complex": (np.zeros((H, W, 3), complex), TypeError, "array of complex128"),
    "None": (None, TypeError, "is a NoneType; predict takes"),
    "number": (3, TypeError, "is a int"),
    "dict": ({}, TypeError, "is a dict"),
    "generator": ((i for i in ()), TypeError, "is a generator"),
    "text file": (io.StringIO("a"), TypeError, "opened as text"),
    "missing": ("nowhere.png", FileNotFoundError, r"picture 1 of the list: there is no file nowhere\.png"),
    "no picture": (b"hello", UnidentifiedImageError, "picture 1 of the list cannot be decoded"),
    "empty bytes": (b"", UnidentifiedImageError, "cannot be decoded"),
    "folder": (Path(), IsADirectoryError, "is a folder"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_is_an_error_with_its_position(kind):
    image, error, message = BAD[kind]
    with pytest.raises(error, match=message) as raised:
        list(load_images([RGB, image])[0])
    assert "picture 1 of the list" in str(raised.value)


def test_a_damaged_file_is_named_with_its_position(tmp_path):
    (tmp_path / "cut.png").write_bytes(png()[:-30])
    with Image.open(tmp_path / "cut.png") as opened:
        for image in (tmp_path / "cut.png", opened):
            with pytest.raises(UnidentifiedImageError, match=r"picture 1 of the list.*cannot be decoded"):
                list(load_images([RGB, image])[0])
    with pytest.raises(UnidentifiedImageError, match=r"cut\.png"):
        list(load_images(tmp_path / "cut.png")[0])


@pytest.mark.parametrize(
    ("given", "count", "single"),
    [
        (RGB, 1, True),
        ([RGB], 1, False),
        ((RGB, png()), 2, False),
        ([], 0, False),
        (iter([RGB, png()]), 2, False),
        ((image for image in ()), 0, False),
        (io.BytesIO(png()), 1, True),
        (np.stack([RGB, RGB]), 2, False),
        (torch.zeros(3, 3, H, W), 3, False),
        (torch.zeros(0, 3, H, W), 0, False),
    ],
)
def test_one_picture_is_told_from_many(given, count, single):
    found, one = load_images(given)
    assert (len(list(found)), one) == (count, single)


def test_a_folder_is_its_pictures_in_order(tmp_path):
    for name, picture in (("10.png", RGB), ("9.png", RGB[::-1])):
        (tmp_path / name).write_bytes(png(np.ascontiguousarray(picture)))
    found, one = load_images(tmp_path)
    assert not one
    for picture, expected in zip(found, (RGB[::-1], RGB), strict=True):
        assert np.array_equal(picture, expected)


def test_what_is_missing_or_of_an_unknown_kind_is_found_before_anything_is_decoded(tmp_path):
    for bad, error in ((tmp_path / "missing.png", FileNotFoundError), (3, TypeError), (tmp_path, IsADirectoryError)):
        with pytest.raises(error, match="picture 1 of the list"):
            load_images([b"not decoded", bad])


def test_an_iterator_is_read_as_it_is_asked_for():
    given = iter([RGB, None, RGB])
    found, _ = load_images(given)
    next(found)
    assert next(given) is None


def test_the_range_is_checked_with_its_ends_allowed():
    for ends in (np.array([0.0, 1.0], np.float32), np.array([0.0, 1.0])):
        assert load_image(np.resize(ends, (H, W, 3)), "x").max() == 1
    assert load_image(np.full((H, W, 3), 65535, np.uint16), "x").max() == 1
    with pytest.raises(ValueError, match="above 1"):
        load_image(np.full((H, W, 3), np.float32(1.0001)), "x")


@pytest.mark.parametrize("shape", [(64, 96), [64, 96], (np.int64(64), np.int32(96)), torch.Size([64, 96])])
def test_a_legal_shape_is_a_pair_of_whole_numbers(shape):
    found = check_shape(shape, 32)
    assert (found, [type(side) for side in found]) == ((64, 96), [int, int])


@pytest.mark.parametrize(
    "shape", [64, "64", (64,), (64, 64, 3), (64, 65), (64.0, 64), (0, 64), (-32, 64), (True, 64), (None, 64), ()]
)
def test_another_shape_is_an_error_that_names_the_block(shape):
    with pytest.raises(ValueError, match="multiples of 32"):
        check_shape(shape, 32)
