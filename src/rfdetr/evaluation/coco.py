"""COCO average precision and recall: what was found in each picture, and the curves that follow from its matching.

Gives the arrays of pycocotools bit for bit. Only `update` knows boxes; masks and keypoints bring their own overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rfdetr.evaluation.matching import MATCHED, UNMATCHED, Detections, match_greedily
from rfdetr.evaluation.overlaps import box_overlaps

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
# Smallest and largest area in square pixels, both included: all, small, medium, large.
AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]], dtype=np.float64)
STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR", "ARs", "ARm", "ARl")

_DETECTION = np.dtype([("score", "f8"), ("area", "f8"), ("label", "i4")])
_PAIR = np.dtype([("iou", "f8"), ("plain_iou", "f8"), ("detection", "i4"), ("truth", "i4")])


@dataclass(frozen=True)
class GroundTruth:
    """Objects of one split as flat arrays, in the order of the annotation file within each picture.

    Args:
        image_index: (A,) int64, position of the picture; ascending image ids give the tie order of pycocotools.
        label: (A,) int64 in 0..K-1.
        boxes_xywh_px: (A, 4) float64, left, top, width, height in pixels.
        area: (A,) float64, annotated area in square pixels; it decides the size class.
        crowd: (A,) bool, regions in which detections are neither right nor wrong.
        row: (A,) int64, place of the object in the `AnnotationSet`, for what else is known of it.
        num_images: pictures of the split, also those without objects.
        class_names: K names.
    """

    image_index: np.ndarray
    label: np.ndarray
    boxes_xywh_px: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    row: np.ndarray
    num_images: int
    class_names: list[str]


@dataclass(frozen=True)
class CocoResult:
    """Numbers of one evaluation; -1 wherever there is no ground truth.

    Args:
        stats: (12,), see `STAT_NAMES`; all but AR@1 and AR@10 at the largest limit.
        precision, scores: (T, R, K, A, M) IoU thresholds, recall points, classes, area ranges and limits on the
            detections per picture and class (1, 10, the largest); recall: (T, K, A, M).
        ap, ap50, ar: (K,), all areas at the largest limit.
    """

    stats: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    ap: np.ndarray
    ap50: np.ndarray
    ar: np.ndarray
    class_names: list[str]

    def as_dict(self) -> dict[str, float]:
        """The twelve stats by name."""
        return dict(zip(STAT_NAMES, self.stats.tolist(), strict=True))


class CocoEvaluator:
    """Collects the detections of a split picture by picture and compares them with its ground truth.

    Of a picture and class the `max_dets` best detections count; objects of pictures that never arrive are missed.
    With `across_classes` overlaps with objects of other classes are kept too, which only an analysis needs.
    """

    def __init__(self, ground_truth: GroundTruth, max_dets: int = 500, *, across_classes: bool = False) -> None:
        self.ground_truth = ground_truth
        self.max_dets = max_dets
        self.across_classes = across_classes
        self._left_out: set[int] = set()
        self._pictures: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._truth_order = np.argsort(ground_truth.image_index, kind="stable")
        in_order = ground_truth.image_index[self._truth_order]
        self._truth_bounds = np.searchsorted(in_order, np.arange(ground_truth.num_images + 1))

    def __len__(self) -> int:
        """Pictures that were added and not left out."""
        return len(self._pictures) - len(self._left_out)

    def truth_rows(self, image_index: int) -> np.ndarray:
        """Rows of the picture's objects in the ground truth, (G,)."""
        return self._truth_order[self._truth_bounds[image_index] : self._truth_bounds[image_index + 1]]

    def update(self, image_index: int, scores: np.ndarray, labels: np.ndarray, boxes_xyxy_px: np.ndarray) -> None:
        """Add one picture's boxes: scores (D,), labels (D,), boxes (D, 4) in pixels of the picture."""
        boxes = np.array(boxes_xyxy_px, dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        truth = self.truth_rows(image_index)
        iou, plain_iou = box_overlaps(boxes, self.ground_truth.boxes_xywh_px[truth], self.ground_truth.crowd[truth])
        self.update_overlaps(image_index, scores, labels, boxes[:, 2] * boxes[:, 3], iou, plain_iou)

    def update_overlaps(
        self,
        image_index: int,
        scores: np.ndarray,
        labels: np.ndarray,
        areas: np.ndarray,
        iou: np.ndarray,
        plain_iou: np.ndarray,
    ) -> None:
        """Add one picture whose overlaps are measured already; a picture that is known is left as it is.

        Labels outside the class list are dropped.

        Args:
            scores, labels, areas: (D,), areas in square pixels.
            iou, plain_iou: (D, G) with the objects of `truth_rows`, as in `Detections`.
        """
        if image_index in self._pictures:
            return
        scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
        order = self.stored_order(scores, labels)
        detections = np.empty(len(order), dtype=_DETECTION)
        detections["score"], detections["label"], detections["area"] = scores[order], labels[order], areas[order]

        truth = self.truth_rows(image_index)
        wanted = iou[order] >= IOU_THRESHOLDS[0]
        if not self.across_classes:
            wanted &= labels[order, None] == self.ground_truth.label[truth]
        row, column = np.nonzero(wanted)
        pairs = np.empty(len(row), dtype=_PAIR)
        pairs["detection"], pairs["truth"] = row, truth[column]
        pairs["iou"], pairs["plain_iou"] = iou[order[row], column], plain_iou[order[row], column]
        self._pictures[image_index] = detections, pairs

    def stored_order(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which of a picture's detections are kept, in the order of `detections()`: by class, then falling score."""
        order = np.lexsort((-np.asarray(scores, dtype=np.float64), labels))
        return order[(labels[order] >= 0) & (labels[order] < len(self.ground_truth.class_names))]

    def leave_out(self, image_index: int) -> None:
        """Let a picture that could not be judged count for nothing: its objects are ignored as crowd regions are.

        A picture that is known is left as it is.
        """
        if image_index in self._pictures:
            return
        self._pictures[image_index] = np.empty(0, dtype=_DETECTION), np.empty(0, dtype=_PAIR)
        self._left_out.add(image_index)
        crowd = self.ground_truth.crowd.copy()
        crowd[self.truth_rows(image_index)] = True
        self.ground_truth = replace(self.ground_truth, crowd=crowd)

    def state(self) -> dict[str, np.ndarray]:
        """All that was added, in the order of the pictures, as flat arrays to send to another process.

        In `image_index` a picture that was left out is `~index`, a negative number.
        """
        image_index = sorted(self._pictures)
        detections, pairs = ([self._pictures[index][part] for index in image_index] for part in (0, 1))
        return {
            "image_index": np.array([~i if i in self._left_out else i for i in image_index], dtype=np.int64),
            "num_detections": np.array([len(part) for part in detections], dtype=np.int64),
            "num_pairs": np.array([len(part) for part in pairs], dtype=np.int64),
            "detections": np.concatenate([np.empty(0, dtype=_DETECTION), *detections]),
            "pairs": np.concatenate([np.empty(0, dtype=_PAIR), *pairs]),
        }

    def load_state(self, states: list[dict[str, np.ndarray]]) -> None:
        """Add the pictures of other evaluators' `state()`; a picture that is known is left as it is."""
        for state in states:
            detections = np.split(state["detections"], np.cumsum(state["num_detections"]))
            pairs = np.split(state["pairs"], np.cumsum(state["num_pairs"]))
            for n, image_index in enumerate(state["image_index"].tolist()):
                if image_index < 0:
                    self.leave_out(~image_index)
                else:
                    self._pictures.setdefault(image_index, (detections[n], pairs[n]))

    def detection_images(self) -> np.ndarray:
        """Position of the picture of each of `detections()`, (D,) int64."""
        image_index = sorted(self._pictures)
        return np.repeat(np.array(image_index, np.int64), [len(self._pictures[index][0]) for index in image_index])

    def detection_rows(self, image_index: int) -> slice:
        """Which of `detections()` are those of a picture."""
        start = sum(len(found) for index, (found, _) in self._pictures.items() if index < image_index)
        return slice(start, start + len(self._pictures[image_index][0]))

    def detections(self, *, other_classes: bool = False) -> Detections:
        """Everything added, in the order of the pictures; its pairs are those of one class, or of two.

        Pairs of two classes are known only `across_classes`.
        """
        state = self.state()
        stored, pairs = state["detections"], state["pairs"]
        image = np.repeat(state["image_index"], state["num_detections"])
        label = stored["label"].astype(np.int64)
        is_first = np.diff(image * len(self.ground_truth.class_names) + label, prepend=-1) != 0
        group = np.cumsum(is_first) - 1
        offset = np.cumsum(state["num_detections"]) - state["num_detections"]
        pair_detection = pairs["detection"] + np.repeat(offset, state["num_pairs"])
        if self.across_classes:
            is_other = label[pair_detection] != self.ground_truth.label[pairs["truth"]]
            pairs, pair_detection = pairs[is_other == other_classes], pair_detection[is_other == other_classes]
        return Detections(
            score=np.ascontiguousarray(stored["score"]),
            label=label,
            area=np.ascontiguousarray(stored["area"]),
            group=group,
            rank=np.arange(len(stored)) - np.flatnonzero(is_first)[group],
            pair_detection=pair_detection,
            pair_truth=pairs["truth"].astype(np.int64),
            iou=np.ascontiguousarray(pairs["iou"]),
            plain_iou=np.ascontiguousarray(pairs["plain_iou"]),
        )

    @property
    def coco_eval(self) -> dict[str, CocoResult]:
        """The numbers where older scripts look for them, `coco_eval["bbox"].stats`."""
        return {"bbox": self.summarize()}

    def summarize(self) -> CocoResult:
        """Match and accumulate everything added so far."""
        limits = [min(1, self.max_dets), min(10, self.max_dets), self.max_dets]
        precision, recall, scores = _accumulate(self.ground_truth, self.detections(), limits)
        return _summarize(precision, recall, scores, self.ground_truth.class_names)


def _accumulate(truth: GroundTruth, found: Detections, limits: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision (T, R, K, A, M), recall (T, K, A, M) and scores (T, R, K, A, M)."""
    ignored = truth.crowd[:, None] | _is_outside(truth.area)
    # Of equal overlaps the later object wins.
    pair_order = np.lexsort((found.pair_truth, found.iou, found.pair_detection))
    pair_order = pair_order[found.rank[found.pair_detection[pair_order]] < limits[-1]]
    rows, outcome = match_greedily(found, pair_order, IOU_THRESHOLDS, truth.crowd, ignored)
    outcome_row = np.full(len(found.score), -1)
    outcome_row[rows] = np.arange(len(rows))
    num_classes = len(truth.class_names)
    num_truth = np.stack([np.bincount(truth.label[~column], minlength=num_classes) for column in ignored.T])
    # The sort is stable, so equal scores stay in the order of pictures and ranks.
    order = np.lexsort((-found.score, found.label))
    bounds = np.searchsorted(found.label[order], np.arange(num_classes + 1))

    shape = (num_classes, len(AREA_RANGES), len(limits))
    precision, scores = np.empty((2, len(IOU_THRESHOLDS), len(RECALL_POINTS), *shape))
    recall = np.empty((len(IOU_THRESHOLDS), *shape))
    for label in range(num_classes):
        by_score = order[bounds[label] : bounds[label + 1]]
        for m, limit in enumerate(limits):
            kept = by_score[found.rank[by_score] < limit]
            curves = _class_curves(found, kept, outcome, outcome_row[kept], num_truth[:, label])
            precision[:, :, label, :, m], recall[:, label, :, m], scores[:, :, label, :, m] = curves
    return precision, recall, scores


def _is_outside(area: np.ndarray) -> np.ndarray:
    """Which areas (N,) lie outside each area range, (N, A)."""
    return (area[:, None] < AREA_RANGES[:, 0]) | (area[:, None] > AREA_RANGES[:, 1])


def _class_curves(
    found: Detections, kept: np.ndarray, outcome: np.ndarray, outcome_row: np.ndarray, num_truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision (T, R, A), recall (T, A) and scores (T, R, A) of one class.

    Recall rises only at detections that have pairs and precision peaks only there, so the others are merely counted.

    Args:
        kept: (N,), rows of the class's detections by falling score.
        outcome: (C, T, A); outcome_row: (N,), where it tells of the detections kept, -1 for those without pairs.
        num_truth: (A,), objects that count.
    """
    place = np.flatnonzero(outcome_row >= 0)
    placed, inside = outcome[outcome_row[place]], ~_is_outside(found.area[kept])
    right, inside_placed = placed == MATCHED, inside[place, None]
    counted = right | ((placed == UNMATCHED) & inside_placed)
    num_right = np.cumsum(right, axis=0)
    num_counted = np.cumsum(inside, axis=0)[place, None] + np.cumsum(counted.astype(int) - inside_placed, axis=0)
    envelope = np.maximum.accumulate((num_right / (num_counted + np.spacing(1)))[::-1], axis=0)[::-1]

    precision, scores = np.full((2, len(IOU_THRESHOLDS), len(RECALL_POINTS), len(num_truth)), -1.0)
    recall = np.full((len(IOU_THRESHOLDS), len(num_truth)), -1.0)
    for a in np.flatnonzero(num_truth):
        needed = np.searchsorted(np.arange(num_truth[a] + 1) / num_truth[a], RECALL_POINTS)
        recall[:, a] = right[:, :, a].sum(axis=0) / num_truth[a]
        precision[:, :, a] = scores[:, :, a] = 0
        for t in range(len(IOU_THRESHOLDS)):
            index = np.searchsorted(num_right[:, t, a], needed)
            index = index[index < len(place)]
            precision[t, : len(index), a] = envelope[index, t, a]
            scores[t, : len(index), a] = found.score[kept[place[index]]]
        # Recall 0 is reached by the very first detection, whatever became of it.
        if len(kept):
            scores[:, 0, a] = found.score[kept[0]]
    return precision, recall, scores


def _summarize(precision: np.ndarray, recall: np.ndarray, scores: np.ndarray, class_names: list[str]) -> CocoResult:
    ap = [precision[..., 0, -1], precision[0, ..., 0, -1], precision[5, ..., 0, -1]]
    ap += [precision[..., area, -1] for area in (1, 2, 3)]
    ar = [recall[..., 0, limit] for limit in range(recall.shape[-1])] + [recall[..., area, -1] for area in (1, 2, 3)]
    by_class = [precision[:, :, k, 0, -1] for k in range(len(class_names))]
    return CocoResult(
        stats=np.array([mean_of_defined(values) for values in ap + ar]),
        precision=precision,
        recall=recall,
        scores=scores,
        ap=np.array([mean_of_defined(values) for values in by_class]),
        ap50=np.array([mean_of_defined(values[0]) for values in by_class]),
        ar=np.array([mean_of_defined(values) for values in recall[:, :, 0, -1].T]),
        class_names=class_names,
    )


def mean_of_defined(values: np.ndarray) -> float:
    """Mean without the values of -1, which is also that of none."""
    defined = values[values > -1]
    return float(defined.mean()) if len(defined) else -1.0
