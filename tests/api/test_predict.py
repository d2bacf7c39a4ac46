"""`predict`: what it takes, what it gives back, and that neither lists, chunks nor threads change a number."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from tests.tiny import tiny_model

from rfdetr import RFDETRNano
from rfdetr.assets.coco_classes import COCO_CLASSES
from rfdetr.inference.sv import supervision

H, W = 48, 64
RGB = np.random.default_rng(5).integers(0, 256, (H, W, 3), np.uint8)
OTHER = np.random.default_rng(6).integers(0, 256, (80, 50, 3), np.uint8)
Detections = supervision().Detections


def spread(model: RFDETRNano) -> RFDETRNano:
    """Random class weights large enough that scores differ."""
    torch.manual_seed(11)
    with torch.no_grad():
        model.model.model.class_head.weight.normal_(std=0.5)
        model.model.model.class_head.bias.zero_()
        model.model.model.box_head.layers[-1].weight.normal_(std=0.1)
    return model


@pytest.fixture(scope="module")
def model() -> RFDETRNano:
    return spread(tiny_model(num_classes=3))


@pytest.fixture(scope="module")
def expected(model) -> Any:
    return model.predict(RGB, threshold=0.2)


def assert_same(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    assert len(found) == len(expected)
    if tolerance:
        # Nearly equal scores may change places.
        found, expected = (one[np.lexsort((*one.xyxy.T.round(1), one.class_id))] for one in (found, expected))
    assert np.array_equal(found.class_id, expected.class_id)
    np.testing.assert_allclose(found.xyxy, expected.xyxy, rtol=0, atol=tolerance * max(H, W))
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=0, atol=tolerance)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    path.write_bytes(png(RGB))
    return path


ACCEPTED = {
    # kind: (picture from a path, largest difference: a float picture is not rounded to 8 bits before the resize)
    "str": (str, 0),
    "Path": (lambda path: path, 0),
    "bytes": (Path.read_bytes, 0),
    "file": (lambda path: io.BytesIO(path.read_bytes()), 0),
    "PIL": (lambda path: Image.fromarray(RGB), 0),
    "PIL with alpha": (lambda path: Image.fromarray(np.dstack([RGB, RGB[..., :1]])), 0),
    "uint8": (lambda path: RGB, 0),
    "uint8 with alpha": (lambda path: np.dstack([RGB, RGB[..., :1]]), 0),
    "uint8 reversed": (lambda path: RGB[:, :, ::-1].copy()[:, :, ::-1], 0),
    "tensor uint8": (lambda path: torch.from_numpy(RGB).permute(2, 0, 1), 0),
    "float32": (lambda path: RGB.astype(np.float32) / 255, 0.02),
    "float64": (lambda path: RGB / 255, 0.02),
    "float16": (lambda path: (RGB / 255).astype(np.float16), 0.02),
    "uint16": (lambda path: RGB.astype(np.uint16) * 257, 0.02),
    "tensor float32": (lambda path: torch.from_numpy(RGB / 255).float().permute(2, 0, 1), 0.02),
    "tensor float64": (lambda path: torch.from_numpy(RGB / 255).permute(2, 0, 1), 0.02),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_every_kind_of_picture_gives_the_same_detections(kind, model, path, expected):
    make, tolerance = ACCEPTED[kind]
    found = model.predict(make(path), threshold=0.2)
    assert isinstance(found, Detections)
    assert len(found) > 3
    assert_same(found, expected, tolerance)
    assert np.array_equal(found.metadata["source_image"], RGB)


def test_grey_pictures_are_found_on_in_every_form(model):
    grey = RGB[..., 0]
    expected = model.predict(np.repeat(grey[..., None], 3, 2), threshold=0.2)
    for image in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)[None]):
        assert_same(model.predict(image, threshold=0.2), expected)


REFUSED = {
    "unknown type": (3, TypeError, "is a int"),
    "missing file": ("nowhere.jpg", FileNotFoundError, r"nowhere\.jpg"),
    "no picture": (b"hello", UnidentifiedImageError, "cannot be decoded"),
    "float 0..255": (RGB.astype(np.float32), ValueError, "divide by 255"),
    "int over 255": (RGB.astype(np.int64) * 2, ValueError, "divide by 255"),
    "channels first": (RGB.transpose(2, 0, 1), ValueError, "channels first"),
    "tensor channels last": (torch.from_numpy(RGB), ValueError, "permute"),
    "NaN": (torch.full((3, H, W), float("nan")), ValueError, "NaN"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("listed", [False, True])
def test_what_is_no_picture_is_refused(kind, listed, model):
    image, error, message = REFUSED[kind]
    with pytest.raises(error, match=message) as raised:
        model.predict([RGB, image] if listed else image)
    assert ("picture 1 of the list" in str(raised.value)) == listed


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"conf": 0.2}, TypeError, "conf"),
        ({"shape": (64, 65)}, ValueError, "multiples of 32"),
        ({"shape": 64}, ValueError, "multiples of 32"),
        ({"patch_size": 14}, ValueError, "patch_size=14 is not the model's, 16"),
    ],
)
def test_wrong_options_are_refused(options, error, message, model):
    with pytest.raises(error, match=message):
        model.predict(RGB, **options)


# One, many, none


def test_a_list_gives_a_list_and_one_picture_one_result(model, expected):
    for given in ([RGB], (RGB,), RGB[None], torch.from_numpy(RGB).permute(2, 0, 1)[None]):
        found = model.predict(given, threshold=0.2)
        assert type(found) is list
        assert len(found) == 1
        assert_same(found[0], expected)
    for empty in ([], (), np.zeros((0, H, W, 3), np.uint8)):
        assert model.predict(empty) == []


def test_a_mixed_list_gives_what_each_picture_gives_alone(model, path):
    pictures = [path, OTHER, torch.from_numpy(RGB).permute(2, 0, 1), Image.fromarray(OTHER)]
    found = model.predict(pictures, threshold=0.2)
    for one, picture in zip(found, pictures, strict=True):
        assert_same(one, model.predict(picture, threshold=0.2), 1e-5)
    assert found[1].metadata["source_image"].shape == OTHER.shape


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_the_size_of_a_chunk_changes_nothing(size, model):
    pictures = [RGB, OTHER, RGB[::-1], OTHER[:, ::-1], RGB // 2]
    for one, two in zip(
        model.predict(pictures, threshold=0.1, batch_size=size), model.predict(pictures, threshold=0.1), strict=True
    ):
        assert_same(one, two, 1e-5)


# The result


@pytest.mark.parametrize("threshold", [0.2, 2.0])
def test_fields_and_types_of_a_result(model, threshold):
    found = model.predict(OTHER, threshold=threshold)
    count = len(found)
    assert (count == 0) == (threshold > 1)
    kinds = {
        "xyxy": (found.xyxy, np.float32, (count, 4)),
        "confidence": (found.confidence, np.float32, (count,)),
        "class_id": (found.class_id, np.int64, (count,)),
        "class_name": (found.data["class_name"], np.object_, (count,)),
        "source_shape": (found.data["source_shape"], np.int64, (count, 2)),
    }
    for name, (array, dtype, shape) in kinds.items():
        assert (array.dtype, array.shape) == (dtype, shape), name
    assert (found.mask, found.tracker_id) == (None, None)
    assert (found.data["source_shape"] == (80, 50)).all()
    assert (np.diff(found.confidence) <= 0).all()
    assert (found.xyxy >= 0).all()
    assert (found.xyxy <= (50, 80, 50, 80)).all()
    assert list(found.data["class_name"]) == [model.class_names[i] for i in found.class_id]
    assert all(type(name) is str for name in found.data["class_name"])
    source = found.metadata["source_image"]
    assert (source.dtype, np.array_equal(source, OTHER)) == (np.uint8, True)


def test_the_source_picture_can_be_left_out(model, expected):
    found = model.predict(RGB, threshold=0.2, include_source_image=False)
    assert_same(found, expected)
    assert found.metadata == {}
    assert found.data["source_shape"][0].tolist() == [H, W]


def test_scores_must_exceed_the_threshold(model):
    everything = model.predict(RGB, threshold=0.0)
    score = float(everything.confidence[4])
    kept = model.predict(RGB, threshold=score)
    assert len(kept) == (everything.confidence > score).sum()
    assert score not in kept.confidence
    assert len(model.predict(RGB, threshold=-1)) == len(everything)


def test_the_unused_output_never_appears(model):
    with torch.no_grad():
        bias = model.model.model.class_head.bias
        before = bias.clone()
        bias[3] = 50.0
        found = model.predict(RGB, threshold=0.0)
        bias.copy_(before)
    assert set(found.class_id.tolist()) <= {0, 1, 2}
    assert len(model.predict(RGB, threshold=0.0)) > 0


def test_labels_of_a_coco_head_are_category_ids():
    found = spread(tiny_model(num_select=300)).predict(RGB, threshold=0.0)
    assert {COCO_CLASSES.get(i, "") for i in found.class_id} == set(found.data["class_name"])
    assert found.class_id.max() <= 90
    assert "" in found.data["class_name"]


def test_another_input_shape_is_used(model, expected):
    assert_same(model.predict(RGB, threshold=0.2, shape=(64, 64), patch_size=16), expected)
    seen = []
    hook = model.model.model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    found = model.predict([RGB, OTHER], threshold=0.2, shape=(96, 32))
    hook.remove()
    assert seen == [(2, 3, 96, 32)]
    assert (found[0].xyxy <= (W, H, W, H)).all()


def test_a_model_in_training_mode_predicts_as_in_evaluation(model, expected):
    model.model.model.train()
    assert_same(model.predict(RGB, threshold=0.2), expected)
    assert not model.model.model.training


def test_predict_changes_neither_the_picture_nor_the_weights(model):
    picture, before = RGB.copy(), {n: t.clone() for n, t in model.model.model.state_dict().items()}
    model.predict([picture, OTHER])
    assert np.array_equal(picture, RGB)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.model.model.state_dict().items())


def test_threads_on_one_model_get_what_one_thread_gets():
    pictures = [np.random.default_rng(i).integers(0, 256, (H, W + i, 3), np.uint8) for i in range(16)]
    model = spread(tiny_model(num_classes=3))  # fresh: the threads meet before its first use
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: model.predict(picture, threshold=0.1), pictures))
    for found, picture in zip(together, pictures, strict=True):
        assert_same(found, model.predict(picture, threshold=0.1))
        assert np.array_equal(found.metadata["source_image"], picture)
