from __future__ import annotations

import json

import numpy as np
import pytest
from test_evaluation_coco import evaluate_recorded, load_expected, make_truth

from rfdetr.evaluation.coco import CocoEvaluator, GroundTruth
from rfdetr.evaluation.f1 import CONFIDENCES, results_table, sweep_confidence
from rfdetr.labels import unique_names

RECORDED = [("bbox", "bbox"), ("segm", "bbox"), ("segm", "segm")]


@pytest.mark.parametrize(("name", "kind"), RECORDED)
def test_recorded_sweep_is_reproduced(name, kind):
    expected = load_expected(name)[f"f1_sweep_{kind}"]
    # A limit on detections must not reach the sweep.
    sweep = sweep_confidence(evaluate_recorded(name, kind, max_dets=1))
    best = expected["best"]
    np.testing.assert_allclose(sweep.macro, expected["macro"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(sweep.best_macro, [best["precision"], best["recall"], best["f1"]], rtol=0, atol=1e-12)
    per_class = [best[f"per_class_{key}"] for key in ("precision", "recall", "f1")]
    np.testing.assert_allclose(sweep.best_per_class.T, per_class, rtol=0, atol=1e-12)
    assert sweep.confidence == best["confidence"]
    assert sweep.num_truth.tolist() == expected["total_gt"]


@pytest.mark.parametrize(("name", "kind"), RECORDED)
def test_results_table_has_the_documented_structure(name, kind):
    evaluator = evaluate_recorded(name, kind, max_dets=500)
    sweep = sweep_confidence(evaluator)
    table = results_table(evaluator.summarize(), sweep)
    expected = load_expected(name)[f"extended_metrics_v14_{kind}"]
    assert list(table) == list(expected)
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    for row, expected_row in zip(table["class_map"], expected["class_map"], strict=True):
        assert list(row) == list(expected_row)
        assert row["class"] == expected_row["class"]
        for key in ("map@50:95", "map@50"):
            assert row[key] == pytest.approx(expected_row[key], abs=1e-12)
    total = table["class_map"][-1]
    assert table == {
        "class_map": table["class_map"],
        "map": total["map@50"],
        "precision": sweep.best_macro[0],
        "recall": sweep.best_macro[1],
        "f1_score": sweep.best_macro[2],
    }


@pytest.mark.parametrize("seed", range(25))
def test_sweep_equals_a_naive_loop(seed):
    rng = np.random.default_rng(seed)
    num_classes, num_images = 3, 5
    # Few positions, sizes and scores, so that overlaps and scores tie and meet the threshold exactly.
    image_index = rng.integers(0, num_images, 30)
    boxes = np.c_[rng.integers(0, 4, (30, 2)), rng.integers(1, 5, (30, 2))] * 8.0
    truth = GroundTruth(
        image_index=image_index,
        label=rng.integers(0, num_classes - 1, 30),
        boxes_xywh_px=boxes,
        area=boxes[:, 2] * boxes[:, 3],
        crowd=rng.random(30) < 0.2,
        row=np.arange(30),
        num_images=num_images,
        class_names=["a", "b", "never annotated"],
    )
    evaluator, pictures = CocoEvaluator(truth, max_dets=2), []
    for index in range(num_images):
        count = int(rng.integers(0, 25))
        found = np.c_[rng.integers(0, 4, (count, 2)), rng.integers(0, 5, (count, 2))] * 8.0
        found[:, 2:] += found[:, :2]
        scores = rng.choice([0.0, 0.2, 0.25, 0.5, 0.501, 0.75, 1.0, np.nan], count).astype(np.float32)
        pictures.append((scores, rng.integers(0, num_classes, count), found))
        evaluator.update(index, *pictures[-1])
    sweep = sweep_confidence(evaluator)
    per_class, macro = sweep_naively(truth, pictures)
    np.testing.assert_allclose(sweep.per_class, per_class, rtol=0, atol=1e-15)
    np.testing.assert_allclose(sweep.macro, macro, rtol=0, atol=1e-14)
    assert sweep.best == next(t for t, row in enumerate(sweep.macro) if row[2] == sweep.macro[:, 2].max())


def sweep_naively(truth: GroundTruth, pictures: list) -> tuple[np.ndarray, np.ndarray]:
    """The definition, one detection at a time."""
    num_classes = len(truth.class_names)
    judged = [[] for _ in range(num_classes)]
    for index, (scores, labels, boxes) in enumerate(pictures):
        for label in range(num_classes):
            own = np.flatnonzero(labels == label)
            own = own[np.argsort(-scores[own].astype(np.float64), kind="stable")]
            objects = np.flatnonzero((truth.image_index == index) & (truth.label == label))
            judged[label] += judge_naively(truth, objects, scores[own], boxes[own])
    per_class = np.zeros((len(CONFIDENCES), num_classes, 3))
    for t, confidence in enumerate(CONFIDENCES):
        for label in range(num_classes):
            kept = [is_right for score, is_right in judged[label] if score >= confidence]
            right, total = sum(kept), int(((truth.label == label) & ~truth.crowd).sum())
            precision = right / len(kept) if kept else 0
            recall = right / total if total else 0
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
            per_class[t, label] = precision, recall, f1
    annotated = np.unique(truth.label[~truth.crowd])
    return per_class, per_class[:, annotated].mean(axis=1)


def judge_naively(truth: GroundTruth, objects: np.ndarray, scores: np.ndarray, boxes: np.ndarray) -> list:
    """(score, right or wrong) of one picture and class, without ignored detections."""
    judged, free = [], [row for row in objects if not truth.crowd[row]]
    for score, box in zip(scores.astype(np.float64), boxes, strict=True):
        overlaps = [iou_of(box, truth.boxes_xywh_px[row]) for row in free]
        if overlaps and max(overlaps) >= 0.5:
            free.pop(overlaps.index(max(overlaps)))
            judged.append((score, True))
        elif not any(truth.crowd[row] and iou_of(box, truth.boxes_xywh_px[row]) >= 0.5 for row in objects):
            judged.append((score, False))
    return judged


def iou_of(box_xyxy: np.ndarray, truth_xywh: np.ndarray) -> float:
    left, top, width, height = truth_xywh
    across = min(box_xyxy[2], left + width) - max(box_xyxy[0], left)
    down = min(box_xyxy[3], top + height) - max(box_xyxy[1], top)
    if across <= 0 or down <= 0:
        return 0.0
    area = (box_xyxy[2] - box_xyxy[0]) * (box_xyxy[3] - box_xyxy[1])
    return across * down / (area + width * height - across * down)


@pytest.mark.parametrize(
    ("objects", "num_right"), [([[0, 0, 10, 10], [4, 0, 10, 10]], 1), ([[4, 0, 10, 10], [0, 0, 10, 10]], 2)]
)
def test_the_first_of_equal_overlaps_wins(objects, num_right):
    evaluator = CocoEvaluator(make_truth(objects, [0, 0], [0, 0], num_images=1))
    # The first detection overlaps both objects by 2/3, the second only the left one.
    evaluator.update(0, np.array([0.9, 0.8]), np.array([0, 0]), np.array([[2, 0, 12, 10], [0, 0, 10, 10]]))
    assert sweep_confidence(evaluator).per_class[0, 0, 1] == num_right / 2


@pytest.mark.parametrize("num_found", [0, 1])
def test_sweep_without_ground_truth_is_zero(num_found):
    evaluator = CocoEvaluator(make_truth([], [], [], num_images=1))
    evaluator.update(0, np.full(num_found, 0.5), np.zeros(num_found, int), np.tile([0, 0, 9, 9], (num_found, 1)))
    sweep = sweep_confidence(evaluator)
    assert not sweep.macro.any()
    assert sweep.best == 0
    table = results_table(evaluator.summarize(), sweep)
    assert [row["class"] for row in table["class_map"]] == ["all"]
    assert table["map"] == -1


def test_sweep_without_detections_is_zero():
    sweep = sweep_confidence(CocoEvaluator(make_truth([[0, 0, 9, 9]], [0], [0], num_images=1)))
    assert not sweep.per_class.any()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["cat", "dog"], ["cat", "dog"]),
        (["cat", "dog", "cat", "cat"], ["cat", "dog", "cat_2", "cat_3"]),
        (["cat", "cat_2", "cat"], ["cat", "cat_2", "cat_2_2"]),  # the new name is itself taken
    ],
)
def test_names_that_occur_twice_get_their_index(names, expected):
    assert unique_names(names) == expected
