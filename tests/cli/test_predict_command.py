"""`rfdetr predict`: lines and JSON of what predict finds, drawn files that stay when it ends early, and refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.tiny import tiny_keypoints, tiny_model, tiny_segmenter

import rfdetr
from rfdetr import cli, detr, loading
from rfdetr.inference.draw import VideoWriter, draw
from rfdetr.inference.sources import open_source
from rfdetr.inference.stream import predict_stream

COUNT = 4
# Random weights are sure of nothing.
LOW = ("--threshold", "0.01")


@pytest.fixture(scope="module")
def model() -> rfdetr.RFDETR:
    return tiny_model(num_classes=2)


@pytest.fixture(autouse=True)
def loaded(model: rfdetr.RFDETR, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, dict[str, Any]]]:
    """What was asked to be loaded; the model of this file is given for it."""
    asked = []

    def load(path: str, **options: Any) -> rfdetr.RFDETR:
        asked.append((path, options))
        return model

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (COUNT, 40, 60, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"p{i}.png")
    return folder


@pytest.fixture
def video(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    with VideoWriter(tmp_path, "clip", 10.0) as writer:
        for i in range(COUNT):
            writer.write(np.roll(np.kron(noise, np.ones((8, 8, 1), np.uint8)), 8 * i, axis=1))
    return writer.paths[0]


def predict(source: object, *options: str) -> int:
    return cli.main(["predict", str(source), "--model", "tiny.pth", *options])


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("batch", ["1", "3"])
def test_json_is_what_predict_says(
    model: rfdetr.RFDETR, pictures: Path, batch: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert predict("pictures", "--json", *LOW, "--batch-size", batch, "--resolution", "96x64") == 0
    said = lines(capsys)
    assert [(one["name"], one["index"], one["seconds"]) for one in said] == [
        (f"pictures/p{i}.png", i, None) for i in range(COUNT)
    ]
    for one in said:
        found = model.predict(one["name"], threshold=0.01, shape=(96, 64))
        assert len(found) > 0
        assert [thing["class_id"] for thing in one["detections"]] == found.class_id.tolist()
        assert [thing["class_name"] for thing in one["detections"]] == list(found.data["class_name"])
        # Networks differ in the last bits between batch sizes.
        for key, values in (("box", found.xyxy), ("confidence", found.confidence)):
            assert np.array([thing[key] for thing in one["detections"]]) == pytest.approx(values, rel=1e-4, abs=1e-4)
        assert all(thing.keys() == {"class_id", "class_name", "confidence", "box"} for thing in one["detections"])
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_text_counts_the_classes(model: rfdetr.RFDETR, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(pictures / "p1.png", *LOW) == 0
    line = capsys.readouterr().out.strip()
    match = re.fullmatch(r".*/p1\.png: (\d+) (\S+)(?:, (\d+) (\S+))? \(\d+ ms\)", line)
    assert match
    found = model.predict(pictures / "p1.png", threshold=0.01)
    counted = dict(zip(match.groups()[1::2], match.groups()[::2], strict=True))
    for name in found.data["class_name"]:
        assert int(counted[name]) == list(found.data["class_name"]).count(name)
    assert predict(pictures / "p1.png", "--threshold", "0.99", "--batch-size", "2") == 0
    assert capsys.readouterr().out.endswith("p1.png: nothing\n")


def test_a_video_is_drawn_as_a_video(
    model: rfdetr.RFDETR, video: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert predict(video, *LOW, "--save", "--json") == 0
    output = capsys.readouterr()
    said = [json.loads(line) for line in output.out.splitlines()]
    assert [(one["index"], one["seconds"]) for one in said] == [(i, pytest.approx(i / 10)) for i in range(COUNT)]
    assert output.err == "drawn: predictions/clip.mp4\n"
    assert predict(video, *LOW, "--save", "predictions", "--stride", "2") == 0
    assert "clip.mp4 frame 2 (0.20 s): " in capsys.readouterr().out
    whole, half = (open_source(tmp_path / "predictions" / name) for name in ("clip.mp4", "clip-2.mp4"))
    assert (whole.count, whole.frames_per_second, half.count, half.frames_per_second) == (COUNT, 10, 2, 5)
    for one, frame in zip(predict_stream(model, video, threshold=0.01), whole, strict=True):
        drawn = draw(one.picture, one.result)
        # Colours have half the size in the video.
        assert np.abs(drawn.astype(int) - frame.picture).mean() < np.abs(drawn.astype(int) - one.picture).mean() / 2


def test_pictures_are_drawn_with_and_without_boxes(model: rfdetr.RFDETR, pictures: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}
    for option in ((), ("--no-show-boxes",)):
        # Beside the pictures themselves, which stay what they are.
        assert predict("pictures", *LOW, "--save", "pictures", "--stride", "4", *option) == 0
        (pictures / "p0-2.png").rename(tmp_path / f"drawn{len(option)}.png")
    one = next(predict_stream(model, pictures, threshold=0.01))
    for name, boxes in (("drawn0.png", True), ("drawn1.png", False)):
        with Image.open(tmp_path / name) as drawn:
            assert np.array_equal(np.asarray(drawn), draw(one.picture, one.result, boxes=boxes))
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before


def interrupted(model: rfdetr.RFDETR, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    calls, own = [], model.predict

    def third(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise error
        return own(*arguments, **options)

    monkeypatch.setattr(model, "predict", third)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (ValueError("it broke"), 1)])
def test_what_was_written_before_the_end_is_kept(
    error: BaseException,
    code: int,
    model: rfdetr.RFDETR,
    pictures: Path,
    video: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for source, names in ((video, ["clip.mp4"]), (pictures, ["clip.mp4", "p0.png", "p1.png"])):
        with monkeypatch.context() as patched:
            interrupted(model, patched, error)
            assert predict(source, "--save") == code
        said = capsys.readouterr()
        assert said.err.splitlines()[-1].startswith("rfdetr: ")
        assert len(said.out.splitlines()) == 2
        assert sorted(path.name for path in Path("predictions").iterdir()) == names
    assert len(list(open_source("predictions/clip.mp4"))) == 2


@pytest.mark.parametrize("kind", ["segment", "keypoints"])
def test_masks_and_keypoints_are_in_the_json(
    kind: str, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build: Callable[..., rfdetr.RFDETR] = tiny_segmenter if kind == "segment" else tiny_keypoints
    model = build()
    monkeypatch.setattr(loading, "load", lambda path: model)
    assert predict(pictures / "p0.png", "--json", *LOW, "--save") == 0
    (said,) = lines(capsys)
    options = {"mask_format": "rle"} if kind == "segment" else {}
    found = model.predict(pictures / "p0.png", threshold=0.01, **options)
    assert len(said["detections"]) == len(found) > 0
    if kind == "segment":
        assert [thing["mask"] for thing in said["detections"]] == list(found.data["rle"])
    else:
        points = np.array([thing["keypoints"] for thing in said["detections"]])
        assert np.array_equal(points[..., :2], found.xy)
        assert np.array_equal(points[..., 2], found.keypoint_confidence)
        assert np.array_equal([thing["box"] for thing in said["detections"]], found.data["xyxy"])
    with Image.open("predictions/p0.png") as drawn, Image.open(pictures / "p0.png") as own:
        assert not np.array_equal(np.asarray(drawn), np.asarray(own))


def test_options_are_passed_on_only_when_given(
    model: rfdetr.RFDETR,
    pictures: Path,
    loaded: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, own = [], model.predict

    def watched(images: Any, **options: Any) -> Any:
        asked.append(options)
        return own(images)

    monkeypatch.setattr(model, "predict", watched)
    assert predict(pictures / "p0.png") == 0
    more = "--threshold auto --tile 640x320 --overlap 0.2 --nms 0.6 --resolution 64 --device cpu --backend torch"
    assert predict(pictures / "p0.png", *more.split()) == 0
    tiled = {"tile": (640, 320), "overlap": 0.2, "nms": 0.6, "shape": (64, 64), "threshold": "auto"}
    assert asked == [{"threshold": 0.5}, tiled]
    assert loaded == [("tiny.pth", {}), ("tiny.pth", {"device": "cpu", "backend": "torch"})]
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(detr, "RFDETRSeg2XLarge", lambda **options: made.append(options) or model)
    assert cli.main(["predict", str(pictures / "p0.png"), "--model", "seg-2xlarge", "--device", "cpu"]) == 0
    assert made == [{"device": "cpu"}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.jpg"], "there is no file or folder nowhere.jpg"),
        (["pictures", "--model", "nanoo"], "nanoo is neither a file nor a size; sizes are nano, small"),
        (["pictures", "--save", "pictures/p0.png"], "cannot be written to pictures/p0.png"),
        (["pictures", "--resolution", "65"], "multiples of 32"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], said: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", "--model", "tiny.pth", *arguments]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("rfdetr: error: ")
    assert said in output.err
    assert len(output.err.splitlines()) == 1
    assert output.out == ""


@pytest.mark.parametrize("wrong", [[], ["a.jpg", "--threshold", "high"], ["a.jpg", "--resolution", "64x"]])
def test_wrong_usage_exits_with_two(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", *wrong])
    assert stopped.value.code == 2
    assert len(wrong) < 3 or "invalid " in capsys.readouterr().err


def test_a_damaged_picture_ends_it_after_those_before(
    pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (pictures / "p2.png").write_bytes(b"no picture")
    assert predict("pictures", "--batch-size", "4", "--save") == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 2
    assert output.err.splitlines()[0] == "2 drawn pictures are in predictions"
    assert "the picture, pictures/p2.png, cannot be decoded" in output.err.splitlines()[1]


def test_an_option_that_predict_does_not_know_is_its_error(model: rfdetr.RFDETR, pictures: Path) -> None:
    found = predict_stream(model, pictures, treshold=0.3)
    with pytest.raises(TypeError, match="treshold"):
        next(found)


def test_the_bar_counts_what_is_expected(
    model: rfdetr.RFDETR, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = list(predict_stream(model, pictures, batch_size=3, progress=True))
    assert [one.index for one in found] == list(range(COUNT))
    assert f"{COUNT}/{COUNT}" in capsys.readouterr().err
