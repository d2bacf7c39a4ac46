"""Mask logits to masks of the picture's size: bilinear, as `F.interpolate` does, but only where a mask can be true.

In NumPy, so that exported files need no PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np

# Pixels that are interpolated at a time: few enough for the cache of a core.
_STRIPE = 2**16
# Top, left and a mask (h', w') bool: the part of a picture's mask that holds what is true.
CutOut = tuple[int, int, np.ndarray]


def cut_outs(logits: np.ndarray, hw: tuple[int, int], share: tuple[float, float] = (1.0, 1.0)) -> Iterator[CutOut]:
    """Enlarge mask logits (K, h, w) float32 one by one to a picture of a height and width.

    Where no cell above 0 is next to a pixel, its interpolated value is a mean of values that are not above 0 either.

    Args:
        share: part of the height and width of the logits that the picture covers; the rest is padding.

    Yields:
        The part of each mask that holds what is true, in the memory order of its columns.
    """
    positive = logits > 0
    rows, columns = (_axis(*axis) for axis in zip(logits.shape[1:], hw, share, strict=True))
    spans = rows.reach(np.logical_or.reduce(positive, axis=2)), columns.reach(np.logical_or.reduce(positive, axis=1))
    for one, (top, bottom), (left, right) in zip(logits, *spans, strict=True):
        lines = np.ascontiguousarray(rows.interpolate(one, top, bottom).T)
        mask = np.empty((right - left, bottom - top), bool)
        step = max(1, _STRIPE // max(1, bottom - top))
        for start in range(left, right, step):
            stop = min(start + step, right)
            np.greater(columns.interpolate(lines, start, stop), 0, out=mask[start - left : stop - left])
        yield top, left, mask.T


def paste(masks: np.ndarray, parts: Iterable[CutOut]) -> None:
    """Write cut-outs into empty masks (K, H, W); the memory around them stays untouched."""
    for whole, (top, left, mask) in zip(masks, parts, strict=True):
        whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask


class _Axis:
    """Which two cells each of the pixels along one axis lies between, and how far it is from the first to the second.

    Pixels cover a share of the length of the cells, and a value belongs to the middle of its cell.
    """

    def __init__(self, cells: int, pixels: int, share: float) -> None:
        middle = np.arange(pixels, dtype=np.float32) + np.float32(0.5)
        place = (middle * np.float32(cells * share / pixels) - np.float32(0.5)).clip(0, cells - 1)
        self.first = place.astype(np.int64)
        self.second = np.minimum(self.first + 1, cells - 1)
        self.weight = (place - self.first.astype(np.float32))[:, None]

    def reach(self, cells: np.ndarray) -> np.ndarray:
        """Start and stop of the pixels that touch true cells, for each row of (K, cells) bool."""
        number = np.arange(cells.shape[1])
        lowest = np.where(cells, number, cells.shape[1]).min(1)
        highest = np.where(cells, number, -1).max(1)
        start = np.searchsorted(self.second, lowest)
        # Of a row without true cells the stop comes before the start.
        stop = np.searchsorted(self.first, highest, side="right")
        return np.stack((np.minimum(start, stop), stop), axis=1)

    def interpolate(self, lines: np.ndarray, start: int, stop: int) -> np.ndarray:
        """The pixels from start to stop of lines (cells, N), (stop - start, N)."""
        first = lines.take(self.first[start:stop], 0, mode="clip")
        second = lines.take(self.second[start:stop], 0, mode="clip")
        second -= first
        second *= self.weight[start:stop]
        first += second
        return first


# Most pictures of a data set have a few sizes.
_axis = functools.lru_cache(maxsize=8)(_Axis)
