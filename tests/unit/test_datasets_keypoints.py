"""Keypoint data: which label has which keypoints, the pairs a mirror swaps, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rfdetr.config import KeypointTrainConfig
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.build import augmentations, check_flip_pairs
from rfdetr.datasets.keypoints import KeypointSchema, pairs_by_name
from rfdetr.datasets.layout import has_split, read_split

PERSON = {"id": 5, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3]]}
POINTS = [1, 2, 2, 30, 40, 1, 7, 8, 0]


def write_coco(root: Path, categories: list[dict], objects: list[dict], split: str = "train") -> Path:
    (root / split).mkdir(parents=True)
    Image.new("RGB", (80, 60)).save(root / split / "a.png")
    box = {"image_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}],
        "categories": categories,
        "annotations": [{"id": 9 + i, **box, **one} for i, one in enumerate(objects)],
    }
    (root / split / "_annotations.coco.json").write_text(json.dumps(document), encoding="utf-8")
    return root


def write_yolo(root: Path, settings: str, labels: str) -> Path:
    for folder in ("images", "labels"):
        (root / "train" / folder).mkdir(parents=True)
    Image.new("RGB", (80, 60)).save(root / "train" / "images" / "a.png")
    (root / "train" / "labels" / "a.txt").write_text(labels, encoding="utf-8")
    (root / "data.yaml").write_text(settings, encoding="utf-8")
    return root


def read(root: Path, split: str = "train", **asked: Any) -> AnnotationSet:
    return read_split(root, split, keypoints=True, **asked)


def one(annotation: dict | None = None, **category: Any) -> tuple[list[dict], list[dict]]:
    return [PERSON | category], [{"category_id": 5, "keypoints": POINTS} | (annotation or {})]


def test_N003_a_schema_comes_from_the_categories(tmp_path):
    annotations = read(write_coco(tmp_path, *one()))
    schema = annotations.schema
    assert schema.counts == (3,)
    assert schema.names == (("nose", "left_eye", "right_eye"),)
    assert schema.flip_pairs == (1, 2)
    assert schema.skeleton == (((0, 1), (0, 2)),)
    target = annotations.target(0, 60, 80)
    assert target["keypoints"].tolist() == [[[1, 2, 2], [30, 40, 1], [0, 0, 0]]]
    assert target["keypoints"].dtype == np.float32


@pytest.mark.parametrize(
    ("wanted", "labels", "counts"),
    [
        # Categories 2 a, 5 person (3 keypoints), 7 b, 8 hand (2 keypoints)
        (None, (0, 1, 2, 3), (0, 3, 0, 2)),
        ([0, 3, 2], (0, 1, 3, 2), (0, 3, 2, 0)),
        ([3, 2], (2, 0, 3, 1), (3, 2, 0, 0)),
        ([0, 0, 3, 0, 2, 0, 0], (0, 2, 1, 4), (0, 0, 3, 0, 2)),
    ],
)
def test_classes_with_keypoints_take_the_labels_that_have_some(tmp_path, wanted, labels, counts):
    hand = {"id": 8, "name": "hand", "keypoints": ["tip", "root"]}
    categories = [{"id": 2, "name": "a"}, PERSON, {"id": 7, "name": "b"}, hand]
    objects = [{"category_id": 8, "keypoints": [1, 2, 1, 0, 0, 0]}, {"category_id": 7}, one()[1][0]]
    write_coco(tmp_path, categories, objects)
    with pytest.warns(UserWarning, match="the classes differ in which keypoints change places"):
        train = read(tmp_path, schema=wanted)
    assert train.categories.labels == labels
    assert train.categories.num_classes == max(labels) + 1
    assert train.schema.counts == counts
    assert train.labels.tolist() == [labels[3], labels[2], labels[1]]
    assert train.schema.names == (("nose", "left_eye", "right_eye"), ("tip", "root"))
    assert train.keypoints[:, :, 2].tolist() == [[1, 0, 0], [0, 0, 0], [2, 1, 0]]
    # Validation data may know fewer classes, and need not name the keypoints again.
    write_coco(tmp_path, [{"id": 5, "name": "person"}], one()[1], "valid")
    valid = read(tmp_path, "valid", categories=train.categories, schema=train.schema)
    assert valid.labels.tolist() == [labels[1]]
    assert valid.schema is train.schema
    assert valid.keypoints.shape == (1, 3, 3)


def test_the_legacy_schema_leaves_label_0_free(tmp_path):
    annotations = read(write_coco(tmp_path, *one()), schema=[0, 3])
    assert annotations.labels.tolist() == [1]
    assert annotations.schema.counts == (0, 3)
    assert annotations.categories.num_classes == 2


def test_the_original_coco_tree_has_files_of_its_own_for_keypoints(tmp_path):
    write_coco(tmp_path, *one())
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").rename(tmp_path / "train2017")
    file = tmp_path / "train2017" / "_annotations.coco.json"
    file.rename(tmp_path / "annotations" / "person_keypoints_train2017.json")
    annotations = read(tmp_path, dataset_file="coco")
    # Raw ids are for detection alone.
    assert annotations.labels.tolist() == [0]
    assert has_split(tmp_path, "train", "coco", keypoints=True)
    assert not has_split(tmp_path, "train", "coco")
    with pytest.raises(FileNotFoundError, match=r"person_keypoints_val2017\.json"):
        read(tmp_path, "valid", dataset_file="coco")


@pytest.mark.parametrize(
    ("annotation", "category", "asked", "says"),
    [
        ({}, {"keypoints": []}, {}, "no category has 'keypoints'"),
        (
            {"keypoints": [1, 2, 2]},
            {},
            {},
            r"annotation 9 of image 1 has keypoints \[1.0, 2.0, 2.0\]; its class needs 9",
        ),
        ({"keypoints": [1, 2, 3] * 3}, {}, {}, "annotation 9 of image 1 .*visibility 0, 1 or 2"),
        ({"keypoints": [1, None, 2] * 3}, {}, {}, "annotation 9 of image 1 .*needs 9 numbers"),
        ({"keypoints": [1, "x", 2] * 3}, {}, {}, "annotation 9 of image 1 .*needs 9 numbers"),
        ({"keypoints": [[1, 2, 2]] * 3}, {}, {}, "annotation 9 of image 1 .*needs 9 numbers in one flat list"),
        ({"keypoints": [10**400, 2, 2] * 3}, {}, {}, "annotation 9 of image 1 .*needs 9 numbers"),
        (
            {"keypoints": [0] * 9},
            {},
            {},
            "not one of its 1 objects has a labelled keypoint; keypoints cannot be learnt",
        ),
        ({}, {"keypoints": 2}, {}, "category 5 has keypoints 2; it has to be a list"),
        ({}, {"keypoints": "a,b"}, {}, "category 5 has keypoints 'a,b'; it has to be a list"),
        ({}, {"skeleton": 5}, {}, "category 5 has skeleton 5; it has to be a list"),
        ({"keypoints": "abc"}, {}, {}, "annotation 9 of image 1 .*needs 9 numbers"),
        ({}, {}, {"schema": [17]}, r"classes have \[3\] keypoints.*num_keypoints_per_class=\[17\]; .*left out"),
        ({}, {}, {"schema": [3, 3]}, r"classes have \[3\] keypoints"),
        ({}, {}, {"masks": True}, "masks and keypoints cannot be read together"),
    ],
)
def test_keypoints_that_do_not_fit_are_refused(tmp_path, annotation, category, asked, says):
    with pytest.raises(ValueError, match=says) as caught:
        read(write_coco(tmp_path, *one(annotation, **category)), **asked)
    assert "masks" in asked or "_annotations.coco.json" in str(caught.value)


def test_nested_keypoints_beside_flat_ones_are_refused_by_name(tmp_path):
    categories, objects = one()
    nested = {"category_id": 5, "keypoints": [[1, 1, 2]] * 3}
    with pytest.raises(ValueError, match=r"annotation 10 of image 1 has keypoints \[\[1, 1, 2\].*needs 9 numbers"):
        read(write_coco(tmp_path, categories, [*objects, nested]))


def test_all_splits_name_the_same_keypoints(tmp_path):
    train = read(write_coco(tmp_path, *one()))
    write_coco(tmp_path, *one(keypoints=["left_eye", "nose", "right_eye"]), "valid")
    write_coco(tmp_path, *one(keypoints=None), "test")
    asked = {"categories": train.categories, "schema": train.schema}
    with pytest.raises(ValueError, match=r"category 5 has .*\['left_eye', 'nose', .*split \['nose', 'left_eye', "):
        read(tmp_path, "valid", **asked)
    assert read(tmp_path, "test", **asked).schema is train.schema


def test_a_skeleton_that_makes_no_sense_is_left_out(tmp_path):
    with pytest.warns(UserWarning, match=r"skeleton \[\[0, 1\]\] of category 5 does not pair"):
        assert read(write_coco(tmp_path, *one(skeleton=[[0, 1]]))).schema.skeleton == ((),)


def test_objects_without_keypoints_have_none(tmp_path):
    annotations = read(write_coco(tmp_path, *one({"keypoints": None}), "valid"), "valid")
    assert not annotations.keypoints.any()
    assert len(annotations.target(0, 60, 80)["boxes"]) == 1


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["nose", "left_eye", "right_eye", "left_ear", "right_ear"], (1, 2, 3, 4)),
        (["R-Knee", "RightHip", "leftHip", "L-Knee"], (1, 2)),
        (["eye (Left)", "eye right", "EYE_top"], (0, 1)),
        (["left_a", "left_b", "bright"], None),
        (["left_eye", "Left-Eye", "right_eye"], None),
        ([], None),
    ],
)
def test_pairs_differ_by_left_and_right_alone(names, pairs):
    assert pairs_by_name(names) == pairs


def yolo(shape: str = "[2, 3]", more: str = "", names: str = "[a, b]") -> str:
    return f"names: {names}\nkpt_shape: {shape}\n{more}"


BOX = "0 .5 .5 .2 .2"


@pytest.mark.parametrize(
    ("shape", "labels", "expected"),
    [
        # Fractions, in pixels of 80 x 60
        ("[2, 3]", f"{BOX} .5 .5 2 .25 .1 1", [[40, 30, 2], [20, 6, 1]]),
        ("[2, 3]", f"{BOX} 1.2 -.1 2 .25 .1 0", [[80, 0, 2], [0, 0, 0]]),
        ("[2, 2]", f"{BOX} .5 .5 -.1 .5", [[40, 30, 2], [0, 0, 0]]),
        ("[2, 2]", f"{BOX} 0 0 0 .5", [[0, 0, 0], [0, 30, 2]]),
        ("[2, 3]", BOX, [[0, 0, 0], [0, 0, 0]]),
    ],
)
def test_poses_of_yolo(tmp_path, shape, labels, expected):
    # A second object, so that there is something to learn in any case.
    labels += f"\n{BOX}" + (" .5 .5" if shape == "[2, 2]" else " .5 .5 1") * 2
    annotations = read(write_yolo(tmp_path, yolo(shape), labels))
    np.testing.assert_allclose(annotations.target(0, 60, 80)["keypoints"][:1], [expected], rtol=1e-6)
    assert annotations.schema.counts == (2, 2)


@pytest.mark.parametrize(
    ("settings", "labels", "asked", "says"),
    [
        ("names: [a]\n", BOX, {}, r"data.yaml: there is no kpt_shape"),
        (yolo("17"), BOX, {}, r"data.yaml: kpt_shape is 17; it has to be"),
        (yolo("[17, 4]"), BOX, {}, r"kpt_shape is \[17, 4\]"),
        (yolo(more="flip_idx: [0, 0]\n"), BOX, {}, r"flip_idx is \[0, 0\]; .*keypoints 0 to 1 once"),
        (yolo("[3, 3]", "flip_idx: [1, 2, 0]\n"), BOX, {}, r"flip_idx is \[1, 2, 0\]"),
        (yolo(more="flip_idx: [1, x]\n"), BOX, {}, "flip_idx"),
        (yolo(more="flip_idx: ['1', '0']\n"), BOX, {}, "flip_idx"),
        (yolo(more="kpt_names: [x]\n"), BOX, {}, r"kpt_names is \['x'\]; it has to be a list of 2 names"),
        (yolo(more="kpt_names: {0: [p, q], 2: [r, s]}\n"), BOX, {}, "kpt_names is .*from 0, 1, 2, ... without gaps"),
        (yolo(more="kpt_names: [p, 1]\n"), BOX, {}, "kpt_names is"),
        (yolo(more="kpt_names: [[p, q], r]\n"), BOX, {}, "kpt_names is"),
        (yolo(more="kpt_names: pq\n"), BOX, {}, "kpt_names is"),
        (yolo(more="kpt_names: 2\n"), BOX, {}, "kpt_names is 2"),
        (yolo(), BOX, {}, "not one of its 1 objects has a labelled keypoint"),
        (yolo(), f"{BOX} .5 .5", {}, r"a.txt, line 1: 7 fields; an object with keypoints has 11"),
        (yolo(), f"{BOX} .5 .5 3 .5 .5 1", {}, r"a.txt, line 1: visibilities \[3.0, 1.0\]"),
        (yolo(), f"{BOX} .5 30 2 .5 .5 1", {}, r"a.txt, line 1: keypoints .*not pixels"),
        (yolo(), f"{BOX} .5 nan 0 .5 .5 1", {}, r"a.txt, line 1: keypoints"),
        (yolo(), BOX, {"schema": [2, 0]}, r"data.yaml: its classes have \[2, 2\] keypoints"),
    ],
)
def test_poses_of_yolo_that_do_not_fit_are_refused(tmp_path, settings, labels, asked, says):
    with pytest.raises(ValueError, match=says):
        read(write_yolo(tmp_path, settings, labels), **asked)


def test_labels_of_yolo_follow_the_schema_too(tmp_path):
    root = write_yolo(tmp_path, yolo(more="flip_idx: [1, 0]\nkpt_names: {0: [p, q]}\n"), f"1{BOX[1:]} .5 .5 2 .5 .5 2")
    annotations = read(root, schema=[0, 2, 2])
    assert annotations.labels.tolist() == [2]
    assert annotations.schema.counts == (0, 2, 2)
    assert annotations.schema.names == (("p", "q"), ("p", "q"))
    assert annotations.schema.flip_pairs == (0, 1)
    assert annotations.categories.labels_of(np.array([0, 1])).tolist() == [1, 2]


@pytest.mark.parametrize("names", ["{1: [r, s], 0: [p, q]}", "[[p, q], [r, s]]"])
def test_names_of_keypoints_for_each_class_go_by_their_numbers(tmp_path, names):
    root = write_yolo(tmp_path, yolo(more=f"kpt_names: {names}\n"), f"{BOX} .5 .5 2 .5 .5 2")
    assert read(root).schema.names == (("p", "q"), ("r", "s"))


@pytest.mark.parametrize(("order", "pairs"), [("[0, 1]", ()), ("[]", None), ("[1, 0]", (0, 1)), ("null", None)])
def test_that_nothing_changes_places_is_not_the_same_as_not_known(tmp_path, order, pairs):
    root = write_yolo(tmp_path, yolo(more=f"flip_idx: {order}\n"), f"{BOX} .5 .5 2 .5 .5 2")
    annotations = read(root)
    assert annotations.schema.flip_pairs == pairs
    if pairs == ():
        assert len(augmentations(config(tmp_path), annotations).describe()) == 1


@pytest.mark.parametrize(
    ("pairs", "counts", "says"),
    [
        (
            [0, 2],
            (0, 3, 2),
            "a class of data.yaml has only 2 keypoints, 0 to 1.*fewer pairs, or none and aug_config={}",
        ),
        ([0, 3], (3, 0), "has only 3 keypoints, 0 to 2"),
    ],
)
def test_pairs_that_do_not_fit_every_class_are_refused(pairs, counts, says):
    with pytest.raises(ValueError, match=says) as caught:
        check_flip_pairs(pairs, KeypointSchema(counts, ()), Path("data.yaml"))
    assert f"keypoint_flip_pairs={pairs}" in str(caught.value)
    check_flip_pairs([0, 1], KeypointSchema(counts, ()), Path("data.yaml"))


def test_mirror_pairs_are_those_given_or_those_of_the_data(tmp_path):
    annotations = read(write_coco(tmp_path / "pairs", *one()))
    assert augmentations(config(tmp_path), annotations).flip_pairs == (1, 2)
    assert augmentations(config(tmp_path, keypoint_flip_pairs=[0, 2]), annotations).flip_pairs == (0, 2)
    with pytest.raises(ValueError, match=r"keypoint_flip_pairs=\[0, 3\]: .* only 3 keypoints, 0 to 2"):
        augmentations(config(tmp_path, keypoint_flip_pairs=[0, 3]), annotations)
    without = read(write_coco(tmp_path / "none", *one(keypoints=["a", "b", "c"])))
    with pytest.warns(UserWarning, match="HorizontalFlip; .*give keypoint_flip_pairs"):
        assert augmentations(config(tmp_path), without).describe() == []
    boxes = read_split(tmp_path / "pairs", "train")
    assert len(augmentations(config(tmp_path), boxes).describe()) == 1


def config(root: Path, **options: Any) -> KeypointTrainConfig:
    return KeypointTrainConfig(dataset_dir=str(root), output_dir=str(root / "out"), **options)
