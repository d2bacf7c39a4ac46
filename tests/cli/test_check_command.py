"""`rfdetr check`: what it says of clean, odd and broken data sets, its exit codes, and what `--fix` writes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_data

from rfdetr import cli
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.write import write_yolo

FILE = "_annotations.coco.json"


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """Every object has an outline and four keypoints."""
    return tiny_data(tmp_path_factory.mktemp("clean"), shapes=("dart",))


@pytest.fixture
def changed(clean: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the clean data set whose train file was changed by a function."""

    def copy(change: Callable[[dict[str, Any]], None]) -> Path:
        folder = Path(shutil.copytree(clean, tmp_path / "changed"))
        document = json.loads((folder / "train" / FILE).read_text())
        change(document)
        (folder / "train" / FILE).write_text(json.dumps(document))
        return folder

    return copy


def make_odd(document: dict[str, Any]) -> None:
    """Oddities that are mended or warned about, none of which stops a run."""
    first, second, third = document["annotations"][:3]
    first["bbox"][2] = 0
    second["bbox"][0] = -9
    document["annotations"] += [{**third, "id": 901}, {**third, "id": 902, "image_id": 777}]
    document["categories"].append({"id": 9, "name": "unicorn", "supercategory": "none"})
    document["images"][5].update(width=64, height=80)


def make_broken(document: dict[str, Any]) -> None:
    """What a run would refuse."""
    document["annotations"][3]["category_id"] = 77
    document["annotations"][4]["bbox"] = [1, 2]
    document["images"].append({"id": 50, "file_name": "lost.jpg", "width": 80, "height": 64})


def report(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    cli.main(["check", str(folder), "--json", *options])
    return json.loads(capsys.readouterr().out)


def kinds(found: dict[str, Any]) -> dict[tuple[str, str], int]:
    return {(one["severity"], one["kind"]): one["count"] for one in found["findings"]}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def objects(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "train" / FILE).read_text())["annotations"]


def test_a_clean_data_set_has_nothing_to_complain_about(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(clean), "--resolution", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Nothing to complain about."
    assert lines[1].split() == ["train", "10", "0", str(len(objects(clean))), "0", "1.6", "1.5", "3"]
    assert any(line.startswith("objects at 64 x 64") for line in lines)


def test_oddities_are_counted_and_end_with_zero(changed, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(make_odd)
    assert kinds(report(folder, capsys)) == {
        ("repair", "annotations of unknown images, ignored"): 1,
        ("repair", "boxes without width or height, left out"): 1,
        ("warning", "pictures of another size than the annotation file says"): 1,
        ("warning", "boxes that reach more than 1 px out of their picture"): 1,
        ("warning", "objects labelled twice: same class, same box"): 1,
        ("warning", "classes without any object"): 1,
    }
    assert cli.main(["check", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "annotation 902 of image 777" in text
    assert text.rstrip().endswith("4 warnings, 2 repairs")


def test_errors_are_listed_together_and_end_with_one(changed, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(make_broken)
    (folder / "train" / "train_00007.jpg").write_bytes(b"no picture")
    assert cli.main(["check", str(folder)]) == 1
    assert "Errors: training would not start" in capsys.readouterr().out
    fatal = {kind: n for (severity, kind), n in kinds(report(folder, capsys)).items() if severity == "fatal"}
    assert fatal == {
        "missing pictures, left out": 1,
        "annotations of unknown categories, left out": 1,
        "annotations without a usable bbox, left out": 1,
        "pictures that cannot be read": 1,
    }


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}'])
def test_a_data_set_of_which_nothing_can_be_read_is_described(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / FILE).write_text(content)
    assert cli.main(["check", str(tmp_path)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "[train] it cannot be read: 1" in shown
    assert str(tmp_path / "train" / FILE) in shown
    assert cli.main(["check", str(tmp_path), "--fix", str(tmp_path / "out")]) == 1
    assert "no train split that can be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_data_set_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, said in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "is no data set in a known format")):
        assert cli.main(["check", str(folder)]) == 1
        printed = capsys.readouterr()
        assert printed.err.startswith(f"rfdetr: error: {'data set folder ' * (folder != tmp_path)}{folder} {said}")
        assert (len(printed.err.splitlines()), printed.out) == (1, "")


@pytest.mark.parametrize("change", [make_odd, make_broken])
def test_what_fix_writes_has_no_errors_and_repairs(change, changed, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(change)
    before, out = digests(folder), folder.parent / "fixed"
    assert cli.main(["check", str(folder), "--fix", str(out)]) == 0
    assert f"the repaired data set is in {out}" in capsys.readouterr().err
    assert digests(folder) == before
    after = report(out, capsys)
    assert {severity for severity, _ in kinds(after)} <= {"warning"}
    # Two of the objects are gone in either case: one cannot be used, one belongs nowhere or has no class.
    assert after["splits"]["train"]["objects"] == len(objects(folder)) - 2
    assert report(out, capsys)["splits"] == report(folder, capsys)["splits"]


def test_fix_keeps_outlines_and_keypoints(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(clean), "--fix", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    written = objects(tmp_path / "out")
    for name in ("image_id", "category_id", "iscrowd", "segmentation", "keypoints", "num_keypoints", "area", "id"):
        assert [one[name] for one in written] == [one[name] for one in objects(clean)], name
    for task in ("segment", "keypoints"):
        assert cli.main(["check", str(tmp_path / "out"), "--task", task]) == 0
    assert cli.main(["check", str(clean), "--fix", str(tmp_path / "masks"), "--task", "segment"]) == 0
    assert all("segmentation" in one and "keypoints" not in one for one in objects(tmp_path / "masks"))


def test_fix_says_which_split_it_leaves_out(changed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(lambda document: None)
    (folder / "valid" / FILE).write_text("{")
    assert cli.main(["check", str(folder), "--fix", str(tmp_path / "out")]) == 0
    assert "left out, since it cannot be read: valid" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test", "train"]


def test_fix_writes_yolo_for_yolo(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yolo({"train": read_split(clean, "train")}, tmp_path / "yolo")
    (label,) = (tmp_path / "yolo" / "train" / "labels").glob("*0003.txt")
    label.write_text(label.read_text() + "5 0.5 0.5 0.1 0.1\n")
    assert cli.main(["check", str(tmp_path / "yolo")]) == 1
    assert cli.main(["check", str(tmp_path / "yolo"), "--fix", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert (tmp_path / "out" / "data.yaml").is_file()
    assert report(tmp_path / "out", capsys)["splits"]["train"]["objects"] == len(objects(clean))


def test_fix_writes_over_nothing(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.main(["check", str(clean), "--fix", str(tmp_path)]) == 1
    assert "holds something already, and nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_several_data_sets_are_joined_by_class_name(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_data(tmp_path / "other", shapes=("square", "dart"), seed=1)
    assert cli.main(["check", str(clean), str(other), "--json", "--no-contents"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [one["name"] for one in found["classes"]]
    assert names == ["dart", "square"]
    assert found["splits"]["train"]["pictures"] == 20
    squares = sum(one["category_id"] == 1 for one in objects(other))
    assert found["classes"][1]["objects"]["train"] == squares > 0
    assert found["classes"][0]["objects"]["train"] == len(objects(clean)) + len(objects(other)) - squares


def test_the_task_decides_what_is_an_error(changed, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(lambda document: [one.pop("segmentation") for one in document["annotations"]])
    assert cli.main(["check", str(folder)]) == 0
    assert cli.main(["check", str(folder), "--task", "keypoints"]) == 0
    capsys.readouterr()
    assert cli.main(["check", str(folder), "--task", "segment"]) == 1
    assert "masks cannot be learnt from boxes alone" in " ".join(capsys.readouterr().out.split())


def test_the_model_decides_what_is_small_or_too_many(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    most = report(clean, capsys)["splits"]["train"]["max_objects"]
    found = kinds(report(clean, capsys, "--num-queries", str(most - 1), "--resolution", "32"))
    assert ("warning", f"pictures with more than {most - 1} objects") in found
    (share,) = {kind for severity, kind in found if severity == "advice"}
    assert share.startswith("objects below 10 px at resolution 32")
