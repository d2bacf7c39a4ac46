"""Mask logits to masks of the picture's size: bilinear, as `F.interpolate` does, but only where a mask can be true."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels that are interpolated at a time: few enough for the cache of a core, and for the memory of a GPU.
_STRIPE, _CHUNK = 2**16, 2**24


def cut_outs(
    logits: Tensor, hw: tuple[int, int], share: tuple[float, float] = (1.0, 1.0)
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Enlarge mask logits (K, h, w) one by one to a picture of a height and width.

    Where no cell above 0 is next to a pixel, its interpolated value is a mean of values that are not above 0 either.

    Args:
        share: part of the height and width of the logits that the picture covers; the rest is padding.

    Yields:
        Top, left and (h', w') bool, in the memory order of its columns: the part of the mask that holds what is true.
    """
    logits = logits.float().cpu()
    positive = logits > 0
    rows, columns = (_axis(*axis) for axis in zip(logits.shape[1:], hw, share, strict=True))
    spans = rows.reach(positive.any(2)), columns.reach(positive.any(1))
    for one, (top, bottom), (left, right) in zip(logits, *spans, strict=True):
        lines = rows.interpolate(one, top, bottom).T.contiguous()
        mask = np.empty((right - left, bottom - top), bool)
        step = max(1, _STRIPE // max(1, bottom - top))
        for start in range(left, right, step):
            stop = min(start + step, right)
            np.greater(columns.interpolate(lines, start, stop).numpy(), 0, out=mask[start - left : stop - left])
        yield top, left, mask.T


def enlarge(logits: Tensor, hw: tuple[int, int]) -> Tensor:
    """Mask logits (K, h, w) to masks of the picture's height and width, (K, 1, H, W) bool."""
    if logits.is_cuda:
        return _enlarge_whole(logits, hw)
    masks = torch.zeros((len(logits), 1, *hw), dtype=torch.bool)
    paste(masks.numpy()[:, 0], cut_outs(logits, hw))
    return masks.to(logits.device)


def paste(masks: np.ndarray, parts: Iterable[tuple[int, int, np.ndarray]]) -> None:
    """Write cut-outs into empty masks (K, H, W); the memory around them stays untouched."""
    for whole, (top, left, mask) in zip(masks, parts, strict=True):
        whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask


def _enlarge_whole(logits: Tensor, hw: tuple[int, int]) -> Tensor:
    masks = logits.new_empty((len(logits), 1, *hw), dtype=torch.bool)
    for start in range(0, len(logits), count := max(1, _CHUNK // (hw[0] * hw[1]))):
        part = logits[start : start + count].unsqueeze(1).float()
        part = F.interpolate(part, hw, mode="bilinear", align_corners=False)
        torch.gt(part, 0.0, out=masks[start : start + count])
    return masks


class _Axis:
    """Which two cells each of the pixels along one axis lies between, and how far it is from the first to the second.

    Pixels cover a share of the length of the cells, and a value belongs to the middle of its cell.
    """

    def __init__(self, cells: int, pixels: int, share: float) -> None:
        place = ((torch.arange(pixels) + 0.5) * (cells * share / pixels) - 0.5).clamp(0, cells - 1)
        self.first = place.long()
        self.second = (self.first + 1).clamp(max=cells - 1)
        self.weight = (place - self.first).unsqueeze(1)

    def reach(self, cells: Tensor) -> list[list[int]]:
        """Start and stop of the pixels that touch true cells, for each row of (K, cells) bool."""
        number = torch.arange(cells.shape[1])
        lowest = torch.where(cells, number, cells.shape[1]).amin(1)
        highest = torch.where(cells, number, -1).amax(1)
        start = torch.searchsorted(self.second, lowest)
        # Of a row without true cells the stop comes before the start.
        stop = torch.searchsorted(self.first, highest, right=True)
        return torch.stack((start.minimum(stop), stop), dim=1).tolist()

    def interpolate(self, lines: Tensor, start: int, stop: int) -> Tensor:
        """The pixels from start to stop of lines (cells, N), (stop - start, N)."""
        first = lines.index_select(0, self.first[start:stop])
        return first.lerp_(lines.index_select(0, self.second[start:stop]), self.weight[start:stop])


# Most pictures of a data set have a few sizes.
_axis = functools.lru_cache(maxsize=8)(_Axis)
