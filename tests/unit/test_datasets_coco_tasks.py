"""Outlines of COCO files: they follow their objects through sorting, and what cannot be one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.layout import read_split

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
RUNS = {"size": [60, 80], "counts": [100, 25, 4675]}


def write(root: Path, annotations: list[dict], split: str = "valid", images: int = 1) -> Path:
    (root / split).mkdir(parents=True)
    for number in range(images):
        Image.new("RGB", (80, 60)).save(root / split / f"{number}.png")
    document = {
        # Pictures in falling order of their ids.
        "images": [{"id": images - number, "file_name": f"{number}.png"} for number in range(images)],
        "categories": [{"id": 3, "name": "a"}],
        "annotations": annotations,
    }
    (root / split / "_annotations.coco.json").write_text(json.dumps(document), encoding="utf-8")
    return root


def one(number: int = 7, image_id: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": 3, "bbox": [10, 10, 20, 20], **more}


def read(root: Path, split: str = "valid") -> AnnotationSet:
    return read_split(root, split, masks=True)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_outlines_follow_their_objects(tmp_path):
    rng = np.random.default_rng(0)
    kinds = (
        lambda n: [[0, 0, n, 0, n, n, 0, n]],
        lambda n: {"size": [60, 80], "counts": [0, n * n, 4800 - n * n]},
        None,
    )
    objects, sizes = [], {}
    for n in range(1, 40):
        kind = kinds[n % 3]
        objects.append(one(n, int(rng.integers(1, 8)), **({"segmentation": kind(n)} if kind else {})))
        sizes[n] = n * n if kind else 0
    annotations = read(write(tmp_path, objects, images=6))
    found = {}
    for index in range(6):
        masks = annotations.target(index, 60, 80)["masks"].dense()
        rows = annotations.rows(index)
        found |= dict(zip(annotations.annotation_ids[rows].tolist(), masks.sum((1, 2)).tolist(), strict=True))
    # Image 7 is not there.
    assert found == {one["id"]: sizes[one["id"]] for one in objects if one["image_id"] < 7}


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ("abc", "cannot be read"),
        (7, "cannot be read"),
        ([["1", "2", "3", "4", "5", "6"]], "cannot be read"),
        ([[1, 2, None, 4, 5, 6]], "cannot be read"),
        ([[10, 10, 20, 20, 30, 30], 5], "cannot be read"),
        ([[1, 2, 3, 4, 5, 6, 7]], "with an odd count of numbers"),
        ([[1, 2, 3, 4, 5, 1e300]], "with numbers that are no positions"),
        ([[1, 2, 3, 4, 5, float("nan")]], "with numbers that are no positions"),
        ({"counts": [1, 2]}, r"cannot be read \('size'\)"),
        ({"size": [60, 80]}, r"cannot be read \('counts'\)"),
        ({"size": [60, 80], "counts": None}, "cannot be read"),
        ({"size": [60, 80], "counts": [-1, 4801]}, "cannot be read"),
        ({"size": [60, 80], "counts": [0.5, 4799.5]}, "cannot be read"),
        ({"size": [60], "counts": [4800]}, "cannot be read"),
        ({"size": [60, 80], "counts": [4801]}, r"the runs cover 4801 pixels; a mask of 60 x 80"),
        ({"size": [60, 80], "counts": "bi~"}, "is not a compressed mask"),
        ({"size": [80, 60], "counts": [4800]}, r"of 80 x 60 \(height x width\), but its picture has 60 x 80"),
    ],
)
def test_what_is_no_outline_is_refused_by_name(tmp_path, segmentation, says):
    root = write(tmp_path, [one(1, segmentation=SQUARE), one(segmentation=segmentation)])
    with pytest.raises(ValueError, match=says) as caught:
        read(root)
    assert "_annotations.coco.json: annotation 7 of image 1 has a segmentation" in str(caught.value)
    assert "polygons [[x1, y1, x2, y2, x3, y3, ...], ...] in pixels, or the runs of a mask" in str(caught.value)


def test_masks_of_a_damaged_picture_wait_for_its_decoding(tmp_path):
    root = write(tmp_path, [one(segmentation=RUNS)])
    (root / "valid" / "0.png").write_bytes(b"no picture")
    assert read(root).outlines.patch(0, 60, 80).mask.sum() == 25


def test_boxes_alone_cannot_teach_masks(tmp_path):
    with pytest.raises(ValueError, match=r"_annotations.coco.json: not one of its 2 objects has a segmentation"):
        read(write(tmp_path, [one(1), one(2)], "train"), "train")


@pytest.mark.filterwarnings("ignore:.*without any object:UserWarning")
def test_pictures_without_objects_have_no_masks(tmp_path):
    for split in ("train", "valid"):
        annotations = read(write(tmp_path, [], split), split)
        assert annotations.target(0, 60, 80)["masks"].packed().shape == (0, 60, 80)


def test_what_is_mended_is_counted_once(tmp_path):
    objects = [
        one(1, segmentation=[*SQUARE, [1, 2, 3, 4]]),
        one(2, segmentation=[]),
        one(3),
        one(4, segmentation=SQUARE[0]),
        one(5, iscrowd=1),
        one(6, segmentation=[[1, 2, 3, 4]], image_id=99),
        one(7, segmentation=[[1, 1, 2, 2]]),
        one(8, segmentation=[[]]),
    ]
    says = (
        r"unknown images, ignored: 1 .*less than 3 points, which are ignored: 2 \(first: annotation 1 of image 1\); "
        r"objects without segmentation, whose masks are empty: 3 \(first: annotation 2 of image 1\)"
    )
    with pytest.warns(UserWarning, match=says):
        annotations = read(write(tmp_path, objects, "train"), "train")
    assert annotations.target(0, 60, 80)["masks"].dense().sum((1, 2)).tolist() == [400, 0, 0, 400, 0, 0]


def test_only_annotations_have_outlines(tmp_path):
    file = write(tmp_path, [one(segmentation=SQUARE)]) / "valid" / "_annotations.coco.json"
    document = json.loads(file.read_text(encoding="utf-8")) | {"info": {"segmentation": "by hand"}}
    document["categories"][0]["segmentation"] = [[1]]
    file.write_text(json.dumps(document), encoding="utf-8")
    assert read(tmp_path).target(0, 60, 80)["masks"].dense().sum() == 400
