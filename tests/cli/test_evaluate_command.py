"""`rfdetr evaluate`: the numbers of `model.evaluate` as text, JSON and report, thresholds in a file, and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_data, tiny_model

from rfdetr import RFDETR, cli, from_checkpoint
from rfdetr.checkpoints.file import read_file
from rfdetr.checkpoints.save import description, published_weights, save_checkpoint

NAMES = ["circle", "square", "triangle", "star"]
REPORT = {"report.html", "results.json", "confusion_matrix.png", "precision_recall.png", "f1_confidence.png", "worst"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights whose scores differ, in a checkpoint with class names."""
    torch.manual_seed(0)
    fresh = tiny_model(num_classes=4)
    with torch.no_grad():
        for head in (fresh.model.model.class_head, fresh.model.model.proposals.classes):
            head.weight.mul_(10)
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    about = description(fresh.model_config, NAMES)
    save_checkpoint(path, {"model": published_weights(fresh.model.model.state_dict()), **about})
    return path


@pytest.fixture(scope="module")
def data(weights: Path, tmp_path_factory) -> Path:
    """A data set whose validation split has what the model finds as its objects, so that no metric is trivial."""
    folder, model = tiny_data(tmp_path_factory.mktemp("data")), from_checkpoint(weights, device="cpu")
    file = folder / "valid" / "_annotations.coco.json"
    document = json.loads(file.read_text())
    document["annotations"] = []
    for image in document["images"]:
        found = model.predict(folder / "valid" / image["file_name"], threshold=0.0)
        for (x, y, right, bottom), label in list(zip(found.xyxy.tolist(), found.class_id.tolist(), strict=True))[1::2]:
            box = [x, y, max(right - x, 1), max(bottom - y, 1)]
            number = len(document["annotations"]) + 1
            one = {"id": number, "image_id": image["id"], "category_id": label + 1, "bbox": box, "iscrowd": 0}
            document["annotations"].append({**one, "area": box[2] * box[3]})
    file.write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def model(weights: Path, data: Path) -> RFDETR:
    """The model, judged."""
    model = from_checkpoint(weights, device="cpu")
    model.evaluate(data, split="val", num_workers=0)
    return model


@pytest.fixture(scope="module")
def expected(model: RFDETR, data: Path) -> dict[str, float]:
    return model.evaluate(data, split="val", num_workers=0)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def evaluate(model: Path, data: Path, *options: str, split: str = "val") -> int:
    usual = ["--split", split, "--num-workers", "0"]
    return cli.main(["evaluate", str(model), str(data), *usual, *options])


def test_json_is_what_the_model_says(
    weights: Path, data: Path, expected: dict[str, float], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert evaluate(weights, data, "--device", "cpu", "--json", "--no-report") == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert 0.1 < expected["val/mAP_50"] < 1
    assert list(tmp_path.iterdir()) == []


def test_text_has_the_same_numbers(
    weights: Path, data: Path, expected: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(weights, data, "--device", "cpu", "--batch-size", "3", "--no-report") == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert list(shown) == list(expected)
    assert {name: float(value) for name, value in shown.items()} == pytest.approx(expected, abs=6e-5)


def test_the_report_is_written_and_an_earlier_one_kept(
    weights: Path, data: Path, expected: dict[str, float], tmp_path: Path
) -> None:
    # The first is that of the test split, which is judged unless another is named.
    assert cli.main(["evaluate", str(weights), str(data), "--num-workers", "0", "--device", "cpu"]) == 0
    assert evaluate(weights, data, "--device", "cpu") == 0
    folder = tmp_path / "evaluation"
    assert {path.name for path in folder.iterdir()} == REPORT | {"earlier_1"}
    assert {path.name for path in (folder / "earlier_1").iterdir()} == REPORT
    earlier, results = (json.loads((one / "results.json").read_text()) for one in (folder / "earlier_1", folder))
    facts = [(one["facts"]["split"], one["facts"]["pictures"]) for one in (earlier, results)]
    assert facts == [("test", 2), ("val", 4)]
    assert results["stats"]["AP"] == pytest.approx(expected["val/mAP_50_95"])
    # The page needs no other file.
    page = (folder / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_a_folder_of_the_user_is_left_alone(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "mine.txt").write_text("mine")
    assert evaluate(weights, data, "--device", "cpu") == 1
    assert "holds something else than a report" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_split_is_the_prefix(weights: Path, data: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(weights, data, "--device", "cpu", "--json", "--no-report", split=split) == 0
    assert all(name.startswith(f"{split}/") for name in json.loads(capsys.readouterr().out))


def test_thresholds_are_stored_and_taken_by_predict(
    weights: Path, data: Path, model: RFDETR, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--device", "cpu", "--no-report", "--save-thresholds", "new/with.pth")
    assert evaluate(weights, data, *options) == 0
    found = model.model.thresholds
    assert len(set(found.values())) > 1
    before, after = read_file(weights), read_file(tmp_path / "new" / "with.pth")
    assert after.pop("thresholds") == found
    assert before.keys() == after.keys()
    assert all(torch.equal(after["model"][name], tensor) for name, tensor in before["model"].items())
    picture = data / "valid" / "valid_00000.jpg"
    loaded = from_checkpoint(tmp_path / "new" / "with.pth", device="cpu")
    automatic, by_hand = (loaded.predict(picture, threshold=value) for value in ("auto", found))
    assert len(automatic) > 0
    assert automatic.xyxy.tolist() == by_hand.xyxy.tolist()
    everything = loaded.predict(picture, threshold=0.0)
    kept = [s > found.get(n, 2) for s, n in zip(everything.confidence, everything.data["class_name"], strict=True)]
    assert everything.xyxy[kept].tolist() == automatic.xyxy.tolist()
    written = (tmp_path / "new" / "with.pth").read_bytes()
    assert evaluate(weights, data, *options) == 1
    assert "with.pth exists, and nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "new" / "with.pth").read_bytes() == written


def test_an_exported_file_is_judged_alike(
    weights: Path, data: Path, model: RFDETR, expected: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    file = model.export(".")
    assert evaluate(file, data, "--json", "--no-report") == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(expected, abs=1e-4)
    for option, said in (
        (("--save-thresholds", "x.onnx"), "--save-thresholds writes checkpoints"),
        (("--device", "cuda"), "cuda needs onnxruntime-gpu"),
    ):
        assert evaluate(file, data, *option) == 1
        assert said in capsys.readouterr().err


def test_unknown_classes_are_refused_until_they_are_named(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_data(tmp_path / "other", shapes=("star", "dart"))
    assert evaluate(weights, other, "--device", "cpu", "--no-report", split="test") == 1
    error = capsys.readouterr().err
    assert "classes that the model does not know: dart" in error
    assert "['star', 'dart'], in this order" in error
    assert len(error.splitlines()) == 1
    named = ("--device", "cpu", "--no-report", "--json", "--class-names", "star, square")
    assert evaluate(weights, other, *named, split="test") == 0
    judged = from_checkpoint(weights, device="cpu").evaluate(other, class_names=["star", "square"], num_workers=0)
    assert json.loads(capsys.readouterr().out) == judged


@pytest.mark.parametrize(
    ("missing", "split", "said"),
    [
        ("missing.pth", "val", "missing.pth"),
        ("missing.onnx", "val", "there is no file missing.onnx"),
        ("nowhere", "val", "nowhere does not exist"),
        (None, "trian", "split='trian' is not known; choose one of train, val, test"),
    ],
)
def test_wrong_names_are_one_line(
    missing: str | None, split: str, said: str, weights: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    is_file = "." in (missing or "")
    judged, folder = (Path(missing), data) if is_file else (weights, Path(missing or data))
    assert evaluate(judged, folder, "--device", "cpu", "--no-report", split=split) == 1
    error = capsys.readouterr().err
    assert error.startswith("rfdetr: error: ")
    assert said in error
    assert len(error.splitlines()) == 1
