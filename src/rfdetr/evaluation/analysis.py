"""What one evaluation says beside its averages: best thresholds, confusions, duplicates, curves and worst pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np

from rfdetr.evaluation.coco import AREA_RANGES, RECALL_POINTS, CocoEvaluator, CocoResult, GroundTruth, mean_of_defined
from rfdetr.evaluation.f1 import (
    CONFIDENCES,
    IOU_THRESHOLD,
    ConfidenceSweep,
    Judgement,
    judge,
    results_table,
    sweep,
)
from rfdetr.evaluation.matching import Detections, take_objects
from rfdetr.labels import unique_names

BACKGROUND = "background"
SIZES = ("small", "medium", "large")
# Where no detection is right at any confidence: what `predict` takes unless it is told otherwise.
_NO_THRESHOLD = 0.5
_DECIMALS = 4


class Outcome(IntEnum):
    """What became of a detection, or of an object (ignored, right, confused or missed)."""

    IGNORED = 0
    """A detection below its threshold or in a crowd region; a crowd region."""
    RIGHT = 1
    WRONG = 2
    """A detection where nothing is, or where it is too far off."""
    DUPLICATE = 3
    """A detection of an object that a better one has taken."""
    CONFUSED = 4
    """A detection and an object of another class that overlap."""
    MISSED = 5


@dataclass(frozen=True)
class PictureErrors:
    """Counts of one picture at the thresholds: missed objects and wrong detections, confused ones among both.

    `duplicates` are among the wrong ones.
    """

    image_index: int
    objects: int
    detections: int
    missed: int
    wrong: int
    duplicates: int
    confused: int

    @property
    def errors(self) -> int:
        """Missed objects and wrong detections."""
        return self.missed + self.wrong


@dataclass(frozen=True)
class Analysis:
    """One evaluation in detail, everything but the curves at the best threshold of each class.

    Args:
        evaluator: where it came from.
        result: average precision and recall; sweep: precision, recall and F1 over confidences.
        best: (K,), index in `CONFIDENCES` of each class's threshold.
        threshold: confidence with the best macro F1; 0.5 where nothing is right at any.
        confusion: (K+1, K+1) int64, rows by truth, columns by prediction, the background last.
        detection_outcome: (D,) and object_outcome: (A,) int8 of `Outcome`; duplicate: (D,) bool.
        pictures: (num_images, 6) int64, the columns of `PictureErrors` after the first.
    """

    evaluator: CocoEvaluator
    result: CocoResult
    sweep: ConfidenceSweep
    best: np.ndarray
    threshold: float
    confusion: np.ndarray
    detection_outcome: np.ndarray
    object_outcome: np.ndarray
    duplicate: np.ndarray
    pictures: np.ndarray

    @property
    def class_names(self) -> list[str]:
        """K names, each of them once."""
        return unique_names(self.result.class_names)

    @property
    def thresholds(self) -> dict[str, float]:
        """Confidence with the best F1 of each class, the smallest of equals; the macro best where a class has none."""
        return dict(zip(self.class_names, CONFIDENCES[self.best].round(2).tolist(), strict=True))

    @property
    def objects(self) -> int:
        """Objects that count."""
        return int((self.object_outcome != Outcome.IGNORED).sum())

    @property
    def detections(self) -> int:
        """Detections at or above their thresholds and in no crowd region."""
        return int((self.detection_outcome != Outcome.IGNORED).sum())

    @property
    def duplicate_rate(self) -> float:
        """Share of these that overlap an object of their class which a better one has taken, 0 without any."""
        return float(self.duplicate.sum() / max(self.detections, 1))

    @property
    def precision_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision at 101 recalls at IoU 0.5 and its mean over IoU 0.5 to 0.95, (K, 101) each; NaN without objects."""
        curves = self.result.precision[:, :, :, 0, -1].transpose(0, 2, 1)
        curves = np.where(curves > -1, curves, np.nan)
        return curves[0], curves.mean(axis=0)

    def own_best(self) -> np.ndarray:
        """Precision, recall and F1 of each class at its threshold, (K, 3)."""
        return self.sweep.per_class[self.best, np.arange(len(self.best))]

    def worst(self, count: int) -> list[PictureErrors]:
        """At most `count` pictures with errors: most first, of equal numbers those with the larger share."""
        objects, detections, missed, wrong = self.pictures[:, :4].T
        errors = missed + wrong
        share = errors / np.maximum(objects + detections, 1)
        order = np.lexsort((-share, -errors))[:count]
        return [PictureErrors(index, *self.pictures[index].tolist()) for index in order.tolist() if errors[index]]

    def outcome(self, image_index: int, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`Outcome` of each detection (D,) and of each object of `truth_rows` (G,) of a picture.

        Args:
            scores, labels: (D,), the detections that were added, in any order.

        Raises:
            ValueError: there are more or fewer of them.
        """
        order = self.evaluator.stored_order(scores, labels)
        stored = self.detection_outcome[self.evaluator.detection_rows(image_index)]
        if len(order) != len(stored):
            raise ValueError(f"picture {image_index} was judged with {len(stored)} detections, not {len(order)}")
        outcome = np.zeros(len(scores), np.int8)
        outcome[order] = stored
        return outcome, self.object_outcome[self.evaluator.truth_rows(image_index)]

    def confusions(self, count: int) -> list[tuple[str, str, int]]:
        """At most `count` pairs of true and predicted class and how often each occurs, most frequent first."""
        between = self.confusion[:-1, :-1] * (1 - np.eye(len(self.best), dtype=np.int64))
        order = np.argsort(-between, axis=None, kind="stable")[:count]
        names, rows, columns = self.class_names, *np.unravel_index(order, between.shape)
        pairs = zip(rows.tolist(), columns.tolist(), between[rows, columns].tolist(), strict=True)
        return [(names[row], names[column], number) for row, column, number in pairs if number]

    def sizes(self) -> list[dict[str, Any]]:
        """Objects, AP and AR of small, medium and large objects; None without objects."""
        area = self.evaluator.ground_truth.area[self.object_outcome != Outcome.IGNORED]
        inside = (area[:, None] >= AREA_RANGES[:, 0]) & (area[:, None] <= AREA_RANGES[:, 1])
        stats = self.result.stats
        return [
            {
                "size": name,
                "objects": int(inside[:, n].sum()),
                "AP": _defined(stats[2 + n]),
                "AR": _defined(stats[8 + n]),
            }
            for n, name in enumerate(SIZES, 1)
        ]

    def class_rows(self) -> list[dict[str, Any]]:
        """A row for each class: numbers of average precision, and those at its threshold; None without objects."""
        precision, own, result = self.result.precision, self.own_best().tolist(), self.result
        rows = []
        for k, (name, threshold) in enumerate(self.thresholds.items()):
            objects = int(self.sweep.num_truth[k])
            by_size = {f"AP_{size}": mean_of_defined(precision[:, :, k, n, -1]) for n, size in enumerate(SIZES, 1)}
            numbers = {"AP": result.ap[k], "AP50": result.ap50[k], "AR": result.ar[k], **by_size}
            judged = dict(zip(("precision", "recall", "f1"), own[k] if objects else [None] * 3, strict=True))
            averages = {key: _defined(value) for key, value in numbers.items()}
            rows.append({"class": name, "objects": objects, **averages, **judged, "threshold": threshold})
        return rows

    def as_dict(self, worst: int = 20) -> dict[str, Any]:
        """Ready for JSON: the structure of results.json and, under further keys, the rest; None is undefined."""
        return results_table(self.result, self.sweep) | {
            "stats": {name: _defined(value) for name, value in self.result.as_dict().items()},
            "threshold": self.threshold,
            "thresholds": self.thresholds,
            "objects": self.objects,
            "detections": self.detections,
            "duplicates": int(self.duplicate.sum()),
            "duplicate_rate": self.duplicate_rate,
            "sizes": self.sizes(),
            "classes": self.class_rows(),
            "confusion_matrix": {"labels": [*self.class_names, BACKGROUND], "counts": self.confusion.tolist()},
            "curves": self._curves(),
            "worst_pictures": [asdict(picture) for picture in self.worst(worst)],
        }

    def _curves(self) -> dict[str, Any]:
        at_half, mean = self.precision_recall
        curves: dict[str, Any] = {
            "recall": RECALL_POINTS.round(2).tolist(),
            "confidence": CONFIDENCES.round(2).tolist(),
        }
        by_confidence = dict(zip(("precision", "recall", "f1"), self.sweep.per_class.transpose(2, 1, 0), strict=True))
        curves["classes"] = {
            name: {"precision_at_50": _numbers(at_half[k]), "precision_mean": _numbers(mean[k])}
            | {f"{key}_by_confidence": _numbers(values[k]) for key, values in by_confidence.items()}
            for k, name in enumerate(self.class_names)
        }
        macro = zip(("precision", "recall", "f1"), self.sweep.macro.T, strict=True)
        curves["macro"] = {f"{key}_by_confidence": _numbers(values) for key, values in macro}
        return curves


def analyse(evaluator: CocoEvaluator, best: np.ndarray | None = None) -> Analysis:
    """Analyse what was added; confusions between classes are only known of an evaluator made `across_classes`.

    Objects of no size class (they have no labelled keypoint) are ignored as crowd regions are, and so are detections of
    a class that has no others.

    Args:
        best: (K,), index in `CONFIDENCES` of each class's threshold, instead of the best ones.
    """
    truth, found, image = evaluator.ground_truth, evaluator.detections(), evaluator.detection_images()
    unjudged = ~np.isfinite(truth.area)
    truth = replace(truth, crowd=truth.crowd | unjudged)
    judged = judge(truth, found)
    without = np.setdiff1d(truth.label[unjudged], truth.label[~unjudged])
    judged = replace(judged, is_wrong=judged.is_wrong & ~np.isin(found.label, without))
    swept = sweep(truth, found, judged)
    own_best, threshold = best_thresholds(swept)
    best = own_best if best is None else best
    kept = found.score >= np.append(CONFIDENCES[best], np.inf)[found.label]
    outcome, duplicate = _judge_detections(truth, found, judged, kept)
    objects = np.where(truth.crowd, Outcome.IGNORED, Outcome.MISSED).astype(np.int8)
    objects[np.append(kept, False)[judged.owner]] = Outcome.RIGHT
    mistaken = _confused_with(evaluator, image, outcome, objects)
    confused = mistaken >= 0
    objects[confused], outcome[mistaken[confused]] = Outcome.CONFUSED, Outcome.CONFUSED
    return Analysis(
        evaluator=evaluator,
        result=evaluator.summarize(),
        sweep=swept,
        best=best,
        threshold=threshold,
        confusion=_confusion(truth, found, outcome, objects, mistaken),
        detection_outcome=outcome,
        object_outcome=objects,
        duplicate=duplicate,
        pictures=_by_picture(truth, image, outcome, objects, duplicate),
    )


def best_thresholds(swept: ConfidenceSweep) -> tuple[np.ndarray, float]:
    """Index of the best confidence of each class, (K,), and the best confidence of all."""
    index = swept.best if swept.best_macro[2] > 0 else int(np.searchsorted(CONFIDENCES, _NO_THRESHOLD))
    best = swept.per_class[:, :, 2].argmax(axis=0)
    reached = swept.per_class[best, np.arange(len(best)), 2] > 0
    return np.where(reached, best, index), round(float(CONFIDENCES[index]), 2)


def _judge_detections(
    truth: GroundTruth, found: Detections, judged: Judgement, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes within the classes (D,), and which detections are duplicates (D,)."""
    wrong = judged.is_wrong & kept
    # All objects that a wrong detection overlaps are taken, or it would have taken one.
    overlapping = np.zeros(len(kept), dtype=bool)
    overlapping[found.pair_detection[~truth.crowd[found.pair_truth] & (found.iou >= IOU_THRESHOLD)]] = True
    outcome = np.zeros(len(kept), np.int8)
    outcome[judged.is_right & kept], outcome[wrong] = Outcome.RIGHT, Outcome.WRONG
    outcome[wrong & overlapping] = Outcome.DUPLICATE
    return outcome, wrong & overlapping


def _confused_with(evaluator: CocoEvaluator, image: np.ndarray, outcome: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Row of the detection of another class that is left for each object that is left, -1 for none, (A,)."""
    if not evaluator.across_classes:
        return np.full(len(objects), -1)
    found = evaluator.detections(other_classes=True)
    free = (objects == Outcome.MISSED)[found.pair_truth] & (outcome > Outcome.RIGHT)[found.pair_detection]
    # Within a picture the detections of all classes come in turn by falling score.
    order = np.lexsort((-found.score, image))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    by_picture = replace(found, group=image[order], pair_detection=place[found.pair_detection])
    owner = take_objects(by_picture, np.flatnonzero(free), len(objects), IOU_THRESHOLD)
    return np.where(owner >= 0, np.append(order, -1)[owner], -1)


def _confusion(
    truth: GroundTruth, found: Detections, outcome: np.ndarray, objects: np.ndarray, mistaken: np.ndarray
) -> np.ndarray:
    background = len(truth.class_names)
    counted = np.flatnonzero(objects != Outcome.IGNORED)
    predicted = np.full(len(objects), background)
    predicted[objects == Outcome.RIGHT] = truth.label[objects == Outcome.RIGHT]
    predicted[mistaken >= 0] = found.label[mistaken[mistaken >= 0]]
    alone = (outcome == Outcome.WRONG) | (outcome == Outcome.DUPLICATE)
    rows = np.append(truth.label[counted], np.full(alone.sum(), background))
    columns = np.append(predicted[counted], found.label[alone])
    cells = np.bincount(rows * (background + 1) + columns, minlength=(background + 1) ** 2)
    return cells.reshape(background + 1, background + 1)


def _by_picture(
    truth: GroundTruth, image: np.ndarray, outcome: np.ndarray, objects: np.ndarray, duplicate: np.ndarray
) -> np.ndarray:
    """The numbers of `PictureErrors`, (num_images, 6)."""

    def count(index: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        return np.bincount(index[wanted], minlength=truth.num_images)

    columns = [
        count(truth.image_index, objects != Outcome.IGNORED),
        count(image, outcome != Outcome.IGNORED),
        count(truth.image_index, objects >= Outcome.CONFUSED),
        count(image, outcome >= Outcome.WRONG),
        count(image, duplicate),
        count(image, outcome == Outcome.CONFUSED),
    ]
    return np.stack(columns, axis=1)


def _defined(value: float) -> float | None:
    return None if value < 0 else float(value)


def _numbers(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """A curve with few digits, None where it is undefined."""
    return [None if np.isnan(value) else round(value, _DECIMALS) for value in np.asarray(values).tolist()]
