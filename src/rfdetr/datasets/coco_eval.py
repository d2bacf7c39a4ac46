"""The older path of `rfdetr.evaluation.coco_eval`."""

from __future__ import annotations

from rfdetr.evaluation.coco_eval import CocoEvaluator

__all__ = ["CocoEvaluator"]
