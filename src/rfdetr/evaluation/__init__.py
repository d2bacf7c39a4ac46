"""From results to numbers: COCO average precision and the confidence sweep. Needs numpy only, never a model."""

from __future__ import annotations
