"""Leaving out detections of what another detection has found already."""

from __future__ import annotations

import numpy as np

from rfdetr.inference.decode import Found


def one_label_each(found: Found) -> Found:
    """Only the best label of every box: labels of one query have the very same one."""
    order = np.argsort(-found["scores"], kind="stable")
    _, first = np.unique(found["boxes"][order], axis=0, return_index=True)
    kept = np.sort(order[first])
    return {name: value[kept] for name, value in found.items()}


def suppress(found: Found, overlap: float) -> Found:
    """Without the boxes whose intersection over union with a better one of their class is above `overlap`."""
    kept = greedy(found["scores"], pairwise_iou(found["boxes"]) > overlap, found["labels"])
    return {name: value[kept] for name, value in found.items()}


def greedy(scores: np.ndarray, over: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which of N detections stay (N,) bool, when each that stays removes the worse ones of its class that it is over.

    Args:
        over: (N, N) bool, symmetric.
    """
    order = np.argsort(-scores, kind="stable")
    # Row i says which detections detection i removes if it stays itself.
    removes = np.triu(over[np.ix_(order, order)] & (labels[order][:, None] == labels[order]), 1)
    stays = np.ones(len(scores), bool)
    # Each pass settles at least one more detection, best first; a few are enough for real pictures.
    while not np.array_equal(stays, after := ~removes[stays].any(0)):
        stays = after
    kept = np.empty(len(scores), bool)
    kept[order] = stays
    return kept


def pairwise_iou(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of every two of (N, 4) boxes, (N, N)."""
    inter, area = _intersections(boxes_xyxy)
    return inter / np.maximum(area[:, None] + area - inter, 1e-7)


def pairwise_share(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over the smaller area of every two of (N, 4) boxes, (N, N)."""
    inter, area = _intersections(boxes_xyxy)
    return inter / np.maximum(np.minimum(area[:, None], area), 1e-7)


def _intersections(boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    sides = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    return sides.clip(min=0).prod(-1), (high - low).prod(-1)
