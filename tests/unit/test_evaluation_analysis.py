from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_evaluation_coco import evaluate_recorded, make_truth
from test_evaluation_f1 import iou_of

from rfdetr.datasets.layout import read_split
from rfdetr.datasets.synthetic import draw_dataset
from rfdetr.evaluation.analysis import Analysis, Outcome, PictureErrors, analyse
from rfdetr.evaluation.coco import CocoEvaluator, GroundTruth
from rfdetr.evaluation.f1 import CONFIDENCES, results_table, sweep_confidence
from rfdetr.evaluation.split import SplitEvaluation, ground_truth

CLASSES, PICTURES = 4, 6
Pictures = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def draw(seed: int) -> tuple[GroundTruth, Pictures]:
    """Boxes on a coarse grid, so that overlaps tie; of the last class there is nothing."""
    rng = np.random.default_rng(seed)
    boxes = np.c_[rng.integers(0, 4, (30, 2)), rng.integers(1, 4, (30, 2))] * 8.0
    truth = GroundTruth(
        image_index=rng.integers(0, PICTURES, 30),
        label=rng.integers(0, CLASSES - 1, 30),
        boxes_xywh_px=boxes,
        area=boxes[:, 2] * boxes[:, 3],
        crowd=rng.random(30) < 0.2,
        row=np.arange(30),
        num_images=PICTURES,
        class_names=["a", "b", "a", "never annotated"],
    )
    pictures = []
    for _ in range(PICTURES):
        count = int(rng.integers(0, 25))
        found = np.c_[rng.integers(0, 4, (count, 2)), rng.integers(0, 5, (count, 2))] * 8.0
        found[:, 2:] += found[:, :2]
        # Different scores, as the order of equal ones is no promise, on both sides of the confidences.
        scores = rng.choice(np.linspace(0, 1, 401), count, replace=False)
        pictures.append((scores, rng.integers(0, CLASSES, count), found))
    return truth, pictures


def evaluate(truth: GroundTruth, pictures: Pictures) -> CocoEvaluator:
    evaluator = CocoEvaluator(truth, 100, across_classes=True)
    for index, picture in enumerate(pictures):
        evaluator.update(index, *picture)
    return evaluator


def judge_naively(truth: GroundTruth, picture: int, found: tuple[np.ndarray, ...], thresholds: np.ndarray) -> dict:
    """The definition, one detection at a time."""
    scores, labels, boxes = found
    by_score = [n for n in np.argsort(-scores) if scores[n] >= thresholds[labels[n]]]
    objects = [row for row in np.flatnonzero(truth.image_index == picture) if not truth.crowd[row]]
    overlap = {(n, row): iou_of(boxes[n], truth.boxes_xywh_px[row]) for n in by_score for row in objects}
    crowds = np.flatnonzero((truth.image_index == picture) & truth.crowd)
    taken: dict[int, int] = {}
    left = []
    for n in by_score:
        free = [row for row in objects if row not in taken and truth.label[row] == labels[n]]
        best = max(free, key=lambda row: (overlap[n, row], -row), default=None)
        if best is not None and overlap[n, best] >= 0.5:
            taken[best] = n
        elif not any(
            truth.label[row] == labels[n] and iou_of(boxes[n], truth.boxes_xywh_px[row]) >= 0.5 for row in crowds
        ):
            left.append(n)
    duplicates = [n for n in left if any(truth.label[r] == labels[n] and overlap[n, r] >= 0.5 for r in objects)]
    mistaken: dict[int, int] = {}
    for n in left:
        free = [row for row in objects if row not in taken and row not in mistaken and truth.label[row] != labels[n]]
        best = max(free, key=lambda row: (overlap[n, row], -row), default=None)
        if best is not None and overlap[n, best] >= 0.5:
            mistaken[best] = n
    return {"objects": objects, "taken": taken, "left": left, "duplicates": duplicates, "mistaken": mistaken}


@pytest.mark.parametrize("seed", range(25))
def test_confusions_duplicates_and_pictures_are_those_of_a_naive_loop(seed):
    truth, pictures = draw(seed)
    analysis = analyse(evaluate(truth, pictures))
    thresholds = CONFIDENCES[analysis.best]
    matrix = np.zeros((CLASSES + 1, CLASSES + 1), np.int64)
    counts, duplicates = [], 0
    for index, found in enumerate(pictures):
        one = judge_naively(truth, index, found, thresholds)
        for row in one["objects"]:
            detection = (one["taken"] | one["mistaken"]).get(row)
            matrix[truth.label[row], CLASSES if detection is None else found[1][detection]] += 1
        for detection in set(one["left"]) - set(one["mistaken"].values()):
            matrix[CLASSES, found[1][detection]] += 1
        duplicates += len(one["duplicates"])
        right, wrong = len(one["taken"]), len(one["left"])
        missed = len(one["objects"]) - right
        counts.append([len(one["objects"]), right + wrong, missed, wrong, len(one["duplicates"]), len(one["mistaken"])])
    assert analysis.confusion.tolist() == matrix.tolist()
    assert analysis.pictures.tolist() == counts
    assert analysis.detections == matrix[:, :CLASSES].sum()
    assert analysis.duplicate_rate == duplicates / max(analysis.detections, 1)


@pytest.mark.parametrize("seed", range(10))
def test_the_matrix_agrees_with_the_table_of_classes(seed):
    truth, pictures = draw(seed)
    evaluator = evaluate(truth, pictures)
    analysis = analyse(evaluator)
    swept = sweep_confidence(evaluator)
    for label, row in enumerate(analysis.class_rows()[:-1]):
        f1 = swept.per_class[:, label, 2]
        assert row["f1"] == f1.max()
        best = CONFIDENCES[int(f1.argmax())] if f1.any() else swept.confidence
        assert row["threshold"] == pytest.approx(best, abs=1e-12)
        assert row["recall"] * row["objects"] == pytest.approx(analysis.confusion[label, label], abs=1e-9)
        assert row["objects"] == analysis.confusion[label].sum()
        found = analysis.confusion[:, label].sum()
        assert row["precision"] * found == pytest.approx(analysis.confusion[label, label], abs=1e-9)
    assert analysis.class_rows()[-1]["threshold"] == analysis.threshold == pytest.approx(swept.confidence)
    assert analysis.class_rows()[-1]["recall"] is None
    assert list(analysis.thresholds) == ["a", "b", "a_2", "never annotated"]


def test_other_classes_change_no_number_of_the_epoch_end():
    truth, pictures = draw(3)
    wide, narrow = evaluate(truth, pictures), CocoEvaluator(truth, 100)
    for index, picture in enumerate(pictures):
        narrow.update(index, *picture)
    assert np.array_equal(wide.summarize().precision, narrow.summarize().precision)
    assert np.array_equal(sweep_confidence(wide).per_class, sweep_confidence(narrow).per_class)
    assert len(wide.state()["pairs"]) > len(narrow.state()["pairs"]) == len(narrow.detections().pair_truth)


def test_json_is_finite_and_begins_as_the_results_of_a_run():
    evaluator = evaluate_recorded("bbox", "bbox", 100)
    content = analyse(evaluator).as_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    table = results_table(evaluator.summarize(), sweep_confidence(evaluator))
    assert {key: content[key] for key in table} == table
    assert [row["AP"] for row in content["classes"] if row["AP"] is not None] == [
        row["map@50:95"] for row in table["class_map"][:-1]
    ]
    size = content["sizes"][0]
    assert (size["AP"], size["AR"]) == (content["stats"]["APs"], content["stats"]["ARs"])
    curve = content["curves"]["classes"][content["classes"][0]["class"]]
    assert np.mean(curve["precision_mean"]) == pytest.approx(content["classes"][0]["AP"], abs=1e-4)


def two_classes(found: list[tuple[float, int, list[int]]]) -> Analysis:
    """A cat and a dog side by side, and these detections."""
    truth = make_truth([[0, 0, 10, 10], [20, 0, 10, 10]], [0, 1], [0, 0], num_images=2)
    evaluator = CocoEvaluator(truth, across_classes=True)
    scores, labels, boxes = zip(*found, strict=True) if found else ((), (), ())
    evaluator.update(0, np.array(scores), np.array(labels, np.int64), np.array(boxes, float).reshape(-1, 4))
    return analyse(evaluator)


LEFT, RIGHT, NOWHERE = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]


@pytest.mark.parametrize(
    ("found", "detections", "objects"),
    [
        ([], [], [Outcome.MISSED, Outcome.MISSED]),
        ([(0.9, 0, LEFT), (0.9, 1, RIGHT)], [Outcome.RIGHT, Outcome.RIGHT], [Outcome.RIGHT, Outcome.RIGHT]),
        # The duplicate has the same score, so no threshold leaves it out.
        ([(0.9, 0, LEFT), (0.9, 0, LEFT)], [Outcome.RIGHT, Outcome.DUPLICATE], [Outcome.RIGHT, Outcome.MISSED]),
        ([(0.9, 0, LEFT), (0.9, 0, RIGHT)], [Outcome.RIGHT, Outcome.CONFUSED], [Outcome.RIGHT, Outcome.CONFUSED]),
        ([(0.9, 0, LEFT), (0.9, 0, NOWHERE)], [Outcome.RIGHT, Outcome.WRONG], [Outcome.RIGHT, Outcome.MISSED]),
        ([(0.9, 0, LEFT), (0.2, 0, NOWHERE)], [Outcome.RIGHT, Outcome.IGNORED], [Outcome.RIGHT, Outcome.MISSED]),
    ],
)
def test_outcomes_of_a_picture(found, detections, objects):
    analysis = two_classes(found)
    for order in (slice(None), slice(None, None, -1)):
        scores = np.array([row[0] for row in found])[order]
        labels = np.array([row[1] for row in found], np.int64)[order]
        judged, seen = analysis.outcome(0, scores, labels)
        # Detections of one class and score cannot be told apart.
        assert sorted(judged.tolist()) == sorted(detections)
        assert seen.tolist() == objects
    with pytest.raises(ValueError, match=f"picture 0 was judged with {len(found)} detections, not {len(found) + 1}"):
        analysis.outcome(0, np.full(len(found) + 1, 0.5), np.zeros(len(found) + 1, np.int64))


def test_worst_pictures_come_first_and_good_ones_not_at_all():
    truth = make_truth([LEFT, LEFT, LEFT, NOWHERE], [0, 0, 0, 0], [0, 1, 2, 2], num_images=4)
    evaluator = CocoEvaluator(truth)
    for index, count in ((0, 1), (1, 4), (2, 1)):
        evaluator.update(index, np.full(count, 0.9), np.zeros(count, int), np.tile(LEFT, (count, 1)))
    worst = analyse(evaluator).worst(9)
    assert worst[0] == PictureErrors(1, objects=1, detections=4, missed=0, wrong=3, duplicates=3, confused=0)
    assert [(picture.image_index, picture.errors) for picture in worst] == [(1, 3), (2, 1)]
    assert len(analyse(evaluator).worst(1)) == 1


def test_most_frequent_confusions_are_named():
    assert two_classes([(0.9, 0, LEFT), (0.9, 0, RIGHT)]).confusions(10) == [("class_1", "class_0", 1)]
    assert two_classes([]).confusions(10) == []


@pytest.mark.parametrize("num_classes", [0, 2])
def test_without_objects_or_detections_everything_is_defined(num_classes):
    empty = CocoEvaluator(make_truth([], [], [], num_images=2, num_classes=num_classes), across_classes=True)
    content = analyse(empty).as_dict()
    assert content["threshold"] == 0.5
    assert content["worst_pictures"] == []
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_a_class_that_is_never_found_gets_the_threshold_of_all():
    analysis = two_classes([(0.75, 0, LEFT), (0.3, 0, NOWHERE), (0.2, 1, NOWHERE)])
    assert analysis.thresholds == {"class_0": 0.31, "class_1": 0.31}
    assert two_classes([(0.75, 0, NOWHERE)]).thresholds == {"class_0": 0.5, "class_1": 0.5}


def test_a_picture_left_out_counts_for_nothing_in_any_process():
    truth, pictures = draw(5)
    kept = truth.image_index != 2
    fewer = GroundTruth(
        **{
            name: getattr(truth, name)[kept]
            for name in ("image_index", "label", "boxes_xywh_px", "area", "crowd", "row")
        },
        num_images=PICTURES,
        class_names=truth.class_names,
    )
    expected, parts = CocoEvaluator(fewer, 100), [CocoEvaluator(truth, 100) for _ in range(2)]
    for index, picture in enumerate(pictures):
        if index == 2:
            parts[0].leave_out(index)
        else:
            parts[index % 2].update(index, *picture)
            expected.update(index, *picture)
    merged = CocoEvaluator(truth, 100)
    merged.load_state([part.state() for part in parts])
    again = CocoEvaluator(truth, 100)
    again.load_state([merged.state()])
    for evaluator in (merged, again):
        assert len(evaluator) == PICTURES - 1
        assert np.array_equal(evaluator.summarize().precision, expected.summarize().precision)
        assert np.array_equal(sweep_confidence(evaluator).per_class, sweep_confidence(expected).per_class)
        assert analyse(evaluator).pictures.tolist() == analyse(expected).pictures.tolist()
    merged.leave_out(0)
    assert len(merged) == PICTURES - 1, "a picture that was judged stays"


def test_a_split_leaves_pictures_out_and_compares_boxes_across_classes(tmp_path):
    draw_dataset(tmp_path, {"train": 1, "valid": 2}, shapes=("dart", "star"), hw=(96, 128), max_objects=4)
    annotations = read_split(tmp_path, "valid", masks=True)
    evaluation = SplitEvaluation(annotations, ground_truth(annotations), across_classes=True)
    objects = annotations.rows(0)
    labels = 1 - annotations.labels[objects]  # every object is taken for the other class
    found = {
        "scores": torch.full((len(labels),), 0.9),
        "labels": torch.from_numpy(labels),
        "boxes": torch.from_numpy(annotations.boxes_xyxy[objects]).float(),
        "mask_logits": torch.full((len(labels), 24, 32), -1.0),
    }
    evaluation.add(0, found, (96, 128))
    evaluation.leave_out(1)
    states = [evaluation.state()]
    merged = SplitEvaluation(annotations, ground_truth(annotations), across_classes=True)
    merged.load_state(states)
    analyses = merged.analyses()
    assert list(analyses) == ["boxes", "masks"]
    for analysis in analyses.values():
        assert analysis.objects == len(labels)
        assert analysis.confusion[0, 1] == (labels == 1).sum()
        assert analysis.confusion[1, 0] == (labels == 0).sum()
    plain = SplitEvaluation(annotations, ground_truth(annotations))
    plain.leave_out(0)
    assert list(plain.analyses()) == ["boxes"]
    assert "coco_eval_masks" not in plain.stats(), "a model without masks gets none by a picture that is left out"
    assert plain.stats()["coco_eval_bbox"][0] == 0, "the picture that never came is missed"


def test_keypoints_judge_only_objects_that_have_some(tmp_path):
    draw_dataset(tmp_path, {"train": 1, "valid": 3}, shapes=("dart", "star"), hw=(96, 128), max_objects=4)
    annotations = read_split(tmp_path, "valid", keypoints=True)
    evaluation = SplitEvaluation(annotations, ground_truth(annotations), across_classes=True)
    for index in range(len(annotations)):
        rows = annotations.rows(index)
        points = torch.from_numpy(annotations.keypoints_px(index, 96, 128))
        count = len(annotations.labels[rows])
        found = {
            "scores": torch.linspace(0.9, 0.5, count),
            "labels": torch.from_numpy(annotations.labels[rows]),
            "boxes": torch.from_numpy(annotations.boxes_xyxy[rows]),
            "keypoints": points,
        }
        evaluation.add(index, found, (96, 128))
    analyses = evaluation.analyses()
    assert list(analyses) == ["boxes", "keypoints"]
    darts, stars = (int((annotations.labels == label).sum()) for label in (0, 1))
    assert stars > 0
    assert analyses["boxes"].confusion.tolist() == [[darts, 0, 0], [0, stars, 0], [0, 0, 0]]
    assert analyses["keypoints"].confusion.tolist() == [[darts, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert analyses["keypoints"].sweep.best_macro.tolist() == [1, 1, 1]
