"""Large pictures in tiles: planted objects come back as they are, however the tiles cut them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from tests.api.test_predict import spread
from tests.tiny import tiny_keypoints, tiny_model, tiny_segmenter

from rfdetr.inference.decode import Found, pixel_covariance
from rfdetr.inference.predictor import Predictor
from rfdetr.inference.tiles import Tile, check_tile, cut, merge
from rfdetr.labels import Labels
from rfdetr.models.enlarge import CutOut, paste

SETTINGS = {"deadline": None, "database": None, "derandomize": True}
Box = tuple[float, float, float, float]


# Cutting


@settings(max_examples=500, **SETTINGS)
@given(
    hw=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    sides=st.tuples(st.integers(16, 130), st.integers(16, 130)),
    overlap=st.one_of(st.sampled_from([0, 0.1, 0.2, 1 / 3, 0.5, 0.7, 0.9]), st.floats(0, 0.9)),
)
def test_tiles_cover_every_pixel_and_overlap_as_much_as_asked(hw, sides, overlap):
    tiles = cut(hw, sides, overlap)
    assert tiles[-1] == (0, 0, *hw)
    assert len(set(tiles)) == len(tiles)
    if hw[0] <= sides[0] and hw[1] <= sides[1]:
        assert tiles == [(0, 0, *hw)]
        return
    seen = np.zeros(hw, bool)
    for top, left, height, width in tiles[:-1]:
        # A tile is as large as asked, or as the picture.
        assert (height, width) == (min(sides[0], hw[0]), min(sides[1], hw[1]))
        assert 0 <= top <= hw[0] - height
        assert 0 <= left <= hw[1] - width
        seen[top : top + height, left : left + width] = True
    assert seen.all()
    for axis in (0, 1):
        starts, side = sorted({tile[axis] for tile in tiles[:-1]}), tiles[0][2 + axis]
        assert len(starts) >= 1
        steps = np.diff(starts)
        assert (side - steps >= side * overlap - 1e-6).all() or side - steps.max() == side - 1
        # Evenly, and not more of them than needed.
        assert len(starts) == 1 or steps.max() - steps.min() <= 1
        assert len(starts) <= 1 + max(0, -(-(hw[axis] - side) // max(1, int(side * (1 - overlap) - 1e-6))))
    assert len(tiles) - 1 == len({tile[0] for tile in tiles[:-1]}) * len({tile[1] for tile in tiles[:-1]})


@pytest.mark.parametrize(
    ("hw", "sides", "overlap", "expected"),
    [
        ((50, 60), (50, 60), 0.2, [(0, 0, 50, 60)]),
        ((20, 30), (640, 640), 0.9, [(0, 0, 20, 30)]),
        ((50, 100), (50, 50), 0, [(0, 0, 50, 50), (0, 50, 50, 50), (0, 0, 50, 100)]),
        # The picture is lower than a tile, but wider.
        ((30, 90), (50, 50), 0.2, [(0, 0, 30, 50), (0, 40, 30, 50), (0, 0, 30, 90)]),
        ((91, 30), (50, 50), 0.2, [(0, 0, 50, 30), (20, 0, 50, 30), (41, 0, 50, 30), (0, 0, 91, 30)]),
    ],
)
def test_tiles_of_some_pictures(hw, sides, overlap, expected):
    assert cut(hw, sides, overlap) == expected


@pytest.mark.parametrize("tile", [15, 0, -64, 64.0, "64", True, (64,), (64, 64, 64), (64, 8), [64, None], (64, 64.5)])
def test_wrong_tiles_are_refused(tile):
    with pytest.raises(ValueError, match=r"tile=.* must be \(height, width\) or one number of pixels, at least 16"):
        check_tile(tile, 0.2)


@pytest.mark.parametrize("overlap", [-0.1, 0.91, 1, True, "0.2", float("nan"), None])
@pytest.mark.parametrize("tile", [64, None])
def test_wrong_overlaps_are_refused(overlap, tile):
    with pytest.raises(
        ValueError, match=r"overlap=.* must be the part of a tile that its neighbours repeat, 0 to 0\.9"
    ):
        check_tile(tile, overlap)


@pytest.mark.parametrize(
    ("tile", "expected"),
    [(None, None), (16, (16, 16)), ((64, 32), (64, 32)), ([64, 32], (64, 32)), (np.int64(64), (64, 64))],
)
def test_tiles_are_given_as_one_number_or_two(tile, expected):
    assert check_tile(tile, 0) == expected


# Merging made-up detections

HW = (100, 160)
LEFT, RIGHT, WHOLE = (0, 0, 100, 100), (0, 60, 100, 100), (0, 0, 100, 160)
Planted = tuple[Box, float, int]


def found_of(planted: Sequence[Planted]) -> Found:
    return {
        "scores": np.array([score for _, score, _ in planted], np.float32),
        "labels": np.array([label for _, _, label in planted], np.int64),
        "boxes": np.array([box for box, _, _ in planted], np.float32).reshape(-1, 4),
    }


def merged(left: Sequence[Planted] = (), right: Sequence[Planted] = (), whole: Sequence[Planted] = ()) -> list[Planted]:
    tiles = [found_of(one) for one in (left, right, whole)]
    found, parts = merge([LEFT, RIGHT, WHOLE], tiles, HW)
    assert parts is None
    assert (np.diff(found["scores"]) <= 0).all()
    boxes = [tuple(box) for box in found["boxes"].tolist()]
    return list(zip(boxes, [round(float(s), 4) for s in found["scores"]], found["labels"].tolist(), strict=True))


@pytest.mark.parametrize(
    ("left", "right", "whole", "expected"),
    [
        # nothing at all
        ([], [], [], []),
        # in one tile alone
        ([((5, 5, 30, 30), 0.5, 1)], [], [], [((5, 5, 30, 30), 0.5, 1)]),
        ([], [((5, 5, 30, 30), 0.5, 1)], [], [((65, 5, 90, 30), 0.5, 1)]),
        # wholly in both: the better one, as it is
        ([((65, 10, 90, 30), 0.6, 1)], [((6, 11, 31, 31), 0.9, 1)], [], [((66, 11, 91, 31), 0.9, 1)]),
        # another class in the same place
        (
            [((65, 10, 90, 30), 0.6, 1)],
            [((5, 10, 30, 30), 0.9, 2)],
            [],
            [((65, 10, 90, 30), 0.9, 2), ((65, 10, 90, 30), 0.6, 1)],
        ),
        # two of a class in the same tile, nearly in the same place
        (
            [((10, 10, 40, 40), 0.9, 1), ((12, 10, 42, 40), 0.8, 1)],
            [],
            [],
            [((10, 10, 40, 40), 0.9, 1), ((12, 10, 42, 40), 0.8, 1)],
        ),
        # the same two, seen by two tiles which think differently of which one is better
        (
            [((65, 10, 85, 30), 0.9, 1), ((69, 10, 89, 30), 0.8, 1)],
            [((5, 10, 25, 30), 0.6, 1), ((9, 10, 29, 30), 0.7, 1)],
            [],
            [((65, 10, 85, 30), 0.9, 1), ((69, 10, 89, 30), 0.8, 1)],
        ),
        # side by side, sharing less than half
        (
            [((65, 10, 85, 30), 0.9, 1)],
            [((16, 10, 36, 30), 0.8, 1)],
            [],
            [((65, 10, 85, 30), 0.9, 1), ((76, 10, 96, 30), 0.8, 1)],
        ),
        # cut off by the left tile's border, mostly seen by both
        ([((70, 10, 100, 30), 0.9, 1)], [((10, 10, 60, 30), 0.8, 1)], [], [((70, 10, 120, 30), 0.9, 1)]),
        ([((70, 10, 100, 30), 0.8, 1)], [((10, 10, 60, 30), 0.9, 1)], [], [((70, 10, 120, 30), 0.9, 1)]),
        # larger than a tile: both pieces have less than half in common, but the whole joins them
        (
            [((10, 10, 100, 90), 0.9, 1)],
            [((0, 10, 95, 90), 0.7, 1)],
            [((10, 10, 155, 90), 0.8, 1)],
            [((10, 10, 155, 90), 0.9, 1)],
        ),
        (
            [((10, 10, 100, 90), 0.8, 1)],
            [((0, 10, 95, 90), 0.7, 1)],
            [((10, 10, 155, 90), 0.9, 1)],
            [((10, 10, 155, 90), 0.9, 1)],
        ),
        # without the whole, what the pieces say
        (
            [((10, 10, 100, 90), 0.9, 1)],
            [((0, 10, 95, 90), 0.7, 1)],
            [],
            [((10, 10, 100, 90), 0.9, 1), ((60, 10, 155, 90), 0.7, 1)],
        ),
        # a border of the picture cuts nothing off
        ([((0, 0, 30, 30), 0.9, 1)], [], [((0, 0, 34, 34), 0.8, 1)], [((0, 0, 30, 30), 0.9, 1)]),
        ([], [((70, 70, 100, 100), 0.9, 1)], [((126, 66, 160, 100), 0.8, 1)], [((130, 70, 160, 100), 0.9, 1)]),
        # something whole in front of something larger, which is whole in the whole, or cut off, better or worse
        (
            [((20, 20, 50, 50), 0.8, 1)],
            [],
            [((10, 10, 155, 90), 0.9, 1)],
            [((10, 10, 155, 90), 0.9, 1), ((20, 20, 50, 50), 0.8, 1)],
        ),
        (
            [((20, 20, 50, 50), 0.9, 1)],
            [],
            [((10, 10, 155, 90), 0.8, 1)],
            [((20, 20, 50, 50), 0.9, 1), ((10, 10, 155, 90), 0.8, 1)],
        ),
        (
            [((62, 10, 100, 90), 0.9, 1)],
            [((10, 20, 30, 50), 0.8, 1)],
            [],
            [((62, 10, 100, 90), 0.9, 1), ((70, 20, 90, 50), 0.8, 1)],
        ),
        # where two lie in what is cut off, the one that resembles it is the rest of it
        (
            [((70, 10, 100, 30), 0.9, 1)],
            [((11, 11, 30, 20), 0.8, 1), ((10, 10, 60, 30), 0.7, 1)],
            [],
            [((70, 10, 120, 30), 0.9, 1), ((71, 11, 90, 20), 0.8, 1)],
        ),
    ],
)
def test_made_up_detections(left, right, whole, expected):
    assert merged(left, right, whole) == expected


def test_what_was_found_is_not_written_to():
    found = [{**found_of([((5, 5, 30, 30), 0.5, 1)]), **keypoints_of(1)} for _ in range(2)]
    before = [{name: value.copy() for name, value in one.items()} for one in found]
    merge([LEFT, RIGHT], found, HW)
    for one, old in zip(found, before, strict=True):
        assert all(np.array_equal(one[name], value, equal_nan=True) for name, value in old.items())


def keypoints_of(count: int) -> Found:
    """Three keypoints each, the last of which the class does not have."""
    random = np.random.default_rng(0)
    points = np.concatenate((random.uniform(0, 90, (count, 3, 2)), random.uniform(0.1, 1, (count, 3, 1))), -1)
    factors = random.normal(0, 1, (count, 3, 3))
    points[:, 2], factors[:, 2] = 0, np.nan
    # Present or not, what exists moves with its tile.
    points[:, 1, 2] = 0
    return {"keypoints": points.astype(np.float32), "keypoint_precision_cholesky": factors.astype(np.float32)}


def test_keypoints_move_with_their_tile():
    planted = [((5, 5, 30, 30), 0.5, 1), ((35, 5, 80, 60), 0.4, 1)]
    given = {**found_of(planted), **keypoints_of(2)}
    none = {**found_of([]), **keypoints_of(0)}
    found, _ = merge([LEFT, RIGHT], [none, given], HW)
    expected = given["keypoints"] + np.float32([60, 0, 0])
    expected[:, 2] = 0
    assert np.array_equal(found["keypoints"], expected)
    assert np.isnan(found["keypoint_precision_cholesky"][:, 2]).all()


@settings(max_examples=200, **SETTINGS)
@given(
    seed=st.integers(0, 2**32 - 1),
    tile=st.tuples(st.integers(16, 900), st.integers(16, 900)),
    more=st.tuples(st.integers(0, 3000), st.integers(0, 3000)),
)
def test_the_covariance_in_pixels_is_that_of_the_tile(seed, tile, more):
    factors = np.random.default_rng(seed).normal(0, 1.5, (2, 4, 3)).astype(np.float32)
    hw = (tile[0] + more[0], tile[1] + more[1])
    found = {**found_of([((1, 1, 5, 5), 0.5, 0), ((1, 1, 5, 5), 0.5, 0)]), "keypoint_precision_cholesky": factors}
    found["keypoints"] = np.ones((2, 4, 3), np.float32)
    whole, _ = merge([(*more, *tile)], [found], hw)
    here, there = (
        pixel_covariance(one, *of) for one, of in ((factors, tile), (whole["keypoint_precision_cholesky"], hw))
    )
    # The logarithm of the scale is rounded to float32.
    np.testing.assert_allclose(there, here, rtol=2e-5, atol=1e-4)


def test_masks_of_what_was_cut_off_are_joined():
    """A disc over both tiles, of which each sees a part; another object beside it."""
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    disc = (rows - 50) ** 2 + (columns - 85) ** 2 <= 30**2
    block = (rows < 12) & (columns >= 62) & (columns < 80)
    found = []
    for (_, left, _, width), scores in ((LEFT, (0.9, 0.5)), (RIGHT, (0.8, 0.7))):
        masks = np.stack([one[:, left : left + width] for one in (disc, block)])
        planted = [(box_of(mask), score, 1) for mask, score in zip(masks, scores, strict=True)]
        found.append({**found_of(planted), "mask_logits": np.where(masks, 3, -3).astype(np.float32)})
    whole, parts = merge([LEFT, RIGHT], found, HW)
    assert whole["boxes"].tolist() == [[55, 20, 116, 81], [62, 0, 80, 12]]
    assert parts is not None
    assert np.array_equal(pasted(parts), [disc, block])


def test_masks_without_a_true_pixel_join_nothing():
    planted = [((70, 10, 100, 30), 0.9, 1)], [((10, 10, 60, 30), 0.8, 1)]
    found = [{**found_of(one), "mask_logits": np.full((1, 5, 5), -1, np.float32)} for one in planted]
    whole, parts = merge([LEFT, RIGHT], found, HW)
    assert len(whole["scores"]) == 1
    assert parts is not None
    assert not pasted(parts).any()


def box_of(mask: np.ndarray) -> Box:
    """The box around the true pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def pasted(parts: Sequence[CutOut]) -> np.ndarray:
    masks = np.zeros((len(parts), *HW), bool)
    paste(masks, parts)
    return masks


# `predict` of something that finds what was planted


class Finder:
    """Finds every object of a picture whose pixels say what they are: number, class, and nothing; 0 is background.

    Args:
        score: of an object by its number, whether the view has all of it, and the number of the view.
    """

    has_masks = False
    hw, block, patch_size, chunk = (64, 64), 32, 16, 4

    def __init__(self, count: int, score: Any, task: str) -> None:
        self.labels = Labels([str(i) for i in range(3)], [0, 1, 2], 3)
        self.score, self.task, self.has_masks = score, task, task == "segment"
        self.whole = dict.fromkeys(range(1, count + 1), 0)
        self.calls: list[int] = []
        self.views = 0

    def check_size(self, hw: tuple[int, int]) -> None: ...

    def detect(self, pictures: Sequence[np.ndarray], hw: tuple[int, int], threshold: float) -> list[Found]:
        self.calls.append(len(pictures))
        return [self.look(picture) for picture in pictures]

    def look(self, view: np.ndarray) -> Found:
        self.views += 1
        numbers = [number for number in np.unique(view[..., 0]).tolist() if number]
        masks = [view[..., 0] == number for number in numbers]
        scores = [
            self.score(n, mask.sum() == self.whole[n], self.views) for n, mask in zip(numbers, masks, strict=True)
        ]
        order = np.argsort(-np.array(scores), kind="stable")
        numbers, masks, scores = ([one[i] for i in order] for one in (numbers, masks, scores))
        found = found_of([(box_of(m), s, n % 3) for n, m, s in zip(numbers, masks, scores, strict=True)])
        height, width = view.shape[:2]
        if self.task == "segment":
            # One value per pixel of the view, so that enlarging changes nothing.
            found["mask_logits"] = np.where(np.array(masks).reshape(-1, height, width), 2, -2).astype(np.float32)
        if self.task == "keypoints":
            found["keypoints"] = np.ones((len(numbers), 2, 3), np.float32)
            found["keypoints"][..., :2] = found["boxes"].reshape(-1, 2, 2)
            # The same precision in pixels everywhere.
            factors = np.log(0.5) + np.log(width), -0.25 * height, np.log(0.2) + np.log(height)
            found["keypoint_precision_cholesky"] = np.tile(np.array(factors, np.float32), (len(numbers), 2, 1))
        return found


class Model(Predictor):
    def __init__(self, finder: Finder) -> None:
        self.finder = finder

    def _runner(self) -> Finder:
        return self.finder


def picture_of(boxes: Sequence[tuple[int, int, int, int]], hw: tuple[int, int]) -> np.ndarray:
    picture = np.zeros((*hw, 3), np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes, 1):
        picture[top:bottom, left:right, 0] = number
    return picture


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[tuple[int, int, int, int]], tuple[int, int]]:
    """Boxes that share no pixel, of any size up to the picture's, with borders in any place."""
    hw = draw(st.integers(20, 200)), draw(st.integers(20, 200))
    boxes: list[tuple[int, int, int, int]] = []
    for _ in range(draw(st.integers(1, 6))):
        left, top = draw(st.integers(0, hw[1] - 4)), draw(st.integers(0, hw[0] - 4))
        right, bottom = draw(st.integers(left + 4, hw[1])), draw(st.integers(top + 4, hw[0]))
        apart = all(left >= b[2] or right <= b[0] or top >= b[3] or bottom <= b[1] for b in boxes)
        if apart:
            boxes.append((left, top, right, bottom))
    return boxes, hw


def finder_of(boxes: Sequence[tuple[int, int, int, int]], score: Any, task: str) -> Finder:
    finder = Finder(len(boxes), score, task)
    finder.whole = {n: (r - x) * (b - y) for n, (x, y, r, b) in enumerate(boxes, 1)}
    return finder


@settings(max_examples=80, **SETTINGS)
@given(
    scene=scenes(),
    tile=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    overlap=st.sampled_from([0, 0.2, 0.5]),
    task=st.sampled_from(["detect", "segment"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_object_is_found_once_whatever_the_tiles_and_scores(scene, tile, overlap, task, seed):
    """Each view gives every object, or the part that it sees, another score."""
    boxes, hw = scene
    tiles = cut(hw, tile, overlap)
    assume(len(tiles) < 60)
    random = np.random.default_rng(seed).uniform(0.3, 1, (len(boxes) + 1, len(tiles) + 1))
    finder = finder_of(boxes, lambda number, complete, view: random[number, view], task)
    found = Model(finder).predict(picture_of(boxes, hw), threshold=0.2, tile=tile, overlap=overlap)
    expected = {tuple(map(float, box)): number % 3 for number, box in enumerate(boxes, 1)}
    assert dict(zip(map(tuple, found.xyxy.tolist()), found.class_id.tolist(), strict=True)) == expected
    assert len(found) == len(boxes)
    assert (np.diff(found.confidence) <= 0).all()
    if task == "segment":
        picture = picture_of(boxes, hw)
        for box, mask in zip(found.xyxy.tolist(), found.mask, strict=True):
            number = boxes.index(tuple(map(int, box))) + 1
            assert np.array_equal(mask, picture[..., 0] == number)


@settings(max_examples=60, **SETTINGS)
@given(scene=scenes(), tile=st.integers(16, 90))
def test_keypoints_and_their_covariance_come_back(scene, tile):
    """Of what a view sees all of, which scores better than parts."""
    boxes, hw = scene
    assume(len(cut(hw, (tile, tile), 0.2)) < 60)
    finder = finder_of(boxes, lambda number, complete, view: 0.5 + 0.3 * complete, "keypoints")
    found = Model(finder).predict(picture_of(boxes, hw), tile=tile, threshold=0.2)
    assert sorted(found.data["xyxy"].tolist()) == sorted([*map(float, box)] for box in boxes)
    assert np.array_equal(found.xy.reshape(-1, 4), found.data["xyxy"])
    lower = np.array([[0.5, 0], [-0.25, 0.2]])
    expected = np.tile(np.linalg.inv(lower @ lower.T), (len(found), 2, 1, 1))
    np.testing.assert_allclose(found.data["covariance"], expected, rtol=1e-4)


def test_tiles_are_searched_in_batches_and_pictures_one_by_one():
    boxes = [(5, 5, 20, 20), (70, 60, 95, 95)]
    picture = picture_of(boxes, (100, 100))
    finder = finder_of(boxes, lambda *_: 0.9, "detect")
    tiles = len(cut((100, 100), (50, 50), 0.2))
    found = Model(finder).predict([picture, picture[:40, :40]], tile=50, batch_size=4)
    assert (tiles, finder.calls) == (10, [4, 4, 2, 1])
    assert [len(one) for one in found] == [2, 1]
    assert found[0].data["source_shape"].tolist() == [[100, 100]] * 2
    assert np.array_equal(found[1].metadata["source_image"], picture[:40, :40])


def test_the_threshold_and_nms_are_those_of_the_picture():
    boxes = [(5, 5, 45, 45), (60, 60, 95, 95)]
    scores = {1: 0.9, 2: 0.4}
    finder = finder_of(boxes, lambda number, *_: scores[number], "segment")
    model, picture = Model(finder), picture_of(boxes, (100, 100))
    assert model.predict(picture, tile=50).xyxy.tolist() == [[5, 5, 45, 45]]
    assert model.predict(picture, tile=50, threshold={"2": 0.3}).xyxy.tolist() == [[5, 5, 45, 45], [60, 60, 95, 95]]
    dense, runs, polygons = (
        model.predict(picture, tile=50, threshold=0.2, nms=0.5, mask_format=mask_format)
        for mask_format in ("dense", "rle", "polygon")
    )
    masks = [picture[..., 0] == 1, picture[..., 0] == 2]
    assert np.array_equal(dense.mask, masks)
    wanted = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() for mask in masks]
    assert [one["counts"] for one in runs.data["rle"]] == wanted
    corners = [[[5, 5], [5, 44], [44, 44], [44, 5]], [[60, 60], [60, 94], [94, 94], [94, 60]]]
    assert [one[0].tolist() for one in polygons.data["polygons"]] == corners


def test_what_nms_leaves_out_takes_its_mask_along():
    """Two objects of a class, one of which mostly covers the other in its box, not in its pixels; and a third one."""
    picture = np.zeros((90, 90, 3), np.uint8)
    picture[10:60, 10:60, 0] = 1
    picture[12:58, 12:58, 0] = 4
    picture[70:80, 70:80, 0] = 7
    finder = Finder(7, lambda number, *_: {1: 0.5, 4: 0.9, 7: 0.4}[number], "segment")
    found = Model(finder).predict(picture, tile=80, threshold=0.2, nms=0.5, overlap=0.8)
    assert found.xyxy.tolist() == [[12, 12, 58, 58], [70, 70, 80, 80]]
    assert np.array_equal(found.mask, [picture[..., 0] == 4, picture[..., 0] == 7])


# Networks


@pytest.mark.parametrize("make", [tiny_model, tiny_segmenter, tiny_keypoints])
@pytest.mark.parametrize("hw", [(48, 64), (30, 20)])
def test_a_picture_that_fits_into_a_tile_gives_what_it_gives_without(make, hw):
    model = spread(
        make(num_classes=3, num_select=40, **({"num_keypoints_per_class": [3, 2]} if make is tiny_keypoints else {}))
    )
    picture = np.random.default_rng(5).integers(0, 256, (*hw, 3), np.uint8)
    for tile in (hw, 64, (1000, 2000)):
        plain, found = (model.predict(picture, threshold=0.1, **options) for options in ({}, {"tile": tile}))
        assert len(plain) == len(found) > 3
        if make is tiny_keypoints:
            # Best first; without tiles they have the order of before keypoints changed their scores.
            order = np.argsort(-plain.detection_confidence, kind="stable")
            assert np.array_equal(found.detection_confidence, plain.detection_confidence[order])
            assert np.array_equal(found.xy, plain.xy[order])
            assert np.array_equal(found.data["covariance"], plain.data["covariance"][order], equal_nan=True)
            continue
        assert np.array_equal(found.xyxy, plain.xyxy)
        assert np.array_equal(found.confidence, plain.confidence)
        assert np.array_equal(found.class_id, plain.class_id)
        if make is tiny_segmenter:
            assert np.array_equal(found.mask, plain.mask)


def test_every_tile_gives_what_it_gives_as_a_picture():
    model = spread(tiny_model(num_classes=3, num_select=40))
    picture = np.random.default_rng(5).integers(0, 256, (70, 100, 3), np.uint8)
    tiles: list[Tile] = cut((70, 100), (64, 64), 0.2)
    assert len(tiles) == 5
    alone = []
    for top, left, height, width in tiles:
        one = model.predict(picture[top : top + height, left : left + width], threshold=0.2)
        alone.append({"boxes": one.xyxy, "scores": one.confidence, "labels": one.class_id})
    expected, _ = merge(tiles, alone, (70, 100))
    for size in (1, 2, 32):
        found = model.predict(picture, threshold=0.2, tile=64, batch_size=size)
        assert len(found) == len(expected["scores"]) > 10
        np.testing.assert_allclose(found.confidence, expected["scores"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.xyxy, expected["boxes"], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 8}, r"tile=8 must be \(height, width\)"),
        ({"tile": (64, 64, 64)}, "tile="),
        ({"tile": 64, "overlap": 0.95}, r"overlap=0\.95"),
        ({"overlap": -1}, "overlap=-1"),
        ({"tile": 64, "batch_size": 0}, "batch_size=0"),
        ({"tile": 64, "batch_size": 2.5}, r"batch_size=2\.5"),
        ({"batch_size": "4"}, "batch_size='4'"),
    ],
)
def test_wrong_options_are_refused_before_any_picture_is_read(options, message):
    finder = Finder(0, None, "detect")
    with pytest.raises(ValueError, match=message):
        Model(finder).predict(itertools.repeat("nowhere.png"), **options)
    assert finder.calls == []
    with pytest.raises(ValueError, match=message):
        tiny_model(num_classes=3).predict(torch.zeros(3, 32, 32), **options)
