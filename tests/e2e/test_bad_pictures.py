"""Pictures that cannot be decoded during a run and in an evaluation: left out, counted and listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import TRAINING, tiny_model

from rfdetr.datasets.loader import BadPictures
from rfdetr.datasets.synthetic import draw_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one picture in each split whose pixels end early, which only decoding tells."""
    folder = draw_dataset(tmp_path_factory.mktemp("bad"), {"train": 12, "valid": 6}, hw=(64, 80), max_objects=3)
    for split, index in (("train", 4), ("valid", 2)):
        file = folder / split / f"{split}_{index:05d}.jpg"
        file.write_bytes(file.read_bytes()[:-300])
    return folder


def without(data: Path, split: str, index: int, folder: Path) -> Path:
    """A copy without a picture and its objects."""
    shutil.copytree(data, folder)
    file = folder / split / "_annotations.coco.json"
    document = json.loads(file.read_text())
    document["images"] = [one for one in document["images"] if one["id"] != index + 1]
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] != index + 1]
    file.write_text(json.dumps(document))
    return folder


def train(data: Path, out: Path, **options: Any) -> None:
    torch.manual_seed(0)
    tiny_model().train(dataset_dir=data, output_dir=out, **{**TRAINING, "epochs": 1, **options})


def test_a_run_goes_on_and_lists_them(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BadPictures, "limit", 0.2)
    logs = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        train(data, out, num_workers=workers)
        listed = (out / "bad_pictures.txt").read_text().splitlines()
        assert [next(name for name in line.replace(":", " ").split() if ".jpg" in name)[-9:] for line in listed] == [
            "00004.jpg",
            "00002.jpg",
        ]
        lines = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
        logs.append([[line["train_loss"], line["test_coco_eval_bbox"]] for line in lines])
    assert logs[0] == logs[1]


def test_they_are_an_error_where_that_is_asked_or_they_are_many(data: Path, tmp_path: Path) -> None:
    for options in ({}, {"on_bad_image": "error"}):
        with pytest.raises(ValueError, match=r"(train|valid)_0000\d\.jpg"):
            train(data, tmp_path / str(len(options)), **options)


def test_an_evaluation_is_that_of_the_other_pictures(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BadPictures, "limit", 0.2)
    model = tiny_model(num_classes=4)
    options = {"split": "valid", "batch_size": 1, "num_workers": 0}
    found = model.evaluate(dataset_dir=data, **options)
    expected = model.evaluate(dataset_dir=without(data, "valid", 2, tmp_path / "rest"), **options)
    assert numbers(found) == numbers(expected)


def numbers(found: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(found).items() if isinstance(value, int | float | list)}
