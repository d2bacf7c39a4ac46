"""Finding the splits of a data set folder, and the errors when there is none."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from rfdetr.datasets.annotations import Categories
from rfdetr.datasets.layout import detect_format, find_given, find_split, has_split, read_place, read_split
from rfdetr.datasets.source import DataSource

BOX = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20]}


def write_coco(file, pictures, annotations=(BOX,), names=("a", "b")):
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 60)).save(pictures / "a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": i, "name": name} for i, name in zip((3, 9), names, strict=True)],
        "annotations": list(annotations),
    }
    file.write_text(json.dumps(document), encoding="utf-8")


def write_roboflow(root, split, **options):
    write_coco(root / split / "_annotations.coco.json", root / split, **options)


def write_yolo(root, split):
    (root / split / "images").mkdir(parents=True)
    (root / split / "labels").mkdir(parents=True)
    Image.new("RGB", (80, 60)).save(root / split / "images" / "y.png")
    (root / split / "labels" / "y.txt").write_text("1 0.5 0.5 0.5 0.5\n", encoding="utf-8")
    (root / "data.yaml").write_text("names: [a, b]\n", encoding="utf-8")


@pytest.mark.parametrize("folder", ["valid", "val", "validation"])
def test_names_of_the_validation_folder(tmp_path, folder):
    write_roboflow(tmp_path, "train")
    write_roboflow(tmp_path, folder)
    assert has_split(tmp_path, "valid")
    assert read_split(tmp_path, "valid").path(0).parent.name == folder


def test_valid_goes_before_val(tmp_path):
    write_roboflow(tmp_path, "val")
    write_roboflow(tmp_path, "valid")
    assert read_split(tmp_path, "valid").path(0).parent.name == "valid"


def test_coco_goes_before_yolo_unless_yolo_is_asked_for(tmp_path):
    write_roboflow(tmp_path, "train")
    write_yolo(tmp_path, "train")
    assert detect_format(tmp_path) == "coco"
    assert read_split(tmp_path, "train").path(0).name == "a.png"
    assert read_split(tmp_path, "train", "yolo").path(0).name == "y.png"


def test_split_that_is_missing_says_what_was_looked_for_and_found(tmp_path):
    write_roboflow(tmp_path, "train")
    assert not has_split(tmp_path, "test")
    message = r"no test split: looked for .*test/_annotations.coco.json, found train/ in "
    with pytest.raises(FileNotFoundError, match=message):
        read_split(tmp_path, "test")


# Annotation file, picture folder, split.
TREES = [
    ("instances_train2017.json", "train2017", "train"),
    ("instances_val2017.json", "images/val2017", "valid"),
    ("instances_test2017.json", "test2017", "test"),
    ("image_info_test-dev2017.json", "test2017", "test"),
    ("instances_train.json", "train", "train"),
    ("instances_valid.json", "valid", "valid"),
]


@pytest.mark.parametrize(("file", "pictures", "split"), TREES)
def test_original_coco_tree_has_raw_ids(tmp_path, file, pictures, split):
    write_coco(tmp_path / "annotations" / file, tmp_path / pictures)
    assert find_split(tmp_path, split, "coco").file == tmp_path / "annotations" / file
    annotations = read_split(tmp_path, split, "coco")
    assert annotations.path(0).parent == tmp_path / pictures
    assert annotations.labels.tolist() == [3]
    assert annotations.categories.num_classes == 9


def test_year_2017_goes_before_other_files_of_a_coco_tree(tmp_path):
    for name in ("train2014", "train2017"):
        write_coco(tmp_path / "annotations" / f"instances_{name}.json", tmp_path / name)
    assert read_split(tmp_path, "train", "coco").path(0).parent.name == "train2017"
    (tmp_path / "annotations" / "instances_train2017.json").rename(tmp_path / "annotations" / "instances_train15.json")
    with pytest.raises(ValueError, match=r"several annotation files for the train split: .*train15.json"):
        read_split(tmp_path, "train", "coco")


def test_coco_tree_without_the_option_counts_its_classes(tmp_path):
    write_coco(tmp_path / "annotations" / "instances_train2017.json", tmp_path / "train2017")
    assert detect_format(tmp_path) == "coco"
    assert read_split(tmp_path, "train").labels.tolist() == [0]
    with pytest.raises(FileNotFoundError, match=r"no valid split: looked for .*instances_val2017.json"):
        read_split(tmp_path, "valid", "coco")


# Annotation file, picture folder: layouts of COCO files that tools write.
PLAIN = [
    ("annotations/instances_train.json", "images/train"),
    ("annotations/train.json", "images"),
    ("annotations/instances_train2017.json", "images/train2017"),
    ("train.json", "train"),
    ("train_annotations.json", "."),
    ("train/labels.json", "train/data"),
    ("train/result.json", "train/images"),
    ("Bäume/../train/annotations.json", "train"),
    ("annotations/train/instances.json", "train"),
]


@pytest.mark.parametrize(("file", "pictures"), PLAIN)
def test_coco_files_are_found_under_any_usual_name(tmp_path, file, pictures):
    (tmp_path / "Bäume").mkdir()
    write_coco(tmp_path / file, tmp_path / pictures)
    annotations = read_split(tmp_path, "train")
    assert annotations.path(0).is_file()
    assert annotations.labels.tolist() == [0]


def test_of_several_coco_files_those_of_the_task_count(tmp_path):
    for kind in ("instances", "person_keypoints", "captions"):
        write_coco(tmp_path / "annotations" / f"{kind}_train2017.json", tmp_path / "train2017")
    assert find_split(tmp_path, "train").file.name == "instances_train2017.json"
    assert find_split(tmp_path, "train", keypoints=True).file.name == "person_keypoints_train2017.json"


def test_yaml_of_any_name(tmp_path):
    write_yolo(tmp_path, "train")
    (tmp_path / "data.yaml").rename(tmp_path / "coco8.yaml")
    assert detect_format(tmp_path / "coco8.yaml") == "yolo"
    assert read_split(tmp_path / "coco8.yaml", "train").path(0).name == "y.png"


# What `train=` may be for the three kinds of data sets.
GIVEN = {
    "coco": ["train/_annotations.coco.json", "train", "."],
    "yolo": ["train/images", "train", "data.yaml", ".", "list.txt"],
}


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, paths in GIVEN.items() for path in paths])
def test_split_given_as_a_path(tmp_path, kind, path):
    if kind == "coco":
        write_roboflow(tmp_path, "train")
    else:
        write_yolo(tmp_path, "train")
        (tmp_path / "list.txt").write_text("train/images/y.png\n", encoding="utf-8")
    place = find_given(tmp_path / path, "train")
    annotations = read_place(place, "train", masks=False, keypoints=False, schema=None, lenient=False)
    assert len(annotations) == len(annotations.labels) == 1
    assert annotations.path(0).is_file()


def test_given_path_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone, given as the valid split, does not exist"):
        find_given(tmp_path / "gone", "valid")
    (tmp_path / "words.txt").write_text("a.png\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"words.txt, given as the valid split, is no COCO file.* no data.yaml there"):
        find_given(tmp_path / "words.txt", "valid")


@pytest.mark.parametrize("call", [detect_format, lambda root: has_split(root, "train")])
def test_folder_that_is_missing_or_empty(tmp_path, call):
    with pytest.raises(FileNotFoundError, match=r"data set folder .*gone does not exist"):
        call(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"looked for train/_annotations.coco.json .* found nothing"):
        call(tmp_path)


def test_options_that_are_not_known_are_refused(tmp_path):
    write_roboflow(tmp_path, "train")
    with pytest.raises(ValueError, match=r"split='eval' is not known; choose one of train, valid, test"):
        read_split(tmp_path, "eval")
    with pytest.raises(ValueError, match=r"dataset_file='voc' is not known; choose one of roboflow, coco, yolo"):
        read_split(tmp_path, "train", "voc")


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_roboflow(tmp_path / "set", "train")
    assert has_split("~/set", "train")


def test_train_split_without_objects_warns_and_valid_does_not(tmp_path):
    for split in ("train", "valid"):
        write_roboflow(tmp_path, split, annotations=())
    with pytest.warns(UserWarning, match=r"train split without any object: 1 \(first: 1 background pictures\)"):
        assert len(read_split(tmp_path, "train")) == 1
    assert len(read_split(tmp_path, "valid").labels) == 0


def test_yolo_split_has_to_have_the_classes_of_the_train_split(tmp_path):
    write_yolo(tmp_path, "train")
    categories = read_split(tmp_path, "train").categories
    assert read_split(tmp_path, "train", categories=categories).class_names == ["a", "b"]
    with pytest.raises(ValueError, match=r"data.yaml: classes are \['a', 'b'\], but the given categories are \['b'\]"):
        read_split(tmp_path, "train", categories=Categories((0,), ("b",)))


# File and picture folder of projects as labelling tools export them, without splits.
LONE = [
    ("annotations/instances_default.json", "images/default"),  # CVAT
    ("result.json", "images"),  # Label Studio
    ("labels.json", "data"),  # FiftyOne
    ("train/_annotations.coco.json", "train/images"),
]


@pytest.mark.parametrize(("file", "pictures"), LONE)
def test_exports_of_labelling_tools_are_found(tmp_path, file, pictures):
    write_coco(tmp_path / file, tmp_path / pictures)
    (tmp_path / "._train.json").write_bytes(b"\x00\x05\x16\x07")
    assert read_split(tmp_path, "train").path(0).is_file()
    assert not has_split(tmp_path, "valid")


def test_pictures_are_taken_from_the_folder_that_has_most_of_them(tmp_path):
    for split, folder in (("train", "images"), ("train", "train"), ("val", "val")):
        write_coco(tmp_path / f"my_{split}.json", tmp_path / folder)
    assert read_split(tmp_path, "train").path(0).parent.name == "train"
    assert read_split(tmp_path, "valid").path(0).parent.name == "val"


def test_names_from_windows(tmp_path):
    write_coco(tmp_path / "train.json", tmp_path / "images" / "deep")
    file = tmp_path / "train.json"
    file.write_text(file.read_text().replace("a.png", "images\\\\deep\\\\a.png"))
    assert read_split(tmp_path, "train").path(0) == tmp_path / "images" / "deep" / "a.png"


def test_the_nearest_description_says_what_the_labels_mean(tmp_path):
    for name, classes in (("one", "[a, b]"), ("two", "[b, a]")):
        write_yolo(tmp_path / name, "train")
        (tmp_path / name / "data.yaml").write_text(f"names: {classes}\n")
    place = find_given(tmp_path / "two" / "train" / "images", "valid", around=tmp_path / "one")
    assert place.file == tmp_path / "two" / "data.yaml"


def test_a_file_is_no_data_set(tmp_path):
    write_coco(tmp_path / "train.json", tmp_path / "train")
    with pytest.raises(ValueError, match=r"train.json is a file and no description.*give its folder, or train="):
        read_split(tmp_path / "train.json", "train")


def test_a_joined_data_set_needs_its_train_split(tmp_path):
    write_roboflow(tmp_path / "one", "train")
    write_roboflow(tmp_path / "two", "valid")
    source = DataSource([tmp_path / "one", tmp_path / "two"], {})
    with pytest.raises(FileNotFoundError, match=r"no train split in .*two$"):
        source.read("train")
    assert len(source.read("valid")) == 1


def test_category_ids_as_labels_of_a_split_given_as_a_path(tmp_path):
    write_roboflow(tmp_path, "train")
    given = {"train": [tmp_path / "train"]}
    assert DataSource([], given, "coco").read("train").labels.tolist() == [3]
    with pytest.raises(ValueError, match="takes the category ids as labels, but data sets are joined by name"):
        DataSource([tmp_path, tmp_path], {}, "o365").read("train")


def test_a_category_that_means_something_else_in_valid_is_refused(tmp_path):
    write_roboflow(tmp_path, "train")
    write_roboflow(tmp_path, "valid", names=("bird", "b"))
    train = read_split(tmp_path, "train")
    with pytest.raises(ValueError, match=r"category 3 is 'bird' and has objects, but in the train split it is 'a'"):
        read_split(tmp_path, "valid", categories=train.categories)
    write_roboflow(tmp_path, "valid", names=("A", "b"))
    with pytest.warns(UserWarning, match="named otherwise"):
        read_split(tmp_path, "valid", categories=train.categories)
