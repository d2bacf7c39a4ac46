"""The one picture decoder: any file Pillow reads, as 8-bit RGB. EXIF orientation is not applied."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image


def decode(path: Path) -> np.ndarray:
    """Pixels (H, W, 3) uint8 RGB of a picture file: alpha dropped, grey replicated, palettes expanded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no picture; the message names it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"picture {path}: there is no such file") from None
    return decode_bytes(data, str(path))


def decode_bytes(data: bytes, name: str) -> np.ndarray:
    """Pixels of an encoded picture; `name` stands in the error."""
    turbo = _turbo()
    if turbo is not None and data[:2] == b"\xff\xd8":
        try:
            # Bit for bit what Pillow gives, in two thirds of the time; it refuses CMYK and damaged files.
            height, width, colours = turbo.decode_jpeg_header(data)[:3]
            if colours != "CMYK" and not _is_bomb(height * width):
                return turbo.decode_jpeg(data, colorspace="RGB", strict=True)
        except ValueError:
            pass  # Pillow decides below, and names what is wrong
    try:
        with Image.open(io.BytesIO(data)) as image:
            if _is_bomb(image.width * image.height):
                raise ValueError(f"{image.width} x {image.height} pixels exceed PIL.Image.MAX_IMAGE_PIXELS")
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"picture {name} cannot be decoded: {error}") from error


def _is_bomb(pixels: int) -> bool:
    """Whether a picture unpacks to more than Pillow's limit, which a program may raise."""
    return Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS


@functools.cache
def _turbo() -> ModuleType | None:
    """simplejpeg (extra `fast`) when it is installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg
