"""The one picture decoder: any file Pillow reads, as 8-bit RGB. EXIF orientation is not applied."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

HW = tuple[int, int]


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
    return decode_reduced(data, name, lambda hw: 1)[0]


def decode_reduced(data: bytes, name: str, reduction: Callable[[HW], int]) -> tuple[np.ndarray, HW]:
    """Pixels of an encoded picture, maybe at a part of its size, and its real height and width.

    Args:
        reduction: how many times smaller (1, 2, 4 or 8) a picture of a height and width is wanted.
    """
    turbo = _turbo()
    if turbo is not None and data[:2] == b"\xff\xd8":
        try:
            # Bit for bit what Pillow gives, in two thirds of the time; it refuses CMYK and damaged files.
            height, width, colours = turbo.decode_jpeg_header(data)[:3]
            if colours != "CMYK" and not _is_bomb(height * width):
                factor = reduction((height, width))
                least = reduced((height, width), factor) if factor > 1 else (0, 0)
                pixels = turbo.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1], strict=True)
                return pixels, (height, width)
        except ValueError:
            pass  # Pillow decides below, and names what is wrong
    try:
        with Image.open(io.BytesIO(data)) as image:
            if _is_bomb(image.width * image.height):
                raise ValueError(
                    f"{image.width} x {image.height} pixels exceed PIL.Image.MAX_IMAGE_PIXELS, which can be raised"
                )
            hw = image.height, image.width
            factor = reduction(hw)
            small = reduced(hw, factor)
            if factor > 1:
                # A JPEG is decoded at that size in a fraction of the time; other formats do nothing here.
                image.draft("RGB", (hw[1] // factor, hw[0] // factor))
            whole = to_rgb(image)
            return np.array(whole if (whole.height, whole.width) == small else whole.reduce(factor)), hw
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"picture {name} cannot be decoded: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB; of grey pictures of 16 bits the upper half counts, which Pillow would cut off.

    Raises:
        ValueError: its pixels are fractions, of which Pillow would make black.
    """
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    values = np.asarray(image)
    if image.mode == "F" and values.max(initial=0) <= 1:
        raise ValueError("its pixels are fractions; save it with 8 or 16 bits")
    if image.mode == "F" or values.max(initial=0) <= 255:
        return image.convert("RGB")
    return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")


def reduced(hw: HW, reduction: int) -> HW:
    """Height and width of a picture that is decoded at 1/`reduction` of its size."""
    return -(-hw[0] // reduction), -(-hw[1] // reduction)


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
