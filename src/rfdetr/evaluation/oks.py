"""Keypoints: their similarity to annotated ones as COCO measures it (OKS), and the ten numbers of its protocol."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rfdetr.evaluation.coco import CocoResult, GroundTruth, mean_of_defined

MAX_DETS = 20
STAT_NAMES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
# COCO's 17 keypoints of a person: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
PERSON_SIGMAS = (0.026, *(s for s in (0.025, 0.035, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089) for _ in range(2)))
_OTHER_SIGMA = 0.05


@dataclass(frozen=True)
class KeypointClasses:
    """The keypoints of C classes, of which the widest has K.

    Args:
        counts: (C,), keypoints of each class; 0 for classes without.
        sigmas: (C, K), how far apart annotators put each keypoint, relative to the object's size.
    """

    counts: np.ndarray
    sigmas: np.ndarray

    @classmethod
    def of(cls, counts: Sequence[int], sigmas: Sequence[float] | None = None) -> KeypointClasses:
        """Classes with these numbers of keypoints; `sigmas` are those of the classes with as many keypoints.

        Raises:
            ValueError: no class has as many keypoints as there are sigmas, or one of them is not above 0.
        """
        if sigmas is not None and (len(sigmas) not in counts or min(sigmas, default=0) <= 0):
            raise ValueError(
                f"keypoint_oks_sigmas={list(sigmas)} must be {max(counts)} numbers above 0, one for each keypoint"
            )
        known = _known(sigmas)
        table = np.ones((len(counts), max(counts)))
        for row, count in zip(table, counts, strict=True):
            row[:count] = known.get(count, _OTHER_SIGMA)
        return cls(np.array(counts), table)

    @property
    def exists(self) -> np.ndarray:
        """Which of the widest class's keypoints each class has, (C, K) bool."""
        return np.arange(self.sigmas.shape[1]) < self.counts[:, None]

    def without_unlabelled(self, truth: GroundTruth, keypoints: np.ndarray) -> GroundTruth:
        """The objects, those without a labelled keypoint with an area of no size class, so that they are ignored.

        Args:
            keypoints: (A, K, 3) as x, y, visibility.
        """
        labelled = ((keypoints[..., 2] > 0) & self.exists[truth.label]).any(1)
        return replace(truth, area=np.where(labelled, truth.area, np.inf))

    def areas(self, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Area of the box around the keypoints (D, K, 2) of detections with labels (D,), (D,)."""
        exists = self.exists[labels][..., None]
        low, high = (np.where(exists, points, limit) for limit in (np.inf, -np.inf))
        return (high.max(1) - low.min(1)).prod(1)

    def overlaps(self, points: np.ndarray, truth: GroundTruth, rows: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """Object keypoint similarity of detections with objects, (D, G).

        Of an object without labelled keypoints count the distances to a box of thrice its width and height.

        Args:
            points: (D, K, 2) in pixels.
            rows: (G,), the objects in `truth`, with their annotated areas; keypoints: (G, K, 3) in pixels.
        """
        labels, boxes = truth.label[rows], truth.boxes_xywh_px[rows]
        labelled: np.ndarray = (keypoints[..., 2] > 0) & self.exists[labels]
        any_labelled = labelled.any(1, keepdims=True)
        corner, size = boxes[:, None, :2], boxes[:, None, 2:]
        outside = np.maximum(corner - size - points[:, None], 0) + np.maximum(points[:, None] - corner - 2 * size, 0)
        away = np.where(np.expand_dims(any_labelled, -1), points[:, None] - keypoints[..., :2], outside)
        scale = 2 * (2 * self.sigmas[labels]) ** 2 * (truth.area[rows] + np.spacing(1))[:, None]
        counted = np.where(any_labelled, labelled, self.exists[labels])
        return (np.exp(-(away**2).sum(-1) / scale) * counted).sum(-1) / np.maximum(counted.sum(-1), 1)

    def stats(self, result: CocoResult) -> list[float]:
        """The ten numbers of `STAT_NAMES`: by number of keypoints, then the mean weighted by the number of classes.

        -1 where there is no ground truth.
        """
        groups = [self.counts == count for count in np.unique(self.counts[self.counts > 0])]
        table = np.array([_stats(result.precision[:, :, group], result.recall[:, group]) for group in groups])
        weights = np.array([group.sum() for group in groups])[:, None] * (table > -1)
        total = weights.sum(0)
        return np.where(total > 0, (table * weights).sum(0) / np.maximum(total, 1), -1.0).tolist()


def _known(sigmas: Sequence[float] | None) -> dict[int, Sequence[float]]:
    """Tolerances by number of keypoints."""
    return {17: PERSON_SIGMAS} | ({} if sigmas is None else {len(sigmas): sigmas})


def warn_of_guess(counts: Sequence[int], sigmas: Sequence[float] | None) -> None:
    """Warn that classes with some numbers of keypoints are judged by tolerances that nobody gave."""
    if guessed := sorted({count for count in counts if count and count not in _known(sigmas)}):
        warnings.warn(
            f"the evaluation of {guessed[0]} keypoints takes {_OTHER_SIGMA} as the tolerance of each; set "
            "keypoint_oks_sigmas to compare with other results",
            stacklevel=4,
        )


def _stats(precision: np.ndarray, recall: np.ndarray) -> list[float]:
    """The ten numbers of some classes' (T, R, C, A, M) and (T, C, A, M)."""
    return [
        mean_of_defined(part)
        for curves in (precision, recall)
        for part in (*(curves[t, ..., 0, -1] for t in (slice(None), 0, 5)), *(curves[..., a, -1] for a in (2, 3)))
    ]
