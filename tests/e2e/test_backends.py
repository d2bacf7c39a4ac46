"""`backend=` on the classes, and the measurement of every runtime."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.sets import Apart, assert_same_set
from tests.tiny import decided_model

import rfdetr
from rfdetr import RFDETR, cli
from rfdetr.export import cached
from rfdetr.export.benchmark import STAGES, as_table, bench
from rfdetr.export.cached import choose_backend
from rfdetr.inference.network import NetworkRunner

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
NEAR = Apart(masks=1e-3)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "exports"


@pytest.fixture
def model(cache: Path) -> RFDETR:
    return decided_model(backend="onnx")


def test_a_backend_finds_the_same_and_its_file_is_written_once(model, cache, monkeypatch):
    expected = decided_model().predict([PICTURE] * 3, threshold=0.1)
    for one, other in zip(model.predict([PICTURE] * 3, threshold=0.1), expected, strict=True):
        assert_same_set(one, other, NEAR)
    assert [path.name for path in cache.rglob("*.onnx")] == ["inference_model.onnx"]
    # Another object of the same weights, as in the next process, opens the file that is there.
    monkeypatch.setattr("rfdetr.export.write.export", None)
    again = decided_model(backend="onnx")
    assert_same_set(again.predict(PICTURE, threshold=0.1), expected[0], NEAR)
    copied = pickle.loads(pickle.dumps(model))
    assert_same_set(copied.predict(PICTURE, threshold=0.1), expected[0], NEAR)


@pytest.mark.slow
def test_changed_weights_and_other_shapes_get_files_of_their_own(model, cache):
    model.predict(PICTURE)
    with torch.no_grad():
        model.model.model.class_head.bias.add_(1)
    plain = decided_model()
    with torch.no_grad():
        plain.model.model.class_head.bias.add_(1)
    for shape in (None, (64, 128)):
        expected = plain.predict(PICTURE, threshold=0.1, shape=shape)
        assert_same_set(model.predict(PICTURE, threshold=0.1, shape=shape), expected, NEAR)
    assert len(list(cache.iterdir())) == 3


@pytest.mark.slow
def test_files_that_were_not_used_for_longest_go(model, cache, monkeypatch):
    monkeypatch.setattr(cached, "KEPT", 1)
    model.predict(PICTURE)
    (first,) = cache.iterdir()
    model.predict(PICTURE, shape=(64, 128))
    assert [path == first for path in cache.iterdir()] == [False]


def test_what_a_backend_is(monkeypatch):
    assert choose_backend("auto", "cuda") == "torch"
    found = importlib.util.find_spec
    assert choose_backend("auto", "cpu") == "openvino"
    assert choose_backend("torch", "cpu") == "torch"
    absent = {"openvino"}
    monkeypatch.setattr(cached.importlib.util, "find_spec", lambda name: None if name in absent else found(name))
    assert choose_backend("auto", "cpu") == "onnx"
    with pytest.raises(ImportError, match=r'backend=\'openvino\' needs openvino: pip install "rfdetr\[openvino\]"'):
        choose_backend("openvino", "cpu")
    absent.add("onnxruntime")
    assert choose_backend("auto", "cpu") == "torch"
    with pytest.raises(ValueError, match="backend='ncnn' must be one of auto, torch, openvino, onnx, tensorrt"):
        decided_model(backend="ncnn")


def test_inference_goes_on_in_pytorch(model):
    model.inference()
    assert isinstance(model._runner(), NetworkRunner)


@pytest.mark.slow
def test_every_runtime_is_timed_stage_by_stage(cache):
    model = decided_model()
    report = json.loads(json.dumps(bench(model, backends=["torch", "onnx", "openvino"], batch_sizes=(1, 2), rounds=3)))
    assert [(row["runtime"], row["batch"]) for row in report["rows"]] == [
        (name, size) for name in ("torch", "onnx", "openvino") for size in (1, 2)
    ]
    for row in report["rows"]:
        assert all(row[stage] > 0 for stage in STAGES)
        assert 0 < row["p50"] <= row["p95"]
        assert row["pictures_per_second"] == pytest.approx(1000 / row["p50"])
        assert row["parity"] == {} or row["parity"]["matched"] == 1.0
    table = as_table(report)
    assert len(table.splitlines()) == 2 + 6 + 3
    assert "100.0%" in table


@pytest.mark.slow
def test_the_commands_export_and_bench(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = decided_model().export_for_roboflow("bundle") / "weights.pt"
    assert cli.main(["export", str(weights), "--format", "openvino", "--half", "--shape", "64x128"]) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(Path("output", "inference_model.xml"))
    exported = rfdetr.load(path)
    assert (exported.facts.hw, exported.facts.texts["precision"]) == ((64, 128), "float16")
    assert cli.main(["bench", path, "--rounds", "2", "--batch", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["runtime"], row["batch"]) == ("openvino", 1)
    Image.fromarray(PICTURE).save("picture.png")
    options = ["--backends", "torch,onnx", "--rounds", "2", "--picture", "picture.png", "--output", "bench.json"]
    assert cli.main(["bench", str(weights), *options]) == 0
    assert "48 x 64" in capsys.readouterr().out
    assert len(json.loads(Path("bench.json").read_text())["rows"]) == 4
    for arguments, message in (
        (["export", path], "is an exported file already"),
        (["export", str(weights), "--half"], "onnx files are written in float32"),
        (["export", "huge"], "huge is neither a file nor a size; sizes are nano"),
        (["bench", str(weights), "--batch", "x"], "--batch x: numbers with commas"),
        (["bench", str(weights), "--output", "bench.json"], "bench.json exists, and nothing is overwritten"),
        (["bench", path, "--backends", "torch"], "is one file for one runtime"),
    ):
        assert cli.main(arguments) == 1
        assert message in capsys.readouterr().err
