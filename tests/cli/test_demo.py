"""The demo's command: what it prints, what it leaves, and what it refuses."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from PIL import Image
from tests.small_world import shrink
from tests.tiny import MODEL

from rfdetr import cli, demo
from rfdetr.variants import VARIANTS

pytestmark = pytest.mark.slow


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The demo at a hundredth of its size, in an empty folder."""
    monkeypatch.setattr(demo, "FRESH_MODEL", {**MODEL, "resolution": 64})
    monkeypatch.setattr(demo, "FRESH_PICTURES", {"train": 8, "valid": 4, "test": 48})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("task", "score"), [("detect", "box AP50"), ("segment", "mask AP50"), ("keypoints", r"keypoint AP50 \(OKS\)")]
)
def test_the_last_line_is_the_result(
    task: str, score: str, short: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {**demo.TASKS[task].model, **({} if task == "detect" else {"resolution": 48, "num_queries": 10})}
    monkeypatch.setitem(demo.TASKS, task, dataclasses.replace(demo.TASKS[task], model=small))
    assert cli.main(["demo", "--epochs", "1", "--task", task]) == 0
    *_, export, _, last = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r"demo: .*inference_model\.onnx finds the same: \d+\.\d% of \d+ detections, .*", export)
    assert re.fullmatch(rf"demo: {score} \d\.\d\d on 48 held-out pictures after \d+ min \d+ s", last)
    assert (short / "demo" / "run" / "checkpoint_best_total.pth").is_file()
    with Image.open(short / "demo" / "pictures" / "all.png") as sheet:
        assert sheet.width > 1000
    assert len(list((short / "demo" / "pictures").glob("test_*.png"))) == 12
    # Again: the demo's own folder may be written over.
    assert cli.main(["demo", "--epochs", "1", "--task", task]) == 0


def test_a_folder_of_the_user_is_left_alone(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (short / "mine").mkdir()
    assert cli.main(["demo", "--output", "mine"]) == 1
    assert "mine exists and was not written by a demo" in capsys.readouterr().err
    assert list((short / "mine").iterdir()) == []


def test_missing_weights_are_one_line(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--weights", "nowhere/else.pth"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rfdetr: error: ")
    assert "nowhere/else.pth" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["dance"], ["demo", "--task", "dance"]])
def test_wrong_usage_exits_with_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize(("task", "size"), [("segment", "seg-nano"), ("keypoints", "keypoint-preview")])
def test_a_file_of_the_task_can_be_fine_tuned(
    task: str, size: str, short: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(size, short / "cache", monkeypatch)
    monkeypatch.setattr(demo, "TUNED_PICTURES", {"train": 4, "valid": 2, "test": 12})
    monkeypatch.setitem(demo.TASKS, task, dataclasses.replace(demo.TASKS[task], tuned_side=56))
    weights = short / "cache" / str(VARIANTS[size].weights)
    assert cli.main(["demo", "--task", task, "--weights", str(weights), "--epochs", "1"]) == 0
    assert "on 12 held-out pictures" in capsys.readouterr().out.strip().splitlines()[-1]


@pytest.mark.parametrize("task", demo.TASKS)
def test_the_side_of_tuned_pictures_fits_the_size(task: str) -> None:
    config = demo.TASKS[task].kind.get_model_config(pretrain_weights=None)
    assert demo.TASKS[task].tuned_side % config.block_size == 0
