"""Evaluation of exported files, compared with the models that they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tests.tiny import tiny_data, tiny_model

import rfdetr
from rfdetr import RFDETR
from rfdetr.checkpoints.save import description, published_weights, save_checkpoint
from rfdetr.export.judged import JudgedFile
from rfdetr.export.predictor import ExportedModel

# How much further apart the logits of the models are than those of fresh weights.
SCALE = 10
# What files had before they said more.
OLDER = {"class_names", "resolution", "mean", "std"}


def annotations_of(data: Path) -> Path:
    return data / "valid" / "_annotations.coco.json"


def sharpened(model: RFDETR) -> RFDETR:
    """A model whose scores differ much; those of fresh weights are all alike."""
    with torch.no_grad():
        for head in (model.model.model.class_head, model.model.model.proposals.classes):
            head.weight.mul_(SCALE)
    return model


def annotate_with_own_detections(model: RFDETR, data: Path) -> None:
    """Make what the model finds, slightly moved, the objects of the validation split, so that no metric is trivial."""
    file, random = annotations_of(data), np.random.default_rng(0)
    document = json.loads(file.read_text())
    known = dict(zip(model.model.class_labels, (one["id"] for one in document["categories"]), strict=True))
    document["annotations"] = []
    for image in document["images"]:
        found = model.predict(data / "valid" / image["file_name"], threshold=0.0)
        kept = [row for row, label in enumerate(found.class_id) if label in known][:8]
        for row in kept:
            x, y, right, bottom = (found.xyxy[row] + random.normal(0, 0.3, 4)).tolist()
            box = [x, y, max(right - x, 1), max(bottom - y, 1)]
            category = known[int(found.class_id[row])]
            number = len(document["annotations"]) + 1
            one = {"id": number, "image_id": image["id"], "category_id": category, "bbox": box, "iscrowd": 0}
            document["annotations"].append({**one, "area": box[2] * box[3]})
    file.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory) -> RFDETR:
    """Its labels are category ids, which are no positions. Other weights might find everything, or nothing."""
    torch.manual_seed(5)
    fresh, path = sharpened(tiny_model(num_classes=4)), tmp_path_factory.mktemp("weights") / "checkpoint.pth"
    names = [one["name"] for one in json.loads(annotations_of(data).read_text())["categories"]]
    told = description(fresh.model_config, names, {"class_labels": [1, 2, 3, 4]})
    save_checkpoint(path, {"model": published_weights(fresh.model.model.state_dict()), **told})
    model = tiny_model(pretrain_weights=str(path))
    annotate_with_own_detections(model, data)
    return model


@pytest.fixture(scope="module")
def expected(model: RFDETR, data: Path) -> dict[str, float]:
    return judge(model, data)


@pytest.fixture(scope="module")
def files(model: RFDETR, expected: dict[str, float], tmp_path_factory) -> dict[int, Path]:
    """By the number of pictures that they take; made when the model had been judged, so that it has thresholds."""
    folder = tmp_path_factory.mktemp("export")
    return {size: model.export(folder, batch_size=size, output_name=f"takes_{size}") for size in (1, 3, None)}


@pytest.fixture
def file(files: dict[int, Path]) -> Path:
    return files[1]


def judge(model: Any, data: Path, **options: Any) -> dict[str, float]:
    return model.evaluate(data, **{"split": "val", "num_workers": 0, "progress_bar": None, **options})


def with_metadata(file: Path, target: Path, kept: set[str], **changed: str) -> Path:
    """A copy of a file with some of its metadata, and others."""
    content = onnx.load(str(file))
    values = {one.key: one.value for one in content.metadata_props if one.key in kept} | changed
    helper.set_model_props(content, values)
    onnx.save(content, str(target))
    return target


# The split has four pictures: one run each, two runs of three, the last one filled up, or one of all.
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_the_numbers_are_those_of_the_model(
    model: RFDETR, data: Path, expected: dict[str, float], files: dict[int, Path], batch_size: int
) -> None:
    exported = ExportedModel(files[batch_size])
    found = judge(exported, data, batch_size=4)
    assert found == pytest.approx(expected, abs=1e-4, nan_ok=True)
    assert 0.1 < expected["val/mAP_50_95"] < 0.9
    assert 0.01 < expected["val/best_threshold"] < 0.99
    assert exported.thresholds == pytest.approx(model.model.thresholds, abs=1e-4)


def test_outputs_are_those_of_the_network_and_filling_adds_none(model: RFDETR, files: dict[int, Path]) -> None:
    network = JudgedFile(ExportedModel(files[3])).ready().eval()
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model.model.model.eval()(images, last_only=True)
    for name, values in network(images, None, last_only=True, whole_masks=False).items():
        torch.testing.assert_close(values, wanted[name], atol=1e-4, rtol=1e-4)


def test_the_file_says_what_the_model_is(model: RFDETR, file: Path) -> None:
    values = {one.key: one.value for one in onnx.load(str(file)).metadata_props}
    own = model.model
    texts = {
        "task": "detect",
        "model_name": "RFDETRNano",
        "rfdetr_version": rfdetr.__version__,
        "format": "onnx",
        "precision": "float32",
    }
    facts = {name: json.loads(values.pop(name)) for name in set(values) - set(texts)}
    assert values == texts
    parity = facts.pop("parity")
    assert (parity["pictures"], parity["matched"]) == (8, 1.0)
    assert facts == {
        "class_names": own.class_names,
        "class_labels": own.class_labels,
        "hidden_labels": own.hidden_labels(),
        "has_names": True,
        "thresholds": own.thresholds,
        "num_classes": own.config.num_classes,
        "num_select": 20,
        "resolution": 64,
        "block_size": 32,
        "mean": model.means,
        "std": model.stds,
        "final": False,
        "num_keypoints_per_class": [],
        "postprocess_trace_alpha": 0.2,
    }
    exported = ExportedModel(file)
    assert exported.thresholds == own.thresholds != {}
    assert (exported.class_names, exported.class_labels) == (own.class_names, own.class_labels)
    judged = JudgedFile(exported)
    assert (judged.config.block_size, judged.postprocess.num_select) == (32, 20)


def test_a_report_is_written(file: Path, data: Path, expected: dict[str, float], tmp_path: Path) -> None:
    found = judge(ExportedModel(file), data, report_dir=tmp_path / "report")
    assert found == pytest.approx(expected, abs=1e-4, nan_ok=True)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "RFDETRNano at 64 px" in page
    assert str(file) in page
    assert list((tmp_path / "report" / "worst").iterdir())


def test_an_older_file_is_judged_by_positions(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data")
    model = sharpened(tiny_model(num_classes=4, num_select=300))
    annotate_with_own_detections(model, data)
    older = with_metadata(model.export(tmp_path), tmp_path / "older.onnx", OLDER)
    exported = ExportedModel(older)
    assert (exported.class_labels, exported.facts.num_select, exported.thresholds) == ([0, 1, 2, 3], 300, {})
    expected = judge(model, data)
    assert judge(exported, data) == pytest.approx(expected, abs=1e-4, nan_ok=True)
    assert expected["val/mAP_50"] > 0.1


def test_classes_that_the_file_does_not_know_are_refused(file: Path, tmp_path: Path) -> None:
    other = tiny_data(tmp_path, shapes=("dart", "square"))
    with pytest.raises(ValueError, match="classes that the model does not know: dart"):
        judge(ExportedModel(file), other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"square_resize_div_64": False}, "square_resize_div_64=False: .*takes_1.onnx takes squares of 64"),
        ({"resolution": 96}, "resolution=96: .*takes_1.onnx takes 64 pixels"),
        ({"fp16_eval": True}, "fp16_eval=True: the precision of .*takes_1.onnx is fixed"),
        ({"epoch": 3}, "no option 'epoch'"),
    ],
)
def test_options_that_a_file_cannot_follow_are_refused_first(
    file: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        # The data set does not exist: nothing has been read before.
        judge(ExportedModel(file), tmp_path / "missing", report_dir=tmp_path / "report", **options)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("kept", "changed", "message"),
    [
        (set(), {}, "lacks the metadata class_names, resolution"),
        (OLDER - {"class_names"}, {}, "lacks the metadata class_names, which"),
        (OLDER, {"task": "pose"}, "is a model for the task 'pose'; known are detect, segment, keypoints"),
        (OLDER, {"task": "segment"}, r"has the outputs .*lacks masks"),
        (OLDER, {"resolution": "96"}, r"takes inputs of \(64, 64\), but its metadata say \(96, 96\)"),
        (OLDER, {"num_classes": "7"}, r"has the outputs .*labels \(B, Q, 8\) are needed"),
        (OLDER, {"class_names": "cat, dog"}, "has damaged metadata"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(
    file: Path, tmp_path: Path, kept: set[str], changed: dict[str, str], message: str
) -> None:
    bad = with_metadata(file, tmp_path / "bad.onnx", kept, **changed)
    with pytest.raises(ValueError, match=rf"bad\.onnx {message}"):
        ExportedModel(bad)


@pytest.mark.parametrize(
    ("names", "shape", "found"),
    [
        (("input", "dets", "labels"), [1, 3, 64, 64], r"has the outputs .*dets \(B, Q, 4\)"),
        (("input", "boxes", "labels"), [1, 3, 64, 64], "has the outputs .*lacks dets"),
        (("input", "dets", "labels"), [1, 3, 64, 32], r"takes inputs of \(64, 32\)"),
        (("input", "dets", "labels"), [1, 3, "side", "side"], r"has the inputs input \[1, 3, 'side', 'side'\]"),
    ],
)
def test_other_inputs_and_outputs_are_refused(
    tmp_path: Path, names: tuple[str, str, str], shape: list[int | str], found: str
) -> None:
    source, *outputs = names
    nodes = [helper.make_node("ReduceMean", [source], [name], axes=[1]) for name in outputs]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    given = helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)
    content = helper.make_model(helper.make_graph(nodes, "other", [given], ports))
    content.ir_version, content.opset_import[0].version = 8, 13
    helper.set_model_props(content, {"class_names": '["a"]', "resolution": "64"})
    onnx.save(content, str(tmp_path / "other.onnx"))
    with pytest.raises(ValueError, match=rf"other\.onnx {found}"):
        ExportedModel(tmp_path / "other.onnx")


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "some.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.onnx is no ONNX file"):
        ExportedModel(tmp_path / "some.onnx")
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx"):
        ExportedModel(tmp_path / "missing.onnx")
