"""Runs of pixels against pycocotools: the same text, the same pixels of polygons, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from rfdetr.datasets import rle

SIDES = st.integers(1, 40)
MASKS = st.tuples(SIDES, SIDES).flatmap(lambda hw: arrays(bool, hw))
RUNS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30)


def recorded(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def pasted(patch: rle.Patch, hw: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(hw, bool)
    mask[patch.top :, patch.left :][: patch.mask.shape[0], : patch.mask.shape[1]] = patch.mask
    return mask


@settings(max_examples=300, deadline=None)
@given(MASKS)
def test_a_mask_is_the_same_text_and_comes_back(mask):
    counts = rle.encode(mask)
    assert counts.dtype == np.uint32
    assert rle.to_text(counts) == recorded(mask)
    assert np.array_equal(rle.from_text(recorded(mask)), counts)
    assert np.array_equal(rle.decode(counts, mask.shape), mask)
    patch = rle.cut_out(counts, mask.shape)
    assert np.array_equal(pasted(patch, mask.shape), mask)
    assert not mask.any() or patch.mask.any(0)[[0, -1]].all()


@settings(max_examples=300, deadline=None)
@given(RUNS)
def test_any_runs_survive_the_text(counts):
    counts = np.array(counts, np.uint32)
    assert np.array_equal(rle.from_text(rle.to_text(counts)), counts)


@pytest.mark.parametrize("mask", [np.zeros((3, 4), bool), np.ones((3, 4), bool), np.zeros((0, 4), bool)])
def test_nothing_and_everything(mask):
    assert np.array_equal(rle.decode(rle.encode(mask), mask.shape), mask)
    assert np.array_equal(pasted(rle.cut_out(rle.encode(mask), mask.shape), mask.shape), mask)


def test_a_cut_out_is_no_larger_than_what_is_true():
    mask = np.zeros((30, 40), bool)
    mask[5:9, 11:13] = True
    top, left, part = rle.cut_out(rle.encode(mask), mask.shape)
    assert (top, left, part.shape) == (5, 11, (4, 2))
    assert rle.cut_out(rle.encode(mask & False), mask.shape).mask.shape == (0, 0)


def drawn_polygon(rng: np.random.Generator, hw: tuple[int, int], kind: str) -> np.ndarray:
    size = np.array(hw[::-1])
    points = rng.uniform(-0.4, 1.4, (rng.integers(3, 10), 2)) * size
    return {
        "fractions": lambda: points,
        "integers": lambda: points.round(),
        "halves": lambda: (2 * points).round() / 2,
        "clipped": lambda: points.clip(0, size),
        "repeated": lambda: np.repeat(points.round(), 2, axis=0),
        "flat": lambda: points * (1, 0) + (0, 3),
        "far": lambda: points * 40,
    }[kind]()


@pytest.mark.parametrize("kind", ["fractions", "integers", "halves", "clipped", "repeated", "flat", "far"])
def test_S060_polygons_have_the_pixels_of_pycocotools(kind):
    rng = np.random.default_rng(0)
    for _ in range(600):
        height, width = hw = tuple(rng.integers(1, 60, 2).tolist())
        points = drawn_polygon(rng, hw, kind)
        expected = coco_mask.frPyObjects([points.ravel().tolist()], height, width)[0]["counts"].decode()
        assert rle.to_text(rle.polygon(points, hw)) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is not a compressed mask"),
        ("Rc05 g1", "characters from '0' to 'o'"),
        ("Rc05€", "characters from '0' to 'o'"),
        ("05S", "no cut end"),
        ("o" * 9 + "0", "written with 10 characters"),
        ("0N", "has -2 pixels"),
    ],
)
def test_texts_that_are_no_mask_are_refused(text, says):
    with pytest.raises(ValueError, match=says):
        rle.from_text(text)


def test_runs_must_fill_the_picture():
    with pytest.raises(ValueError, match=r"cover 12 pixels; a mask of 4 x 5 \(height x width\) has 20"):
        rle.decode(np.array([2, 10], np.uint32), (4, 5))
