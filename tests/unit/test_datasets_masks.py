"""Masks of a target: drawn once at the end, as if every change had been made to whole planes one after the other."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from rfdetr.datasets.geometry import about_centre, from_corners, rotation, shift_and_scale
from rfdetr.datasets.masks import MaskStack
from rfdetr.datasets.outlines import Outlines

SIDES = st.integers(3, 24)
SEEDS = st.integers(0, 2**31)


def outlines_of(rows: list[list[np.ndarray]], normalized: bool = False) -> Outlines:
    """Outlines of rows of polygons (n, 2)."""
    rings = [ring for row in rows for ring in row]
    return Outlines(
        np.concatenate([np.zeros((0, 2)), *rings]),
        np.cumsum([0, *map(len, rings)]),
        np.cumsum([0, *map(len, rows)]),
        np.zeros(0, np.uint32),
        np.zeros(len(rows) + 1, np.int64),
        np.full(len(rows), normalized),
    )


def drawn_change(rng: np.random.Generator, hw: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int], float]:
    """A change such as the transforms make: matrix, new size, sample."""
    new_hw = tuple(rng.integers(3, 24, 2).tolist())
    kind = rng.integers(6)
    if kind == 0:
        return (
            shift_and_scale(scale_x=new_hw[1] / hw[1], scale_y=new_hw[0] / hw[0]),
            new_hw,
            float(rng.choice((0, 0.5))),
        )
    if kind == 1:
        return shift_and_scale(*-rng.integers(0, 4, 2).astype(float)), new_hw, 0.5
    if kind == 2:
        return shift_and_scale(hw[1], 0, -1, 1), hw, 0.5
    if kind == 3:
        return np.eye(3)[[1, 0, 2]], hw[::-1], 0.5
    if kind == 4:
        return about_centre(hw, rotation(rng.uniform(-180, 180)) * rng.uniform(0.5, 2), (2.5, -1)), new_hw, 0.5
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) + rng.uniform(-0.2, 0.2, (4, 2))
    return from_corners(corners * hw[::-1], new_hw), new_hw, 0.5


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, st.integers(0, 10), st.integers(1, 5), SEEDS)
def test_S060_changes_together_are_changes_one_by_one(h: int, w: int, count: int, steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lazy = eager = MaskStack.of(rng.random((count, h, w)) > 0.5)
    for _ in range(steps):
        change = drawn_change(rng, eager.hw)
        lazy, eager = lazy.warped(*change), MaskStack.of(eager.warped(*change).dense())
    assert lazy.hw == eager.hw
    assert np.array_equal(lazy.dense(), eager.dense())


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, SEEDS)
def test_each_new_pixel_is_the_one_under_its_middle(h: int, w: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((h, w)) > 0.5
    matrix, (height, width), _ = drawn_change(rng, (h, w))
    found = MaskStack.of(mask[None]).warped(matrix, (height, width), 0.5).dense()[0]
    for y in range(height):
        for x in range(width):
            across, down, depth = np.linalg.inv(matrix) @ (x + 0.5, y + 0.5, 1)
            row, column = down / depth, across / depth
            if min(abs(row - round(row)), abs(column - round(column))) > 1e-4:
                inside = 0 <= row < h and 0 <= column < w
                assert found[y, x] == (inside and mask[int(row), int(column)])


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 20])
def test_packed_bits_are_the_objects(count):
    masks = np.random.default_rng(count).random((count, 5, 6)) > 0.5
    packed = MaskStack.of(masks).packed()
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-count // 8), 5, 6)
    for n in range(count):
        assert np.array_equal(packed[n >> 3] >> (n & 7) & 1, masks[n])
    keep = np.arange(count) % 2 == 0
    assert np.array_equal(MaskStack.of(masks)[keep].dense(), masks[keep])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools
def test_a_row_is_the_union_of_its_polygons():
    rng = np.random.default_rng(0)
    rows = [[rng.uniform(-5, 45, (5, 2)) for _ in range(rng.integers(0, 4))] for _ in range(40)]
    outlines = outlines_of(rows)
    assert outlines.exist.tolist() == [bool(row) for row in rows]
    order = rng.integers(-1, 40, 60)
    taken = outlines.take(order)
    for place, row in enumerate(order):
        expected = np.zeros((30, 40), bool)
        for ring in rows[row] if row >= 0 else []:
            expected |= coco_mask.decode(coco_mask.frPyObjects([ring.ravel().tolist()], 30, 40))[..., 0] > 0
        top, left, mask = taken.patch(place, 30, 40)
        assert expected.sum() == mask.sum()
        assert np.array_equal(expected[top : top + mask.shape[0], left : left + mask.shape[1]], mask)


def test_taking_no_rows_of_no_rows_is_possible():
    assert len(outlines_of([]).take(np.zeros(0, np.int64))) == 0
    assert outlines_of([]).take(np.array([-1])).patch(0, 3, 4).mask.shape == (0, 0)


def test_fractions_are_filled_as_pillow_does_at_any_place():
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(1)
    for _ in range(300):
        height, width = rng.integers(50, 3000, 2).tolist()
        points = rng.uniform(0, 1, (rng.integers(3, 12), 2)) * rng.uniform(0.02, 0.3) + rng.uniform(-0.1, 1, 2)
        size = np.array((width, height), np.float32)
        picture = Image.new("L", (width, height))
        corners = np.clip(points.astype(np.float32) * size, 0, size - 1)
        ImageDraw.Draw(picture).polygon(corners.ravel().tolist(), fill=1)
        expected = np.array(picture)
        top, left, mask = outlines_of([[points]], normalized=True).patch(0, height, width)
        assert expected.sum() == mask.sum()
        assert np.array_equal(expected[top : top + mask.shape[0], left : left + mask.shape[1]], mask)


MEMORY = """
import tracemalloc
import numpy as np
from rfdetr.datasets.masks import MaskStack
from rfdetr.datasets.transforms import TrainTransform
from tests.unit.test_datasets_masks import outlines_of

angles = np.arange(60) / 60 * 2 * np.pi
circle = np.stack((np.cos(angles), np.sin(angles)), axis=1)
rng = np.random.default_rng(0)
rows = [[circle * rng.uniform(50, 1600) + rng.uniform(500, 2500, 2)] for _ in range(100)]
outlines = outlines_of(rows)
image = np.zeros((3000, 4000, 3), np.uint8)
boxes = np.array([[*ring.min(0), *ring.max(0)] for (ring,) in rows], np.float32).clip(0, 3000)
whole = TrainTransform((432,), jitter=False)
tracemalloc.start()
target = {"boxes": boxes, "labels": np.zeros(100, int), "area": np.ones(100, np.float32), "iscrowd": np.zeros(100, int)}
target["masks"] = MaskStack(lambda row: outlines.patch(row, 3000, 4000), np.arange(100), (3000, 4000))
packed = whole(image, target, rng)[1]["masks"]
assert packed.shape == (13, 432, 432) and packed.any(axis=(1, 2)).all()
print(tracemalloc.get_traced_memory()[1] / 2**20)
"""


def test_S060_masks_of_a_large_picture_take_little_memory():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    # One plane of the picture has 11 MB, all hundred would have 1,100.
    assert float(done.stdout) < 60
