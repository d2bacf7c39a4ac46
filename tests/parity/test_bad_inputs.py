"""Malformed and unusual data sets: what loads, what loads with a warning, and what the errors say."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rfdetr.datasets.layout import read_split

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "bad_inputs.json").read_text(encoding="utf-8"))
CASES = RECORDED["cases"]
BOXES = [case for case in CASES if not case["segmentation_model"]]
GOOD_COCO = next(case["annotations"] for case in CASES if case["format"] == "coco" and case["name"] == "plain")


def write_picture(folder: Path, state: str = "ok") -> None:
    picture = RECORDED["picture"]
    if state == "ok":
        size = (picture["width"], picture["height"])
        Image.new("RGB", size, tuple(picture["colour"])).save(folder / picture["file"])
    elif state == "corrupt":
        (folder / picture["file"]).write_bytes(b"this is not a picture")


def build_coco(root: Path, case: dict[str, Any]) -> None:
    train = root / "train"
    train.mkdir()
    write_picture(train)
    (train / "_annotations.coco.json").write_text(json.dumps(GOOD_COCO), encoding="utf-8")
    if case["name"] == "missing_valid_split":
        return
    folder = root / ("val" if case["name"] == "val_directory_alias" else case["split"])
    folder.mkdir()
    write_picture(folder, case["image"])
    content = case["annotations"]
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "_annotations.coco.json").write_text(text, encoding="utf-8")


def build_yolo(root: Path, case: dict[str, Any]) -> None:
    for pictures, labels in case["directories"]:
        (root / pictures).mkdir(parents=True)
        write_picture(root / pictures)
        if labels is None:
            continue
        (root / labels).mkdir(parents=True)
        if case["labels"] is not None:
            (root / labels / "a.txt").write_text(case["labels"], encoding="utf-8")
    (root / case["yaml_name"]).write_text(case["yaml"], encoding="utf-8")
    for name, text in case["extra_files"].items():
        (root / name).write_text(text, encoding="utf-8")


def load(root: Path, case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Target of the one picture; decodes it the way a loader does."""
    split = {"val": "valid"}.get(case["split"], case["split"])
    annotations = read_split(root, split, masks=case["segmentation_model"])
    assert len(annotations) == 1
    path = annotations.path(0)
    try:
        with Image.open(path) as image:
            width, height = image.size
    except OSError as error:
        raise ValueError(f"{path}: {error}") from None
    return annotations.target(0, height, width)


@pytest.mark.parametrize("case", CASES, ids=[f"{case['format']}-{case['name']}" for case in CASES])
def test_malformed_data_set_is_mended_or_refused(tmp_path, case):
    {"coco": build_coco, "yolo": build_yolo}[case["format"]](tmp_path, case)
    if case["wanted"] == "error":
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            load(tmp_path, case)
        for text in [*case["message_must_name"], str(tmp_path)]:
            assert text in str(caught.value)
        return
    warns = case["wanted"] == "ok_warn"
    # The number of affected items is 1 in every recorded case.
    with pytest.warns(UserWarning, match=r": 1 \(first: ") if warns else contextlib.nullcontext():
        target = load(tmp_path, case)
    if case["reference"]["result"] == "ok":
        np.testing.assert_allclose(target["boxes"], np.reshape(case["reference"]["boxes_xyxy"], (-1, 4)), atol=1e-3)
        assert target["labels"].tolist() == case["reference"]["labels"]
        np.testing.assert_allclose(target["area"], case["reference"]["area"], rtol=1e-5)
        if case["segmentation_model"]:
            masks = target["masks"].dense()
            assert list(masks.shape) == case["reference"]["mask_shape"]
            assert masks.sum((1, 2)).tolist() == case["reference"]["mask_areas"]


@pytest.mark.filterwarnings("ignore:.* masks are empty:UserWarning")
@pytest.mark.parametrize("case", BOXES, ids=lambda case: f"{case['format']}-{case['name']}")
def test_what_is_wrong_with_boxes_is_wrong_with_masks_wanted_too(tmp_path, case):
    {"coco": build_coco, "yolo": build_yolo}[case["format"]](tmp_path, case)
    case = case | {"segmentation_model": True}
    if case["wanted"] == "error":
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            load(tmp_path, case)
        for text in [*case["message_must_name"], str(tmp_path)]:
            assert text in str(caught.value)
        return
    with pytest.warns(UserWarning, match="1 \\(first") if case["wanted"] == "ok_warn" else contextlib.nullcontext():
        target = load(tmp_path, case)
    assert len(target["masks"]) == len(target["boxes"])


def test_every_recorded_case_runs():
    assert len(CASES) == len({(case["format"], case["name"]) for case in CASES}) == 111


def test_missing_area_is_that_of_the_clamped_box(tmp_path):
    case = next(case for case in CASES if case["name"] == "missing_area")
    entry = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [-10, -10, 30, 20]}
    build_coco(tmp_path, {**case, "annotations": {**GOOD_COCO, "annotations": [entry]}})
    assert load(tmp_path, case)["area"].tolist() == [20 * 10]
