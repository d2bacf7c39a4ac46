"""Older path of `rfdetr.assets.coco_classes`."""

from __future__ import annotations

from rfdetr.assets.coco_classes import COCO_CLASSES

__all__ = ["COCO_CLASSES"]
