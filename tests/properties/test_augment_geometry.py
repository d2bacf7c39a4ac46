"""Whatever `aug_config` says (S058, N017): labels stay inside the picture, in step, and where the pixels are."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rfdetr.datasets.aug_configs import TRANSFORMS, read_config
from rfdetr.datasets.augment import COLOUR, GEOMETRY, build_augmentations
from rfdetr.datasets.geometry import (
    PER_OBJECT,
    Target,
    about_centre,
    from_corners,
    rotation,
    shift_and_scale,
    shows_whole,
    warp_image,
    warp_target,
)
from rfdetr.datasets.masks import MaskStack

SIDES = st.integers(2, 70)
SEEDS = st.integers(0, 2**31)
REQUIRED: dict[str, dict[str, Any]] = {
    "RandomCrop": {"height": 20, "width": 30},
    "CenterCrop": {"height": 20, "width": 30},
    "RandomSizedCrop": {"min_max_height": (5, 40), "size": (24, 24)},
    "RandomResizedCrop": {"size": (30, 20)},
    "Affine": {"scale": (0.3, 2), "translate_percent": (-0.6, 0.6), "rotate": 50, "shear": (-30, 30)},
    "Perspective": {"scale": 0.5},
    "ShiftScaleRotate": {"shift_limit": 0.9},
}
CHANCE = st.sampled_from((0.3, 1.0))


@st.composite
def leaves(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from([*GEOMETRY, *COLOUR]))
    return {name: {**REQUIRED.get(name, {}), "p": draw(CHANCE)}}


def grouped(inner: st.SearchStrategy) -> st.SearchStrategy:
    names = st.sampled_from(("OneOf", "SomeOf", "Sequential"))
    return st.builds(
        lambda name, held, p: {name: {"transforms": held, "p": p}},
        names,
        st.lists(inner, min_size=1, max_size=3),
        CHANCE,
    )


CONFIGS = st.lists(st.recursive(leaves(), grouped, max_leaves=5), max_size=4)


def drawn(rng: np.random.Generator, hw: tuple[int, int], count: int) -> Target:
    height, width = hw
    low = rng.uniform(0, 0.7, (count, 2)) * (width, height)
    high = low + rng.uniform(0.05, 0.3, (count, 2)) * (width, height)
    boxes = np.concatenate((low, high), axis=1).astype(np.float32)
    points, seen = rng.uniform(0, 1, (count, 4, 2)) * (width, height), rng.integers(0, 3, (count, 4, 1))
    keypoints = np.concatenate((points, seen), axis=-1) * (seen > 0)
    return {
        "boxes": boxes,
        "labels": np.arange(count),
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
        "iscrowd": np.zeros(count, np.int64),
        "size": np.array(hw),
        "masks": MaskStack.of(rng.random((count, *hw)) > 0.5),
        "keypoints": keypoints.astype(np.float32),
    }


def plain(value: Any) -> np.ndarray:
    return value.dense() if isinstance(value, MaskStack) else value


@settings(max_examples=250, deadline=None)
@given(CONFIGS, SIDES, SIDES, st.integers(0, 4), SEEDS)
def test_S058_any_config_keeps_labels_inside_and_in_step(config: list, h: int, w: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, target = rng.integers(0, 256, (h, w, 3), dtype=np.uint8), drawn(rng, (h, w), count)
    before, types = image.copy(), {key: plain(value).dtype for key, value in target.items()}
    moved_image, moved = build_augmentations(config, [0, 1])(image, target, rng)
    boxes = moved["boxes"]
    assert np.array_equal(image, before)
    assert moved_image.shape == image.shape
    assert moved_image.dtype == np.uint8
    assert moved["size"].tolist() == [h, w]
    assert {key: plain(value).dtype for key, value in moved.items()} == types
    assert {len(moved[key]) for key in PER_OBJECT} == {len(boxes)}
    assert moved["masks"].dense().shape[1:] == (h, w)
    assert all(np.isfinite(moved[key]).all() for key in ("boxes", "area", "keypoints"))
    # Resizes round their factors to single precision.
    assert (boxes >= 0).all()
    assert (boxes <= np.array([w, h, w, h]) * (1 + 1e-6)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    seen = moved["keypoints"][moved["keypoints"][..., 2] > 0]
    # A mirror takes the last fraction of a pixel to just before the first pixel, and a crop may then enlarge it.
    assert (seen[:, :2] < (w, h)).all()
    assert not moved["keypoints"][moved["keypoints"][..., 2] == 0].any()


@settings(max_examples=60, deadline=None)
@given(CONFIGS, SEEDS)
def test_N017_the_same_draws_give_the_same_picture(config: list, seed: int) -> None:
    image, target = np.full((20, 24, 3), 90, np.uint8), drawn(np.random.default_rng(0), (20, 24), 2)
    (one, labels), (other, again) = (
        build_augmentations(config)(image, target, np.random.default_rng(seed)) for _ in range(2)
    )
    assert np.array_equal(one, other)
    assert all(np.array_equal(plain(labels[key]), plain(again[key])) for key in target)


@settings(max_examples=100, deadline=None)
@given(CONFIGS)
def test_a_config_read_from_its_complete_form_is_the_same(config: list) -> None:
    def complete(entries: Any) -> list[dict[str, Any]]:
        held = ({"transforms": complete(entry.children)} if entry.children else {} for entry in entries)
        return [{e.name: {**_plain(e.params), "p": e.p, **more}} for e, more in zip(entries, held, strict=True)]

    entries = read_config(config)
    assert read_config(complete(entries)) == entries


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters for x and y as the dictionary that a user writes."""
    pairs = {key: value for key, value in params.items() if isinstance(value, tuple) and isinstance(value[0], tuple)}
    split = {key: {"x": x, "y": y} for key, (x, y) in pairs.items()}
    return {**params, **split}


@settings(max_examples=150, deadline=None)
@given(st.integers(8, 60), st.integers(8, 60), st.integers(0, 3), st.booleans(), SEEDS)
def test_whole_pixels_are_copied_as_they_would_be_resampled(
    h: int, w: int, turns: int, mirrored: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image, masks = rng.integers(0, 256, (h, w, 3), dtype=np.uint8), rng.random((2, h, w)) > 0.5
    new_hw = (int(rng.integers(5, 60)), int(rng.integers(5, 60)))
    linear = rotation(90 * turns) @ np.diag([-1 if mirrored else 1, 1])
    matrix = about_centre((h, w), linear)
    matrix[:2, 2] = np.round(matrix[:2, 2] + rng.integers(-9, 10, 2))
    # So small a shift leaves every pixel what it is, but takes the other way.
    nudged = shift_and_scale(1e-7, 1e-7) @ matrix
    one, other = (warp_image(image, each, new_hw, (9, 8, 7)).astype(int) for each in (matrix, nudged))
    # Pillow cuts off the fractions of levels.
    assert np.abs(one - other).max() <= 1
    target = {**drawn(rng, (h, w), 2), "masks": MaskStack.of(masks)}
    # Large boxes, so that no object is dropped with its mask.
    target["boxes"] = np.array([[-999, -999, 999, 999]] * 2, np.float32)
    one, other = (warp_target(target, each, new_hw)["masks"].dense() for each in (matrix, nudged))
    assert np.array_equal(one, other)


@settings(max_examples=100, deadline=None)
@given(st.integers(10, 50), st.integers(10, 50), st.floats(-180, 180), st.floats(0.5, 2), SEEDS)
def test_there_and_back_is_where_it_was(h: int, w: int, degrees: float, scale: float, seed: int) -> None:
    target = drawn(np.random.default_rng(seed), (h, w), 3)
    matrix = about_centre((h, w), rotation(degrees) * scale)
    roomy = shift_and_scale(200, 200) @ matrix
    there = warp_target(target, roomy, (400, 400))
    back = warp_target(there, np.linalg.inv(roomy), (h, w))
    visible = target["keypoints"][..., 2] > 0
    xy = target["keypoints"][..., :2]
    inside = ((xy > 1e-3) & (xy < np.array([w, h]) - 1e-3)).all(axis=-1)
    assert np.allclose(back["keypoints"][visible & inside], target["keypoints"][visible & inside], atol=1e-3)
    # A box that encloses a turned box holds the old one.
    assert (back["boxes"][:, :2] <= target["boxes"][:, :2] + 1e-3).all()
    assert (back["boxes"][:, 2:] >= target["boxes"][:, 2:] - 1e-3).all()


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_the_horizon_of_a_perspective_stays_outside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = np.abs(np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) - rng.choice((0, 0.1, 0.2), (4, 2))) * (80, 60)
    matrix = from_corners(corners, (60, 80))
    depth = matrix[2] @ np.array([[0, 0, 1], [80, 0, 1], [80, 60, 1], [0, 60, 1], [40, 30, 1]]).T
    assert (depth / depth[4] > 0.2).all()
    found = matrix @ np.concatenate((corners, np.ones((4, 1))), axis=1).T
    assert np.allclose((found[:2] / found[2]).T, [[0, 0], [80, 0], [80, 60], [0, 60]])


def test_only_what_keeps_everything_shows_the_whole() -> None:
    quarter = about_centre((40, 40), rotation(90))
    assert shows_whole(quarter, (40, 40), (40, 40))
    assert shows_whole(shift_and_scale(50, 0, -1, 1), (40, 50), (40, 50))
    assert shows_whole(shift_and_scale(0, 0, 2, 0.5), (40, 50), (20, 100))
    assert not shows_whole(shift_and_scale(-1, 0), (40, 50), (40, 49))
    assert not shows_whole(about_centre((40, 40), rotation(45)), (40, 40), (40, 40))
    assert not shows_whole(about_centre((40, 50), rotation(90)), (40, 50), (40, 50))
    assert set(REQUIRED) <= set(TRANSFORMS)
