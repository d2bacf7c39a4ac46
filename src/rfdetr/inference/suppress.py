"""Leaving out detections of what another detection has found already."""

from __future__ import annotations

import numpy as np

from rfdetr.inference.decode import Found

# Overlaps divide by at least this, so that boxes without area give 0 and identical ones exactly 1.
_SMALLEST_AREA = 1e-7


def one_label_each(found: Found) -> Found:
    """Only the best label of every box: labels of one query have the very same one."""
    order = np.argsort(-found["scores"], kind="stable")
    _, first = np.unique(found["boxes"][order], axis=0, return_index=True)
    kept = np.sort(order[first])
    return {name: value[kept] for name, value in found.items()}


def suppress(found: Found, overlap: float) -> Found:
    """Without the boxes whose intersection over union with a better one of their class is above `overlap`."""
    stays = greedy(found["scores"], found["boxes"], found["labels"], overlap)
    return {name: value[stays] for name, value in found.items()}


def greedy(scores: np.ndarray, boxes_xyxy: np.ndarray, labels: np.ndarray, overlap: float) -> np.ndarray:
    """Which of N detections stay (N,) bool, when each that stays removes the worse ones of its class that it is over.

    One row of overlaps at a time: all tiles of a large picture together have many thousands of boxes.
    """
    free, stays = np.ones(len(scores), bool), np.zeros(len(scores), bool)
    for row in np.argsort(-scores, kind="stable").tolist():
        if free[row]:
            stays[row] = True
            free &= ~((iou(boxes_xyxy[row], boxes_xyxy) > overlap) & (labels == labels[row]))
    return stays


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) xyxy with each of (N, 4) boxes, (N,)."""
    inter, area, areas = _intersections(box, boxes)
    return inter / np.maximum(area + areas - inter, _SMALLEST_AREA)


def covered(box: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of a box (4,) xyxy each of (N, 4) boxes covers, and how much of each the box covers; (N,) both."""
    inter, area, areas = _intersections(box, boxes)
    return inter / np.maximum(area, _SMALLEST_AREA), inter / np.maximum(areas, _SMALLEST_AREA)


def _intersections(box: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    (left, top, right, bottom), (lefts, tops, rights, bottoms) = box, boxes.T
    wide = (np.minimum(right, rights) - np.maximum(left, lefts)).clip(min=0)
    tall = (np.minimum(bottom, bottoms) - np.maximum(top, tops)).clip(min=0)
    return wide * tall, (right - left) * (bottom - top), (rights - lefts) * (bottoms - tops)
