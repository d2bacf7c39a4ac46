"""Targets of the recorded data sets: Roboflow COCO with and without placeholder, YOLO layouts, masks, keypoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.vectors import read_arrays

from rfdetr.datasets.layout import detect_format, has_split, read_split
from rfdetr.datasets.transforms import EvalTransform

DATA = Path(__file__).parents[1] / "data" / "datasets"
MASKS = read_arrays("datasets/expected_masks")
EXPECTED = json.loads((DATA / "expected_targets.json").read_text(encoding="utf-8"))["datasets"]

# Recorded data set, and where its box tolerance comes from: text of YOLO labels is rounded to 8 digits.
TOLERANCE_PX = {
    "coco_det": 1e-4,
    "coco_placeholder_det": 1e-4,
    "yolo_det": 1e-3,
    "yolo_ultralytics_det": 1e-3,
    "yolo_seg_as_det": 1e-3,
    "keypoints_yolo": 1e-3,
}
TASKS = {
    # Recorded data set: what is read, box tolerance
    "coco_seg": ({"masks": True}, 1e-4),
    "yolo_seg": ({"masks": True}, 1e-3),
    "keypoints_coco": ({"keypoints": True}, 1e-4),
    "keypoints_yolo": ({"keypoints": True}, 1e-3),
}
SPLITS = [(name, split) for name in TOLERANCE_PX for split in EXPECTED[name]["splits"]]


@pytest.mark.filterwarnings("ignore:.*left out:UserWarning")
@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_targets_equal_the_recorded_ones(name, split):
    check_split(EXPECTED[name]["directory"], split, EXPECTED[name], EXPECTED[name]["splits"][split], TOLERANCE_PX[name])


@pytest.mark.filterwarnings("ignore:.*left out:UserWarning")
def test_test_split_of_a_stock_roboflow_yolo_export_loads():
    rows = EXPECTED["yolo_ultralytics_det"]["splits"]["test"]
    check_split("yolo", "test", EXPECTED["yolo_det"], rows, 1e-3)


@pytest.mark.filterwarnings("ignore:.*left out:UserWarning")
@pytest.mark.parametrize(("name", "split"), [(name, split) for name in TASKS for split in EXPECTED[name]["splits"]])
def test_masks_and_keypoints_equal_the_recorded_ones(name, split):
    asked, tolerance_px = TASKS[name]
    rows = EXPECTED[name]["splits"][split]
    annotations = check_split(EXPECTED[name]["directory"], split, EXPECTED[name], rows, tolerance_px, **asked)
    for index, row in enumerate(rows):
        hw = tuple(row["raw"]["orig_size"])
        raw = annotations.target(index, *hw)
        # Evaluation resizes without antialias, which moves no label.
        small = EvalTransform(384)(np.zeros((*hw, 3), np.uint8), raw, np.random.default_rng(0))[1]
        boxes = np.reshape(row["val384"]["boxes"], (-1, 4))
        np.testing.assert_allclose(small["boxes"], boxes, rtol=0, atol=tolerance_px / min(hw))
        np.testing.assert_allclose(small["area"], row["val384"]["area"], rtol=1e-4)
        if "masks" in asked:
            shape = row["raw"]["masks_shape"]
            recorded = np.unpackbits(MASKS[f"{name}.{split}.{index}"], count=np.prod(shape)).reshape(shape)
            np.testing.assert_array_equal(raw["masks"].dense(), recorded)
            planes = np.unpackbits(small["masks"], axis=0, bitorder="little")
            assert planes[: shape[0]].sum((1, 2)).tolist() == row["val384"]["mask_areas"]
            assert not planes[shape[0] :].any()
        else:
            for found, of in ((raw, row["raw"]), (small, row["val384"])):
                expected = np.reshape(of["keypoints"], of["keypoints_shape"])
                assert found["keypoints"].dtype == np.float32
                np.testing.assert_allclose(found["keypoints"], expected, rtol=1e-5, atol=1e-6)


def test_mirror_pairs_of_the_keypoints_come_from_their_names_or_from_the_description():
    coco = read_split(DATA / "keypoints_coco", "train", keypoints=True)
    yolo = read_split(DATA / "keypoints_yolo", "train", keypoints=True)
    assert coco.schema.flip_pairs == yolo.schema.flip_pairs == (0, 1, 2, 3)
    assert coco.schema.names == yolo.schema.names
    assert coco.schema.counts == yolo.schema.counts == (4,)
    assert coco.schema.skeleton == (((0, 1), (2, 3)),)


def check_split(directory, split, dataset, rows, tolerance_px, **asked):
    annotations = read_split(DATA / directory, split, **asked)
    assert annotations.class_names == dataset["class_names"]
    assert annotations.categories.num_classes == dataset["num_classes"]
    assert [annotations.path(i).name for i in range(len(annotations))] == [row["file"] for row in rows]
    for index, row in enumerate(rows):
        check_target(annotations, index, row["raw"], tolerance_px)
    return annotations


def check_target(annotations, index, expected, tolerance_px):
    with Image.open(annotations.path(index)) as image:
        target = annotations.target(index, image.height, image.width)
    tasks = {"masks", "keypoints"}
    assert {key: value.dtype.name for key, value in target.items() if key not in tasks} == {
        "boxes": "float32",
        "labels": "int64",
        "area": "float32",
        "iscrowd": "int64",
        "image_id": "int64",
        "orig_size": "int64",
    }
    boxes = np.reshape(expected["boxes"], expected["boxes_shape"])
    np.testing.assert_allclose(target["boxes"], boxes, rtol=0, atol=tolerance_px)
    np.testing.assert_allclose(target["area"], expected["area"], rtol=1e-4, atol=1e-4)
    for key in ("labels", "image_id", "iscrowd", "orig_size"):
        assert target[key].tolist() == expected[key], key


def test_placeholder_category_changes_nothing_but_itself():
    with pytest.warns(UserWarning, match="left out"):
        plain = read_split(DATA / "coco", "train")
    with pytest.warns(UserWarning, match="left out"):
        placeholder = read_split(DATA / "coco_placeholder", "train")
    np.testing.assert_array_equal(plain.labels, placeholder.labels)
    assert plain.category_ids == [3, 7, 21]
    assert placeholder.category_ids == [1, 2, 3]


def test_crowd_region_stays_in_the_arrays_for_evaluation():
    annotations = read_split(DATA / "coco", "valid")
    assert annotations.crowd.sum() == 1
    index = int(np.searchsorted(annotations.offsets, np.flatnonzero(annotations.crowd)[0], side="right")) - 1
    assert annotations.path(index).name == "valid_00.png"
    assert len(annotations.boxes_xyxy_px(index, 100, 100)) == len(annotations.target(index, 1000, 1000)["boxes"]) + 1


@pytest.mark.parametrize(
    ("directory", "dataset_format"),
    [("coco", "coco"), ("coco_placeholder", "coco"), ("yolo", "yolo"), ("yolo_ultralytics", "yolo")],
)
def test_format_is_seen_from_the_folder(directory, dataset_format):
    assert detect_format(DATA / directory) == dataset_format
    assert all(has_split(DATA / directory, split) for split in ("train", "valid", "test"))
