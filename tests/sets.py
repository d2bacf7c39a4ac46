"""Results of `predict` compared as sets: those of nearly equal scores have no order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Apart:
    """What results may differ by: boxes and keypoints in pixels, scores, and the share of the pixels of masks."""

    box_px: float = 1e-2
    score: float = 1e-4
    masks: float = 0.0


def boxes_of(result: Any) -> np.ndarray:
    """Boxes (N, 4) of detections or key points."""
    return result.xyxy if hasattr(result, "xyxy") else result.data["xyxy"]


def scores_of(result: Any) -> np.ndarray:
    """Scores (N,) of detections or key points."""
    return result.confidence if hasattr(result, "xyxy") else result.detection_confidence


def assert_same_set(found: Any, expected: Any, apart: Apart) -> None:
    """Every detection has a partner of its own, as near as may be; nothing is left over."""
    assert type(found) is type(expected)
    assert len(found) == len(expected)
    if not len(expected):
        return
    away = np.abs(boxes_of(found)[None] - boxes_of(expected)[:, None]).max(-1)
    away = np.where(found.class_id[None] == expected.class_id[:, None], away, np.inf)
    partner = away.argmin(1)
    assert sorted(partner) == list(range(len(found))), "two detections have the same partner"
    found = found[partner]
    assert np.array_equal(found.class_id, expected.class_id)
    assert found.data["class_name"].tolist() == expected.data["class_name"].tolist()
    assert np.array_equal(found.data["source_shape"], expected.data["source_shape"])
    np.testing.assert_allclose(boxes_of(found), boxes_of(expected), rtol=0, atol=apart.box_px)
    np.testing.assert_allclose(scores_of(found), scores_of(expected), rtol=0, atol=apart.score)
    if hasattr(expected, "keypoint_confidence"):
        np.testing.assert_allclose(found.xy, expected.xy, rtol=0, atol=apart.box_px)
        np.testing.assert_allclose(found.keypoint_confidence, expected.keypoint_confidence, rtol=0, atol=apart.score)
        assert np.array_equal(found.visible, expected.visible)
        for name in ("covariance", "keypoint_precision_cholesky"):
            np.testing.assert_allclose(
                found.data[name], expected.data[name], rtol=100 * apart.score, atol=100 * apart.score
            )
    elif expected.mask is not None:
        assert found.mask.shape == expected.mask.shape
        assert (found.mask != expected.mask).mean() <= apart.masks
