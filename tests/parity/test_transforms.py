"""Geometry of pictures and boxes: recorded single operations, validation pipelines, statistics of the random one."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tests.mirror import mirror_target
from tests.vectors import PICTURES, assert_close, read_arrays, read_json

from rfdetr.datasets.augment import build_augmentations
from rfdetr.datasets.decode import decode
from rfdetr.datasets.transforms import (
    STD,
    EvalTransform,
    Target,
    TrainTransform,
    crop_target,
    multi_scale_sizes,
    normalise,
    resize,
    resize_target,
    short_side_size,
    to_relative,
)

META = read_json("inference/transforms")
ARRAYS = read_arrays("inference/transforms")
# One level of 255 after the division by the smallest deviation.
ONE_LEVEL = 1 / 255 / min(STD) + 1e-5


def target_of(recorded: dict) -> Target:
    """A recorded target in the form of our transforms: boxes xyxy in pixels."""
    return {
        "boxes": np.reshape(np.array(recorded["boxes"], np.float32), recorded["boxes_shape"]),
        "labels": np.array(recorded["labels"], np.int64),
        "area": np.array(recorded["area"], np.float32),
        "iscrowd": np.array(recorded["iscrowd"], np.int64),
        "size": np.array(recorded["size"], np.int64),
    }


def check_target(target: Target, recorded: dict) -> None:
    expected = target_of(recorded)
    assert {key: target[key].dtype for key in expected} == {key: value.dtype for key, value in expected.items()}
    assert_close(target["boxes"], expected["boxes"], "boxes", 1e-5, 1e-5)
    assert_close(target["area"], expected["area"], "area", 1e-4, 1e-4)
    for key in ("labels", "iscrowd", "size"):
        assert target[key].tolist() == expected[key].tolist(), key


def resized(image: np.ndarray, target: Target, hw: tuple[int, int]) -> tuple[np.ndarray, Target]:
    return resize(image, hw), resize_target(target, image.shape[:2], hw)


def cropped(image: np.ndarray, target: Target, top: int, left: int, hw: tuple[int, int]) -> tuple[np.ndarray, Target]:
    return image[top : top + hw[0], left : left + hw[1]], crop_target(target, top, left, hw)


@pytest.fixture
def every_warning():
    """PyTorch gives some warnings once per process, so that only the first test would see them."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.parametrize("transform", [EvalTransform(64), TrainTransform((64,), jitter=False)], ids=["eval", "train"])
def test_decoded_pictures_are_transformed_without_a_warning(every_warning, transform):
    image = decode(PICTURES / META["input"]["image"])
    transform(image, target_of(META["input"]["target"]), np.random.default_rng(0))


def to_tensor(image: np.ndarray) -> np.ndarray:
    """Normalised float picture (3, H, W)."""
    return normalise(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0].numpy()


OPERATIONS = {
    # name: (what is done, levels of 255 that the picture may differ by)
    "resize_square": (lambda i, t: resized(i, t, (96, 96)), 1),
    "resize_nonsquare": (lambda i, t: resized(i, t, (70, 120)), 1),
    "downsize": (lambda i, t: resized(i, t, (24, 20)), 1),
    "short_side_90_max_130": (lambda i, t: resized(i, t, short_side_size(i.shape[:2], 90, 130)), 1),
    "short_side_90_max_1333": (lambda i, t: resized(i, t, short_side_size(i.shape[:2], 90, 1333)), 1),
    "hflip": (lambda i, t: (i[:, ::-1], mirror_target(t, i.shape[1])), 0),
    # Without keypoints a mirror is a mirror, with pairs or not.
    "hflip_pairs": (lambda i, t: (i[:, ::-1], mirror_target(t, i.shape[1])), 0),
    "crop": (lambda i, t: cropped(i, t, 6, 4, (26, 18)), 0),
}


def test_every_recorded_operation_has_a_row():
    assert {op["name"] for op in META["ops"]} == OPERATIONS.keys() | {"normalize"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_the_recorded_one(name):
    recorded = next(op for op in META["ops"] if op["name"] == name)
    operation, levels = OPERATIONS[name]
    image, target = operation(decode(PICTURES / META["input"]["image"]), target_of(META["input"]["target"]))
    expected = ARRAYS[f"op_{name}_image"].transpose(1, 2, 0)
    assert image.dtype == expected.dtype
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= levels
    check_target(target, recorded["target"])


def test_normalised_picture_and_relative_boxes_equal_the_recorded_ones():
    recorded = next(op for op in META["ops"] if op["name"] == "normalize")
    image = to_tensor(decode(PICTURES / META["input"]["image"]))
    assert list(image.shape) == recorded["image_shape"]
    assert_close(image.reshape(-1)[:: recorded["float_stride"]], ARRAYS["op_normalize_image"], "picture", 1e-6)
    check_target(to_relative(target_of(META["input"]["target"])), recorded["target"])


def eval_size(case: dict, hw: tuple[int, int]) -> tuple[int, int]:
    side = case["resolution"]
    return (side, side) if case["pipeline"] == "square" else short_side_size(hw, side, 1333)


@pytest.mark.parametrize("case", META["val_pipelines"], ids=lambda case: case["key"])
def test_antialiased_pipeline_equals_the_recorded_one(case):
    image, target = decode(PICTURES / case["image"]), target_of(case["input_target"])
    hw = eval_size(case, image.shape[:2])
    pixels = to_tensor(resize(image, hw))
    assert list(pixels.shape) == case["tensor_shape"]
    difference = np.abs(pixels.reshape(-1)[:: case["stride"]] - ARRAYS[case["key"]])
    assert difference.max() <= ONE_LEVEL
    assert difference.mean() <= case["float_antialias_mean_abs_diff"]
    for moment in ("mean", "std"):
        found = getattr(pixels.astype(np.float64), moment)((1, 2))
        assert_close(found, case[moment], moment, case["float_antialias_mean_abs_diff"])
    check_target(to_relative(resize_target(target, image.shape[:2], hw)), case["target"])


@pytest.mark.parametrize("case", META["val_pipelines"], ids=lambda case: case["key"])
def test_evaluation_gives_boxes_of_the_recorded_pipeline(case):
    # Its pixels are those of prediction, which are not antialiased: see test_preprocess.
    image, target = decode(PICTURES / case["image"]), target_of(case["input_target"])
    transform = EvalTransform(case["resolution"], case["pipeline"] == "square")
    pixels, found = transform(image, target, np.random.default_rng(0))
    assert [pixels.shape[2], *pixels.shape[:2]] == case["tensor_shape"]
    check_target(found, case["target"])


@pytest.mark.parametrize("key", META["multi_scale_scales"])
def test_sizes_of_multi_scale_training_equal_the_recorded_ones(key):
    resolution, patch, windows = (int(number) for number in re.findall(r"\d+", key))
    recorded = META["multi_scale_scales"][key]
    assert multi_scale_sizes(resolution, patch * windows) == recorded["expanded"]
    assert multi_scale_sizes(resolution, patch * windows, expanded=False) == recorded["plain"]


RANDOM_PIPELINES = {
    # name: the transform
    "default": TrainTransform((384,), augment=build_augmentations(None)),
    "no_scale_jitter": TrainTransform((384,), jitter=False, augment=build_augmentations(None)),
    "multi_scale_per_sample": TrainTransform(tuple(multi_scale_sizes(384, 32)), augment=build_augmentations(None)),
}


def ramps(height: int, width: int) -> np.ndarray:
    """A picture whose channels tell column and row of every pixel."""
    columns, rows = np.linspace(0, 255, width), np.linspace(0, 255, height)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = columns.round(), rows.round()[:, None]
    return image


@pytest.mark.parametrize("name", RANDOM_PIPELINES)
def test_random_pipeline_has_the_recorded_statistics(name):
    recorded = META["train_pipeline_statistics"][name]
    image = ramps(*recorded["image_size"])
    empty = target_of(
        {"boxes": [], "boxes_shape": [0, 4], "labels": [], "area": [], "iscrowd": [], "size": image.shape[:2]}
    )
    found = [
        RANDOM_PIPELINES[name](image, empty, np.random.default_rng((0, i)))[0].astype(int)
        for i in range(recorded["samples"])
    ]
    mirrored = [one[0, 0, 0] > one[0, -1, 0] for one in found]
    widths, heights = (np.array([np.ptp(one[..., channel]) / 255 for one in found]) for channel in (0, 1))
    is_cropped = widths < 0.9
    # Three deviations of a fraction of 400 draws.
    assert abs(np.mean(mirrored) - recorded["fraction_mirrored"]) <= 0.075
    assert abs(is_cropped.mean() - recorded["fraction_cropped"]) <= (0.075 if recorded["fraction_cropped"] else 0)
    sizes = [list(size) for size in sorted({one.shape[:2] for one in found})]
    assert sizes == recorded["output_sizes"]
    for axis, fractions in (("width", widths), ("height", heights)):
        check_quantiles(fractions[is_cropped], recorded[f"crop_{axis}_fraction_quantiles"])


def check_quantiles(fractions: np.ndarray, recorded: list[float] | None) -> None:
    """Compare minimum, 10 %, median, 90 % and maximum; the inner ones carry the noise of the draws."""
    if recorded is None:
        assert not len(fractions)
        return
    difference = np.abs(np.quantile(fractions, (0, 0.1, 0.5, 0.9, 1)) - recorded)
    assert (difference <= (0.02, 0.05, 0.05, 0.05, 0.02)).all(), difference
