"""Everything `predict` accepts, as pixels: files, addresses, bytes, PIL images, arrays, tensors. RGB order."""

from __future__ import annotations

import http.client
import os
import urllib.request
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rfdetr.datasets.decode import decode_bytes, to_rgb

_HINT = "divide by 255 to get values in 0..1, or pass uint8"


def load_images(images: Any) -> tuple[list[Tensor], bool]:
    """Pixels of one picture or of many, and whether it was one.

    Returns:
        (H, W, 3) tensors in RGB order, uint8 in 0..255 or float32 in 0..1, each with the size of its picture.

    Raises:
        TypeError, ValueError, FileNotFoundError, PIL.UnidentifiedImageError: what cannot be used, by name and position.
    """
    if isinstance(images, list | tuple):
        return [load_image(image, f"picture {i} of the list") for i, image in enumerate(images)], False
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        return [load_image(image, f"picture {i} of the batch") for i, image in enumerate(images)], False
    return [load_image(images, "the picture")], True


def load_image(image: Any, where: str) -> Tensor:
    """Pixels (H, W, 3) of one picture; `where` stands in the errors."""
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return _decoded(_fetch(image), f"{where}, {image},")
    if isinstance(image, str | os.PathLike):
        return _decoded(_read(Path(image), where), f"{where}, {image},")
    if isinstance(image, bytes | bytearray | memoryview):
        return _decoded(bytes(image), where)
    if isinstance(image, Image.Image):
        return _from_pillow(image, where)
    if isinstance(image, np.ndarray):
        return _from_array(image, where)
    if isinstance(image, Tensor):
        return _from_tensor(image, where)
    if hasattr(image, "read"):
        return _decoded(_content(image, where), where)
    raise TypeError(
        f"{where} is a {type(image).__name__}; predict takes a path, URL, bytes, file, PIL image, array or tensor"
    )


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"the picture {url} could not be fetched: {error}") from error


def _read(path: Path, where: str) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: there is no file {path}") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{where}: {path} is a folder; pass a list of its pictures") from None


def _content(file: Any, where: str) -> bytes:
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError(f"{where} is a file opened as text; open it with mode 'rb'")
    return data


def _decoded(data: bytes, where: str) -> Tensor:
    try:
        return torch.from_numpy(decode_bytes(data, where))
    except ValueError as error:
        raise UnidentifiedImageError(f"{where} cannot be decoded: {error.__cause__ or error}") from error


def _from_pillow(image: Image.Image, where: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(to_rgb(image)))
    except (OSError, ValueError) as error:  # Pillow reads the pixels of a file only now
        raise UnidentifiedImageError(f"{where} cannot be decoded: {error}") from error


def _from_array(array: np.ndarray, where: str) -> Tensor:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        first = array.ndim == 3 and array.shape[0] in (1, 3)
        hint = "; is it channels first? transpose it to (H, W, 3)" if first else ""
        raise ValueError(f"{where} has shape {array.shape}; arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4){hint}")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{where} is an array of {array.dtype}; arrays of numbers are needed, as uint8 or float32")
    array = array[..., :3] if array.shape[2] > 1 else np.repeat(array, 3, axis=2)
    # Tensors know neither negative strides nor foreign byte orders nor read-only memory.
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return _checked(torch.from_numpy(array if array.flags.writeable else array.copy()), where)


def _from_tensor(tensor: Tensor, where: str) -> Tensor:
    if tensor.ndim == 3 and tensor.shape[0] not in (1, 3) and tensor.shape[2] in (1, 3):
        raise ValueError(f"{where} has shape {tuple(tensor.shape)}; tensors are (3, H, W): use .permute(2, 0, 1)")
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or 0 in tensor.shape:
        raise ValueError(f"{where} has shape {tuple(tensor.shape)}; tensors are (3, H, W)")
    return _checked(tensor.detach().expand(3, -1, -1).permute(1, 2, 0), where)


def _checked(pixels: Tensor, where: str) -> Tensor:
    """Pixels as uint8, or as float32 whose range was checked."""
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.float()
    if pixels.dtype == torch.uint16:
        return pixels.float() / 65535
    low, high = (float(value) for value in torch.aminmax(pixels.float()))
    if not pixels.dtype.is_floating_point:
        if low < 0 or high > 255:
            raise ValueError(
                f"{where} has whole numbers from {low:g} to {high:g}; they must lie in 0..255. "
                "Of another range, make floats in 0..1: divide by 255, or by the largest number there can be"
            )
        return pixels.to(torch.uint8)
    if low != low or high != high:
        raise ValueError(f"{where} contains NaN")
    if high > 1 or low < 0:
        raise ValueError(f"{where} has values from {low:g} to {high:g}, some are above 1 or below 0; {_HINT}")
    return pixels.float()


def to_uint8(pixels: Tensor) -> np.ndarray:
    """The picture as an (H, W, 3) uint8 array."""
    if pixels.dtype != torch.uint8:
        pixels = (pixels * 255).round().to(torch.uint8)
    return pixels.cpu().contiguous().numpy()


def check_shape(shape: Sequence[int], block: int) -> tuple[int, int]:
    """A network input size (height, width) whose sides are positive multiples of `block`.

    Raises:
        ValueError: anything else; the message names the block.
    """
    sides = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    if len(sides) != 2 or any(not isinstance(s, Integral) or s <= 0 or s % block for s in sides):
        raise ValueError(f"shape={shape!r} must be (height, width), both multiples of {block} (patch size x windows)")
    return int(sides[0]), int(sides[1])
