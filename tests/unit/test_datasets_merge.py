"""Data sets joined by the names of their classes: nothing of a picture or an object changes but the labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny import TRAINING, tiny_data, tiny_model
from tests.unit.test_datasets_shards import pack_by_hand

from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.merge import merge
from rfdetr.datasets.source import DataSource
from rfdetr.datasets.write import write_yolo

TASKS: tuple[dict[str, bool], ...] = (
    {"masks": False, "keypoints": False},
    {"masks": True, "keypoints": False},
    {"masks": False, "keypoints": True},
)
SPLITS = ("train", "valid")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same task in three formats, with other classes in another order each."""
    folder = tmp_path_factory.mktemp("sets")
    shapes = (("circle", "dart"), ("dart", "star", "circle"), ("square", "dart"))
    plain = [tiny_data(folder / f"plain_{i}", shapes=own, seed=i, hw=(48 + 8 * i, 64)) for i, own in enumerate(shapes)]
    splits = {split: read_split(plain[1], split, keypoints=True) for split in SPLITS}
    write_yolo(splits, folder / "yolo")
    for split in SPLITS:
        pack_by_hand(plain[2], folder / "shards", split)
    return [plain[0], folder / "yolo", folder / "shards"]


def assert_holds(joined: AnnotationSet, parts: list[AnnotationSet]) -> None:
    """`joined` holds the pictures of all parts in order, each as its own set has it."""
    assert len(joined) == sum(map(len, parts))
    name_of = dict(zip(joined.categories.labels, joined.class_names, strict=True))
    places = [(part, index) for part in parts for index in range(len(part))]
    for place, (part, index) in enumerate(places):
        own_name = dict(zip(part.categories.labels, part.class_names, strict=True))
        hw = tuple(part.sizes[index].tolist())
        assert joined.read(place) == part.read(index)
        assert tuple(joined.sizes[place].tolist()) == hw
        assert joined.path(place).resolve() == part.path(index).resolve()
        assert np.array_equal(joined.boxes_xyxy_px(place, *hw), part.boxes_xyxy_px(index, *hw))
        rows, own_rows = joined.rows(place), part.rows(index)
        assert [name_of[i] for i in joined.labels[rows]] == [own_name[i] for i in part.labels[own_rows]]
        assert np.array_equal(joined.areas[rows], part.areas[own_rows], equal_nan=True)
        target, own = joined.target(place, *hw), part.target(index, *hw)
        for key in own.keys() - {"image_id", "labels", "masks", "keypoints"}:
            assert np.array_equal(target[key], own[key]), key
        if "masks" in own:
            assert np.array_equal(target["masks"].dense(), own["masks"].dense())
        if "keypoints" in own:
            width = own["keypoints"].shape[1]
            assert np.array_equal(target["keypoints"][:, :width], own["keypoints"])
            assert not target["keypoints"][:, width:].any()
    assert len(np.unique(joined.image_ids)) == len(joined)
    assert len(np.unique(joined.annotation_ids)) == len(joined.labels)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_three_formats_join_by_name(roots: list[Path], order: tuple[int, ...], task: dict[str, bool]) -> None:
    ordered = [roots[i] for i in order]
    parts = {split: [read_split(root, split, **task) for root in ordered] for split in SPLITS}
    source = DataSource(ordered, {}, **task)
    train = source.read("train")
    assert_holds(train, parts["train"])
    assert train.class_names == list(dict.fromkeys(name for part in parts["train"] for name in part.class_names))
    assert train.categories.labels == (0, 1, 2, 3)
    valid = source.read("valid", train)
    assert_holds(valid, parts["valid"])
    assert valid.class_names == train.class_names
    assert valid.categories.labels == train.categories.labels
    if task["keypoints"]:
        assert train.schema == valid.schema
        # In YOLO files every class has the keypoints.
        assert train.schema.counts == tuple(4 * (name != "square") for name in train.class_names)
        assert train.schema.flip_pairs == parts["train"][0].schema.flip_pairs
    # Another set of the same classes in another order judges a model of one set.
    one = DataSource([ordered[0]], {"valid": [ordered[0] / "valid"]} if order[0] == 0 else {}, **task)
    assert_holds(one.read("valid", one.read("train")), [read_split(ordered[0], "valid", **task)])


def test_paths_of_single_splits(roots: list[Path]) -> None:
    coco, yolo, shards = roots
    given = {
        "train": [coco / "train", yolo / "train" / "images", shards / "train-index.json"],
        "valid": [coco / "valid" / "_annotations.coco.json", yolo],
    }
    source = DataSource([], given)
    assert source.has("train")
    assert source.has("valid")
    assert not source.has("test")
    train = source.read("train")
    assert_holds(train, [read_split(root, "train") for root in roots])
    assert_holds(source.read("valid", train), [read_split(root, "valid") for root in (coco, yolo)])
    with pytest.raises(FileNotFoundError, match="no test split in "):
        source.read("test")
    # What is not given comes from the data set.
    mixed = DataSource([coco], {"train": [shards]})
    assert_holds(mixed.read("train"), [read_split(shards, "train")])


def test_a_class_that_training_does_not_know_is_refused_where_it_has_objects(roots: list[Path]) -> None:
    coco, yolo, _ = (read_split(root, "valid") for root in roots)
    assert "star" in {yolo.class_names[label] for label in yolo.labels}
    with pytest.raises(ValueError, match=r"data\.yaml: \d+ objects are of classes that .* not have: star; its classes"):
        merge([yolo], coco)
    assert merge([coco], yolo).class_names == yolo.class_names


def rewritten(root: Path, folder: Path, change: Any) -> Path:
    """The train split of a Roboflow folder with changed categories."""
    source = root / "train" / "_annotations.coco.json"
    document = json.loads(source.read_text())
    for image in document["images"]:
        image["file_name"] = str(root / "train" / image["file_name"])
    change(document)
    (folder / "train").mkdir(parents=True)
    for image in document["images"]:
        name = Path(image["file_name"]).name
        (folder / "train" / name).symlink_to(image["file_name"])
        image["file_name"] = name
    (folder / "train" / "_annotations.coco.json").write_text(json.dumps(document))
    return folder


@pytest.mark.filterwarnings("ignore:.*class names that several classes share:UserWarning")
def test_names_and_keypoints_have_to_be_clear(roots: list[Path], tmp_path: Path) -> None:
    def same_name(document: dict[str, Any]) -> None:
        document["categories"][0]["name"] = "dart"

    def other_points(document: dict[str, Any]) -> None:
        document["categories"][1]["keypoints"].reverse()

    twice = read_split(rewritten(roots[0], tmp_path / "twice", same_name), "train")
    with pytest.raises(ValueError, match="'dart' is the name of 2 classes, so it cannot be joined by name"):
        merge([read_split(roots[0], "train"), twice])
    root = rewritten(roots[0], tmp_path / "turned", other_points)
    one, turned = (read_split(path, "train", keypoints=True) for path in (roots[0], root))
    for joined in (lambda: merge([one, turned]), lambda: merge([turned], one)):
        with pytest.raises(ValueError, match=r"'dart' has the keypoints \['left_wing', .*but in another data set"):
            joined()


def test_training_on_several_data_sets(roots: list[Path], tmp_path: Path) -> None:
    model, options = tiny_model(), {**TRAINING, "epochs": 1}
    model.train(dataset_dir=roots[:2], output_dir=tmp_path / "lists", **options)
    assert model.class_names == ["circle", "dart", "star"]
    given = {"train": roots[2] / "train-index.json", "valid": roots[2] / "valid-index.json"}
    model = tiny_model()
    model.train(**given, output_dir=tmp_path / "paths", **options)
    assert model.class_names == ["square", "dart"]
    assert json.loads((tmp_path / "paths" / "log.txt").read_text().splitlines()[0])["epoch"] == 0
