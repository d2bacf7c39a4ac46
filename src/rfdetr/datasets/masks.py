"""The masks of one target while it is transformed: changes are noted down, and each mask is drawn once, at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rfdetr.datasets.rle import EMPTY, HW, Patch


@dataclass(frozen=True, eq=False)
class MaskStack:
    """Masks of N objects, none of which exists before `dense` or `packed`; then one after the other is drawn."""

    draw: Callable[[int], Patch]
    """The mask of a row in the original picture."""
    rows: np.ndarray
    """(N,) int."""
    hw: HW
    """Size after the changes."""
    steps: tuple[tuple[np.ndarray, HW, HW, float], ...] = ()
    """Changes so far: matrix, size before, size after, and `sample` of `geometry.warp_target`."""

    @classmethod
    def of(cls, masks: np.ndarray) -> MaskStack:
        """Masks (N, H, W) bool as they are."""
        return cls(lambda row: Patch(0, 0, masks[row]), np.arange(len(masks)), masks.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, keep: np.ndarray) -> MaskStack:
        """The chosen objects."""
        return replace(self, rows=self.rows[keep])

    def warped(self, matrix: np.ndarray, hw: HW, sample: float = 0.5) -> MaskStack:
        """The masks after a change to a picture of size `hw`: the nearest pixel, False outside."""
        return replace(self, hw=hw, steps=(*self.steps, (matrix, self.hw, hw, sample)))

    def dense(self) -> np.ndarray:
        """All masks, (N, H, W) bool."""
        return np.unpackbits(self.packed(), axis=0, count=len(self), bitorder="little").view(bool)

    def packed(self) -> np.ndarray:
        """All masks, (ceil(N / 8), H, W) uint8: bit n % 8 of plane n // 8 is object n."""
        rows, columns, places = self._sources()
        planes = np.zeros((-(-len(self) // 8), len(rows), len(columns)), np.uint8)
        for n, row in enumerate(self.rows):
            top, left, mask = _select(self.draw(row), rows, columns)
            part = planes[n // 8, top : top + mask.shape[0], left : left + mask.shape[1]]
            part |= mask.view(np.uint8) << np.uint8(n % 8)
        if places is None:
            return planes
        # The pixel more is what lies outside: place -1.
        flat = planes.reshape(len(planes), len(rows) * len(columns))
        return np.pad(flat, ((0, 0), (0, 1))).take(places, axis=1)

    def _sources(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """All changes as one, with -1 for what lies outside.

        Returns:
            Original row (h,) and column (w,) of the pixels of a picture; and for each pixel (H, W) of the last one its
            place in that picture, or None where all changes keep rows and columns and the two are the same.
        """
        height, width = self.steps[0][1] if self.steps else self.hw
        rows, columns, places = np.arange(height), np.arange(width), None
        for matrix, before, after, sample in self.steps:
            row, column = source_pixels(matrix, before, after, sample)
            if places is not None:
                places = np.pad(places, (0, 1), constant_values=-1)[row, column]
            elif row.shape[1] == column.shape[0] == 1:
                rows, columns = np.append(rows, -1)[row[:, 0]], np.append(columns, -1)[column[0]]
            else:
                places = np.where((row < 0) | (column < 0), -1, row * before[1] + column)
        return rows, columns, places


def source_pixels(matrix: np.ndarray, hw: HW, new_hw: HW, sample: float) -> tuple[np.ndarray, np.ndarray]:
    """Which pixel of the old picture each one of the new picture shows: its row and its column, -1 outside.

    Each is (H, W), or (H, 1) or (1, W) where it is the same along an axis.
    """
    # The small part keeps positions on an edge on their side of it. Corners are asked for as PyTorch does, which lets
    # single precision decide.
    first, kind = (sample + 1e-6, np.float64) if sample else (0, np.float32)
    y, x = (np.arange(side, dtype=kind) + kind(first) for side in new_hw)
    across, down, depth = (_weigh(weights, x[None], y[:, None]) for weights in np.linalg.inv(matrix).astype(kind))
    return _within(down / depth, hw[0]), _within(across / depth, hw[1])


def _weigh(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum of x (1, W), y (H, 1) and 1 times the weights, no larger than what counts in it."""
    total = np.full((1, 1), weights[2], weights.dtype)
    for weight, one in zip(weights[:2], (x, y), strict=True):
        total = total + weight * one if weight else total
    return total


def _within(positions: np.ndarray, side: int) -> np.ndarray:
    """Pixels that positions lie in, -1 for those outside 0..side."""
    return np.where((positions >= 0) & (positions < side), positions, -1).astype(np.int64)


def _select(patch: Patch, rows: np.ndarray, columns: np.ndarray) -> Patch:
    """What a picture made of these rows (h,) and columns (w,) shows of a mask."""
    y, x = rows - patch.top, columns - patch.left
    height, width = patch.mask.shape
    inside_y, inside_x = np.flatnonzero((y >= 0) & (y < height)), np.flatnonzero((x >= 0) & (x < width))
    if not (len(inside_y) and len(inside_x)):
        return EMPTY
    return Patch(int(inside_y[0]), int(inside_x[0]), patch.mask[y[inside_y, None], x[inside_x]])
