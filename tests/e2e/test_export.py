"""Exported files find what the model finds, or are not written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tests.sets import Apart, assert_same_set
from tests.tiny import decided_model, tiny_data

import rfdetr
from rfdetr import RFDETR
from rfdetr.datasets.network_input import to_network_size
from rfdetr.export import onnx as onnx_format
from rfdetr.export.judged import JudgedFile
from rfdetr.export.predictor import ExportedModel
from rfdetr.inference.network import NetworkRunner

TASKS = ("detect", "segment", "keypoints")
FORMATS = {"onnx": "inference_model.onnx", "openvino": "inference_model.xml"}
PICTURES = [
    np.random.default_rng(i).integers(0, 256, (*hw, 3), np.uint8) for i, hw in enumerate([(48, 64), (80, 50), (64, 64)])
]
NEAR = Apart(masks=1e-3)


@pytest.fixture(scope="module")
def models() -> dict[str, RFDETR]:
    return {task: decided_model(task) for task in TASKS}


@pytest.fixture(scope="module")
def files(models: dict[str, RFDETR], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """By task and format; they take any number of pictures."""
    return {
        (task, name): model.export(tmp_path_factory.mktemp(f"{task}_{name}"), format=name)
        for task, model in models.items()
        for name in FORMATS
    }


@pytest.fixture(scope="module")
def detector(models: dict[str, RFDETR]) -> RFDETR:
    return models["detect"]


@pytest.fixture
def file(files: dict[tuple[str, str], Path]) -> Path:
    return files["detect", "onnx"]


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("task", TASKS)
def test_a_file_finds_what_the_model_finds_in_any_number_of_pictures(models, files, task, name, count):
    pictures = [PICTURES[i % 3] for i in range(count)]
    expected = models[task].predict(pictures, threshold=0.1)
    assert files[task, name].name == FORMATS[name]
    found = rfdetr.load(files[task, name]).predict(pictures, threshold=0.1, batch_size=count)
    assert len(expected[0]) > 3
    for one, other in zip(found, expected, strict=True):
        assert_same_set(one, other, NEAR)


@pytest.mark.parametrize("task", TASKS)
def test_options_of_predict_work_on_a_file(models, files, task):
    exported = rfdetr.load(files[task, "onnx"])
    for options in ({"nms": 0.5}, {"one_label_per_box": True}, {"tile": 40, "overlap": 0.3}, {"threshold": 0.4}):
        options = {"threshold": 0.2, **options}
        expected = models[task].predict(PICTURES[1], **options)
        assert_same_set(exported.predict(PICTURES[1], **options), expected, NEAR)
    names = [one.name for one in exported.predict_stream(PICTURES[:2])]
    assert len(names) == 2
    with pytest.raises(ValueError, match=r"the file takes inputs of \(\d+, \d+\) alone"):
        exported.predict(PICTURES[0], resolution=96 + 24)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("task", TASKS)
def test_a_rectangle_and_a_fixed_number_of_pictures(models, tmp_path, task, name):
    block = models[task].model_config.block_size
    # OpenVINO computes windows of 1 x 2 patches wrongly, which its check finds; sizes of people have larger ones.
    shape = (2 * block, 4 * block)
    path = models[task].export(tmp_path, format=name, shape=shape, batch_size=3, output_name="wide.onnx")
    assert path.stem == "wide"
    exported = rfdetr.load(path)
    assert exported.runtime.shape == (3, 3, *shape)
    expected = models[task].predict([*PICTURES, PICTURES[0]], threshold=0.1, shape=shape)
    for count in (1, 3, 4):
        given = [*PICTURES, PICTURES[0]][:count]
        for one, other in zip(exported.predict(given, threshold=0.1), expected, strict=False):
            assert_same_set(one, other, NEAR)


@pytest.mark.parametrize("task", TASKS)
def test_detections_as_outputs_are_the_same_detections(models, tmp_path, task):
    path = models[task].export(tmp_path, postprocess=True)
    exported = rfdetr.load(path)
    outputs = {port.name: port.type.tensor_type.shape.dim for port in onnx.load(str(path)).graph.output}
    assert list(outputs)[:3] == ["boxes", "scores", "classes"]
    assert all(one[0].dim_param == "batch" and all(size.dim_value for size in one[1:]) for one in outputs.values())
    for one, other in zip(
        exported.predict(PICTURES, threshold=0.2), models[task].predict(PICTURES, threshold=0.2), strict=True
    ):
        assert_same_set(one, other, NEAR)
    with pytest.raises(ValueError, match="exported without postprocess=True are judged"):
        exported.evaluate(tmp_path)


def test_the_backbone_alone_gives_its_features(detector, tmp_path):
    path = detector.export(tmp_path, backbone_only=True)
    assert path.name == "backbone_model.onnx"
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = detector.model.model.eval()
    with torch.no_grad():
        expected = network.projector(network.encoder(images))
    found = onnx_format.Runtime(path).run(images.numpy())
    np.testing.assert_allclose(found["features"], expected[0], atol=1e-4)
    with pytest.raises(ValueError, match="lacks dets, labels"):
        rfdetr.load(path)
    with pytest.raises(ValueError, match="backbone_only=True has no detections"):
        detector.export(tmp_path, backbone_only=True, postprocess=True)


def test_half_the_room_in_openvino_is_what_was_asked_for(detector, files, tmp_path):
    half = detector.export(tmp_path, format="openvino", openvino_precision="float16")
    sizes = [path.with_suffix(".bin").stat().st_size for path in (half, files["detect", "openvino"])]
    assert sizes[0] < 0.6 * sizes[1]
    assert rfdetr.load(half).facts.texts["precision"] == "float16"
    assert_same_set(
        rfdetr.load(half).predict(PICTURES[0], threshold=0.1),
        detector.predict(PICTURES[0], threshold=0.1),
        Apart(0.1, 5e-3),
    )


def test_the_input_is_the_very_tensor_of_the_model(detector, file):
    hw = (64, 64)
    ours = NetworkRunner(detector.model).prepare(PICTURES, hw).numpy()
    theirs = rfdetr.load(file)._runner().prepare(PICTURES, hw)
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))
    assert np.array_equal(theirs[1], to_network_size(PICTURES[1], hw, normalised=True))


def test_threads_share_a_file(files):
    for name in FORMATS:
        exported = rfdetr.load(files["detect", name], threads=1)
        expected = [exported.predict(picture, threshold=0.1) for picture in PICTURES]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i, e=exported: e.predict(PICTURES[i % 3], threshold=0.1), range(12)))
        for i, one in enumerate(found):
            assert_same_set(one, expected[i % 3], Apart(0, 0))


def test_files_predict_without_pytorch(files):
    paths = [str(files["segment", name]) for name in FORMATS]
    script = (
        "import sys, numpy as np, rfdetr\n"
        f"for path in {paths!r}:\n"
        "    found = rfdetr.load(path).predict(np.zeros((40, 60, 3), np.uint8), threshold=0.0)\n"
        "    assert len(found) and found.mask.shape[1:] == (40, 60)\n"
        "assert not {'torch', 'pydantic'} & set(sys.modules), 'too much was imported'\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_script_of_the_guide_finds_the_same_boxes(detector, file, tmp_path, monkeypatch, capsys):
    guide = Path(__file__).parents[2].joinpath("docs", "export.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(import numpy as np, onnxruntime.*?)```", guide, re.DOTALL)
    assert len([line for line in script.splitlines() if line]) <= 10
    assert "rfdetr" not in script
    monkeypatch.chdir(tmp_path)
    Path("inference_model.onnx").write_bytes(file.read_bytes())
    # At the network's size no resize of anybody does anything.
    Image.fromarray(PICTURES[2]).save("picture.jpg", quality=95)
    exec(compile(script, "export.md", "exec"), {})
    lines = capsys.readouterr().out.split("\n")[:-1]
    expected = detector.predict("picture.jpg", threshold=0.5)
    found = np.array([[float(n) for n in re.sub(r"[\[\]]", " ", line).split()] for line in lines])
    found = found[found[:, 0] < 3]  # the last row is no class
    assert len(found) == len(expected) > 3
    order, wanted = np.argsort(-found[:, 1]), np.argsort(-expected.confidence)
    centre, half = found[order, 2:4], found[order, 4:6] / 2
    boxes = np.concatenate((centre - half, centre + half), axis=1).clip(0, 64)
    np.testing.assert_allclose(boxes, expected.xyxy[wanted], atol=1e-2)


def test_a_file_says_how_near_it_is_and_takes_notes(detector, tmp_path):
    path = detector.export(tmp_path, notes={"by": "me"}, calibration_data=PICTURES, max_images=2)
    facts = rfdetr.load(path).facts
    assert (facts.parity["pictures"], facts.parity["matched"]) == (2, 1.0)
    assert facts.parity["max_box_px"] <= 1e-2
    assert facts.parity["compared_on"] == "the user's pictures"
    assert json.loads(facts.texts["rfdetr_notes"]) == {"by": "me"}
    assert facts.labels == detector.model.labels


def test_exporting_changes_nothing_about_the_model(detector, tmp_path):
    network = detector.model.model
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    threads, expected = torch.get_num_threads(), detector.predict(PICTURES[0], threshold=0.0)
    detector.export(tmp_path, shape=(32, 96))
    assert torch.get_num_threads() == threads
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    found = detector.predict(PICTURES[0], threshold=0.0)
    assert np.array_equal(found.xyxy, expected.xyxy)
    assert np.array_equal(found.confidence, expected.confidence)


def shift_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files be written that put every box a little aside."""
    write = onnx_format.write

    def wrong(graph: Any, folder: Path, request: Any) -> Path:
        path = write(graph, folder, request)
        content = onnx.load(str(path))
        (last,) = (node for node in content.graph.node if "dets" in node.output)
        last.output[0] = "unmoved"
        content.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([0.01, 0, 0, 0]), "aside"))
        content.graph.node.append(onnx.helper.make_node("Add", ["unmoved", "aside"], ["dets"]))
        onnx.save(content, str(path))
        return path

    monkeypatch.setattr(onnx_format, "write", wrong)


def test_a_file_that_finds_something_else_is_not_written(detector, tmp_path, monkeypatch):
    good = detector.export(tmp_path).read_bytes()
    shift_boxes(monkeypatch)
    with pytest.raises(RuntimeError, match=r"was not written: it finds something else than the model.*allow_drift"):
        detector.export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["inference_model.onnx"]
    assert (tmp_path / "inference_model.onnx").read_bytes() == good
    parity = rfdetr.load(detector.export(tmp_path, allow_drift=True)).facts.parity
    assert parity["matched"] < 0.5


def test_what_is_of_somebody_else_is_not_replaced(detector, models, tmp_path):
    path = detector.export(tmp_path)
    assert detector.export(tmp_path) == path
    with pytest.raises(FileExistsError, match="exists, and its model_name is RFDETRNano; nothing is overwritten"):
        models["segment"].export(tmp_path)
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists and is no earlier export"):
        detector.export(tmp_path)
    assert path.read_bytes() == b"mine"
    detector.export(tmp_path, force=True)
    assert rfdetr.load(path).class_names == detector.class_names


BAD = [
    ({"format": "ncnn"}, ValueError, "format='ncnn' must be one of onnx, openvino"),
    ({"quantization": "int8"}, ValueError, "8 bits are not offered"),
    ({"opset_version": 11}, ValueError, "opset_version=11 must be 17 to 23"),
    ({"opset_version": 24}, ValueError, "opset_version=24 must be 17 to 23"),
    ({"batch_size": 0}, ValueError, "batch_size=0 must be a positive whole number"),
    ({"batch_size": True}, ValueError, "batch_size=True must be"),
    (
        {"format": "tensorrt", "batch_size": 4, "max_batch_size": 2},
        ValueError,
        "max_batch_size=2 is less than batch_size=4",
    ),
    ({"output_name": "a/b"}, ValueError, "without folders"),
    ({"output_name": ""}, ValueError, "output_name='' must be the name of a file"),
    ({"shape": (64, 65)}, ValueError, "multiples of 32"),
    ({"patch_size": 14}, ValueError, "patch_size=14 is not the model's, 16"),
    ({"openvino_precision": "float16"}, ValueError, "of no effect with format='onnx'"),
    ({"format": "openvino", "openvino_precision": "int8"}, ValueError, "must be one of float32, float16"),
    ({"format": "tflite", "dynamic_batch": True}, NotImplementedError, "tflite files take one number of pictures"),
    ({"calibration_data": []}, ValueError, "holds no picture"),
    ({"calibration_data": "missing"}, FileNotFoundError, "missing"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
def test_wrong_options_are_one_clear_error_and_leave_nothing(detector, tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        detector.export(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


def test_a_folder_that_cannot_be_written_to_is_named_before_any_work(detector, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"nothing can be written to {folder}"):
            detector.export(folder)


@pytest.mark.parametrize(("name", "package"), [("onnx", "onnx"), ("openvino", "openvino"), ("tensorrt", "tensorrt")])
def test_a_missing_package_is_an_error_with_the_command(detector, tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'needs {package}: pip install "rfdetr\[{name}\]"'):
        detector.export(tmp_path, format=name)
    assert list(tmp_path.iterdir()) == []


def test_without_the_runtime_a_file_is_written_with_a_warning(detector, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.warns(UserWarning, match=r"inference_model\.onnx was not compared with the model: .*onnxruntime"):
        path = detector.export(tmp_path)
    with pytest.raises(ImportError, match=r"rfdetr\[onnx\]"):
        rfdetr.load(path)
    monkeypatch.undo()
    assert rfdetr.load(path).facts.parity == {}


def test_files_that_cannot_be_opened_are_named(files, tmp_path):
    xml = files["detect", "openvino"]
    (tmp_path / "alone.xml").write_bytes(xml.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"alone\.bin is missing"):
        rfdetr.load(tmp_path / "alone.xml")
    (tmp_path / "cut.xml").write_bytes(xml.read_bytes()[:500])
    (tmp_path / "cut.bin").write_bytes(xml.with_suffix(".bin").read_bytes())
    with pytest.raises(ValueError, match=r"cut\.xml is no file that OpenVINO can read"):
        rfdetr.load(tmp_path / "cut.xml")
    (tmp_path / "cut.onnx").write_bytes(files["detect", "onnx"].read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.onnx is no ONNX file"):
        rfdetr.load(tmp_path / "cut.onnx")
    for name, kind in (("missing.onnx", FileNotFoundError), ("missing.pth", FileNotFoundError), ("a.zip", ValueError)):
        with pytest.raises(kind, match=name):
            rfdetr.load(tmp_path / name)
    with pytest.raises(TypeError, match="takes device and threads, not resolution"):
        rfdetr.load(files["detect", "onnx"], resolution=64)
    with pytest.raises(ValueError, match="threads=0 must be a positive whole number"):
        rfdetr.load(files["detect", "onnx"], threads=0)
    for name in FORMATS:
        with pytest.raises(ValueError, match="device='tpu'"):
            rfdetr.load(files["detect", name], device="tpu")


def test_a_checkpoint_opens_in_the_same_way(detector, tmp_path):
    bundle = detector.export_for_roboflow(tmp_path)
    again = rfdetr.load(bundle / "weights.pt", device="cpu")
    assert_same_set(
        again.predict(PICTURES[0], threshold=0.1), detector.predict(PICTURES[0], threshold=0.1), Apart(0, 0)
    )


@pytest.mark.filterwarnings("ignore:the evaluation of")
@pytest.mark.parametrize(("task", "name"), [("detect", "openvino"), ("segment", "onnx"), ("keypoints", "openvino")])
def test_an_evaluation_of_a_file_is_that_of_the_model(models, files, tmp_path, task, name):
    data = tiny_data(tmp_path, shapes=("circle", "square", "star"))
    exported = ExportedModel(files[task, name])
    images = torch.rand(3, 3, *exported.facts.hw, generator=torch.Generator().manual_seed(0))
    network = models[task].model.model.eval()
    with torch.no_grad():
        expected = network(images, last_only=True, whole_masks=True)
    for key, value in JudgedFile(exported).ready()(images, None).items():
        torch.testing.assert_close(value, expected[key], atol=1e-4, rtol=1e-4)
    if task != "keypoints":  # its schema is not that of the drawn pictures
        options = {"split": "val", "num_workers": 0, "progress_bar": None}
        assert exported.evaluate(data, **options) == pytest.approx(
            models[task].evaluate(data, **options), abs=1e-4, nan_ok=True
        )
