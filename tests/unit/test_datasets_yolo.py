"""YOLO data sets: where pictures and labels are looked for, and how lines are read."""

from __future__ import annotations

import pytest
from PIL import Image

from rfdetr.datasets.yolo import find_yolo_split, read_yolo

LABEL = "0 0.5 0.5 0.2 0.4\n"


def build(root, yaml, files):
    """Files by path: pictures for picture names, text for the rest."""
    (root / "data.yaml").write_text(yaml, encoding="utf-8")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.new("RGB", (100, 50)).save(root / name)
        else:
            (root / name).write_text(text, encoding="utf-8")


def names_of(annotations):
    return [annotations.path(i).relative_to(annotations.root).as_posix() for i in range(len(annotations))]


def read_line(tmp_path, line, yaml="names: [a, b]"):
    build(tmp_path, yaml, {"train/images/a.png": None, "train/labels/a.txt": line})
    return read_yolo(tmp_path, "train")


# Entry of the yaml, picture, label file.
PLACES = [
    ("", "train/images/a.png", "train/labels/a.txt"),
    ("train: ../train/images", "train/images/a.png", "train/labels/a.txt"),
    ("train: ./train/images/", "train/images/a.png", "train/labels/a.txt"),
    ("train: images/train", "images/train/a.JPG", "labels/train/a.txt"),
    ("{path: data, train: images/train}", "data/images/train/a.png", "data/labels/train/a.txt"),
    ("train: train", "train/images/a.png", "train/labels/a.txt"),
    ("train: images/train", "images/train/sub/Bäume 鳥.png", "labels/train/sub/Bäume 鳥.txt"),
    ("train: images/images", "images/images/a.png", "images/labels/a.txt"),
    ("train: missing/images", "train/images/a.png", "train/labels/a.txt"),
    ("train: list.txt", "images/train/a.png", "labels/train/a.txt"),
    ("train: [images/train, list.txt]", "images/train/a.png", "labels/train/a.txt"),
]


@pytest.mark.parametrize(("entry", "picture", "label"), PLACES)
def test_pictures_and_labels_are_found(tmp_path, entry, picture, label):
    lines = entry.strip("{}").replace("data, ", "data\n") + "\nnames: [a, b]"
    build(tmp_path, lines, {picture: None, label: LABEL, "list.txt": "./images/train/a.png\n\n"})
    assert find_yolo_split(tmp_path, "train")
    annotations = read_yolo(tmp_path, "train")
    assert names_of(annotations) == [picture]
    assert annotations.target(0, 50, 100)["boxes"].tolist() == [[40, 15, 60, 35]]


def test_relative_entry_does_not_reach_out_of_the_data_set(tmp_path):
    root = tmp_path / "set"
    for folder in (tmp_path, root):
        build_folder = {"train/images/a.png": None, "train/labels/a.txt": LABEL}
        folder.mkdir(exist_ok=True)
        build(folder, "names: [a]\ntrain: ../train/images", build_folder)
    assert names_of(read_yolo(root, "train")) == ["train/images/a.png"]


def test_absolute_entry_may_lie_elsewhere(tmp_path):
    root, other = tmp_path / "set", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    build(other, "", {"images/a.png": None, "labels/a.txt": LABEL})
    (root / "data.yaml").write_text(f"names: [a]\ntrain: {other}/images\n", encoding="utf-8")
    annotations = read_yolo(root, "train")
    assert annotations.path(0) == other / "images" / "a.png"
    assert len(annotations.labels) == 1


def test_linked_folder_counts_as_part_of_the_data_set(tmp_path):
    root, other = tmp_path / "set", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    build(other, "", {"images/a.png": None, "labels/a.txt": LABEL})
    (root / "images").symlink_to(other / "images", target_is_directory=True)
    (root / "labels").symlink_to(other / "labels", target_is_directory=True)
    (root / "data.yaml").write_text("names: [a]\ntrain: images\n", encoding="utf-8")
    assert names_of(read_yolo(root, "train")) == ["images/a.png"]


def test_pictures_are_sorted_by_path_and_numbered(tmp_path):
    files = {f"train/images/{name}": None for name in ("b.png", "a.png", "C.png")}
    build(tmp_path, "names: [a]", {**files, "train/images/notes.md": "x", "train/labels/b.txt": LABEL})
    annotations = read_yolo(tmp_path, "train")
    assert names_of(annotations) == [f"train/images/{name}" for name in ("C.png", "a.png", "b.png")]
    assert annotations.image_ids.tolist() == [0, 1, 2]
    assert annotations.offsets.tolist() == [0, 0, 0, 1]


# Line, number of fields of a pose line or None, boxes of a picture 100 wide and 50 high.
LINES = [
    ("1 0.5 0.5 0.2 0.4", None, [[40, 15, 60, 35]]),
    ("0 0.1 0.2 0.3 0.2 0.2 0.6", None, [[10, 10, 30, 30]]),
    ("0 -0.2 0.2 0.3 1.2 0.2 0.6", None, [[0, 10, 30, 50]]),
    ("0 0.5 0.5 0.2 0.4 0.1 0.1 2 0.9 0.9 2", "[2, 3]", [[40, 15, 60, 35]]),  # pose, read as its box
    ("0 0.1 0.2 0.3 0.2 0.2 0.6", "[1, 3]", [[10, 10, 30, 30]]),  # polygon in a pose data set
    ("\ufeff0 0.5 0.5 0.2 0.4", None, [[40, 15, 60, 35]]),
    ("", None, []),
]


@pytest.mark.parametrize(("line", "kpt_shape", "boxes"), LINES)
def test_lines_become_boxes(tmp_path, line, kpt_shape, boxes):
    yaml = "names: [a, b]" + f"\nkpt_shape: {kpt_shape}" * bool(kpt_shape)
    target = read_line(tmp_path, line, yaml).target(0, 50, 100)
    assert target["boxes"].round(4).tolist() == boxes
    assert target["area"].round(3).tolist() == [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]


REFUSED = [
    ("0 0.5 0.5 0.2 0.2\n0 1e400 0.5 0.2 0.2", r"a.txt, line 2: coordinates"),
    ("inf 0.5 0.5 0.2 0.2", r"a.txt, line 1: class inf"),
    ("0.5 0.5 0.5 0.2 0.2", r"a.txt, line 1: class 0.5; classes are whole numbers from 0 to 1"),
    ("0 0.1 0.1 0.2 0.2 100 50", r"a.txt, line 1: coordinates .* not pixels"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_broken_lines_are_refused_with_file_and_line(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read_line(tmp_path, line)


@pytest.mark.parametrize("name", ["data.yaml", "list.txt", "train/labels/a.txt"])
def test_files_that_are_not_utf8_are_named(tmp_path, name):
    files = {"train/images/a.png": None, "train/labels/a.txt": LABEL, "list.txt": "train/images/a.png"}
    build(tmp_path, "names: [a]\ntrain: list.txt", files)
    (tmp_path / name).write_bytes(b"\xff")
    with pytest.raises(ValueError, match=rf"{name} is not a text in UTF-8"):
        read_yolo(tmp_path, "train")


def test_vanished_boxes_are_counted_with_their_place(tmp_path):
    (repair,) = read_line(tmp_path, LABEL + "0 0.5 0.5 0 0.2\n0 1.4 0.5 .1 .1\n").repairs
    assert repair.count == 2
    assert repair.example.startswith("object 2 of ")
    assert repair.example.endswith("train/labels/a.txt")


def test_label_files_without_a_picture_are_counted(tmp_path):
    files = {"train/images/a.png": None, "train/labels/b.txt": LABEL, "train/labels/classes.txt": "a"}
    build(tmp_path, "names: [a]", files)
    (repair,) = read_yolo(tmp_path, "train").repairs
    assert (repair.count, repair.kind) == (1, "label files without a picture, ignored")
    assert repair.example.endswith("b.txt")


# Entry of the yaml, what the message has to say.
REFUSED_ENTRIES = [
    ("train: 5", r"data.yaml: 'train' is 5; it has to be a folder"),
    ("train: [train/images, gone]", r"data.yaml: 'gone' of the train split does not exist"),
    ("train: list.txt", r"list.txt: '../a.png' leads out"),
]


@pytest.mark.parametrize(("entry", "message"), REFUSED_ENTRIES)
def test_broken_entries_are_refused(tmp_path, entry, message):
    files = {"train/images/a.png": None, "train/labels/a.txt": LABEL, "list.txt": "../a.png\n"}
    build(tmp_path, f"names: [a]\n{entry}", files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_yolo(tmp_path, "train")


def test_listed_picture_that_is_missing_is_named(tmp_path):
    build(tmp_path, "names: [a]\ntrain: list.txt", {"list.txt": "images/gone.png\n", "labels/gone.txt": LABEL})
    with pytest.raises(FileNotFoundError, match=r"1 of 1 pictures are missing, the first is .*images/gone.png"):
        read_yolo(tmp_path, "train")


def test_split_without_pictures_is_refused(tmp_path):
    (tmp_path / "train" / "images").mkdir(parents=True)
    build(tmp_path, "names: [a]", {"train/labels/a.txt": LABEL})
    with pytest.raises(ValueError, match=r"data.yaml: the train split is empty"):
        read_yolo(tmp_path, "train")


def test_pictures_without_an_images_folder_are_refused(tmp_path):
    build(tmp_path, "names: [a]\ntrain: photos", {"photos/a.png": None})
    with pytest.raises(ValueError, match=r"cannot tell where the labels of .*photos are"):
        read_yolo(tmp_path, "train")


def test_missing_split_says_what_was_looked_for(tmp_path):
    build(tmp_path, "names: [a]\nval: gone/images", {"train/images/a.png": None})
    assert find_yolo_split(tmp_path, "valid") == []
    message = r"no pictures for the valid split; looked for its entry 'valid' \('gone/images'\) and for valid/images or"
    with pytest.raises(FileNotFoundError, match=message):
        read_yolo(tmp_path, "valid")
