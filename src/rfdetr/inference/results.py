"""Detections and keypoints as supervision objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rfdetr.inference.images import to_uint8
from rfdetr.inference.masks import to_masks
from rfdetr.inference.sv import supervision
from rfdetr.models.postprocess import pixel_covariance


def to_result(
    found: Mapping[str, Tensor],
    threshold: float | Sequence[float],
    names: Sequence[str],
    hidden_labels: Sequence[int],
    hw: tuple[int, int],
    source: Tensor | None,
    mask_format: str = "dense",
) -> object:
    """One picture's `supervision.KeyPoints` if keypoints were found, else its `supervision.Detections`.

    Args:
        found: `scores` (K,), `labels` (K,), `boxes` (K, 4) xyxy in pixels, best first; also `mask_logits` (K, h, w), or
            `keypoints` (K, P, 3) and `keypoint_precision_cholesky` (K, P, 3).
        threshold: scores above it, strictly, are kept; several are those of the labels.
        names: a name per label.
        hidden_labels: outputs that are never a class.
        hw: height and width of the picture.
        source: its pixels, kept in `metadata["source_image"]`; None leaves them out.
        mask_format: see `rfdetr.inference.masks`.
    """
    limits = torch.as_tensor(threshold, device=found["scores"].device)
    keep = found["scores"] > (limits[found["labels"]] if limits.ndim else limits)
    for hidden in hidden_labels:
        keep &= found["labels"] != hidden
    kept = {name: value[keep].cpu() for name, value in found.items()}
    scores, labels, boxes = (kept[key].numpy() for key in ("scores", "labels", "boxes"))
    xyxy = boxes.astype(np.float32).reshape(-1, 4)
    class_id = labels.astype(np.int64)
    data = {
        "class_name": np.array([names[label] for label in labels], dtype=object),
        "source_shape": np.tile(np.array(hw, np.int64), (len(labels), 1)),
    }
    picture = None if source is None else to_uint8(source)
    if "keypoints" in kept:
        return _to_key_points(kept, xyxy, class_id, data, picture, hw)
    mask = None
    if "mask_logits" in kept:
        mask, shapes = to_masks(kept["mask_logits"], hw, mask_format)
        data |= shapes
    return supervision().Detections(
        xyxy=xyxy,
        mask=mask,
        confidence=scores.astype(np.float32),
        class_id=class_id,
        data=data,
        metadata={} if picture is None else {"source_image": picture},
    )


def _to_key_points(
    kept: Mapping[str, Tensor],
    xyxy: np.ndarray,
    class_id: np.ndarray,
    data: dict[str, np.ndarray],
    picture: np.ndarray | None,
    hw: tuple[int, int],
) -> object:
    points, precision = kept["keypoints"].numpy(), kept["keypoint_precision_cholesky"]
    if picture is not None:
        # Key points have no metadata, and each entry of their data has a row per object.
        data["source_image"] = np.empty(len(xyxy), dtype=object)
        data["source_image"][:] = [picture] * len(xyxy)
    return supervision().KeyPoints(
        xy=points[..., :2],
        keypoint_confidence=points[..., 2],
        detection_confidence=kept["scores"].numpy(),
        class_id=class_id,
        # Which keypoints the class has: the others have a confidence of 0.
        visible=points[..., 2] > 0,
        data={
            "xyxy": xyxy,
            **data,
            "keypoint_precision_cholesky": precision.numpy(),
            "covariance": pixel_covariance(precision, *hw).numpy(),
        },
    )
