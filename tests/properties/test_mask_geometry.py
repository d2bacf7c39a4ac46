"""Outlines and keypoints go where their object goes: to draw and then to move is to move and then to draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mirror import mirror_target

from rfdetr.datasets.augment import GEOMETRY, build_augmentations
from rfdetr.datasets.geometry import shift_and_scale, warp_target
from rfdetr.datasets.masks import MaskStack
from rfdetr.datasets.rle import decode, polygon

SIDES = st.integers(20, 70)
SEEDS = st.integers(0, 2**31)
PARAMETERS: dict[str, dict[str, Any]] = {
    "RandomCrop": {"height": 20, "width": 30},
    "CenterCrop": {"height": 20, "width": 30},
    "RandomSizedCrop": {"min_max_height": (10, 40), "size": (24, 24)},
    "RandomResizedCrop": {"size": (30, 20)},
    "Affine": {"scale": (0.5, 2), "translate_percent": (-0.3, 0.3), "rotate": 50, "shear": (-20, 20)},
    "Perspective": {"scale": 0.3},
    "ShiftScaleRotate": {"shift_limit": 0.5},
    "Rotate": {"limit": 180},
}


def drawn_polygon(rng: np.random.Generator, hw: tuple[int, int]) -> np.ndarray:
    """A star about the middle of the picture, all of it inside: (n, 2)."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    radius = rng.uniform(0.2, 0.48, len(angles)) * min(hw)
    return np.stack((np.cos(angles), np.sin(angles)), axis=1) * radius[:, None] + np.array(hw[::-1]) / 2


def moved_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    x, y, depth = matrix @ np.column_stack((points, np.ones(len(points)))).T
    return np.stack((x, y), axis=1) / depth[:, None]


def distance_to(points: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Distance (P,) of points (P, 2) from the outline of a polygon (n, 2)."""
    start, along = ring, np.roll(ring, -1, axis=0) - ring
    from_start = points[:, None] - start
    share = ((from_start * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12)).clip(0, 1)
    return np.sqrt(((from_start - share[..., None] * along) ** 2).sum(-1)).min(1)


def check_commutes(points: np.ndarray, hw: tuple[int, int], matrix: np.ndarray, new_hw: tuple[int, int], sample: float):
    target = {
        "boxes": np.array([[0, 0, *hw[::-1]]], np.float32),
        "area": np.ones(1, np.float32),
        "masks": MaskStack.of(decode(polygon(points, hw), hw)[None]),
    }
    found = warp_target(target, matrix, new_hw, whole=True, sample=sample)["masks"].dense()[0]
    ring = moved_points(points, matrix)
    # Where the moved corner of the picture cuts the object, the drawn polygon goes on outside.
    expected = decode(polygon(ring, new_hw), new_hw)
    ys, xs = np.nonzero(found ^ expected)
    steps = moved_points(np.array([[0, 0], [1, 0], [0, 1]]) + np.array(hw[::-1]) / 2, matrix)
    corners = moved_points(np.array([[0, 0], [1, 0], [0, 1]]), matrix)
    scale = max(np.abs(one[1:] - one[0]).sum(0).max() for one in (steps, corners))
    apart = distance_to(np.stack((xs, ys), axis=1) + 0.5, ring)
    # A pixel of the old picture and one of the new.
    assert (apart <= 1 + 1.5 * max(scale, 1)).all()


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, SEEDS)
@pytest.mark.parametrize("name", GEOMETRY)
def test_S060_an_augmented_mask_is_the_mask_of_the_augmented_outline(name: str, h: int, w: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (entry,) = build_augmentations({name: {**PARAMETERS.get(name, {}), "p": 1}}).entries
    params = {key: value for key, value in entry.params.items() if key not in ("fill", "size")}
    matrix, new_hw = GEOMETRY[name]((h, w), rng, **params)
    check_commutes(drawn_polygon(rng, (h, w)), (h, w), matrix, new_hw, 0.5)


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, SEEDS)
def test_S060_a_cropped_and_resized_mask_is_that_of_the_moved_outline(h: int, w: int, nh: int, nw: int, seed: int):
    rng = np.random.default_rng(seed)
    points = drawn_polygon(rng, (h, w))
    crop = shift_and_scale(-int(rng.integers(0, w // 2)), -int(rng.integers(0, h // 2)))
    matrix = shift_and_scale(scale_x=nw / w, scale_y=nh / h) @ crop
    # As one change and as the two that training makes, which ask for the upper left corner.
    check_commutes(points, (h, w), matrix, (nh, nw), 0)
    masks = MaskStack.of(decode(polygon(points, (h, w)), (h, w))[None])
    two = masks.warped(crop, (h, w)).warped(shift_and_scale(scale_x=nw / w, scale_y=nh / h), (nh, nw), 0)
    assert (two.dense() ^ masks.warped(matrix, (nh, nw), 0).dense()).mean() < 0.1


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, st.integers(0, 5), SEEDS)
def test_mirrored_twice_masks_and_keypoints_are_unchanged(h: int, w: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen = rng.integers(0, 3, (count, 5, 1))
    points = np.concatenate((rng.uniform(0, 1, (count, 5, 2)) * (w - 1, h - 1), seen), axis=-1) * (seen > 0)
    target = {
        "boxes": np.tile(np.array([0, 0, w, h], np.float32), (count, 1)),
        "area": np.ones(count, np.float32),
        "size": np.array([h, w]),
        "masks": MaskStack.of(rng.random((count, h, w)) > 0.5),
        "keypoints": points.astype(np.float32),
    }
    once = mirror_target(target, w, [0, 1, 3, 2])
    twice = mirror_target(once, w, [0, 1, 3, 2])
    assert np.array_equal(once["masks"].dense(), target["masks"].dense()[:, :, ::-1])
    assert np.array_equal(twice["masks"].dense(), target["masks"].dense())
    np.testing.assert_allclose(twice["keypoints"], target["keypoints"], atol=1e-4)
    swapped = target["keypoints"][:, [1, 0, 3, 2, 4]]
    np.testing.assert_allclose(
        once["keypoints"][..., 0], np.where(swapped[..., 2] > 0, w - 1 - swapped[..., 0], 0), atol=1e-4
    )
