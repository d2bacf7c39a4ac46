"""The outlines of all objects of a split as flat arrays, and the pixels of one of them. Knows no file format."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from rfdetr.datasets import rle
from rfdetr.datasets.rle import EMPTY, Patch


@dataclass(frozen=True, eq=False)
class Outlines:
    """One mask per row of an `AnnotationSet`: the union of some polygons, or runs of pixels, or nothing.

    Nothing here is one Python object per row, so loader workers share the memory.
    """

    points: np.ndarray
    """(P, 2) float64 x, y of all polygons; fractions of the picture where `normalized`, else pixels."""
    rings: np.ndarray
    """(R+1,) int64 offsets of the polygons into `points`."""
    row_rings: np.ndarray
    """(A+1,) int64 offsets of the rows into the polygons."""
    runs: np.ndarray
    """(M,) uint32: see `rle`."""
    row_runs: np.ndarray
    """(A+1,) int64 offsets of the rows into `runs`."""
    normalized: np.ndarray
    """(A,) bool: whether the polygons of a row are fractions."""

    def __len__(self) -> int:
        return len(self.row_rings) - 1

    @property
    def exist(self) -> np.ndarray:
        """Whether each row has an outline, (A,) bool."""
        return (np.diff(self.row_rings) > 0) | (np.diff(self.row_runs) > 0)

    def take(self, rows: np.ndarray) -> Outlines:
        """The given rows in the given order; -1 is a row without outline."""
        ring_order, row_rings = _take(self.row_rings, rows)
        point_order, rings = _take(self.rings, ring_order)
        run_order, row_runs = _take(self.row_runs, rows)
        normalized = np.append(self.normalized, False)[rows]
        return Outlines(self.points[point_order], rings, row_rings, self.runs[run_order], row_runs, normalized)

    def patch(self, row: int, height: int, width: int) -> Patch:
        """The mask of one row in its picture of the given decoded size, cut to where it is true.

        Polygons in pixels are filled as pycocotools does, fractions as Pillow does, which adds the outline.
        """
        runs = self.runs[self.row_runs[row] : self.row_runs[row + 1]]
        if len(runs):
            return rle.cut_out(runs, (height, width))
        ends = self.rings[self.row_rings[row] : self.row_rings[row + 1] + 1]
        rings = [self.points[start:end] for start, end in pairwise(ends)]
        if self.normalized[row]:
            return _union([_fill(ring, (height, width)) for ring in rings])
        return _union([rle.cut_out(rle.polygon(ring, (height, width)), (height, width)) for ring in rings])


def _take(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the entries of some rows, one row after the other, and the (rows+1,) offsets of these."""
    lengths = np.append(np.diff(offsets), 0)[rows]
    ends = np.cumsum(lengths)
    positions = np.arange(ends[-1] if len(ends) else 0) + np.repeat(offsets[rows] - (ends - lengths), lengths)
    return positions, np.append(0, ends)


def _fill(points: np.ndarray, hw: rle.HW) -> Patch:
    """Pillow's filling of a polygon (n, 2) of x, y as fractions of the picture, outline included."""
    size = np.array(hw[::-1], np.float32)
    # Fractions of whole pixels are written with few digits; single precision makes them whole again before the cut.
    corners = np.clip(points.astype(np.float32) * size, 0, size - 1).astype(int)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    # Pillow rounds by the distance from the left border, so that only rows above can be left out.
    picture = Image.new("L", (right + 1, bottom - top + 1))
    ImageDraw.Draw(picture).polygon((corners - (0, top)).ravel().tolist(), fill=1)
    return Patch(top, left, np.asarray(picture).view(bool)[:, left:])


def _union(patches: list[Patch]) -> Patch:
    patches = [patch for patch in patches if patch.mask.size]
    if len(patches) < 2:
        return patches[0] if patches else EMPTY
    top, left = min(patch.top for patch in patches), min(patch.left for patch in patches)
    bottom = max(patch.top + patch.mask.shape[0] for patch in patches)
    right = max(patch.left + patch.mask.shape[1] for patch in patches)
    union = np.zeros((bottom - top, right - left), bool)
    for patch in patches:
        (y, x), (height, width) = (patch.top - top, patch.left - left), patch.mask.shape
        union[y : y + height, x : x + width] |= patch.mask
    return Patch(top, left, union)
