"""The evaluator against pycocotools on drawn data: every array equal, bit for bit."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rfdetr.evaluation.coco import CocoEvaluator, GroundTruth

Pictures = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def draw_boxes(rng: np.random.Generator, count: int, cell: float, smallest: int) -> np.ndarray:
    """Boxes xywh (count, 4) on a coarse grid, so that overlaps tie and equal the thresholds exactly."""
    return np.c_[rng.integers(0, 4, (count, 2)), rng.integers(smallest, 5, (count, 2))] * cell


def draw_truth(rng: np.random.Generator, num_images: int, num_classes: int, most: int, cell: float) -> GroundTruth:
    count = int(rng.integers(0, most * num_images + 1))
    boxes = draw_boxes(rng, count, cell, smallest=0)
    return GroundTruth(
        image_index=rng.integers(0, num_images, count),
        label=rng.integers(0, rng.integers(1, num_classes + 1), count),
        boxes_xywh_px=boxes,
        area=boxes[:, 2] * boxes[:, 3] * rng.choice([0.5, 1], count),
        crowd=rng.random(count) < rng.choice([0, 0.3]),
        row=np.arange(count),
        num_images=num_images,
        class_names=[f"class_{label}" for label in range(num_classes)],
    )


def draw_pictures(rng: np.random.Generator, truth: GroundTruth, most: int, cell: float, jitter: float) -> Pictures:
    pictures = []
    for _ in range(truth.num_images):
        count = int(rng.integers(0, most + 1))
        boxes = draw_boxes(rng, count, cell, smallest=0)
        boxes[:, 2:] += boxes[:, :2]
        boxes += rng.random(boxes.shape) * jitter
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
        scores = rng.choice(np.linspace(0, 1, int(rng.integers(2, 40))), count).astype(np.float32)
        labels = rng.integers(0, len(truth.class_names), count)
        pictures.append((scores, labels, boxes.astype(np.float32)))
    return pictures


def evaluate_with_pycocotools(truth: GroundTruth, pictures: Pictures, max_dets: int) -> dict[str, np.ndarray]:
    dataset = {
        "images": [{"id": index + 1} for index in range(truth.num_images)],
        "categories": [{"id": label + 1} for label in range(len(truth.class_names))],
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(truth.image_index[row]) + 1,
                "category_id": int(truth.label[row]) + 1,
                "bbox": truth.boxes_xywh_px[row].tolist(),
                "area": float(truth.area[row]),
                "iscrowd": int(truth.crowd[row]),
            }
            for row in range(len(truth.label))
        ],
    }
    found = [np.zeros((0, 7))]
    for index, (scores, labels, boxes) in enumerate(pictures):
        boxes = boxes.astype(np.float64)
        found.append(
            np.c_[np.full(len(scores), index + 1), boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores, labels + 1]
        )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        rows = np.concatenate(found)
        # loadRes refuses an empty list.
        evaluation = COCOeval(coco, coco.loadRes(rows) if len(rows) else COCO(), "bbox")
        evaluation.params.maxDets = [min(1, max_dets), min(10, max_dets), max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def assert_equal_to_pycocotools(truth: GroundTruth, pictures: Pictures, max_dets: int) -> None:
    expected = evaluate_with_pycocotools(truth, pictures, max_dets)
    evaluator = CocoEvaluator(truth, max_dets)
    for index, picture in enumerate(pictures):
        evaluator.update(index, *picture)
    result = evaluator.summarize()
    for key in ("precision", "recall", "scores"):
        assert np.array_equal(getattr(result, key), expected[key]), key


@settings(max_examples=600, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_images=st.integers(1, 4),
    num_classes=st.integers(1, 3),
    most_objects=st.integers(0, 6),
    most_found=st.integers(0, 20),
    cell=st.sampled_from([4.0, 12.0, 32.0]),  # sizes within, at and across the limits of the size classes
    jitter=st.sampled_from([0.0, 1.0]),
    max_dets=st.sampled_from([1, 10, 100, 500]),
)
def test_equal_to_pycocotools(seed, num_images, num_classes, most_objects, most_found, cell, jitter, max_dets):
    rng = np.random.default_rng(seed)
    truth = draw_truth(rng, num_images, num_classes, most_objects, cell)
    pictures = draw_pictures(rng, truth, most_found, cell, jitter)
    assert_equal_to_pycocotools(truth, pictures, max_dets)


@pytest.mark.parametrize("left_first", [True, False])
def test_equal_to_pycocotools_when_overlaps_tie(left_first):
    """The first detection overlaps both objects alike, the second only the left one."""
    truth = draw_truth(np.random.default_rng(0), num_images=1, num_classes=1, most=0, cell=1.0)
    boxes = np.array([[0, 0, 10, 10], [4, 0, 10, 10]], dtype=np.float64)[:: 1 if left_first else -1]
    truth = replace(
        truth,
        image_index=np.zeros(2, dtype=np.int64),
        label=np.zeros(2, dtype=np.int64),
        boxes_xywh_px=boxes,
        area=np.full(2, 100.0),
        crowd=np.zeros(2, dtype=bool),
        row=np.arange(2),
    )
    found = np.array([0.9, 0.8]), np.array([0, 0]), np.array([[2, 0, 12, 10], [0, 0, 10, 10]], dtype=np.float64)
    assert_equal_to_pycocotools(truth, [found], max_dets=100)


@pytest.mark.parametrize("max_dets", [1, 10, 100, 500])
def test_equal_to_pycocotools_in_crowded_pictures(max_dets):
    rng = np.random.default_rng(max_dets)
    truth = draw_truth(rng, num_images=2, num_classes=1, most=80, cell=24.0)
    pictures = draw_pictures(rng, truth, most=600, cell=24.0, jitter=2.0)
    assert_equal_to_pycocotools(truth, pictures, max_dets)
