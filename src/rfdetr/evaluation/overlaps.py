"""How much detections overlap with objects: boxes, and masks as cut-outs of the picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

# Top, left and (h, w) bool: the part of a mask that holds all its true pixels.
CutOut = tuple[int, int, np.ndarray]


def box_overlaps(
    boxes_xywh: np.ndarray, truth_xywh: np.ndarray, truth_crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """IoU by the crowd rule and plain IoU of (D, 4) and (G, 4) boxes -> two (D, G)."""
    top_left = np.maximum(boxes_xywh[:, None, :2], truth_xywh[:, :2])
    bottom_right = np.minimum((boxes_xywh[:, :2] + boxes_xywh[:, 2:])[:, None], truth_xywh[:, :2] + truth_xywh[:, 2:])
    sides = np.maximum(bottom_right - top_left, 0)
    intersection = sides[..., 0] * sides[..., 1]
    return _ratios(intersection, boxes_xywh[:, 2] * boxes_xywh[:, 3], truth_xywh[:, 2] * truth_xywh[:, 3], truth_crowd)


def mask_overlaps(
    masks: Iterable[CutOut],
    labels: np.ndarray,
    truth: Sequence[CutOut],
    truth_labels: np.ndarray,
    truth_crowd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas (D,) of masks, their IoU by the crowd rule and their plain IoU with objects of their label, two (D, G).

    Args:
        masks: D cut-outs, taken one by one; truth: G of them.
        labels: (D,); truth_labels, truth_crowd: (G,).
    """
    truth = [(top, left, np.asfortranarray(mask)) for top, left, mask in truth]
    areas, intersection = np.zeros(len(labels)), np.zeros((len(labels), len(truth)))
    for row, mask in enumerate(masks):
        areas[row] = np.count_nonzero(mask[2])
        for column in np.flatnonzero(truth_labels == labels[row]):
            intersection[row, column] = _common_pixels(mask, truth[column])
    truth_areas = np.array([np.count_nonzero(mask) for _, _, mask in truth], dtype=np.float64)
    return areas, *_ratios(intersection, areas, truth_areas, truth_crowd)


def sample(cut_out: CutOut, hw: tuple[int, int], grid: tuple[int, int]) -> CutOut:
    """A cut-out of a picture (height, width) at the nearest pixels of a grid (height, width)."""
    if hw == grid:
        return cut_out
    top, left, mask = cut_out
    (first_row, rows), (first_column, columns) = (
        _sampled(start, length, pixels, cells)
        for start, length, pixels, cells in zip((top, left), mask.shape, hw, grid, strict=True)
    )
    return first_row, first_column, mask[np.ix_(rows, columns)]


def _sampled(start: int, length: int, pixels: int, cells: int) -> tuple[int, np.ndarray]:
    """The first cell whose pixel lies in a stretch, and where the pixels of all those cells lie in it."""
    place = np.arange(cells) * pixels // cells - start
    inside = np.flatnonzero((place >= 0) & (place < length))
    return int(inside[0]) if len(inside) else 0, place[inside]


def _common_pixels(one: CutOut, other: CutOut) -> int:
    top, left = max(one[0], other[0]), max(one[1], other[1])
    bottom, right = (min(one[a] + one[2].shape[a], other[a] + other[2].shape[a]) for a in (0, 1))
    if top >= bottom or left >= right:
        return 0
    parts = [mask[top - y : bottom - y, left - x : right - x] for y, x, mask in (one, other)]
    return int(np.count_nonzero(parts[0] & parts[1]))


def _ratios(
    intersection: np.ndarray, areas: np.ndarray, truth_areas: np.ndarray, truth_crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """IoU by the crowd rule, where the area of the detection is the whole, and plain IoU: two (D, G)."""
    union = areas[:, None] + truth_areas - intersection
    # What has no area meets nothing, and the union may be 0.
    met = intersection > 0
    plain_iou = np.divide(intersection, union, out=np.zeros_like(union), where=met)
    return np.divide(intersection, areas[:, None], out=plain_iou.copy(), where=truth_crowd & met), plain_iou
