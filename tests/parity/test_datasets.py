"""Targets of the recorded data sets: Roboflow COCO with and without placeholder, YOLO layouts, polygons, poses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfdetr.datasets.layout import detect_format, has_split, read_split

DATA = Path(__file__).parents[1] / "data" / "datasets"
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
SPLITS = [(name, split) for name in TOLERANCE_PX for split in EXPECTED[name]["splits"]]


@pytest.mark.filterwarnings("ignore:.*left out:UserWarning")
@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_targets_equal_the_recorded_ones(name, split):
    check_split(EXPECTED[name]["directory"], split, EXPECTED[name], EXPECTED[name]["splits"][split], TOLERANCE_PX[name])


@pytest.mark.filterwarnings("ignore:.*left out:UserWarning")
def test_test_split_of_a_stock_roboflow_yolo_export_loads():
    rows = EXPECTED["yolo_ultralytics_det"]["splits"]["test"]
    check_split("yolo", "test", EXPECTED["yolo_det"], rows, 1e-3)


def check_split(directory, split, dataset, rows, tolerance_px):
    annotations = read_split(DATA / directory, split)
    assert annotations.class_names == dataset["class_names"]
    assert annotations.categories.num_classes == dataset["num_classes"]
    assert [annotations.path(i).name for i in range(len(annotations))] == [row["file"] for row in rows]
    for index, row in enumerate(rows):
        check_target(annotations, index, row["raw"], tolerance_px)


def check_target(annotations, index, expected, tolerance_px):
    with Image.open(annotations.path(index)) as image:
        target = annotations.target(index, image.height, image.width)
    assert {key: value.dtype.name for key, value in target.items()} == {
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
