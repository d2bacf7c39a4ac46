"""Masks of detections in the formats that `predict` offers, enlarged one by one."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np

from rfdetr.datasets import rle
from rfdetr.inference.sv import supervision
from rfdetr.models.enlarge import CutOut, paste

MASK_FORMATS = ("dense", "rle", "polygon")


def check_format(mask_format: str, has_masks: bool) -> None:
    """ValueError for an unknown format, or one that a model without masks cannot give."""
    if mask_format not in MASK_FORMATS:
        raise ValueError(f"mask_format={mask_format!r} must be one of {', '.join(map(repr, MASK_FORMATS))}")
    if not has_masks and mask_format != "dense":
        raise ValueError(f"mask_format={mask_format!r} is for segmentation models; this one finds no masks")


def to_masks(
    parts: Iterable[CutOut], count: int, hw: tuple[int, int], mask_format: str
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """Masks of `count` detections in a picture: the dense masks (N, H, W) bool or None, and other data.

    "rle" gives `rle`, COCO's {"size": [H, W], "counts": text}; "polygon" gives `polygons`, per detection a list of
    (n, 2) int32 of x, y in pixels, one for each outer or inner border. Both are object arrays (N,).
    """
    if mask_format == "rle":
        return None, {"rle": _objects(count, (_to_rle(*part, hw) for part in parts))}
    if mask_format == "polygon":
        return None, {"polygons": _objects(count, (_to_polygons(*part) for part in parts))}
    masks = _zeros((count, *hw))
    paste(masks, parts)
    return masks, {}


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Like np.zeros of bool, which however asks for pages of 2 MB; these of 4 KB are taken as they are written to."""
    size = math.prod(shape)
    # Private, so that a forked process has a copy of its own; Windows has neither forks nor the flags.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, max(1, size), **private)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, bool, size).reshape(shape)


def _to_rle(top: int, left: int, mask: np.ndarray, hw: tuple[int, int]) -> dict[str, Any]:
    height, width = hw
    columns = np.zeros((height, mask.shape[1]), bool, order="F")
    columns[top : top + mask.shape[0]] = mask
    counts = rle.encode(columns).tolist()
    # Runs of zeros have even places.
    before, after = height * left, height * (width - left - mask.shape[1])
    counts[0] += before
    if len(counts) % 2:
        counts[-1] += after
    elif after:
        counts.append(after)
    return {"size": [height, width], "counts": rle.to_text(np.array(counts))}


def _to_polygons(top: int, left: int, mask: np.ndarray) -> list[np.ndarray]:
    polygons = supervision().mask_to_polygons(mask)
    if not polygons and mask.any():
        # A mask too thin for corners is given as the box around it.
        (y0, y1), (x0, x1) = (np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0))
        polygons = [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.int32)]
    return [polygon + np.array([left, top], polygon.dtype) for polygon in polygons]


def _objects(count: int, values: Iterable[Any]) -> np.ndarray:
    array = np.empty(count, dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array
