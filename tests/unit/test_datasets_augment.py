"""`aug_config` (S058, N017): the form, every transform against an oracle, and pixels and labels moving together."""

from __future__ import annotations

import colorsys
import inspect
import pickle
import sys
import types
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image, ImageEnhance, ImageOps
from tests.mirror import mirror_target
from tests.vectors import read_arrays, read_json

from rfdetr.datasets import aug_config, aug_configs
from rfdetr.datasets.aug_configs import CONTAINERS, PRESETS, TRANSFORMS
from rfdetr.datasets.augment import COLOUR, GEOMETRY, build_augmentations
from rfdetr.datasets.geometry import PER_OBJECT, Target, shift_and_scale, warp_image, warp_target
from rfdetr.datasets.masks import MaskStack
from rfdetr.datasets.transforms import TrainTransform, crop_target, resize_target

SIDE = 160

GEOMETRIC = {
    # name: parameters
    "HorizontalFlip": {},
    "VerticalFlip": {},
    "Transpose": {},
    "RandomRotate90": {},
    "Rotate": {"limit": 45},
    "Affine": {"scale": (0.8, 1.2), "translate_percent": 0.1, "rotate": (-15, 15), "shear": (-5, 5)},
    "ShiftScaleRotate": {},
    "Perspective": {"scale": 0.15},
    "RandomCrop": {"height": 120, "width": 100},
    "CenterCrop": {"height": 100, "width": 120},
    "RandomSizedCrop": {"min_max_height": (90, 140), "height": 200, "width": 150},
    "RandomResizedCrop": {"size": (140, 180), "scale": (0.4, 1.0)},
}
COLOURS = {
    "ColorJitter": {},
    "HueSaturationValue": {"hue_shift_limit": (10, 20)},
    "RandomBrightnessContrast": {},
    "RandomGamma": {},
    "ToGray": {},
    "Blur": {},
    "GaussianBlur": {},
    "MotionBlur": {},
    "GaussNoise": {},
    "Sharpen": {},
    "Equalize": {},
    "CLAHE": {},
}


def always(name: str, **params: Any):
    return build_augmentations({name: {**params, "p": 1.0}})


def scene(rng: np.random.Generator, hw: tuple[int, int] = (SIDE, SIDE)) -> tuple[np.ndarray, Target]:
    """White rectangles on black, one in each quarter, with masks and five keypoints well inside each."""
    height, width = hw
    image, masks, boxes, keypoints = np.zeros((*hw, 3), np.uint8), [], [], []
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        half = np.array([width // 2, height // 2])
        first = half * (column, row) + rng.integers(3, 20, 2)
        last = half * (column + 1, row + 1) - rng.integers(3, 20, 2)
        mask = np.zeros(hw, bool)
        mask[first[1] : last[1], first[0] : last[0]] = True
        image[mask] = 255
        masks.append(mask)
        boxes.append([*first, *last])
        inner = [rng.integers(first + 5, last - 5) for _ in range(5)]
        keypoints.append([[x, y, 2] for x, y in inner[:4]] + [[0, 0, 0]])
    boxes = np.array(boxes, np.float32)
    return image, {
        "boxes": boxes,
        "labels": np.arange(4),
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
        "iscrowd": np.zeros(4, np.int64),
        "image_id": np.array([7]),
        "orig_size": np.array(hw),
        "size": np.array(hw),
        "masks": MaskStack.of(np.array(masks)),
        "keypoints": np.array(keypoints, np.float32),
    }


def photo(hw: tuple[int, int] = (64, 80)) -> np.ndarray:
    """Smooth colours with some texture."""
    rng = np.random.default_rng(5)
    coarse = Image.fromarray(rng.integers(20, 235, (6, 7, 3), dtype=np.uint8)).resize(
        hw[::-1], Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(coarse) + rng.integers(-8, 9, (*hw, 3)), 0, 255).astype(np.uint8)


def plain(value: Any) -> np.ndarray:
    return value.dense() if isinstance(value, MaskStack) else value


def same(one: Target, other: Target) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(plain(one[key]), plain(other[key])) for key in one)


def levels_apart(one: np.ndarray, other: np.ndarray) -> float:
    return np.abs(one.astype(float) - other).max()


def bare(boxes: Any = ()) -> Target:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    return {
        "boxes": boxes,
        "labels": np.arange(count),
        "area": np.ones(count, np.float32),
        "iscrowd": np.zeros(count, np.int64),
    }


def test_N017_every_name_has_its_function_and_a_row_here():
    assert TRANSFORMS.keys() == GEOMETRY.keys() | COLOUR.keys() | set(CONTAINERS)
    assert GEOMETRY.keys() == GEOMETRIC.keys()
    assert COLOUR.keys() == COLOURS.keys()


@pytest.mark.parametrize("name", [*GEOMETRY, *COLOUR])
def test_a_function_takes_the_parameters_of_its_table(name):
    function = (GEOMETRY | COLOUR)[name]
    names = set(list(inspect.signature(function).parameters)[2:])
    assert names == TRANSFORMS[name].keys() - ({"fill", "size"} if name in GEOMETRY else set())


# Geometry


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", GEOMETRIC)
def test_N017_picture_masks_boxes_and_keypoints_move_together(name, seed):
    image, target = scene(np.random.default_rng(seed))
    moved_image, moved = always(name, **GEOMETRIC[name])(image, target, np.random.default_rng(seed))
    assert moved_image.shape == image.shape
    assert moved_image.dtype == np.uint8
    assert moved["size"].tolist() == [SIDE, SIDE]
    assert {len(moved[key]) for key in PER_OBJECT} == {len(moved["labels"])}
    assert len(moved["labels"]) >= 1
    for box, mask, points in zip(moved["boxes"], moved["masks"].dense(), moved["keypoints"], strict=True):
        assert (box >= 0).all()
        # A resize rounds its factors, which may move an edge by an ulp.
        assert (box <= SIDE + 1e-4).all()
        ys, xs = np.nonzero(mask)
        if len(ys):
            tight = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert (tight[:2] >= box[:2] - 1.5).all()
            assert (tight[2:] <= box[2:] + 1.5).all()
        for x, y, visible in points:
            assert not visible or mask[min(round(float(y)), SIDE - 1), min(round(float(x)), SIDE - 1)]
    bright, union = moved_image[..., 0] > 127, moved["masks"].dense().any(0)
    assert (bright & union).sum() / (bright | union).sum() > 0.95
    assert not moved["keypoints"][moved["keypoints"][..., 2] == 0].any()


@pytest.mark.parametrize("name", ["HorizontalFlip", "VerticalFlip", "Transpose", "RandomRotate90", "CenterCrop"])
def test_a_keypoint_follows_its_pixel(name):
    params = {"height": SIDE - 20, "width": SIDE - 30} if name == "CenterCrop" else {}
    _, target = scene(np.random.default_rng(0))
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    for number, (x, y, _) in enumerate(target["keypoints"][:, 0].astype(int)):
        image[y, x] = number + 1
    step = always(name, **params)
    # Without the resize that follows a crop.
    moved_image, moved = step._move(step.entries[0], image, target, np.random.default_rng(1))
    for label, (x, y, visible) in zip(moved["labels"], moved["keypoints"][:, 0].astype(int), strict=True):
        assert not visible or moved_image[y, x, 0] == label + 1


@pytest.mark.parametrize(
    ("name", "times"), [("HorizontalFlip", 2), ("VerticalFlip", 2), ("Transpose", 2), ("Rotate", 4)]
)
def test_repeated_until_it_is_the_identity(name, times):
    image, target = scene(np.random.default_rng(3))
    step = always(name, **({"limit": (90, 90)} if name == "Rotate" else {}))
    moved_image, moved = image, target
    for number in range(times):
        moved_image, moved = step(moved_image, moved, np.random.default_rng(number))
        assert number == times - 1 or not np.array_equal(moved_image, image)
    assert np.array_equal(moved_image, image)
    assert same(moved, target)


def test_a_quarter_turn_is_anticlockwise_and_four_are_none():
    image, target = scene(np.random.default_rng(4), (100, 140))
    step = always("RandomRotate90")
    turned_image, turned = image, target
    count = 0
    for seed in range(20):
        turns = int(np.random.default_rng((seed, 0)).integers(4))
        rng = np.random.default_rng((seed, 0))
        turned_image, turned = step._move(step.entries[0], turned_image, turned, rng)
        count += turns
        assert np.array_equal(turned_image, np.rot90(image, count))
        assert np.array_equal(turned["masks"].dense(), np.rot90(target["masks"].dense(), count, axes=(1, 2)))
        if count % 4 == 0:
            assert same(turned, target)


def test_S058_the_aerial_preset_turns_exactly():
    image, target = scene(np.random.default_rng(4))
    moved_image, moved = always("Rotate", limit=(90, 90))(image, target, np.random.default_rng(0))
    assert np.array_equal(moved_image, np.rot90(image))
    x0, y0, x1, y1 = target["boxes"].T
    assert np.array_equal(moved["boxes"], np.stack((y0, SIDE - x1, y1, SIDE - x0), axis=1))
    assert np.array_equal(moved["area"], target["area"])


def test_flip_pairs_are_swapped_by_a_mirror_and_by_nothing_else():
    image, target = scene(np.random.default_rng(0))
    pairs = [0, 1, 2, 3]
    for name, swaps in (("HorizontalFlip", True), ("VerticalFlip", True), ("Transpose", True), ("Rotate", False)):
        config = {name: {"p": 1}} if swaps else {name: {"limit": (90, 90), "p": 1}}
        plain = build_augmentations(config)(image, target, np.random.default_rng(0))[1]["keypoints"]
        paired = build_augmentations(config, pairs)(image, target, np.random.default_rng(0))[1]["keypoints"]
        assert np.array_equal(paired, plain[:, [1, 0, 3, 2, 4]] if swaps else plain)


def test_fill_is_what_lies_outside():
    image, target = scene(np.random.default_rng(0))
    moved, _ = always("Affine", translate_px={"x": 30, "y": 0}, fill=(1, 2, 3))(image, target, np.random.default_rng(0))
    assert (moved[:, :30] == (1, 2, 3)).all()
    assert np.array_equal(moved[:, 30:], image[:, :-30])
    tilted, _ = always("Rotate", limit=(45, 45), fill=9)(image, target, np.random.default_rng(0))
    assert (tilted[0, 0] == 9).all()


def test_affine_moves_a_point_as_its_parameters_say():
    target = bare([[50, 60, 70, 80]])
    step = always("Affine", scale={"x": 2, "y": 1}, translate_percent={"x": 0.1, "y": 0})
    moved = step(np.zeros((100, 100, 3), np.uint8), target, np.random.default_rng(0))[1]
    # About the centre 50: x doubles its distance, then 10 pixels to the right.
    assert np.allclose(moved["boxes"], [[60, 60, 100, 80]])


def test_affine_shears_before_it_shifts_and_after_it_turns():
    target = bare([[50, 10, 50.5, 10.5]])
    step = always("Affine", rotate=90, shear={"x": 45 / 2, "y": 0}, translate_px={"x": 0, "y": -20})
    moved = step(np.zeros((100, 100, 3), np.uint8), target, np.random.default_rng(0))[1]
    # From 40 above the centre to 40 left of it, where no shear along x moves it; then 20 up.
    assert np.allclose(moved["boxes"][0, :2], [10, 29.5], atol=0.3)


def test_perspective_spreads_the_inside_over_the_picture():
    image = np.zeros((100, 100, 3), np.uint8)
    target = bare([[40, 40, 60, 60]])
    moved = always("Perspective", scale=(0.15, 0.15))(image, target, np.random.default_rng(2))[1]
    assert (moved["boxes"][:, 2:] - moved["boxes"][:, :2] > 20).all()


def test_a_crop_larger_than_the_picture_is_the_picture():
    image, target = scene(np.random.default_rng(0))
    for name in ("RandomCrop", "CenterCrop"):
        moved_image, moved = always(name, height=999, width=SIDE)(image, target, np.random.default_rng(0))
        assert np.array_equal(moved_image, image)
        assert same(moved, target)


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("masks", [False, True])
def test_no_objects_is_fine(name, masks):
    target = bare()
    if masks:
        target |= {"masks": MaskStack.of(np.zeros((0, 40, 50), bool)), "keypoints": np.zeros((0, 3, 3), np.float32)}
    image, moved = always(name, **GEOMETRIC[name])(np.zeros((40, 50, 3), np.uint8), target, np.random.default_rng(0))
    assert image.shape == (40, 50, 3)
    assert moved["boxes"].shape == (0, 4)
    if masks:
        assert moved["masks"].dense().shape == (0, 40, 50)
        assert moved["keypoints"].shape == (0, 3, 3)


def test_what_leaves_the_picture_is_dropped_with_all_its_fields():
    image, target = scene(np.random.default_rng(0))
    _, moved = always("Affine", translate_px={"x": SIDE // 2, "y": 0})(image, target, np.random.default_rng(0))
    assert moved["labels"].tolist() == [0, 2]
    assert {len(moved[key]) for key in PER_OBJECT} == {2}
    assert moved["image_id"].tolist() == [7]


def test_areas_scale_with_the_whole_picture_and_are_box_areas_of_a_part():
    _, target = scene(np.random.default_rng(0))
    target["area"] = target["area"] / 2
    assert np.array_equal(resize_target(target, (SIDE, SIDE), (80, 40))["area"], target["area"] / 8)
    assert np.array_equal(mirror_target(target, SIDE)["area"], target["area"])
    assert np.array_equal(crop_target(target, 0, 0, (SIDE, SIDE))["area"], target["area"] * 2)


def test_warping_by_a_fraction_of_a_pixel_interpolates():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, 1] = 200
    moved = warp_image(image, shift_and_scale(0.5, 0), (4, 4))
    assert moved[0, :, 0].tolist() == [0, 100, 100, 0]


RECORDED = read_json("inference/transforms")
ARRAYS = read_arrays("inference/transforms")


def recorded_target(name: str, content: dict) -> Target:
    masks = np.unpackbits(ARRAYS[name])[: np.prod(content["masks_shape"])].reshape(content["masks_shape"]).astype(bool)
    return {
        "boxes": np.reshape(content["boxes"], content["boxes_shape"]).astype(np.float32),
        "labels": np.array(content["labels"]),
        "area": np.array(content["area"], np.float32),
        "iscrowd": np.array(content["iscrowd"]),
        "size": np.array(content["size"]),
        "masks": MaskStack.of(masks),
        "keypoints": np.reshape(content["keypoints"], content["keypoints_shape"]).astype(np.float32),
    }


@pytest.mark.parametrize("recorded", RECORDED["ops"][:-1], ids=lambda recorded: recorded["name"])
def test_masks_and_keypoints_equal_the_recorded_ones(recorded):
    target, name = recorded_target("input_masks", RECORDED["input"]["target"]), recorded["name"]
    expected = recorded_target(f"op_{name}_masks", recorded["target"])
    hw = tuple(target["size"].tolist())
    if name == "crop":
        moved = crop_target(target, 6, 4, (26, 18))
    elif name.startswith("hflip"):
        moved = mirror_target(target, hw[1], [0, 1, 2, 3] if name == "hflip_pairs" else ())
    else:
        moved = resize_target(target, hw, tuple(recorded["image_shape"][1:]))
    assert np.array_equal(moved["masks"].dense(), expected["masks"].dense())
    # One rounding of single precision at these magnitudes.
    assert np.allclose(moved["keypoints"], expected["keypoints"], rtol=0, atol=2e-5)


# Colour


@pytest.mark.parametrize("name", COLOURS)
def test_N017_colour_changes_the_picture_repeatably_and_no_label(name):
    image, target = photo(), scene(np.random.default_rng(0))[1]
    before, copy = image.copy(), {key: plain(value).copy() for key, value in target.items()}
    step = always(name, **COLOURS[name])
    changed, labels = step(image, target, np.random.default_rng(1))
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, image)
    assert np.array_equal(image, before)
    assert same(labels, copy)
    np.random.seed(3)  # noqa: NPY002 - the global generator must not matter
    assert np.array_equal(step(image, target, np.random.default_rng(1))[0], changed)


@pytest.mark.parametrize("name", COLOURS)
def test_colour_takes_pictures_plane_by_plane_as_the_resize_leaves_them(name):
    image = photo()
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
    step = always(name, **COLOURS[name])
    one, other = (step(given, bare(), np.random.default_rng(1))[0] for given in (image, planes))
    assert np.array_equal(one, other)


def coloured(name: str, image: np.ndarray | None = None, **params: Any) -> np.ndarray:
    return always(name, **params)(photo() if image is None else image, bare(), np.random.default_rng(0))[0]


def test_grey_and_equalised_are_those_of_pillow():
    picture = Image.fromarray(photo())
    assert np.array_equal(coloured("ToGray"), np.asarray(picture.convert("L").convert("RGB")))
    assert np.array_equal(coloured("Equalize"), np.asarray(ImageOps.equalize(picture)))


def test_brightness_contrast_and_gamma_follow_their_formulas():
    image = photo().astype(float)
    found = coloured("RandomBrightnessContrast", brightness_limit=(0.1, 0.1), contrast_limit=(-0.3, -0.3))
    assert levels_apart(found, np.clip(image * 0.7 + 25.5, 0, 255)) <= 0.51
    found = coloured(
        "RandomBrightnessContrast", brightness_limit=(0.1, 0.1), contrast_limit=(0, 0), brightness_by_max=False
    )
    assert levels_apart(found, np.clip(image + 0.1 * image.mean(), 0, 255)) <= 0.51
    assert levels_apart(coloured("RandomGamma", gamma_limit=(150, 150)), 255 * (image / 255) ** 1.5) <= 0.51


NEUTRAL = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}


@pytest.mark.parametrize(
    ("name", "oracle"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.3])
def test_jitter_equals_the_enhancement_of_pillow(name, oracle, factor):
    expected = np.asarray(oracle(Image.fromarray(photo())).enhance(factor))
    # Pillow rounds the grey it mixes with to a whole level.
    assert levels_apart(coloured("ColorJitter", **{**NEUTRAL, name: (factor, factor)}), expected) <= 1


def test_a_third_of_the_hue_circle_exchanges_the_channels():
    image = photo()
    found = coloured("ColorJitter", **{**NEUTRAL, "hue": (1 / 3, 1 / 3)})
    assert levels_apart(found, image[..., [2, 0, 1]]) <= 1
    red = np.full((4, 4, 3), (200, 0, 0), np.uint8)
    assert (coloured("ColorJitter", red, **{**NEUTRAL, "hue": (1 / 3, 1 / 3)})[0, 0] == (0, 200, 0)).all()


def test_hue_saturation_and_value_shift_as_in_colorsys():
    image = photo((8, 9))
    limits = {"hue_shift_limit": (18, 18), "sat_shift_limit": (-10, -10), "val_shift_limit": (5, 5)}
    found = coloured("HueSaturationValue", image, **limits)
    expected = np.empty(image.shape)
    for index in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[index] / 255))
        shifted = (hue + 18 / 180) % 1, max(0, saturation - 10 / 255), min(1, value + 5 / 255)
        expected[index] = np.array(colorsys.hsv_to_rgb(*shifted)) * 255
    # Pillow keeps hue in 256 parts, one of which is up to six levels of a channel.
    assert levels_apart(found, expected) <= 6
    assert np.abs(found - expected).mean() < 1.5


def test_blurs_equal_their_convolutions():
    image = photo()
    box = scipy.ndimage.uniform_filter(image.astype(float), (5, 5, 0), mode="nearest")
    assert levels_apart(coloured("Blur", blur_limit=(5, 5)), box) <= 1
    line = scipy.ndimage.uniform_filter(image.astype(float), (1, 7, 0), mode="nearest")
    assert levels_apart(coloured("MotionBlur", blur_limit=(7, 7), angle_range=(0, 0)), line) <= 0.51
    taps = np.exp(-0.5 * (np.arange(-3, 4) / 1.4) ** 2)
    kernel = torch.from_numpy(np.outer(taps, taps) / taps.sum() ** 2).expand(3, 1, 7, 7)
    padded = torch.from_numpy(np.pad(image.astype(float), ((3, 3), (3, 3), (0, 0)), mode="symmetric"))
    expected = torch.nn.functional.conv2d(padded.permute(2, 0, 1)[None], kernel, groups=3)[0].permute(1, 2, 0).numpy()
    assert levels_apart(coloured("GaussianBlur", blur_limit=(7, 7), sigma_limit=(1.4, 1.4)), expected) <= 0.51
    whole = scipy.ndimage.gaussian_filter(image.astype(float), (1.5, 1.5, 0))
    assert levels_apart(coloured("GaussianBlur", sigma_limit=(1.5, 1.5)), whole) <= 1


def test_a_kernel_of_three_is_the_one_of_the_industrial_preset():
    assert "blur_limit=(3, 3)" in str(build_augmentations("industrial").describe())
    assert np.array_equal(
        coloured("GaussianBlur", blur_limit=3, sigma_limit=(1, 1)),
        coloured("GaussianBlur", blur_limit=(3, 3), sigma_limit=(1, 1)),
    )


def test_sharpening_equals_its_convolution():
    image = photo().astype(float)
    kernel = np.full((3, 3), -0.3)
    kernel[1, 1] = 1 - 0.3 + 0.3 * 8.5
    expected = np.clip(scipy.ndimage.convolve(image, kernel[..., None]), 0, 255)
    found = coloured("Sharpen", alpha=(0.3, 0.3), lightness=(0.5, 0.5))
    assert levels_apart(found[1:-1, 1:-1], expected[1:-1, 1:-1]) <= 0.51


@pytest.mark.parametrize("per_channel", [True, False])
def test_noise_has_the_mean_and_deviation_it_is_given(per_channel):
    grey = np.full((200, 200, 3), 120, np.uint8)
    ranges = {"std_range": (0.05, 0.05), "mean_range": (0.1, 0.1)}
    noise = coloured("GaussNoise", grey, **ranges, per_channel=per_channel).astype(float) - 120
    assert abs(noise.mean() - 25.5) < 0.3
    assert abs(noise.std() - 12.75) < 0.3
    assert (noise[..., 0] == noise[..., 1]).all() == (not per_channel)
    values = np.sort(noise[..., 0].ravel())[[200, 6348, 20000, 33652, 39800]]
    # Quantiles of the normal distribution at -2.575, -1, 0, 1 and 2.575 deviations.
    assert np.abs(values - 25.5 - 12.75 * np.array([-2.575, -1, 0, 1, 2.575])).max() <= 2.5


def test_clahe_of_one_tile_is_the_cumulative_histogram_and_more_tiles_join_smoothly():
    grey = np.repeat(photo()[..., :1], 3, axis=2)
    # Pillow's luminance of a grey is at times one level lower.
    luma = np.asarray(Image.fromarray(grey).convert("YCbCr"))[..., :1]
    counts = np.bincount(luma.ravel(), minlength=256)
    expected = (counts.cumsum() / luma.size * 255)[luma]
    found = coloured("CLAHE", grey, clip_limit=(256, 256), tile_grid_size=(1, 1))
    assert levels_apart(found, expected) <= 1
    ramp = np.repeat(np.linspace(80, 120, 128).astype(np.uint8)[None, :, None], 96, axis=0).repeat(3, axis=2)
    found = coloured("CLAHE", ramp, clip_limit=(2, 2), tile_grid_size=(3, 5)).astype(int)
    assert np.ptp(found) > np.ptp(ramp)
    assert np.abs(np.diff(found[..., 0], axis=0)).max() <= 2
    assert np.abs(np.diff(found[..., 0], axis=1)).max() <= 12


def test_clahe_takes_pictures_smaller_than_its_tiles():
    assert coloured("CLAHE", photo((5, 3))).shape == (5, 3, 3)


# The form of `aug_config`


def test_S058_none_mirrors_every_second_picture_with_the_draws_of_always():
    image, target = scene(np.random.default_rng(0))
    step = build_augmentations(None)
    for seed in range(20):
        rng, replay = np.random.default_rng(seed), np.random.default_rng(seed)
        moved_image, moved = step(image, target, rng)
        mirrored = replay.random() < 0.5
        assert rng.random() == replay.random()
        assert np.array_equal(moved_image, image[:, ::-1] if mirrored else image)
        assert same(moved, mirror_target(target, SIDE) if mirrored else target)


def test_S058_the_training_transform_augments_after_the_resize():
    image, target = scene(np.random.default_rng(0))
    augment = always("HorizontalFlip")
    plain, _ = TrainTransform((64,))(image, target, np.random.default_rng(3))
    moved, labels = TrainTransform((64,), augment=augment)(image, target, np.random.default_rng(3))
    assert np.array_equal(moved, plain[:, ::-1])
    assert labels["size"].tolist() == [64, 64]


@pytest.mark.parametrize("config", [{}, []], ids=["S058-dict", "S058-list"])
def test_an_empty_config_is_nothing(config):
    image, target = scene(np.random.default_rng(0))
    moved_image, moved = build_augmentations(config)(image, target, np.random.default_rng(0))
    assert moved_image is image
    assert moved is target
    assert build_augmentations(config).describe() == []


SAME_CONFIGS = {
    "S058-dict": {"Rotate": {"limit": 10}, "ToGray": {"p": 0.1}},
    "S058-list": [{"Rotate": {"limit": 10}}, {"ToGray": {"p": 0.1}}],
    "S058-pairs": [{"Rotate": {"limit": [-10, 10], "p": 0.5}}, {"ToGray": {"p": 0.1}}],
    "S058-none": [{"Rotate": {"limit": 10, "fill": None, "p": None}}, {"ToGray": {"p": 0.1}}],
}


@pytest.mark.parametrize("config", SAME_CONFIGS.values(), ids=SAME_CONFIGS)
def test_forms_that_mean_the_same(config):
    expected = ["Rotate(limit=(-10, 10), fill=(0, 0, 0), p=0.5)", "ToGray(p=0.1)"]
    assert build_augmentations(config).describe() == expected


@pytest.mark.parametrize("name", PRESETS, ids=lambda name: f"N017-{name}")
def test_presets_work_by_constant_and_by_name(name):
    by_constant = build_augmentations(PRESETS[name]).describe()
    for spelled in (name, name.lower(), name.removeprefix("AUG_"), name.removeprefix("AUG_").lower()):
        assert build_augmentations(spelled).describe() == by_constant
    assert getattr(aug_config, name) is getattr(aug_configs, name) is PRESETS[name]


def test_N017_the_presets_hold_what_is_documented():
    assert {name: build_augmentations(name).describe() for name in PRESETS} == {
        "AUG_CONFIG": ["HorizontalFlip(p=0.5)"],
        "AUG_CONSERVATIVE": [
            "HorizontalFlip(p=0.5)",
            "RandomBrightnessContrast(brightness_limit=(-0.1, 0.1), contrast_limit=(-0.1, 0.1), "
            "brightness_by_max=True, p=0.3)",
        ],
        "AUG_AGGRESSIVE": [
            "HorizontalFlip(p=0.5)",
            "VerticalFlip(p=0.5)",
            "Rotate(limit=(-45, 45), fill=(0, 0, 0), p=0.5)",
            "Affine(scale=((0.8, 1.2), (0.8, 1.2)), translate_percent=((-0.1, 0.1), (-0.1, 0.1)), "
            "translate_px=((0, 0), (0, 0)), rotate=(-15, 15), shear=((-5, 5), (-5, 5)), keep_ratio=False, "
            "fill=(0, 0, 0), p=0.5)",
            "ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.1, 0.1), p=0.5)",
        ],
        "AUG_AERIAL": [
            "HorizontalFlip(p=0.5)",
            "VerticalFlip(p=0.5)",
            "Rotate(limit=(90, 90), fill=(0, 0, 0), p=0.5)",
            "RandomBrightnessContrast(brightness_limit=(-0.15, 0.15), contrast_limit=(-0.15, 0.15), "
            "brightness_by_max=True, p=0.4)",
        ],
        "AUG_INDUSTRIAL": [
            "HorizontalFlip(p=0.3)",
            "RandomBrightnessContrast(brightness_limit=(-0.2, 0.2), contrast_limit=(-0.2, 0.2), "
            "brightness_by_max=True, p=0.5)",
            "GaussianBlur(blur_limit=(3, 3), sigma_limit=(0.5, 3.0), p=0.3)",
            "GaussNoise(std_range=(0.01, 0.05), mean_range=(0.0, 0.0), per_channel=True, p=0.3)",
        ],
    }


def test_default_probabilities():
    crops = {"RandomCrop": {"height": 5, "width": 5}, "RandomResizedCrop": {"size": (5, 5)}}
    config = {
        "Rotate": {},
        **crops,
        "OneOf": [{"ToGray": {}}],
        "SomeOf": [{"ToGray": {}}],
        "Sequential": [{"Blur": {}}],
    }
    assert [entry.p for entry in build_augmentations(config).entries] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_size_of_a_crop_in_both_spellings():
    whole = build_augmentations({"RandomResizedCrop": {"size": [30, 40]}}).describe()
    assert build_augmentations({"RandomResizedCrop": {"height": 30, "width": 40}}).describe() == whole
    assert "size=(30, 40)" in whole[0]


ERRORS = [
    # config, what the message says
    ({"HorizontalFlp": {}}, ["'HorizontalFlp'", "did you mean HorizontalFlip", "CLAHE", "rfdetr[aug]"]),
    ({"clahe": {}}, ["did you mean CLAHE"]),
    ({"ElasticTransform": {}}, ["'ElasticTransform'", "Sequential", 'pip install "rfdetr[aug]"']),
    ({"Rotate": {"limits": 3}}, ["Rotate", "'limits'", "did you mean limit", "fill", "p"]),
    ({"Rotate": {"limit": (20, 10)}}, ["Rotate", "limit=(20, 10)", "(low, high)", "from -360 to 360"]),
    ({"Rotate": {"limit": 400}}, ["limit=400", "from -360 to 360"]),
    ({"Rotate": {"limit": "much"}}, ["limit='much'"]),
    ({"Rotate": {"limit": float("nan")}}, ["limit=nan"]),
    ({"Rotate": {"limit": True}}, ["limit=True"]),
    ({"Rotate": {"limit": (1, 2, 3)}}, ["limit=(1, 2, 3)"]),
    ({"Rotate": {"p": 1.5}}, ["Rotate", "p=1.5", "from 0 to 1"]),
    ({"Rotate": {"p": "often"}}, ["p='often'"]),
    ({"Rotate": {"fill": 300}}, ["fill=300", "0 to 255"]),
    ({"Rotate": 45}, ["Rotate", "45", "dictionary"]),
    ({"Rotate": None}, ["Rotate", "None", "dictionary"]),
    ({"Affine": {"scale": {"z": 1}}}, ["scale={'z': 1}", "'x'"]),
    ({"Affine": {"scale": -1}}, ["scale=-1", "from 0.01"]),
    ({"Affine": {"translate_px": 1.5}}, ["translate_px=1.5", "whole"]),
    ({"Affine": {"keep_ratio": 1}}, ["keep_ratio=1", "True or False"]),
    ({"RandomCrop": {"height": 5}}, ["RandomCrop needs width"]),
    ({"RandomCrop": {"height": 0, "width": 4}}, ["height=0", "at least 1"]),
    ({"RandomResizedCrop": {}}, ["RandomResizedCrop needs size", "(height, width)"]),
    ({"RandomResizedCrop": {"size": 5}}, ["size=5"]),
    ({"Sharpen": {"alpha": 0.5}}, ["alpha=0.5", "a pair"]),
    ({"GaussNoise": {"var_limit": (10, 50)}}, ["GaussNoise", "'var_limit'", "std_range"]),
    ({"OneOf": []}, ["OneOf", "empty"]),
    ({"OneOf": {}}, ["OneOf", "transforms"]),
    ({"OneOf": {"transforms": [{"Rotte": {}}]}}, ["did you mean Rotate"]),
    ({"OneOf": [{"Rotate": {"p": 0}}]}, ["OneOf", "p=0"]),
    ({"SomeOf": {"transforms": [{"ToGray": {}}], "n": 2}}, ["SomeOf", "n=2", "1"]),
    ({"Sequential": {"transforms": [{"ToGray": {}}], "n": 2}}, ["Sequential", "'n'"]),
    (["HorizontalFlip"], ["'HorizontalFlip'", "{name: {parameters}"]),
    ([{"ToGray": {}, "Blur": {}}], ["one name each"]),
    (5, ["aug_config", "5"]),
    ("agressive", ["'agressive'", "AUG_INDUSTRIAL"]),
    ({3: {}}, ["3"]),
]


@pytest.mark.parametrize(("config", "texts"), ERRORS, ids=[f"S058-{i}" for i in range(len(ERRORS))])
def test_a_wrong_config_is_refused_with_what_is_allowed(config, texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ValueError) as caught:
        build_augmentations(config)
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize("pairs", [[0], [0, 1, 1, 2], [0, 0]])
def test_malformed_flip_pairs_are_refused(pairs):
    with pytest.raises(ValueError, match="flat list"):
        build_augmentations(None, pairs, has_keypoints=True)


def ran(config: Any, seed: int) -> str:
    """Which of a flip (F), a turn (V) and grey (G) were applied to a picture."""
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0] = (255, 0, 0)
    moved, _ = build_augmentations(config)(image, bare(), np.random.default_rng(seed))
    (y,), (x,) = np.nonzero(moved.sum(2))
    return "F" * bool(x == 3) + "V" * bool(y == 3) + "G" * bool(moved[y, x, 1])


F, V, G = {"HorizontalFlip": {"p": 1}}, {"VerticalFlip": {"p": 1}}, {"ToGray": {"p": 1}}
NESTED = [
    # config, what may come out over many seeds
    ([F, V, G], {"FVG"}),
    ([{"HorizontalFlip": {"p": 0}}], {""}),
    ({"OneOf": [F, V, G]}, {"F", "V", "G"}),
    ({"OneOf": [{"HorizontalFlip": {"p": 0.01}}, {"VerticalFlip": {"p": 0}}]}, {"F"}),
    ({"OneOf": {"transforms": [F, V], "p": 0}}, {""}),
    ({"OneOf": {"transforms": [F, V], "p": 0.5}}, {"", "F", "V"}),
    ({"SomeOf": {"transforms": [F, V, G], "n": 2}}, {"FV", "FG", "VG"}),
    ({"SomeOf": {"transforms": [F], "n": 2, "replace": True}}, {""}),
    ({"Sequential": {"transforms": [F, V], "p": 0.5}}, {"", "FV"}),
    ({"OneOf": [{"Sequential": [F, G]}, {"SomeOf": {"transforms": [{"OneOf": [V]}, V], "n": 1}}]}, {"FG", "V"}),
    ({"Sequential": {"transforms": {"HorizontalFlip": {"p": 1}, "ToGray": {"p": 1}}}}, {"FG"}),
]


@pytest.mark.parametrize(("config", "outcomes"), NESTED, ids=[f"S058-{i}" for i in range(len(NESTED))])
def test_order_and_nesting(config, outcomes):
    assert {ran(config, seed) for seed in range(40)} == outcomes


def test_transforms_run_in_the_order_given():
    image, target = scene(np.random.default_rng(0))
    crop, turn = {"RandomCrop": {"height": 80, "width": 80}}, {"Rotate": {"limit": (90, 90), "p": 1}}
    first = build_augmentations([crop, turn])(image, target, np.random.default_rng(1))[0]
    last = build_augmentations([turn, crop])(image, target, np.random.default_rng(1))[0]
    assert not np.array_equal(first, last)


def test_choices_of_one_of_follow_their_weights():
    config = {"OneOf": [{"HorizontalFlip": {"p": 0.9}}, {"VerticalFlip": {"p": 0.3}}]}
    share = np.mean([ran(config, seed) == "F" for seed in range(300)])
    # Three deviations of a fraction of 300 draws.
    assert abs(share - 0.75) < 0.075


def test_descriptions_show_what_a_container_holds():
    config = {"SomeOf": {"transforms": [F, {"OneOf": {"transforms": [G], "p": 0.2}}], "n": 1}}
    assert build_augmentations(config).describe() == [
        "SomeOf([HorizontalFlip(p=1), OneOf([ToGray(p=1)], p=0.2)], n=1, replace=False, p=1.0)"
    ]


def test_loading_processes_get_the_same_augmentations():
    image, target = scene(np.random.default_rng(0))
    step = build_augmentations({**PRESETS["AUG_AGGRESSIVE"], "OneOf": [F, V]}, [0, 1])
    copy = pickle.loads(pickle.dumps(step))
    one, other = (each(image, target, np.random.default_rng(8)) for each in (step, copy))
    assert np.array_equal(one[0], other[0])
    assert same(one[1], other[1])


def test_without_flip_pairs_a_keypoint_model_is_not_mirrored():
    config = [
        F,
        {"Rotate": {}},
        {"OneOf": [{"Transpose": {}}, G]},
        {"SomeOf": {"transforms": [V, G], "n": 2}},
        {"Sequential": [{"OneOf": [F, V]}]},
    ]
    with pytest.warns(UserWarning, match="HorizontalFlip, Transpose, VerticalFlip; .*keypoint_flip_pairs") as caught:
        kept = build_augmentations(config, None, has_keypoints=True)
    assert len(caught) == 1
    assert [line.split("(")[0] for line in kept.describe()] == ["Rotate", "OneOf", "SomeOf"]
    assert not [line for line in kept.describe() if "Flip" in line or "Transpose" in line]
    with pytest.warns(UserWarning, match="HorizontalFlip"):
        assert build_augmentations(None, None, has_keypoints=True).describe() == []


def test_with_flip_pairs_or_nothing_to_mirror_there_is_no_warning():
    assert len(build_augmentations(config=[F, V], flip_pairs=[0, 1], has_keypoints=True).entries) == 2
    # It is known that nothing changes places.
    assert len(build_augmentations(config=[F, V], flip_pairs=(), has_keypoints=True).entries) == 2
    assert len(build_augmentations({"RandomRotate90": {}}, has_keypoints=True).entries) == 1


# Classes of Albumentations, with a module that stands in for it


class BasicTransform:
    def __init__(self, p: float = 0.5):
        self.p, self.rng = p, None


class ImageOnlyTransform(BasicTransform):
    pass


class Invert(ImageOnlyTransform):
    def run(self, fields):
        return {**fields, "image": 255 - fields["image"]}


class D4(BasicTransform):
    """A mirror left to right; the box at the right edge is dropped, as if it were too small."""

    def __init__(self, strength: int = 1, p: float = 0.5):
        super().__init__(p)
        if strength < 0:
            raise ValueError("strength is negative")

    def run(self, fields):
        width = fields["image"].shape[1]
        boxes = np.asarray(fields["bboxes"], np.float32)[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (width, 0, width, 0)
        keep = [i for i, box in enumerate(boxes) if box[0] > 0]
        points = np.asarray(fields["keypoints"]) * (-1, 1) + (width - 1, 0)
        out = {"image": fields["image"][:, ::-1].copy(), "bboxes": boxes[keep], "keypoints": points}
        if "masks" in fields:
            out["masks"] = [mask[:, ::-1] for mask in fields["masks"]]
        return {**out, "rows": [fields["rows"][i] for i in keep], "marks": fields["marks"]}


class Forgetful(BasicTransform):
    """Turns the order of boxes, and loses all points but the last visible one of the first object."""

    def run(self, fields):
        order = slice(None, None, -1)
        masks = {"masks": fields["masks"]} if "masks" in fields else {}
        lost = {key: np.asarray(fields[key])[3:4] for key in ("keypoints", "marks")}
        return {
            "image": fields["image"],
            "bboxes": fields["bboxes"][order],
            "rows": fields["rows"][order],
            **masks,
            **lost,
        }


class Compose:
    def __init__(self, transforms, bbox_params=None, keypoint_params=None):
        self.transform, self.params, self.seeds = transforms[0], (bbox_params, keypoint_params), []

    def set_random_seed(self, seed):
        self.seeds.append(seed)

    def __call__(self, **fields):
        return self.transform.run(fields)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("albumentations")
    for part in (BasicTransform, ImageOnlyTransform, Invert, D4, Forgetful, Compose):
        setattr(module, part.__name__, part)
    for name in ("BboxParams", "KeypointParams"):
        setattr(module, name, lambda **params: params)
    monkeypatch.setitem(sys.modules, "albumentations", module)


def test_N017_other_classes_are_those_of_albumentations(stand_in):
    image, target = scene(np.random.default_rng(0))
    target["boxes"][3, 2] = SIDE
    step = build_augmentations({"D4": {"strength": 2, "p": 1}}, [0, 1, 2, 3], has_keypoints=True)
    assert step.describe() == ["D4(strength=2, p=1)"]
    moved_image, moved = step(image, target, np.random.default_rng(0))
    kept = {key: value[:3] if key in PER_OBJECT else value for key, value in target.items()}
    assert np.array_equal(moved_image, image[:, ::-1])
    assert same(moved, mirror_target(kept, SIDE, [0, 1, 2, 3]))
    assert moved["boxes"].dtype == moved["keypoints"].dtype == np.float32
    compose, _ = step.entries[0].foreign
    step(image, target, np.random.default_rng(0))
    assert compose.seeds[0] == compose.seeds[1]


def test_classes_of_albumentations_that_change_pixels_alone_leave_labels(stand_in):
    image, target = scene(np.random.default_rng(0))
    moved_image, moved = build_augmentations({"Invert": {"p": 1}})(image, target, np.random.default_rng(0))
    assert np.array_equal(moved_image, 255 - image)
    assert moved is target


@pytest.mark.parametrize("fields", [("boxes", "labels", "area", "iscrowd"), PER_OBJECT])
def test_classes_of_albumentations_take_targets_without_objects_or_masks(stand_in, fields):
    image, target = scene(np.random.default_rng(0))
    for count in (0, 2):
        given = {key: target[key][:count] for key in fields}
        moved = build_augmentations({"D4": {"p": 1}})(image, given, np.random.default_rng(0))[1]
        assert {key: plain(value).shape for key, value in moved.items() if key != "size"} == {
            key: plain(value).shape for key, value in given.items()
        }


def test_points_that_albumentations_loses_are_absent(stand_in):
    image, target = scene(np.random.default_rng(0))
    moved = build_augmentations({"Forgetful": {"p": 1}})(image, target, np.random.default_rng(0))[1]
    expected = np.zeros_like(target["keypoints"])
    expected[3, 3] = target["keypoints"][0, 3]
    assert np.array_equal(moved["keypoints"], expected)
    for key in ("boxes", "labels", "area", "iscrowd", "masks"):
        assert np.array_equal(plain(moved[key]), plain(target[key])[::-1])


def test_what_albumentations_does_not_take_is_refused(stand_in):
    with pytest.raises(ValueError, match=r"D4: Albumentations does not take {'strength': -1}: strength is negative"):
        build_augmentations({"D4": {"strength": -1}})
    with pytest.raises(ValueError, match=r"D4: Albumentations does not take {'strong': 1}"):
        build_augmentations({"D4": {"strong": 1}})
    # It has the name, but not as a transform.
    with pytest.raises(ValueError, match=r"unknown augmentation 'Compose' .*built in"):
        build_augmentations({"Compose": {}})
    with pytest.warns(UserWarning, match="D4"):
        assert build_augmentations({"D4": {}}, has_keypoints=True).describe() == []


def test_a_target_without_objects_keeps_its_types():
    moved = warp_target(bare(), shift_and_scale(3, 4, 2, 2), (9, 9))
    assert {key: value.dtype.name for key, value in moved.items()} == {
        "boxes": "float32",
        "labels": "int64",
        "area": "float32",
        "iscrowd": "int64",
        "size": "int64",
    }
