"""Detections and keypoints as supervision objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from rfdetr.inference.decode import Found, pixel_covariance
from rfdetr.inference.images import to_uint8
from rfdetr.inference.masks import to_masks
from rfdetr.inference.sv import supervision
from rfdetr.models.enlarge import CutOut, cut_outs


def select(found: Found, limits: float | Sequence[float], hidden_labels: Sequence[int]) -> Found:
    """The detections that score above the threshold, strictly, and are of a class.

    Args:
        limits: one threshold, or one for each label.
        hidden_labels: outputs that are never a class.
    """
    scores, labels = found["scores"], found["labels"]
    # Compared in single precision, as the scores are.
    limit = np.asarray(limits, np.float32)
    keep = scores > (limit[labels] if limit.ndim else limit)
    for hidden in hidden_labels:
        keep &= labels != hidden
    return found if keep.all() else {name: value[keep] for name, value in found.items()}


def to_result(
    found: Found,
    names: Sequence[str],
    hw: tuple[int, int],
    source: np.ndarray | None,
    mask_format: str = "dense",
    parts: Iterable[CutOut] | None = None,
) -> object:
    """One picture's `supervision.KeyPoints` if the model finds keypoints, else its `supervision.Detections`.

    Args:
        found: what is reported (`rfdetr.inference.decode.Found`).
        names: a name per label (`Labels.names`).
        hw: height and width of the picture.
        source: its pixels, kept in `metadata["source_image"]`; None leaves them out.
        mask_format: see `rfdetr.inference.masks`.
        parts: masks of the detections, enlarged already; None enlarges `mask_logits`, where there are any.
    """
    xyxy, class_id = found["boxes"].reshape(-1, 4), found["labels"].astype(np.int64)
    name_of = np.empty(len(names), object)
    name_of[:] = names
    data = {"class_name": name_of[class_id], "source_shape": np.tile(np.array(hw, np.int64), (len(class_id), 1))}
    picture = None if source is None else to_uint8(source)
    if "keypoints" in found:
        return _to_key_points(found, xyxy, class_id, data, picture, hw)
    mask = None
    if parts is None and "mask_logits" in found:
        parts = cut_outs(found["mask_logits"].astype(np.float32), hw)
    if parts is not None:
        mask, shapes = to_masks(parts, len(class_id), hw, mask_format)
        data |= shapes
    return supervision().Detections(
        xyxy=xyxy,
        mask=mask,
        confidence=found["scores"],
        class_id=class_id,
        data=data,
        metadata={} if picture is None else {"source_image": picture},
    )


def _to_key_points(
    found: Found,
    xyxy: np.ndarray,
    class_id: np.ndarray,
    data: dict[str, np.ndarray],
    picture: np.ndarray | None,
    hw: tuple[int, int],
) -> object:
    points, precision = found["keypoints"], found["keypoint_precision_cholesky"]
    if picture is not None:
        # Key points have no metadata, and each entry of their data has a row per object.
        data["source_image"] = np.empty(len(xyxy), dtype=object)
        data["source_image"][:] = [picture] * len(xyxy)
    return supervision().KeyPoints(
        xy=points[..., :2],
        keypoint_confidence=points[..., 2],
        detection_confidence=found["scores"],
        class_id=class_id,
        # Which keypoints the class has: the others have a confidence of 0.
        visible=points[..., 2] > 0,
        data={
            "xyxy": xyxy,
            **data,
            "keypoint_precision_cholesky": precision,
            "covariance": pixel_covariance(precision, *hw),
        },
    )
