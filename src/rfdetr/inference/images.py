"""Everything `predict` accepts, as pixels: files, addresses, bytes, PIL images, arrays, tensors. RGB order."""

from __future__ import annotations

import http.client
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from rfdetr.datasets.decode import decode_bytes, to_rgb
from rfdetr.inference.sources import open_source

_WEB = ("http://", "https://")
_HINT = "divide by 255 to get values in 0..1, or pass uint8"


def load_images(images: Any) -> tuple[Iterator[np.ndarray], bool]:
    """Pixels of one picture or of many, one after the other, and whether it was one.

    Args:
        images: what `load_image` takes, or a list, a batch, an iterator of it, or a folder of pictures.

    Returns:
        (H, W, 3) arrays in RGB order, uint8 in 0..255 or float32 in 0..1, each with the size of its picture.

    Raises:
        TypeError, ValueError, FileNotFoundError, PIL.UnidentifiedImageError: what cannot be used, by name and position.
    """
    if isinstance(images, str | os.PathLike) and Path(images).expanduser().is_dir():
        with open_source(images) as source:
            images = [frame.picture for frame in source]
    if isinstance(images, list | tuple):
        for i, image in enumerate(images):
            check(image, f"picture {i} of the list")
    is_array = isinstance(images, np.ndarray) or is_tensor(images)
    # An open file is an iterator too, of lines.
    is_iterator = isinstance(images, Iterator) and not hasattr(images, "read")
    if images.ndim == 4 if is_array else is_iterator or isinstance(images, list | tuple):
        what = "batch" if is_array else "list"
        return (load_image(image, f"picture {i} of the {what}") for i, image in enumerate(images)), False
    return iter([load_image(images, "the picture")]), True


def check(image: Any, where: str) -> None:
    """What is certain of a picture before anything is decoded: that it is of a kind that is known, and is there.

    Raises:
        TypeError, FileNotFoundError, IsADirectoryError: it is not.
    """
    if isinstance(image, str | os.PathLike):
        path = Path(image).expanduser()
        if not str(image).startswith(_WEB) and not path.is_file():
            if path.is_dir():
                raise IsADirectoryError(f"{where}: {path} is a folder; pass it alone, or a list of its pictures")
            raise FileNotFoundError(f"{where}: there is no file {path}")
        return
    kinds = (bytes, bytearray, memoryview, Image.Image, np.ndarray)
    if not isinstance(image, kinds) and not is_tensor(image) and not hasattr(image, "read"):
        raise TypeError(
            f"{where} is a {type(image).__name__}; predict takes a path, URL, bytes, file, PIL image, array or tensor"
        )


def load_image(image: Any, where: str) -> np.ndarray:
    """Pixels (H, W, 3) of one picture; `where` stands in the errors."""
    check(image, where)
    if isinstance(image, str) and image.startswith(_WEB):
        return _decoded(_fetch(image), f"{where}, {image},")
    if isinstance(image, str | os.PathLike):
        return _decoded(Path(image).expanduser().read_bytes(), f"{where}, {image},")
    if isinstance(image, bytes | bytearray | memoryview):
        return _decoded(bytes(image), where)
    if isinstance(image, Image.Image):
        return _from_pillow(image, where)
    if isinstance(image, np.ndarray):
        return _from_array(image, where)
    return _decoded(_content(image, where), where) if hasattr(image, "read") else _from_tensor(image, where)


def is_tensor(value: Any) -> bool:
    """Whether something is a PyTorch tensor, which it can only be once PyTorch has been imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"the picture {url} could not be fetched: {error}") from error


def _content(file: Any, where: str) -> bytes:
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError(f"{where} is a file opened as text; open it with mode 'rb'")
    return data


def _decoded(data: bytes, where: str) -> np.ndarray:
    try:
        return decode_bytes(data, where)
    except ValueError as error:
        raise UnidentifiedImageError(f"{where} cannot be decoded: {error.__cause__ or error}") from error


def _from_pillow(image: Image.Image, where: str) -> np.ndarray:
    try:
        return np.array(to_rgb(image))
    except (OSError, ValueError) as error:  # Pillow reads the pixels of a file only now
        raise UnidentifiedImageError(f"{where} cannot be decoded: {error}") from error


def _from_array(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        first = array.ndim == 3 and array.shape[0] in (1, 3)
        hint = "; is it channels first? transpose it to (H, W, 3)" if first else ""
        raise ValueError(f"{where} has shape {array.shape}; arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4){hint}")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{where} is an array of {array.dtype}; arrays of numbers are needed, as uint8 or float32")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return _checked(array[..., :3] if array.shape[2] > 1 else np.repeat(array, 3, axis=2), where)


def _from_tensor(tensor: Any, where: str) -> np.ndarray:
    if tensor.ndim == 3 and tensor.shape[0] not in (1, 3) and tensor.shape[2] in (1, 3):
        raise ValueError(f"{where} has shape {tuple(tensor.shape)}; tensors are (3, H, W): use .permute(2, 0, 1)")
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or 0 in tensor.shape:
        raise ValueError(f"{where} has shape {tuple(tensor.shape)}; tensors are (3, H, W)")
    if tensor.dtype.is_floating_point:
        tensor = tensor.float()  # NumPy has no bfloat16
    return _checked(tensor.detach().expand(3, -1, -1).permute(1, 2, 0).cpu().numpy(), where)


def _checked(pixels: np.ndarray, where: str) -> np.ndarray:
    """Pixels as uint8, or as float32 whose range was checked."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float32)
    if pixels.dtype == np.uint16:
        return pixels.astype(np.float32) / np.float32(65535)
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind in "iu":
        if low < 0 or high > 255:
            raise ValueError(
                f"{where} has whole numbers from {low:g} to {high:g}; they must lie in 0..255. "
                "Of another range, make floats in 0..1: divide by 255, or by the largest number there can be"
            )
        return pixels.astype(np.uint8)
    if low != low or high != high:
        raise ValueError(f"{where} contains NaN")
    if high > 1 or low < 0:
        raise ValueError(f"{where} has values from {low:g} to {high:g}, some are above 1 or below 0; {_HINT}")
    return pixels.astype(np.float32, copy=False)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """The picture as an (H, W, 3) uint8 array."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * np.float32(255)).astype(np.uint8)
    return np.ascontiguousarray(pixels)
