"""Detections as supervision objects."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from torch import Tensor

from rfdetr.inference.images import to_uint8


@functools.cache
def supervision() -> ModuleType:
    """The supervision package, imported at the first result, without its note about OpenCV, which is not needed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*OpenCV.*")
        import supervision as sv
    return sv


def to_detections(
    found: dict[str, Tensor],
    threshold: float,
    names: Sequence[str],
    hidden_label: int | None,
    size: tuple[int, int],
    source: Tensor | None,
) -> object:
    """One picture's `supervision.Detections`.

    Args:
        found: `scores` (K,), `labels` (K,), `boxes` (K, 4) xyxy in pixels, best first.
        threshold: scores above it, strictly, are kept.
        names: a name per label.
        hidden_label: output that is never a class.
        size: height and width of the picture.
        source: its pixels, kept in `metadata["source_image"]`; None leaves them out.
    """
    keep = found["scores"] > threshold
    if hidden_label is not None:
        keep &= found["labels"] != hidden_label
    scores, labels, boxes = (found[key][keep].cpu().numpy() for key in ("scores", "labels", "boxes"))
    return supervision().Detections(
        xyxy=boxes.astype(np.float32).reshape(-1, 4),
        confidence=scores.astype(np.float32),
        class_id=labels.astype(np.int64),
        data={
            "class_name": np.array([names[label] for label in labels], dtype=object),
            "source_shape": np.tile(np.array(size, np.int64), (len(labels), 1)),
        },
        metadata={} if source is None else {"source_image": to_uint8(source)},
    )
