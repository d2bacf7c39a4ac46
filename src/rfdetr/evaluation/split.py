"""One split: what it holds, and everything that is measured on it, picture by picture."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from rfdetr.datasets.annotations import AnnotationSet, has_extent
from rfdetr.datasets.outlines import Outlines
from rfdetr.datasets.rle import EMPTY
from rfdetr.evaluation.analysis import Analysis, analyse, best_thresholds
from rfdetr.evaluation.coco import CocoEvaluator, GroundTruth
from rfdetr.evaluation.f1 import CONFIDENCES, results_table, sweep_confidence
from rfdetr.evaluation.oks import MAX_DETS, KeypointClasses
from rfdetr.evaluation.overlaps import box_overlaps, mask_overlaps, sample
from rfdetr.labels import unique_names
from rfdetr.models.enlarge import cut_outs

# Areas (D,), and overlaps by the crowd rule and plain ones, (D, G).
Measured = tuple[np.ndarray, np.ndarray, np.ndarray]


class SplitEvaluation:
    """Boxes, and of models and annotations that have them masks or keypoints, each with an evaluator of its own.

    Args:
        truth: the `ground_truth` of the annotations.
        max_dets: detections of boxes and masks that count per picture.
        at_head_size: compare masks at the size in which they are predicted, not at that of the picture.
        sigmas: tolerances of the keypoints; None takes COCO's.
        across_classes: keep overlaps with objects of other classes, those of their boxes throughout.
    """

    def __init__(
        self,
        annotations: AnnotationSet,
        truth: GroundTruth,
        max_dets: int = 500,
        *,
        at_head_size: bool = False,
        sigmas: Sequence[float] | None = None,
        across_classes: bool = False,
    ) -> None:
        self.annotations, self.truth, self.at_head_size = annotations, truth, at_head_size
        self._positions = class_positions(annotations)
        self._across = across_classes
        self.boxes = CocoEvaluator(truth, max_dets, across_classes=across_classes)
        self.masks = CocoEvaluator(truth, max_dets, across_classes=across_classes)
        self.keypoints: CocoEvaluator | None = None
        # Without a single outline or keypoint to compare with, the boxes are all there is to judge.
        self._outlines = annotations.outlines if truth_has_outlines(annotations) else None
        if annotations.keypoints is not None and annotations.schema is not None and truth_has_points(annotations):
            counts = dict(enumerate(annotations.schema.counts))
            self._classes = KeypointClasses.of([counts.get(n, 0) for n in annotations.categories.labels], sigmas)
            points = annotations.keypoints[truth.row]
            labelled = self._classes.without_unlabelled(truth, points)
            self.keypoints = CocoEvaluator(labelled, MAX_DETS, across_classes=across_classes)

    def add(
        self,
        index: int,
        found: Mapping[str, Tensor],
        hw: tuple[int, int],
        share: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """Measure what the post-processor found in the picture at a position of the split, of a height and width.

        Masks are taken as `mask_logits`, of which the picture covers a `share` of the height and width. Labels that are
        no class of the data set are left out.
        """
        known, classes = self.known(found["labels"])
        scores, boxes = (found[name].cpu().numpy()[known] for name in ("scores", "boxes"))
        self.boxes.update(index, scores, classes, boxes)
        if self._outlines is not None and "mask_logits" in found:
            measured = self._compare_masks(self._outlines, index, classes, found["mask_logits"].cpu()[known], hw, share)
            self.masks.update_overlaps(index, scores, classes, *self._widened(index, classes, boxes, measured))
        if self.keypoints is not None and "keypoints" in found:
            points = found["keypoints"][..., :2].double().cpu().numpy()[known]
            measured = self._compare_keypoints(index, classes, points, hw)
            self.keypoints.update_overlaps(index, scores, classes, *self._widened(index, classes, boxes, measured))

    def known(self, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Which labels (D,) are classes of the data set, (K,) rows, and their positions in `class_names`, (K,)."""
        classes = self._positions.take(labels.cpu().numpy(), mode="clip")
        known = np.flatnonzero(classes >= 0)
        return known, classes[known]

    def leave_out(self, index: int) -> None:
        """Let a picture that could not be read count for nothing."""
        for evaluator in self._evaluators().values():
            evaluator.leave_out(index)

    def _widened(self, index: int, classes: np.ndarray, boxes_xyxy: np.ndarray, measured: Measured) -> Measured:
        """Masks and keypoints are compared within a class; with objects of others the boxes are."""
        if not self._across:
            return measured
        objects = self.boxes.truth_rows(index)
        boxes = boxes_xyxy.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        _, between = box_overlaps(boxes, self.truth.boxes_xywh_px[objects], self.truth.crowd[objects])
        same = classes[:, None] == self.truth.label[objects]
        areas, iou, plain_iou = measured
        return areas, np.where(same, iou, between), np.where(same, plain_iou, between)

    def _compare_masks(
        self,
        outlines: Outlines,
        index: int,
        classes: np.ndarray,
        logits: Tensor,
        hw: tuple[int, int],
        share: tuple[float, float],
    ) -> Measured:
        objects = self.masks.truth_rows(index)
        labels = self.truth.label[objects]
        height, width = hw
        if self.at_head_size:
            height, width = (max(1, round(n * s)) for n, s in zip(logits.shape[1:], share, strict=True))
        # Objects of classes that were not found are missed, whatever their shape.
        patches = [
            sample(outlines.patch(row, *hw), hw, (height, width)) if met else EMPTY
            for row, met in zip(self.truth.row[objects].tolist(), np.isin(labels, classes), strict=True)
        ]
        parts = cut_outs(logits.float().cpu().numpy(), (height, width), share)
        areas, iou, plain_iou = mask_overlaps(parts, classes, patches, labels, self.truth.crowd[objects])
        return areas * (hw[0] * hw[1] / (height * width)), iou, plain_iou

    def _compare_keypoints(self, index: int, classes: np.ndarray, points: np.ndarray, hw: tuple[int, int]) -> Measured:
        points = np.where(np.isfinite(points), points, 0.0)
        objects = self.boxes.truth_rows(index)
        rows = self.truth.row[objects] - self.annotations.rows(index).start
        similarity = self._classes.overlaps(
            points, self.truth, objects, self.annotations.keypoints_px(index, *hw)[rows]
        )
        return self._classes.areas(points, classes), similarity, similarity

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """All that was added, to send to another process."""
        return {name: evaluator.state() for name, evaluator in self._evaluators().items()}

    def load_state(self, states: Sequence[Mapping[str, dict[str, np.ndarray]]]) -> None:
        """Add what others gave as `state()`; a picture that is known is left as it is."""
        for name, evaluator in self._evaluators().items():
            evaluator.load_state([state[name] for state in states])

    def _evaluators(self) -> dict[str, CocoEvaluator]:
        evaluators = {"boxes": self.boxes, "masks": self.masks}
        return evaluators if self.keypoints is None else {**evaluators, "keypoints": self.keypoints}

    def analyses(self) -> dict[str, Analysis]:
        """What was added in detail: "boxes", and where they were added "masks" or "keypoints"."""
        return {name: analyse(one) for name, one in self._evaluators().items() if one or name == "boxes"}

    def thresholds(self) -> dict[str, float]:
        """The confidence with the best F1 of every class, of masks where they were added."""
        evaluator = self.masks or self.boxes
        best, _ = best_thresholds(sweep_confidence(evaluator))
        names = unique_names(evaluator.ground_truth.class_names)
        return dict(zip(names, CONFIDENCES[best].round(2).tolist(), strict=True))

    def stats(self) -> dict[str, Any]:
        """`coco_eval_bbox` (12 numbers) and `results_json`, and where they were added `coco_eval_masks` (12 numbers) or
        `coco_eval_keypoints` (10). With masks `results_json` is theirs and `results_json_bbox` that of the boxes.
        """
        stats = dict(zip(("coco_eval_bbox", "results_json"), _summary(self.boxes), strict=True))
        if self.masks:
            stats["results_json_bbox"] = stats["results_json"]
            stats["coco_eval_masks"], stats["results_json"] = _summary(self.masks)
        if self.keypoints:
            stats["coco_eval_keypoints"] = self._classes.stats(self.keypoints.summarize())
        return stats


def truth_has_outlines(annotations: AnnotationSet) -> bool:
    """Whether any object has an outline."""
    return annotations.outlines is not None and bool(annotations.outlines.exist.any())


def truth_has_points(annotations: AnnotationSet) -> bool:
    """Whether any object has a labelled keypoint."""
    return annotations.keypoints is not None and bool((annotations.keypoints[..., 2] > 0).any())


def _summary(evaluator: CocoEvaluator) -> tuple[list[float], dict[str, Any]]:
    result = evaluator.summarize()
    return result.stats.tolist(), results_table(result, sweep_confidence(evaluator))


def class_positions(annotations: AnnotationSet) -> np.ndarray:
    """Position in `class_names` of every label, -1 where a label, or any above them, is no class of the data set."""
    labels = np.array(annotations.categories.labels)
    positions = np.full(labels.max(initial=-1) + 2, -1)
    positions[labels] = np.arange(len(labels))
    return positions


@functools.lru_cache(maxsize=2)
def ground_truth(annotations: AnnotationSet) -> GroundTruth:
    """What detections of a split are compared with: boxes cut to their pictures, crowd regions to be ignored.

    Kept for the next evaluation of the same split.
    """
    sizes = annotations.sizes[annotations.image_index].astype(np.float64)
    # A picture that cannot be read has no size, so that nothing is asked of it.
    joined = np.clip(annotations.all_boxes_xyxy_px(), 0, sizes[:, [1, 0, 1, 0]])
    size = joined[:, 2:] - joined[:, :2]
    keep = has_extent(joined) | (annotations.crowd & sizes.all(1))
    areas = np.where(np.isnan(annotations.areas), size.prod(1), annotations.areas)
    return GroundTruth(
        image_index=annotations.image_index[keep],
        label=class_positions(annotations)[annotations.labels[keep]],
        boxes_xywh_px=np.concatenate((joined[:, :2], size), axis=1)[keep],
        area=areas[keep],
        crowd=annotations.crowd[keep],
        row=np.flatnonzero(keep),
        num_images=len(annotations),
        class_names=annotations.class_names,
    )
