from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rfdetr.datasets import rle
from rfdetr.evaluation.coco import CocoEvaluator, GroundTruth
from rfdetr.evaluation.overlaps import box_overlaps, mask_overlaps

DATA = Path(__file__).parents[1] / "data" / "evaluation"


def load_expected(name: str) -> dict:
    return json.loads((DATA / f"{name}_expected.json").read_text())


def evaluate_recorded(name: str, kind: str, max_dets: int) -> CocoEvaluator:
    """The recorded ground truth and detections of `name`, compared by "bbox" or "segm"."""
    recorded = json.loads((DATA / f"{name}_gt.json").read_text())
    found = json.loads((DATA / f"{name}_dt.json").read_text())
    label_of = {category["id"]: label for label, category in enumerate(recorded["categories"])}
    image_ids = sorted(image["id"] for image in recorded["images"])
    objects = recorded["annotations"]
    truth = GroundTruth(
        image_index=np.array([image_ids.index(row["image_id"]) for row in objects]),
        label=np.array([label_of[row["category_id"]] for row in objects]),
        boxes_xywh_px=np.array([row["bbox"] for row in objects], dtype=np.float64),
        area=np.array([row["area"] for row in objects], dtype=np.float64),
        crowd=np.array([row["iscrowd"] == 1 for row in objects]),
        row=np.arange(len(objects)),
        num_images=len(image_ids),
        class_names=[category["name"] for category in recorded["categories"]],
    )
    evaluator = CocoEvaluator(truth, max_dets)
    for image_index, image_id in enumerate(image_ids):
        rows = [row for row in found if row["image_id"] == image_id]
        # The recorded sweep saw float32 scores, as a network gives them: 0.51 then lies below the confidence 0.51.
        scores = np.array([row["score"] for row in rows], dtype=np.float32)
        labels = np.array([label_of[row["category_id"]] for row in rows], dtype=np.int64)
        if kind == "bbox":
            boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            evaluator.update(image_index, scores, labels, boxes)
        else:
            masks = [row["segmentation"] for row in rows]
            add_masks(evaluator, image_index, scores, labels, masks, [row["segmentation"] for row in objects])
    return evaluator


def add_masks(
    evaluator: CocoEvaluator,
    image_index: int,
    scores: np.ndarray,
    labels: np.ndarray,
    masks: list[dict],
    truth_masks: list[dict],
) -> None:
    rows = evaluator.truth_rows(image_index)
    truth = evaluator.ground_truth
    objects = [cut_out(truth_masks[row]) for row in rows]
    overlaps = mask_overlaps(map(cut_out, masks), labels, objects, truth.label[rows], truth.crowd[rows])
    evaluator.update_overlaps(image_index, scores, labels, *overlaps)


def cut_out(mask: dict) -> rle.Patch:
    return rle.cut_out(rle.from_text(mask["counts"]), tuple(mask["size"]))


def make_truth(boxes_xywh: list, labels: list[int], image_index: list[int], num_images: int, num_classes: int = 2):
    boxes = np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    return GroundTruth(
        image_index=np.array(image_index, dtype=np.int64),
        label=np.array(labels, dtype=np.int64),
        boxes_xywh_px=boxes,
        area=boxes[:, 2] * boxes[:, 3],
        crowd=np.zeros(len(boxes), dtype=bool),
        row=np.arange(len(boxes)),
        num_images=num_images,
        class_names=[f"class_{label}" for label in range(num_classes)],
    )


@pytest.mark.parametrize("max_dets", [100, 500])
@pytest.mark.parametrize(("name", "kind"), [("bbox", "bbox"), ("segm", "bbox"), ("segm", "segm")])
def test_recorded_numbers_of_pycocotools_are_reproduced(name, kind, max_dets):
    expected = load_expected(name)[f"pycocotools_{kind}_maxdets{max_dets}"]
    result = evaluate_recorded(name, kind, max_dets).summarize()
    np.testing.assert_allclose(result.stats, expected["stats"], rtol=0, atol=1e-12)
    per_class = expected["per_class"].values()
    for key, values in (("ap", result.ap), ("ap50", result.ap50), ("ar", result.ar)):
        np.testing.assert_allclose(values, [row[key] for row in per_class], rtol=0, atol=1e-12)


def test_stats_are_named_in_coco_order():
    result = evaluate_recorded("bbox", "bbox", 500).summarize()
    named = result.as_dict()
    assert list(named) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR", "ARs", "ARm", "ARl"]
    assert list(named.values()) == result.stats.tolist()
    assert json.loads(json.dumps(named)) == named


def test_state_of_several_processes_merges_and_pictures_count_once():
    whole = evaluate_recorded("bbox", "bbox", 500)
    state = whole.state()
    ends, pair_ends = np.cumsum(state["num_detections"]), np.cumsum(state["num_pairs"])

    def part_of(start: int, stop: int) -> dict[str, np.ndarray]:
        detections = slice(ends[start] - state["num_detections"][start], ends[stop - 1])
        pairs = slice(pair_ends[start] - state["num_pairs"][start], pair_ends[stop - 1])
        part = {key: state[key][start:stop] for key in ("image_index", "num_detections", "num_pairs")}
        return part | {"detections": state["detections"][detections], "pairs": state["pairs"][pairs]}

    last = len(state["image_index"])
    merged = CocoEvaluator(whole.ground_truth, 500)
    # The parts overlap, as a sampler that pads its last batch makes them, and arrive out of order.
    merged.load_state([part_of(9, last), part_of(4, 10), part_of(0, 5), CocoEvaluator(whole.ground_truth).state()])
    for key, values in whole.state().items():
        assert np.array_equal(merged.state()[key], values)
    assert np.array_equal(merged.summarize().precision, whole.summarize().precision)


def test_a_picture_that_arrives_twice_counts_once():
    truth = make_truth([[0, 0, 10, 10]], [0], [0], num_images=1)
    evaluator = CocoEvaluator(truth)
    evaluator.update(0, np.array([0.9]), np.array([0]), np.array([[0, 0, 10, 10.0]]))
    evaluator.update(0, np.array([0.9]), np.array([0]), np.array([[50, 50, 60, 60.0]]))
    assert len(evaluator.detections().score) == 1
    assert evaluator.summarize().stats[0] == pytest.approx(1)


def test_order_of_updates_does_not_matter():
    # Equal scores: the order of the pictures decides which detection comes first.
    truth = make_truth([[0, 0, 10, 10], [0, 0, 20, 20]], [0, 0], [0, 1], num_images=2)
    right, wrong = np.array([[0, 0, 10, 10.0]]), np.array([[30, 30, 40, 40.0]])
    forward, backward = CocoEvaluator(truth), CocoEvaluator(truth)
    for evaluator, order in ((forward, (0, 1)), (backward, (1, 0))):
        for image_index in order:
            evaluator.update(image_index, np.array([0.5]), np.array([0]), (right, wrong)[image_index])
    assert np.array_equal(forward.summarize().precision, backward.summarize().precision)


def test_pictures_that_never_arrive_are_missed():
    truth = make_truth([[0, 0, 10, 10], [0, 0, 10, 10]], [0, 0], [0, 1], num_images=2)
    evaluator = CocoEvaluator(truth)
    evaluator.update(1, np.array([0.9]), np.array([0]), np.array([[0, 0, 10, 10.0]]))
    assert evaluator.summarize().as_dict()["AR"] == 0.5


@pytest.mark.parametrize("num_classes", [0, 2])
def test_no_ground_truth_leaves_everything_undefined(num_classes):
    evaluator = CocoEvaluator(make_truth([], [], [], num_images=2, num_classes=num_classes))
    evaluator.update(0, np.array([0.9]), np.array([1]), np.array([[0, 0, 10, 10.0]]))
    evaluator.update(1, np.array([]), np.array([]), np.zeros((0, 4)))
    result = evaluator.summarize()
    assert result.stats.tolist() == [-1] * 12
    assert result.ap.tolist() == result.ar.tolist() == [-1] * num_classes


def test_no_detections_score_zero():
    result = CocoEvaluator(make_truth([[0, 0, 10, 10]], [1], [0], num_images=1)).summarize()
    assert result.ap.tolist() == result.ap50.tolist() == result.ar.tolist() == [-1, 0]
    assert result.as_dict() | {"AP": 0, "APm": -1, "APl": -1} == result.as_dict()


def test_labels_outside_the_class_list_are_dropped():
    evaluator = CocoEvaluator(make_truth([[0, 0, 10, 10]], [0], [0], num_images=1))
    boxes = np.tile([0, 0, 10, 10.0], (3, 1))
    evaluator.update(0, np.array([0.9, 0.8, 0.7]), np.array([2, 0, -1]), boxes)
    assert evaluator.detections().score.tolist() == [0.8]


@pytest.mark.parametrize(
    ("objects", "num_right"), [([[0, 0, 10, 10], [4, 0, 10, 10]], 2), ([[4, 0, 10, 10], [0, 0, 10, 10]], 1)]
)
def test_the_later_of_equal_overlaps_wins(objects, num_right):
    evaluator = CocoEvaluator(make_truth(objects, [0, 0], [0, 0], num_images=1))
    # The first detection overlaps both objects by 2/3, the second only the left one.
    evaluator.update(0, np.array([0.9, 0.8]), np.array([0, 0]), np.array([[2, 0, 12, 10], [0, 0, 10, 10]]))
    assert evaluator.summarize().recall[0, 0, 0, -1] == num_right / 2


def test_overlap_with_a_crowd_is_measured_against_the_detection():
    boxes = np.array([[0, 0, 10, 10], [95, 0, 10, 10], [0, 0, 0, 10]], dtype=np.float64)
    truth = np.array([[0, 0, 100, 100], [0, 0, 10, 10], [5, 5, 0, 0]], dtype=np.float64)
    iou, plain_iou = box_overlaps(boxes, truth, np.array([True, False, False]))
    assert iou.tolist() == [[1, 1, 0], [0.5, 0, 0], [0, 0, 0]]
    assert plain_iou.tolist() == [[0.01, 1, 0], [50 / 10050, 0, 0], [0, 0, 0]]
