"""Where exported files go, what the check refuses, and what `test_export.py` does not compare with the model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from tests.sets import Apart, assert_same_set, boxes_of, scores_of
from tests.tiny import decided_model, tiny_data

import rfdetr
from rfdetr import RFDETR
from rfdetr.datasets.transforms import normalise, resize_on_device
from rfdetr.export import onnx as onnx_format
from rfdetr.export import openvino as openvino_format
from rfdetr.export.predictor import ExportedModel
from rfdetr.inference import optimised
from rfdetr.inference.network import NetworkRunner

PICTURES = [
    np.random.default_rng(i).integers(0, 256, (*hw, 3), np.uint8) for i, hw in enumerate([(48, 64), (80, 50), (64, 64)])
]
NEAR = Apart(masks=1e-4)
# One picture alone is compared: OpenVINO compiles a network for each number of them.
QUICK: dict[str, Any] = {"calibration_data": PICTURES[:1], "verbose": False}
ONNX, XML, BIN = (f"inference_model.{suffix}" for suffix in ("onnx", "xml", "bin"))


@pytest.fixture(scope="module")
def detector() -> RFDETR:
    return decided_model()


@pytest.fixture(scope="module")
def file(detector: RFDETR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detector.export(tmp_path_factory.mktemp("onnx"), verbose=False)


@pytest.fixture(scope="module")
def xml(detector: RFDETR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detector.export(tmp_path_factory.mktemp("openvino"), format="openvino", **QUICK)


Edit = Callable[[ModelProto], object]


@pytest.fixture
def edits(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Edit]]:
    """Exports write the graph that has been traced once, after these changes to it."""
    found: list[Edit] = []

    def write(graph: Any, folder: Path, request: Any) -> Path:
        content, path = onnx.load(str(file)), folder / f"{request.stem}.onnx"
        del content.metadata_props[:]
        for edit in found:
            edit(content)
        onnx.save(content, str(path))
        return path

    monkeypatch.setattr(onnx_format, "write", write)
    yield found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What the check refuses


def through(content: ModelProto, name: str, *nodes: tuple[str, list[str], dict[str, Any]], **values: Any) -> None:
    """Put nodes between an output's last node and the output, which begin with "raw" and end with it."""
    (last,) = (node for node in content.graph.node if name in node.output)
    last.output[0] = "raw"
    content.graph.initializer.extend(numpy_helper.from_array(np.array(v), key) for key, v in values.items())
    for number, (kind, inputs, attributes) in enumerate(nodes):
        output = name if number == len(nodes) - 1 else f"step_{number}"
        content.graph.node.append(helper.make_node(kind, inputs, [output], **attributes))


def of_other_weights(content: ModelProto) -> None:
    (bias,) = (one for one in content.graph.initializer if one.name.endswith("box_head.layers.1.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))


WRONG: dict[str, Edit] = {
    "other weights": of_other_weights,
    "boxes aside": lambda one: through(one, "dets", ("Add", ["raw", "x"], {}), x=np.float32([0.01, 0, 0, 0])),
    "queries exchanged": lambda one: through(one, "dets", ("Gather", ["raw", "x"], {"axis": 1}), x=[1, 0, 2, 3, 4, 5]),
    "no numbers": lambda one: through(one, "labels", ("Mul", ["raw", "x"], {}), x=np.float32(np.nan)),
    "everything": lambda one: through(one, "labels", ("Add", ["raw", "x"], {}), x=np.float32(200)),
    "the first picture for all": lambda one: through(
        one,
        "dets",
        ("Gather", ["raw", "x"], {"axis": 0}),
        ("Shape", ["raw"], {}),
        ("Expand", ["step_0", "step_1"], {}),
        x=[0],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_finds_something_else_is_not_put_anywhere(wrong, detector, edits, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    edits.append(WRONG[wrong])
    with pytest.raises(RuntimeError, match=rf"{ONNX} was not written: it finds something else than the model"):
        detector.export(tmp_path, calibration_data=PICTURES)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


def test_an_earlier_good_file_outlives_a_wrong_one(detector, edits, tmp_path):
    """Of OpenVINO, whose file is two."""
    format = "openvino"
    path = detector.export(tmp_path, format=format, notes="first", **QUICK)
    good = contents(tmp_path)
    edits.append(WRONG["boxes aside"])
    with pytest.raises(RuntimeError, match="was not written: it finds something else"):
        detector.export(tmp_path, format=format, force=True, **QUICK)
    assert contents(tmp_path) == good
    edits.clear()
    assert detector.export(tmp_path, format=format, notes="second", **QUICK) == path
    assert contents(tmp_path).keys() == good.keys()
    assert rfdetr.load(path).facts.texts["rfdetr_notes"] == "second"


def test_drift_is_allowed_and_noted(detector, edits, tmp_path):
    edits.append(WRONG["boxes aside"])
    path = detector.export(tmp_path, allow_drift=True)
    exported = rfdetr.load(path)
    assert exported.facts.parity["matched"] == 0
    assert exported.facts.parity["detections"] > 100
    found, expected = exported.predict(PICTURES[0], threshold=0.0), detector.predict(PICTURES[0], threshold=0.0)
    inside = (expected.xyxy[:, 0] > 1) & (expected.xyxy[:, 2] < 62)
    np.testing.assert_allclose((found.xyxy - expected.xyxy)[inside], [[0.64, 0, 0.64, 0]] * inside.sum(), atol=1e-2)


def test_a_converter_that_gives_up_leaves_nothing(detector, monkeypatch, tmp_path):
    def give_up(graph: Any, folder: Path, request: Any) -> Path:
        (folder / "half.onnx").write_bytes(b"half")
        raise RuntimeError("no such operator")

    monkeypatch.setattr(onnx_format, "write", give_up)
    with pytest.raises(RuntimeError, match="no such operator"):
        detector.export(tmp_path, format="openvino")
    assert list(tmp_path.iterdir()) == []


# Where files go


@pytest.mark.usefixtures("edits")
@pytest.mark.parametrize(
    ("format", "name", "files"),
    [
        ("onnx", "nano.onnx", {"nano.onnx"}),
        ("onnx", "nano-1.5", {"nano-1.5.onnx"}),
        ("onnx", "größe 1", {"größe 1.onnx"}),
        ("openvino", "nano-1.5", {"nano-1.5.xml", "nano-1.5.bin"}),
    ],
)
def test_a_file_has_the_name_that_was_asked_for(format, name, files, detector, tmp_path):
    folder = tmp_path / "new" / "folder"
    path = detector.export(folder, format=format, output_name=name, **QUICK)
    assert {one.name for one in folder.iterdir()} == files
    assert path.parent == folder
    assert len(rfdetr.load(path).predict(PICTURES[0], threshold=0.0)) > 3


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a/", "/a", "./a", 3, True])
def test_names_that_are_none_are_refused(name, detector, tmp_path):
    with pytest.raises(ValueError, match=r"output_name=.* must be the name of a file, without folders"):
        detector.export(tmp_path, output_name=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("edits")
def test_what_lies_beside_a_file_is_no_part_of_it_unless_it_is(detector, tmp_path):
    """The weights of an OpenVINO file are in a second one, whose name may be taken."""
    (tmp_path / BIN).write_bytes(b"mine")
    with pytest.raises(
        FileExistsError, match=rf"{BIN} exists, but no {XML} that it belongs to; nothing is overwritten"
    ):
        detector.export(tmp_path, format="openvino", **QUICK)
    assert contents(tmp_path) == {BIN: b"mine"}
    path = detector.export(tmp_path, format="openvino", force=True, **QUICK)
    assert set(contents(tmp_path)) == {XML, BIN}
    assert len(rfdetr.load(path).predict(PICTURES[0], threshold=0.0)) > 3
    (tmp_path / BIN).unlink()
    with pytest.raises(FileExistsError, match=f"{XML} exists and is no earlier export"):
        detector.export(tmp_path, format="openvino", **QUICK)


@pytest.mark.usefixtures("edits")
def test_a_folder_of_the_files_name_is_left_alone(detector, tmp_path):
    (tmp_path / ONNX).mkdir()
    (tmp_path / ONNX / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is no earlier export"):
        detector.export(tmp_path, **QUICK)
    assert (tmp_path / ONNX / "mine.txt").read_text() == "mine"
    assert (detector.export(tmp_path, force=True, **QUICK)).is_file()


@pytest.mark.usefixtures("edits")
def test_a_model_of_other_classes_is_another_model(detector, tmp_path):
    path = detector.export(tmp_path, **QUICK)
    before = path.read_bytes()
    other = decided_model()
    other.model.class_names = ["cat", "dog", "bird"]
    with pytest.raises(
        FileExistsError, match=r'exists, and its class_names is \["0", "1", "2"\]; nothing is overwritten'
    ):
        other.export(tmp_path, **QUICK)
    assert path.read_bytes() == before
    other.export(tmp_path, force=True, **QUICK)
    assert rfdetr.load(path).class_names == ["cat", "dog", "bird"]


# Options


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"backend": "xnnpack"}, ValueError, "'xnnpack' is of no effect with format='onnx'"),
        ({"format": "openvino", "soc": "SM8550"}, ValueError, "'SM8550' is of no effect with format='openvino'"),
        ({"max_batch_size": 4}, ValueError, "max_batch_size: 4 is of no effect with format='onnx'"),
        ({"format": "tflite", "simplify": True}, ValueError, "simplify: True is of no effect with format='tflite'"),
        ({"coreml_precision": True}, ValueError, "coreml_precision=True must be one of float32, float16"),
        ({"openvino_precision": False}, ValueError, "openvino_precision=False must be one of float32, float16"),
        ({"format": "coreml", "dynamic_batch": True}, NotImplementedError, "coreml files take one number of pictures"),
        ({"opset_version": "17"}, ValueError, "opset_version='17' must be 17 to 23"),
        ({"batch_size": 2.0}, ValueError, "batch_size=2.0 must be a positive whole number"),
        ({"shape": 0}, ValueError, r"shape=0 must be \(height, width\)"),
        ({"shape": ()}, ValueError, r"shape=\(\) must be \(height, width\)"),
        ({"max_images": 0}, ValueError, "max_images=0 must be a positive whole number"),
        ({"notes": {"a": object()}}, TypeError, "not JSON serializable"),
    ],
)
def test_wrong_options_are_refused(options, kind, message, detector, tmp_path):
    with pytest.raises(kind, match=message):
        detector.export(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("pictures", "kind", "message"),
    [
        ("nowhere", FileNotFoundError, "nowhere"),
        ([PICTURES[0], 3], TypeError, "picture 1 of the list is a int"),
        (iter([]), ValueError, "holds no picture"),
    ],
)
def test_pictures_that_cannot_be_read_are_refused_before_any_work(
    pictures, kind, message, detector, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnx_format, "write", lambda *_: pytest.fail("traced"))
    with pytest.raises(kind, match=message):
        detector.export(tmp_path, calibration_data=pictures)


@pytest.mark.usefixtures("edits")
def test_pictures_of_the_user_are_compared(detector, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(PICTURES):
        (tmp_path / "pictures" / f"{number}.ppm").write_bytes(
            b"P6 %d %d 255\n" % picture.shape[1::-1] + picture.tobytes()
        )
    for given, count in ((tmp_path / "pictures", 2), (str(tmp_path / "pictures" / "0.ppm"), 1)):
        path = detector.export(tmp_path, calibration_data=given, max_images=2)
        parity = rfdetr.load(path).facts.parity
        assert (parity["pictures"], parity["compared_on"]) == (count, "the user's pictures")


@pytest.mark.usefixtures("edits")
def test_a_runtime_that_is_missing_is_told_to_the_caller(detector, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.warns(UserWarning, match="was not compared with the model") as caught:
        detector.export(tmp_path)
    assert [one.filename for one in caught] == [__file__]


def test_what_simplifies_files_is_named_before_any_work_when_it_is_missing(detector, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("traced"))
    with pytest.raises(ImportError, match=r'needs onnxslim: pip install "rfdetr\[onnx\]"'):
        detector.export(tmp_path, simplify=True)
    assert list(tmp_path.iterdir()) == []


# The live model


def test_a_model_that_was_prepared_or_is_in_training_mode_is_exported_as_it_is(edits, tmp_path, monkeypatch):
    monkeypatch.setattr(optimised, "is_faster", lambda dtype: True)
    model = decided_model()
    model.inference(dtype="bfloat16")
    model.model.model.train()
    made = model.model.inference_model
    path = model.export(tmp_path)
    assert rfdetr.load(path).facts.parity["matched"] == 1.0
    assert model.model.model.training
    assert model.model.inference_model is made
    assert len(edits) == 0


def test_exporting_draws_no_random_number_and_freezes_nothing(tmp_path):
    model = decided_model()
    network = model.model.model
    before = [parameter.requires_grad for parameter in network.parameters()]
    state, threads, mode = torch.get_rng_state(), torch.get_num_threads(), network.training
    first = model.export(tmp_path, **QUICK).read_bytes()
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_num_threads(), network.training) == (threads, mode)
    assert [parameter.requires_grad for parameter in network.parameters()] == before
    assert model.model.inference_model is None
    # The same model gives the very same file.
    assert model.export(tmp_path, **QUICK).read_bytes() == first


# Files of other kinds


def test_openvino_gives_detections_as_outputs_too(tmp_path):
    """Of keypoints, whose graph has most in it that a runtime can compute otherwise."""
    model = decided_model("keypoints", dec_layers=1)
    exported = rfdetr.load(model.export(tmp_path, format="openvino", postprocess=True, **QUICK))
    assert exported.facts.parity["matched"] == 1.0
    for one, other in zip(*(each.predict(PICTURES, threshold=0.0) for each in (exported, model)), strict=True):
        assert_same_set(one, other, NEAR)


def test_detections_as_outputs_are_the_best_that_are_of_a_class(tmp_path):
    """What is no class takes no place among them, so that there may be more than the model reports."""
    model = decided_model(num_select=10)
    exported = rfdetr.load(model.export(tmp_path, postprocess=True, batch_size=2, **QUICK))
    assert exported.facts.parity["matched"] == 1.0
    for found, expected in zip(*(one.predict(PICTURES, threshold=0.0) for one in (exported, model)), strict=True):
        assert 3 < len(expected) <= len(found) == 10
        assert (np.diff(found.confidence) <= 0).all()
        assert_same_set(found[: len(expected)], expected, NEAR)


def test_the_backbone_alone_in_openvino(detector, tmp_path):
    path = detector.export(tmp_path, format="openvino", backbone_only=True, verbose=False)
    assert {one.name for one in tmp_path.iterdir()} == {"backbone_model.xml", "backbone_model.bin"}
    runtime = openvino_format.Runtime(path)
    assert json.loads(runtime.texts["parity"])["max_feature"] < 1e-3
    network = detector.model.model.eval()
    for count in (1, 3):
        images = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            (expected,) = network.projector(network.encoder(images))
        np.testing.assert_allclose(runtime.run(images.numpy())["features"], expected.numpy(), rtol=0, atol=1e-4)


def test_the_input_is_that_of_the_training_code_bit_for_bit(detector, file):
    """Of uint8 and of float pictures, larger and smaller than the network's input."""
    sizes = [(48, 64), (480, 641), (64, 64), (7, 1000), (1, 1)]
    pictures = [np.random.default_rng(i).integers(0, 256, (*hw, 3), np.uint8) for i, hw in enumerate(sizes)]
    pictures += [picture.astype(np.float32) / np.float32(255) for picture in pictures]
    theirs, hw = ExportedModel(file)._runner(), (64, 64)
    for picture in pictures:
        tensor = normalise(resize_on_device(torch.from_numpy(picture), hw)[None]).numpy()
        for runner in (theirs, NetworkRunner(detector.model)):
            found = np.asarray(runner.prepare([picture], hw))
            assert np.array_equal(found.view(np.uint32), tensor.view(np.uint32))


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_threads_share_a_file_for_batches_of_any_size(format, detector, file, xml):
    """Networks are compiled for a number of pictures when it comes for the first time, maybe in two threads at once."""
    exported = rfdetr.load(file if format == "onnx" else xml)
    batches = [[PICTURES[(i + j) % 3] for j in range(1 + i % 3)] for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: exported.predict(batch, threshold=0.0), batches))
    for found, batch in zip(together, batches, strict=True):
        for one, other in zip(found, detector.predict(batch, threshold=0.0), strict=True):
            assert_same_set(one, other, NEAR)


# Metadata

TEXTS = [
    "",
    " spaces ",
    "two\nlines",
    "tab\t, \r\n",
    "ü€😀",
    "<&>\"']]>",
    "true",
    "12",
    "[1]",
    "ctrl\x01",
    "{}",
    "a" * 5000,
]


@pytest.mark.parametrize("module", [onnx_format, openvino_format])
def test_any_text_comes_back(module, file, xml, tmp_path):
    path = tmp_path / f"copy{(file if module is onnx_format else xml).suffix}"
    path.write_bytes((file if module is onnx_format else xml).read_bytes())
    if module is openvino_format:
        path.with_suffix(".bin").write_bytes(xml.with_suffix(".bin").read_bytes())
    before = module.texts_of(path)
    assert before == module.Runtime(path).texts
    module.annotate(path, {f"text_{i}": text for i, text in enumerate(TEXTS)})
    module.annotate(path, {"text_0": "changed"})
    found = module.texts_of(path)
    assert [found[f"text_{i}"] for i in range(len(TEXTS))] == ["changed", *TEXTS[1:]]
    assert {name: found[name] for name in before} == before
    expected = rfdetr.load(file).predict(PICTURES[0], threshold=0.0)
    assert_same_set(rfdetr.load(path).predict(PICTURES[0], threshold=0.0), expected, NEAR)


@pytest.mark.usefixtures("edits")
def test_names_of_classes_and_thresholds_go_with_the_file(tmp_path):
    model = decided_model()
    model.model.class_names = ["Größe <1>", 'say "x"\n', "3"]
    model.model.thresholds = {"Größe <1>": 0.25, "3": 0.75}
    exported = rfdetr.load(model.export(tmp_path, notes="plain text", **QUICK))
    assert exported.facts.labels == model.model.labels
    assert exported.facts.texts["rfdetr_notes"] == "plain text"
    found, expected = (one.predict(PICTURES[0], threshold="auto") for one in (exported, model))
    assert_same_set(found, expected, NEAR)
    assert len(found) > 3


# Files that cannot be opened


def foreign_xml(folder: Path, inputs: int) -> Path:
    """A network of somebody else in OpenVINO."""
    import openvino
    from openvino import opset13

    given = [opset13.parameter([1, 3, 8, 8], np.float32, name=f"in{i}") for i in range(inputs)]
    added = opset13.add(given[0], given[-1])
    openvino.save_model(openvino.Model([added], given, "other"), str(folder / "other.xml"))
    return folder / "other.xml"


def test_networks_of_others_are_refused(file, xml, tmp_path):
    for inputs, message in (
        (1, "lacks the metadata class_names, resolution"),
        (2, r"other\.xml has 2 inputs; a detector"),
    ):
        with pytest.raises(ValueError, match=message):
            rfdetr.load(foreign_xml(tmp_path, inputs))
    # The weights of another network, and no text at all where one is needed.
    (tmp_path / "cut.xml").write_bytes(xml.read_bytes())
    (tmp_path / "cut.bin").write_bytes(xml.with_suffix(".bin").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.xml is no file that OpenVINO can read"):
        rfdetr.load(tmp_path / "cut.xml")
    for name in ("empty.onnx", "empty.xml"):
        (tmp_path / name).write_bytes(b"")
        (tmp_path / "empty.bin").write_bytes(b"")
        with pytest.raises(ValueError, match=rf"{name} is no"):
            rfdetr.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"the suffix '\.onyx' is of no model file"):
        rfdetr.load(tmp_path / "model.onyx")
    # Windows writes suffixes as it likes.
    (tmp_path / "MODEL.ONNX").write_bytes(file.read_bytes())
    assert rfdetr.load(tmp_path / "MODEL.ONNX").class_names == rfdetr.load(file).class_names
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match=r"folder\.onnx is no ONNX file"):
        rfdetr.load(tmp_path / "folder.onnx")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"task": "segment"}, "lacks masks"),
        ({"task": "keypoints"}, "lacks keypoints"),
        ({"final": "true"}, "lacks boxes, scores, classes"),
        ({"resolution": "96"}, r"its metadata say \(96, 96\)"),
        ({"num_classes": "90"}, r"labels \(B, Q, 91\) are needed"),
        ({"class_names": "[1, 2]"}, r"damaged metadata, class_names is \[1, 2\]"),
        ({"class_labels": "[0, 1]"}, r"damaged metadata, class_labels is \[0, 1\]"),
        ({"class_labels": "[0, 1, 9]"}, r"damaged metadata, class_labels is \[0, 1, 9\]"),
        ({"thresholds": '{"0": "high"}'}, "damaged metadata, thresholds is"),
        ({"parity": "[]"}, r"damaged metadata, parity is \[\]"),
        ({"num_select": "0"}, "damaged metadata, num_select is 0"),
        ({"num_classes": '"3"'}, "damaged metadata, num_classes is '3'"),
        ({"parity": "{"}, "damaged metadata, parity is '{'"),
    ],
)
def test_metadata_of_another_model_are_refused(texts, message, file, tmp_path):
    path = tmp_path / "other.onnx"
    path.write_bytes(file.read_bytes())
    onnx_format.annotate(path, texts)
    with pytest.raises(ValueError, match=message):
        rfdetr.load(path)


# Evaluation, of numbers that are neither 0 nor 1


def annotate_with_own_detections(model: RFDETR, data: Path, task: str) -> None:
    """Make what the model finds, slightly moved, the objects of the validation split."""
    file, random = data / "valid" / "_annotations.coco.json", np.random.default_rng(0)
    document = json.loads(file.read_text())
    ids = [one["id"] for one in document["categories"]]
    document["annotations"] = []
    for image in document["images"]:
        options = {"mask_format": "polygon"} if task == "segment" else {}
        found = model.predict(data / "valid" / image["file_name"], threshold=0.0, **options)
        rows = [row for row in range(len(found)) if found.class_id[row] < len(ids)][:8]
        for row in rows:
            x, y, right, bottom = (boxes_of(found)[row] + random.normal(0, 0.35, 4)).tolist()
            box = [x, y, max(right - x, 1), max(bottom - y, 1)]
            one = {"id": len(document["annotations"]) + 1, "image_id": image["id"], "bbox": box, "iscrowd": 0}
            one |= {"category_id": ids[found.class_id[row]], "area": box[2] * box[3]}
            if task == "segment":
                shapes = [
                    (shape + random.integers(0, 2, 2)).reshape(-1).tolist() for shape in found.data["polygons"][row]
                ]
                one["segmentation"] = [shape for shape in shapes if len(shape) >= 6] or [[0, 0, 9, 0, 9, 9]]
            if task == "keypoints":
                points = found.xy[row][:4] + random.normal(0, 0.2, (4, 2))
                one |= {"keypoints": [v for x, y in points.tolist() for v in (x, y, 2)], "num_keypoints": 4}
            document["annotations"].append(one)
    file.write_text(json.dumps(document))


@pytest.mark.filterwarnings("ignore:the evaluation of 4 keypoints takes 0.05")
@pytest.mark.parametrize(("task", "format"), [("segment", "openvino"), ("keypoints", "onnx")])
def test_a_file_is_judged_like_the_model(task, format, tmp_path):
    shapes = ("dart",) if task == "keypoints" else ("circle", "square", "star")
    data = tiny_data(tmp_path / "data", shapes=shapes)
    model = decided_model(task, dec_layers=1, **({"num_keypoints_per_class": [4]} if task == "keypoints" else {}))
    path = model.export(tmp_path, format=format, **QUICK)
    annotate_with_own_detections(model, data, task)
    options = {"split": "val", "num_workers": 0, "progress_bar": None}
    exported = rfdetr.load(path)
    found, expected = exported.evaluate(data, **options), model.evaluate(data, **options)
    assert found == pytest.approx(expected, abs=1e-4, nan_ok=True)
    main = "segm_mAP_50_95" if task == "segment" else "keypoint_map_50_95"
    assert 0.02 < expected[f"val/{main}"] < 0.98
    assert exported.thresholds == pytest.approx(model.model.thresholds, abs=1e-4)
    assert len(exported.thresholds) > 0
    one, other = (each.predict(PICTURES[0], threshold="auto") for each in (exported, model))
    assert sorted(scores_of(one)) == pytest.approx(sorted(scores_of(other)), abs=1e-4)
