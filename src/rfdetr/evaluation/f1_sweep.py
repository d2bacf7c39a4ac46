"""Precision, recall and F1 over confidences, from matches that a script has made itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def sweep_confidence_thresholds(
    per_class_data: Sequence[Mapping[str, Any]], conf_thresholds: Iterable[float], classes_with_gt: Sequence[int]
) -> list[dict[str, Any]]:
    """A dict per threshold: `macro_f1`, `macro_precision`, `macro_recall` and `per_class_f1`, `_prec`, `_rec` (K,).

    Args:
        per_class_data: of each class `scores` (N,), `matches` (N,) 1 for a detection that took an object, `ignore` (N,)
            for one that does not count, and `total_gt`, its objects.
        classes_with_gt: the classes that the macro means are over.
    """
    found = []
    for threshold in map(float, conf_thresholds):
        rows = np.array([_one(data, threshold) for data in per_class_data]).reshape(-1, 3)
        macro = rows[list(classes_with_gt)].mean(0) if len(classes_with_gt) else np.zeros(3)
        found.append(
            {
                "confidence_threshold": threshold,
                **dict(zip(("macro_precision", "macro_recall", "macro_f1"), macro.tolist(), strict=True)),
                **dict(zip(("per_class_prec", "per_class_rec", "per_class_f1"), rows.T, strict=True)),
            }
        )
    return found


def _one(data: Mapping[str, Any], threshold: float) -> tuple[float, float, float]:
    """Precision, recall and F1 of the detections at or above a confidence; 0 where there is nothing to divide by."""
    counts = (np.asarray(data["scores"], np.float64) >= threshold) & ~np.asarray(data["ignore"], bool)
    right = int((np.asarray(data["matches"])[counts] > 0).sum())
    precision = right / counts.sum() if counts.any() else 0.0
    recall = right / int(data["total_gt"]) if data["total_gt"] else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return precision, recall, f1
