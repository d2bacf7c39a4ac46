"""`rfdetr pack`: tar files that are the data set they were made of, to the check and to a run."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import TRAINING, tiny_data, tiny_model

from rfdetr import cli
from rfdetr.datasets.layout import read_split

TIMES = ("time", "speed")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Every object has an outline and four keypoints."""
    return tiny_data(tmp_path_factory.mktemp("data"), shapes=("dart",))


@pytest.fixture(scope="module")
def packed(data: Path, tmp_path_factory) -> Path:
    """With so small tar files that a split has several."""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    assert cli.main(["pack", str(data), str(folder), "--max-shard-mb", "0.01"]) == 0
    return folder


def report(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert cli.main(["check", str(folder), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def losses(folder: Path, output: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model = tiny_model()
    model.train(dataset_dir=str(folder), epochs=1, output_dir=str(output), check_data=False, **TRAINING)
    (line,) = (output / "log.txt").read_text().splitlines()
    return {name: value for name, value in json.loads(line).items() if not any(word in name for word in TIMES)}


def test_it_says_what_it_packs(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pack", str(data), str(tmp_path / "shards")]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["train: 10 pictures", "valid: 4 pictures", "test: 2 pictures"]
    assert printed.err == ""
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as tar:
        assert len(tar.getnames()) == 20


@pytest.mark.parametrize("task", ["detect", "segment", "keypoints"])
def test_the_check_says_the_same(task: str, data: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(packed.glob("train-*.tar"))) > 1
    assert report(packed, capsys, "--task", task) == report(data, capsys, "--task", task)


def test_pictures_and_objects_are_the_same_in_the_same_order(data: Path, packed: Path) -> None:
    for split in ("train", "valid", "test"):
        for asked in ({"masks": True}, {"keypoints": True}):
            one, other = read_split(data, split, **asked), read_split(packed, split, **asked)
            assert [one.read(i) for i in range(len(one))] == [other.read(i) for i in range(len(other))]
            # A box is written as its corner and its extent, which are added again.
            np.testing.assert_allclose(other.boxes_xyxy, one.boxes_xyxy, rtol=1e-13)
            for name in ("image_ids", "offsets", "labels", "areas", "crowd", "annotation_ids", "keypoints"):
                np.testing.assert_array_equal(getattr(other, name), getattr(one, name))
            assert (other.class_names, other.schema) == (one.class_names, one.schema)
            if one.outlines is not None and other.outlines is not None:
                np.testing.assert_array_equal(other.outlines.points, one.outlines.points)


def test_a_run_from_tar_files_has_the_same_losses(data: Path, packed: Path, tmp_path: Path) -> None:
    from_folder, from_shards = losses(data, tmp_path / "one"), losses(packed, tmp_path / "other")
    assert from_shards == from_folder
    assert from_folder["train_loss"] > 0


def test_nothing_is_written_over(data: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in packed.iterdir()}
    assert cli.main(["pack", str(data), str(packed)]) == 1
    assert "exists, and nothing is overwritten; name another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in packed.iterdir()} == before


def test_a_broken_split_leaves_nothing_behind(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "broken"))
    (folder / "valid" / "valid_00001.jpg").unlink()
    assert cli.main(["pack", str(folder), str(tmp_path / "shards")]) == 1
    assert "1 of 4 pictures are missing" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_a_folder_without_the_layout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pack", str(tmp_path), str(tmp_path / "out"), "--dataset-file", "coco"]) == 1
    assert f"{tmp_path} has no split of the layout coco" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_sets_are_packed_together(
    data: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_data(tmp_path / "other", shapes=("square", "dart"), seed=1)
    assert cli.main(["pack", str(data), str(other), str(tmp_path / "both"), "--task", "detect"]) == 0
    assert capsys.readouterr().out.splitlines() == ["train: 20 pictures", "valid: 8 pictures", "test: 4 pictures"]
    assert cli.main(["check", str(data), str(other), "--json"]) == 0
    joined = json.loads(capsys.readouterr().out)
    assert report(tmp_path / "both", capsys)["splits"] == joined["splits"]
    assert read_split(tmp_path / "both", "train").class_names == ["dart", "square"]
