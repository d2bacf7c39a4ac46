"""Whatever the picture and its boxes: transforms keep boxes inside the picture, not empty, and in step with it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mirror import mirror_target
from tests.vectors import assert_close

from rfdetr.datasets.network_input import to_network_size
from rfdetr.datasets.transforms import (
    EvalTransform,
    Target,
    TrainTransform,
    crop_target,
    resize_target,
    short_side_size,
)

SIDES = st.integers(12, 90)


def drawn_target(rng: np.random.Generator, height: int, width: int, count: int) -> Target:
    low = rng.uniform(0, 0.8, (count, 2)) * (width, height)
    high = low + rng.uniform(0.05, 0.2, (count, 2)) * (width, height)
    boxes = np.concatenate((low, high), axis=1).astype(np.float32)
    return {
        "boxes": boxes,
        "labels": np.arange(count),
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
        "iscrowd": np.zeros(count, np.int64),
        "size": np.array([height, width]),
    }


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(0, 6), st.integers(0, 2**31), st.booleans())
def test_training_keeps_boxes_inside_and_not_empty(h: int, w: int, count: int, seed: int, square: bool) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    moved, target = TrainTransform((32, 64), square=square)(image, drawn_target(rng, h, w, count), rng)
    boxes = target["boxes"]
    assert moved.dtype == np.uint8
    assert moved.shape[:2] == tuple(target["size"])
    assert boxes.dtype == np.float32
    assert boxes.shape == (len(target["labels"]), 4)
    assert (boxes[:, 2:] > 0).all()
    assert (boxes[:, :2] - boxes[:, 2:] / 2 > -1e-5).all()
    assert (boxes[:, :2] + boxes[:, 2:] / 2 < 1 + 1e-5).all()


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(0, 2**31))
def test_mirrored_twice_is_unchanged(h: int, w: int, seed: int) -> None:
    target = drawn_target(np.random.default_rng(seed), h, w, 5)
    twice = mirror_target(mirror_target(target, w), w)
    assert np.allclose(twice["boxes"], target["boxes"], atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**31))
def test_resized_there_and_back_is_unchanged(h: int, w: int, h2: int, w2: int, seed: int) -> None:
    target = drawn_target(np.random.default_rng(seed), h, w, 5)
    back = resize_target(resize_target(target, (h, w), (h2, w2)), (h2, w2), (h, w))
    assert np.allclose(back["boxes"], target["boxes"], rtol=1e-5, atol=1e-4)
    assert np.allclose(back["area"], target["area"], rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(0, 2**31))
def test_a_crop_shows_what_the_boxes_say(h: int, w: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = drawn_target(rng, h, w, 4)
    side = int(rng.integers(4, min(h, w) + 1))
    top, left = int(rng.integers(0, h - side + 1)), int(rng.integers(0, w - side + 1))
    cropped = crop_target(target, top, left, (side, side))
    x0, y0, x1, y1 = target["boxes"].T
    visible = (np.minimum(x1, left + side) > np.maximum(x0, left)) & (np.minimum(y1, top + side) > np.maximum(y0, top))
    assert cropped["labels"].tolist() == target["labels"][visible].tolist()
    assert len(cropped["area"]) == len(cropped["iscrowd"]) == int(visible.sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), SIDES, SIDES, st.integers(0, 2**31))
def test_the_gathered_resize_equals_interpolate(h: int, w: int, h2: int, w2: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    whole = (torch.from_numpy(image).permute(2, 0, 1).float() / 255).unsqueeze(0)
    expected = F.interpolate(whole, (h2, w2), mode="bilinear", align_corners=False)[0]
    # Positions are computed in single precision on both sides; near a tap boundary they differ by a few 1e-6.
    assert_close(to_network_size(image, (h2, w2)), expected, "pixels", 1e-4)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(8, 60))
def test_the_short_side_gets_its_size(h: int, w: int, short: int) -> None:
    height, width = short_side_size((h, w), short)
    assert min(height, width) == short
    assert abs(max(height, width) - short * max(h, w) / min(h, w)) <= 0.5 or min(h, w) == short


def test_evaluation_sees_what_prediction_sees() -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    seen, _ = EvalTransform(32)(image, drawn_target(np.random.default_rng(0), 70, 50, 2), np.random.default_rng(0))
    assert np.array_equal(seen, to_network_size(image, (32, 32)).transpose(1, 2, 0))
