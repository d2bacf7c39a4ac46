"""Keypoint AP by its path of release 1.8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rfdetr.evaluation.coco_eval import CocoEvaluator


class MetricKeypointOKS:
    """AP by object keypoint similarity (COCO), of detections that are collected picture by picture.

    Args:
        coco_gt: a `pycocotools.coco.COCO`.
        keypoint_oks_sigmas: tolerance of each keypoint; None takes COCO's seventeen.
    """

    def __init__(self, coco_gt: Any, keypoint_oks_sigmas: Sequence[float] | None = None, max_dets: int = 20) -> None:
        self._new = lambda: CocoEvaluator(coco_gt, ["keypoints"], max_dets, keypoint_oks_sigmas)
        self.reset()

    @property
    def has_updates(self) -> bool:
        """Whether any picture has arrived."""
        return bool(self._evaluator.img_ids)

    def reset(self) -> None:
        """Forget all detections."""
        self._evaluator = self._new()

    def update(self, predictions: Mapping[int, Mapping[str, Any]]) -> None:
        """Take detections; see `CocoEvaluator.update`."""
        self._evaluator.update(predictions)

    def compute(self) -> list[float]:
        """AP, AP50, AP75, AP medium, AP large, and the same of AR."""
        self._evaluator.synchronize_between_processes()
        self._evaluator.accumulate()
        self._evaluator.summarize()
        return self._evaluator.coco_eval["keypoints"].stats.tolist()
