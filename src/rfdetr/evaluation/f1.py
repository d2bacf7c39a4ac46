"""Precision, recall and F1 over confidences at IoU 0.5, and the per-class table of results.json."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rfdetr.evaluation.coco import CocoEvaluator, CocoResult, GroundTruth
from rfdetr.evaluation.matching import Detections, take_objects
from rfdetr.labels import unique_names

IOU_THRESHOLD = 0.5
CONFIDENCES = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class ConfidenceSweep:
    """Precision, recall and F1 of the detections at or above each of 101 confidences.

    Args:
        per_class: (101, K, 3), precision, recall, F1.
        macro: (101, 3), mean over the classes that have ground truth, 0 without any.
        num_truth: (K,), objects of each class without crowd regions.
        best: index of the first largest macro F1.
    """

    per_class: np.ndarray
    macro: np.ndarray
    num_truth: np.ndarray
    best: int

    @property
    def confidence(self) -> float:
        """Confidence with the best macro F1."""
        return float(CONFIDENCES[self.best])

    @property
    def best_macro(self) -> np.ndarray:
        """Macro precision, recall and F1 at the best confidence, (3,)."""
        return self.macro[self.best]

    @property
    def best_per_class(self) -> np.ndarray:
        """Precision, recall and F1 of each class at the best confidence, (K, 3)."""
        return self.per_class[self.best]


@dataclass(frozen=True)
class Judgement:
    """What became of D detections and A objects at IoU 0.5.

    Args:
        is_right: (D,) bool, took an object; is_wrong: (D,) bool, took none and lies in no crowd region.
        owner: (A,), row of the detection that took each object, -1 for none.
    """

    is_right: np.ndarray
    is_wrong: np.ndarray
    owner: np.ndarray


def sweep_confidence(evaluator: CocoEvaluator) -> ConfidenceSweep:
    """Count right and wrong detections at every confidence, without a limit per picture.

    Unlike in COCO's average precision, overlap with a crowd region is plain IoU and the first of equal overlaps wins.
    """
    found = evaluator.detections()
    return sweep(evaluator.ground_truth, found, judge(evaluator.ground_truth, found))


def sweep(truth: GroundTruth, found: Detections, judged: Judgement) -> ConfidenceSweep:
    """Count what was judged already."""
    num_classes = len(truth.class_names)
    is_right, is_wrong = judged.is_right, judged.is_wrong
    right = _count_at_or_above(found.score[is_right], found.label[is_right], num_classes)
    wrong = _count_at_or_above(found.score[is_wrong], found.label[is_wrong], num_classes)
    num_truth = np.bincount(truth.label[~truth.crowd], minlength=num_classes)

    precision = _ratio(right, right + wrong)
    recall = _ratio(right, np.broadcast_to(num_truth, right.shape))
    f1 = _ratio(2 * precision * recall, precision + recall)
    per_class = np.stack([precision, recall, f1], axis=-1)
    annotated = per_class[:, num_truth > 0]
    macro = annotated.mean(axis=1) if annotated.size else np.zeros((len(CONFIDENCES), 3))
    return ConfidenceSweep(per_class, macro, num_truth, best=int(np.argmax(macro[:, 2])))


def results_table(result: CocoResult, sweep: ConfidenceSweep) -> dict:
    """The structure of results.json: a row for every class with ground truth, a last row "all", and the totals."""
    class_map = [
        _table_row(name, result.ap[k], result.ap50[k], sweep.best_per_class[k])
        for k, name in enumerate(unique_names(result.class_names))
        if result.ap[k] > -1
    ]
    total = _table_row("all", result.stats[0], result.stats[1], sweep.best_macro)
    totals = {"map": total["map@50"], **{key: total[key] for key in ("precision", "recall", "f1_score")}}
    return {"class_map": [*class_map, total], **totals}


def _table_row(name: str, ap: float, ap50: float, precision_recall_f1: np.ndarray) -> dict[str, str | float]:
    precision, recall, f1 = precision_recall_f1.tolist()
    return {
        "class": name,
        "map@50:95": float(ap),
        "map@50": float(ap50),
        "precision": precision,
        "recall": recall,
        "f1_score": f1,
    }


def judge(truth: GroundTruth, found: Detections) -> Judgement:
    """Let the detections of each picture and class, by falling score, take objects of it."""
    pair_crowd = truth.crowd[found.pair_truth]
    owner = take_objects(found, np.flatnonzero(~pair_crowd), len(truth.label), IOU_THRESHOLD)
    is_right = np.zeros(len(found.score), dtype=bool)
    is_right[owner[owner >= 0]] = True
    in_crowd = np.zeros(len(found.score), dtype=bool)
    in_crowd[found.pair_detection[pair_crowd & (found.plain_iou >= IOU_THRESHOLD)]] = True
    return Judgement(is_right, ~is_right & ~in_crowd, owner)


def _count_at_or_above(score: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Scores (N,) of each class at or above each confidence, (101, K); NaN is above none."""
    reached = np.where(np.isnan(score), 0, np.searchsorted(CONFIDENCES, score, side="right"))
    bins = len(CONFIDENCES) + 1
    counts = np.bincount(label * bins + reached, minlength=num_classes * bins).reshape(num_classes, bins)
    return counts[:, :0:-1].cumsum(axis=1)[:, ::-1].T


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Quotient, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
