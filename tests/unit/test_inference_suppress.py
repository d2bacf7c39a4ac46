"""Leaving out detections of what another one has found, compared with naive loops."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tiny_model

from rfdetr.inference import suppress as module
from rfdetr.inference.decode import Found
from rfdetr.inference.suppress import covered, one_label_each, suppress

SETTINGS = {"deadline": None, "database": None, "derandomize": True, "max_examples": 200}
Box = tuple[float, float, float, float]
NMS = [0.0, 0.25, 1 / 3, 0.5, 0.75, 1.0]


def found_of(boxes: list[Box], scores: list[float], labels: list[int]) -> Found:
    """Detections with their number as another field."""
    return {
        "scores": np.array(scores, np.float32),
        "labels": np.array(labels, np.int64),
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "number": np.arange(len(scores)),
    }


@st.composite
def detections(draw: st.DrawFn) -> Found:
    """Boxes with whole corners, so that overlaps are exact and often equal to a threshold; many without area."""
    corner, side = st.integers(0, 8), st.integers(0, 6)
    boxes = draw(st.lists(st.tuples(corner, corner, side, side), max_size=14))
    count = len(boxes)
    scores = draw(st.lists(st.sampled_from([0.1, 0.5, 0.5, 0.7, 0.9]), min_size=count, max_size=count))
    labels = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    return found_of([(x, y, x + w, y + h) for x, y, w, h in boxes], scores, labels)


def areas(one: Box, other: Box) -> tuple[float, float, float]:
    """Of the intersection and of both boxes."""
    wide, tall = (max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1))
    first, second = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return wide * tall, first, second


def iou(one: Box, other: Box) -> float:
    inter, first, second = areas(one, other)
    return inter / (first + second - inter) if inter else 0.0


def naive(found: Found, overlap: float) -> list[int]:
    """Class by class, best first, each kept box against each before it."""
    boxes = [tuple(float(value) for value in box) for box in found["boxes"]]
    scores, labels = found["scores"].tolist(), found["labels"].tolist()
    kept: list[int] = []
    for row in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        # float32, as the overlaps are.
        rivals = [one for one in kept if labels[one] == labels[row]]
        if not any(np.float32(iou(boxes[one], boxes[row])) > overlap for one in rivals):
            kept.append(row)
    return sorted(kept)


@settings(**SETTINGS)
@given(found=detections(), overlap=st.sampled_from(NMS))
def test_what_stays_is_what_a_loop_over_pairs_keeps(found, overlap):
    before = {name: value.copy() for name, value in found.items()}
    left = suppress(found, overlap)
    assert left["number"].tolist() == naive(found, overlap)
    for name, value in left.items():
        assert np.array_equal(value, found[name][left["number"]])
        assert value.dtype == found[name].dtype
    assert all(np.array_equal(found[name], value) for name, value in before.items())


@settings(**SETTINGS)
@given(found=detections(), overlap=st.sampled_from(NMS))
def test_what_stays_stays_a_second_time(found, overlap):
    left = suppress(found, overlap)
    assert suppress(left, overlap)["number"].tolist() == left["number"].tolist()


@settings(**SETTINGS)
@given(found=detections())
def test_overlaps_are_those_of_every_pair(found):
    boxes = found["boxes"].tolist()
    for row, one in enumerate(boxes):
        overlaps = module.iou(found["boxes"][row], found["boxes"])
        of_one, of_others = covered(found["boxes"][row], found["boxes"])
        assert overlaps.shape == of_one.shape == of_others.shape == (len(boxes),)
        for other, overlap, share, share_of_other in zip(boxes, overlaps, of_one, of_others, strict=True):
            inter, first, second = areas(one, other)
            assert overlap == np.float32(iou(one, other))
            assert share == np.float32(inter / first if inter else 0.0)
            assert share_of_other == np.float32(inter / second if inter else 0.0)


def test_a_box_that_a_removed_one_is_over_stays():
    """A is over B, B over C: without B nothing removes C."""
    found = found_of([(0, 0, 10, 10), (4, 0, 14, 10), (8, 0, 18, 10)], [0.9, 0.8, 0.7], [1, 1, 1])
    assert suppress(found, 0.3)["number"].tolist() == [0, 2]


def test_a_chain_of_a_thousand_boxes_is_settled_to_its_end():
    """Each is over the next alone, so that every second one goes."""
    count = 1000
    boxes = [(6.0 * i, 0.0, 6.0 * i + 10, 10.0) for i in range(count)]
    found = found_of(boxes, np.linspace(1, 0.1, count).tolist(), [0] * count)
    assert suppress(found, 0.2)["number"].tolist() == list(range(0, count, 2))


def test_the_boxes_of_all_tiles_of_a_large_picture_need_no_table_of_pairs():
    """Of 4,000 boxes a table of pairs has 16 million entries, in several copies."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 4000, (4000, 2))
    found = found_of(np.hstack((corners, corners + 100)).tolist(), random.uniform(size=4000).tolist(), [0] * 4000)
    tracemalloc.start()
    left = suppress(found, 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2000 < len(left["scores"]) < 4000
    assert peak < 1e6


@pytest.mark.parametrize(
    ("boxes", "labels", "kept"),
    [
        ([], [], []),  # nothing
        ([(1, 1, 5, 5)], [0], [0]),
        ([(1, 1, 5, 5)] * 3, [0, 0, 0], [0]),  # equal boxes of equal scores: the first
        ([(1, 1, 5, 5)] * 3, [0, 1, 0], [0, 1]),  # another class
        ([(2, 2, 2, 2)] * 3, [0, 0, 0], [0, 1, 2]),  # without area nothing is covered
        ([(2, 2, 2, 9), (0, 0, 9, 9)], [0, 0], [0, 1]),
    ],
)
def test_nothing_equal_boxes_and_boxes_without_area(boxes, labels, kept):
    assert suppress(found_of(boxes, [0.5] * len(boxes), labels), 0.5)["number"].tolist() == kept


def test_boxes_that_touch_or_reach_the_limit_exactly_stay():
    # A third of the union is common.
    found = found_of([(0, 0, 2, 1), (1, 0, 3, 1), (3, 0, 4, 1)], [0.9, 0.8, 0.7], [0, 0, 0])
    assert suppress(found, float(np.float32(1 / 3)))["number"].tolist() == [0, 1, 2]
    assert suppress(found, 0.33)["number"].tolist() == [0, 2]
    assert suppress(found, 0.0)["number"].tolist() == [0, 2]


# One label for each box


@settings(**SETTINGS)
@given(found=detections())
def test_the_best_label_of_every_box_stays(found):
    best: dict[Box, int] = {}
    for row in range(len(found["scores"])):
        box = tuple(found["boxes"][row].tolist())
        if box not in best or found["scores"][row] > found["scores"][best[box]]:
            best[box] = row
    left = one_label_each(found)
    assert left["number"].tolist() == sorted(best.values())
    assert all(np.array_equal(value, found[name][left["number"]]) for name, value in left.items())


# `predict` with both


@pytest.fixture(scope="module")
def model():
    model = tiny_model(num_classes=3, num_select=40)
    torch.manual_seed(11)
    with torch.no_grad():
        model.model.model.class_head.weight.normal_(std=0.5)
        model.model.model.class_head.bias.zero_()
        model.model.model.box_head.layers[-1].weight.normal_(std=0.1)
        # Large boxes, which overlap.
        model.model.model.query_boxes[:, 2:] += 3
    return model


RGB = np.random.default_rng(5).integers(0, 256, (48, 64, 3), np.uint8)


def test_predict_leaves_out_what_a_better_box_of_the_class_covers(model):
    plain, left = model.predict(RGB, threshold=0.1), model.predict(RGB, threshold=0.1, nms=0.4)
    found = found_of(plain.xyxy.tolist(), plain.confidence.tolist(), plain.class_id.tolist())
    rows = naive(found, 0.4)
    assert 3 < len(rows) < len(plain)
    assert np.array_equal(left.xyxy, plain.xyxy[rows])
    assert np.array_equal(left.confidence, plain.confidence[rows])
    assert np.array_equal(left.class_id, plain.class_id[rows])
    assert len(model.predict(RGB, threshold=0.1, nms=1)) == len(plain)


def test_predict_gives_one_label_per_box(model):
    plain, left = model.predict(RGB, threshold=0.1), model.predict(RGB, threshold=0.1, one_label_per_box=True)
    boxes = {tuple(box) for box in plain.xyxy.tolist()}
    assert len(plain) > len(left) == len(boxes) > 3
    assert {tuple(box) for box in left.xyxy.tolist()} == boxes
    for box, score in zip(left.xyxy, left.confidence, strict=True):
        assert score == plain.confidence[(plain.xyxy == box).all(1)].max()


@pytest.mark.parametrize("nms", [-0.1, 1.1, True, "0.5", float("nan"), [0.5]])
def test_wrong_overlaps_are_refused(nms, model):
    with pytest.raises(ValueError, match="must be an intersection over union, 0 to 1, or None"):
        model.predict(RGB, nms=nms)
