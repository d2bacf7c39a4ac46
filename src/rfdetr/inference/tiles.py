"""Large pictures in pieces: overlapping tiles, and what they find as detections of the whole picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from rfdetr.inference.decode import Found
from rfdetr.inference.suppress import covered, iou
from rfdetr.models.enlarge import CutOut, cut_outs

# Top, left, height and width in pixels of the picture.
Tile = tuple[int, int, int, int]
# Boxes of two tiles are the same object if they share more than this of their union, or of one that is cut off.
SAME = 0.5
# A box that ends this near to the inner border of its tile may go on beyond it: pixels, or if more a part of its side,
# since a network that sees a large tile small does not place boxes to the pixel.
_NEAR, _NEAR_PART = 2.0, 1 / 200


def check_tile(tile: Any, overlap: Any) -> tuple[int, int] | None:
    """Height and width of tiles in pixels; None for none.

    Raises:
        ValueError: a size that is no one or two positive whole numbers, or an overlap outside 0 to 0.9.
    """
    if isinstance(overlap, bool) or not isinstance(overlap, Real) or not 0 <= float(overlap) <= 0.9:
        raise ValueError(f"overlap={overlap!r} must be the part of a tile that its neighbours repeat, 0 to 0.9")
    if tile is None:
        return None
    sides = tuple(tile) if isinstance(tile, Sequence) and not isinstance(tile, str) else (tile, tile)
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, Integral) or s < 16 for s in sides):
        raise ValueError(f"tile={tile!r} must be (height, width) or one number of pixels, at least 16")
    return int(sides[0]), int(sides[1])


def cut(hw: tuple[int, int], tile: tuple[int, int], overlap: float) -> list[Tile]:
    """Evenly placed tiles that cover a picture and overlap by at least a part; last the picture as a whole.

    The whole finds what is larger than a tile. A picture that fits into one tile is given alone.
    """
    (height, width), (tall, wide) = hw, (min(side, limit) for side, limit in zip(tile, hw, strict=True))
    tiles = [
        (top, left, tall, wide) for top in _starts(height, tall, overlap) for left in _starts(width, wide, overlap)
    ]
    whole = (0, 0, height, width)
    return [whole] if tiles == [whole] else [*tiles, whole]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    # Whole pixels, so that no two neighbours overlap by less; the rest is what floats add to 10 * 0.3.
    stride = max(1, side - math.ceil(side * overlap - 1e-9))
    steps = math.ceil((length - side) / stride)
    return [round(i * (length - side) / steps) for i in range(steps)] + [length - side]


def merge(tiles: Sequence[Tile], found: Sequence[Found], hw: tuple[int, int]) -> tuple[Found, list[CutOut] | None]:
    """Detections of all tiles as those of the picture, best first, and their masks if they have any.

    Two boxes of the same class in different tiles are one object if they share more than half of their union, or of one
    that a tile's border cut off; what is whole in front of something larger is another. Of those the best-scoring box
    counts; if it was cut off, it grows to the box around all of them and of what that has in common with further tiles,
    and its mask to their union. Boxes of the same tile are never merged.
    """
    whole = {name: np.concatenate([one[name] for one in found]) for name in found[0] if name != "mask_logits"}
    owner = np.repeat(np.arange(len(tiles)), [len(one["scores"]) for one in found])
    corner = np.array([(left, top) for top, left, _, _ in tiles], np.float32)[owner]
    whole["boxes"] = whole["boxes"] + np.tile(corner, 2)
    if "keypoints" in whole:
        # Those that a class does not have stay at 0, and their factors NaN.
        exists = ~np.isnan(whole["keypoint_precision_cholesky"]).all(-1, keepdims=True)
        whole["keypoints"][..., :2] += np.where(exists, corner[:, None], np.float32(0))
        whole["keypoint_precision_cholesky"] = _rescaled(whole["keypoint_precision_cholesky"], tiles, owner, hw)
    parts = None
    if "mask_logits" in found[0]:
        parts = [part for one, tile in zip(found, tiles, strict=True) for part in _enlarged(one, tile)]
    cut_off = _is_cut_off(whole["boxes"], np.array(tiles, np.float32)[owner], hw)
    groups = _groups(whole, owner, cut_off)
    best = np.array([group[0] for group in groups], np.int64)
    merged = {name: value[best] for name, value in whole.items()}
    for row, group in enumerate(groups):
        if cut_off[group[0]] and len(group) > 1:
            members = whole["boxes"][group]
            merged["boxes"][row] = np.concatenate((members[:, :2].min(0), members[:, 2:].max(0)))
    if parts is None:
        return merged, None
    return merged, [_union([parts[i] for i in (group if cut_off[group[0]] else group[:1])]) for group in groups]


def _enlarged(found: Found, tile: Tile) -> list[CutOut]:
    """Masks of a tile's detections where they are in the picture."""
    parts = cut_outs(found["mask_logits"].astype(np.float32), tile[2:])
    return [(tile[0] + top, tile[1] + left, mask) for top, left, mask in parts]


def _groups(whole: Found, owner: np.ndarray, cut_off: np.ndarray) -> list[list[int]]:
    """Rows that are one object, the best of them leading; best object first."""
    free, groups = np.ones(len(owner), bool), []
    for row in np.argsort(-whole["scores"], kind="stable").tolist():
        if free[row]:
            group = _group(row, free, whole, owner, cut_off)
            free[group] = False
            groups.append(group)
    return groups


def _group(row: int, free: np.ndarray, whole: Found, owner: np.ndarray, cut_off: np.ndarray) -> list[int]:
    """A row and the free ones of other tiles that are the same object, at most one of each tile.

    If the row is cut off, what is the same as the box around all that were found until then is part of it too.
    """
    boxes, group = whole["boxes"], [row]
    box, left = boxes[row], free & (whole["labels"] == whole["labels"][row]) & (owner != owner[row])
    while True:
        of_box, of_boxes = covered(box, boxes)
        same = (iou(box, boxes) > SAME) | (cut_off[row] & (of_box > SAME)) | (cut_off & (of_boxes > SAME))
        members = np.flatnonzero(left & same)
        if not len(members):
            break
        # Of a tile that has several, the most similar one is the object.
        members = members[np.argsort(-iou(box, boxes[members]), kind="stable")]
        _, first = np.unique(owner[members], return_index=True)
        group += members[first].tolist()
        if not cut_off[row]:
            break
        left &= ~np.isin(owner, owner[group])
        box = np.concatenate((boxes[group, :2].min(0), boxes[group, 2:].max(0)))
    return group


def _is_cut_off(boxes: np.ndarray, tiles: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Which boxes end at a border of their tile that is none of the picture."""
    top, left, height, width = tiles.T
    low = np.stack((left, top), 1)
    high = np.stack((left + width, top + height), 1)
    inside = np.array(hw[::-1], np.float32)
    near = np.maximum(_NEAR, np.stack((width, height), 1) * _NEAR_PART)
    at_low = (boxes[:, :2] - low < near) & (low > 0)
    at_high = (high - boxes[:, 2:] < near) & (high < inside)
    return np.logical_or.reduce(at_low | at_high, axis=1)


def _rescaled(factors: np.ndarray, tiles: Sequence[Tile], owner: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Precision factors (N, P, 3), relative to tiles, relative to the picture: log l11, l21, log l22."""
    height, width = (np.array([tile[i] for tile in tiles], np.float32)[owner][:, None] for i in (2, 3))
    scale_x, scale_y = hw[1] / width, hw[0] / height
    log_l11, l21, log_l22 = (factors[..., i] for i in range(3))
    # A distance in the picture's units is smaller: the factor that whitens it is larger, each row by its axis.
    return np.stack((log_l11 + np.log(scale_x), l21 * scale_y, log_l22 + np.log(scale_y)), axis=-1)


def _union(parts: Sequence[CutOut]) -> CutOut:
    """One mask of all true pixels of several."""
    parts = [part for part in parts if part[2].size] or list(parts[:1])
    if len(parts) == 1:
        return parts[0]
    top, left = min(part[0] for part in parts), min(part[1] for part in parts)
    bottom, right = (max(part[2].shape[i] + (part[0], part[1])[i] for part in parts) for i in (0, 1))
    mask = np.zeros((bottom - top, right - left), bool)
    for y, x, one in parts:
        mask[y - top : y - top + one.shape[0], x - left : x - left + one.shape[1]] |= one
    return top, left, mask
