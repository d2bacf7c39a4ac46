"""`predict` of models that find masks or keypoints: the formats of masks, the fields of key points, empty results."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from tests.tiny import MODEL, tiny_model
from tests.vectors import assert_close, read_json, read_tensors

from rfdetr import RFDETR, RFDETRKeypointPreview, RFDETRSegNano
from rfdetr.inference.decode import pixel_covariance
from rfdetr.inference.masks import to_masks
from rfdetr.inference.results import select, to_result
from rfdetr.inference.sv import supervision
from rfdetr.models.enlarge import cut_outs

H, W = 90, 130
RGB = np.random.default_rng(5).integers(0, 256, (H, W, 3), np.uint8)
META, DATA = read_json("inference/postprocess"), read_tensors("inference/postprocess")


def spread(model: RFDETR) -> RFDETR:
    """Random weights large enough that scores and shapes differ."""
    network = model.model.model
    torch.manual_seed(11)
    with torch.no_grad():
        network.class_head.weight.normal_(std=0.5)
        network.class_head.bias.zero_()
        network.box_head.layers[-1].weight.normal_(std=0.1)
        for name, parameter in network.named_parameters():
            if "masks" in name or "keypoint" in name:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def seg() -> RFDETR:
    return spread(RFDETRSegNano(**{**MODEL, "num_classes": 3, "resolution": 96}))


@pytest.fixture(scope="module")
def pose() -> RFDETR:
    options = {**MODEL, "num_classes": 3, "num_keypoints_per_class": [4, 2], "num_select": 40, "resolution": 96}
    return spread(RFDETRKeypointPreview(**options))


# Masks


def test_dense_masks_have_the_size_of_the_picture(seg):
    found = seg.predict(RGB, threshold=0.2)
    assert isinstance(found, supervision().Detections)
    assert len(found) > 3
    assert (found.mask.dtype, found.mask.shape) == (np.bool_, (len(found), H, W))
    assert 0 < found.mask.mean() < 1
    assert found.data.keys() == {"class_name", "source_shape"}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode
def test_all_formats_hold_the_same_masks(seg):
    dense, runs, polygons = (
        seg.predict(RGB, threshold=0.2, mask_format=mask_format) for mask_format in ("dense", "rle", "polygon")
    )
    assert len(dense) == len(runs) == len(polygons)
    assert runs.mask is None
    assert polygons.mask is None
    for mask, one, shapes in zip(dense.mask, runs.data["rle"], polygons.data["polygons"], strict=True):
        assert one["size"] == [H, W]
        assert np.array_equal(coco_mask.decode(one).astype(bool), mask)
        assert one["counts"] == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        whole = supervision().mask_to_polygons(mask)
        assert [shape.tolist() for shape in shapes] == [shape.tolist() for shape in whole]
        assert all(shape.dtype.kind == "i" for shape in shapes)
    # Supervision's own selection works on them.
    assert runs[[1]].data["rle"][0] == runs.data["rle"][1]
    assert len(polygons[polygons.class_id == polygons.class_id[0]]) >= 1


@pytest.mark.parametrize("mask_format", ["dense", "rle", "polygon"])
def test_no_detections_have_the_shapes_of_many(seg, mask_format):
    found = seg.predict(RGB, threshold=2.0, mask_format=mask_format)
    assert len(found) == 0
    if mask_format == "dense":
        assert (found.mask.dtype, found.mask.shape) == (np.bool_, (0, H, W))
    else:
        data = found.data[{"rle": "rle", "polygon": "polygons"}[mask_format]]
        assert (data.dtype, data.shape) == (np.object_, (0,))


@pytest.mark.parametrize("level", [-5.0, 5.0])
def test_masks_of_nothing_and_of_everything(level):
    hw = (30, 40)
    one = np.ones(1, np.float32)
    found = {"scores": one, "labels": np.zeros(1, np.int64), "boxes": np.zeros((1, 4), np.float32)}
    found["mask_logits"] = np.full((1, 8, 8), level, np.float32)
    dense, runs, polygons = (
        to_result(found, ["a"], hw, None, mask_format) for mask_format in ("dense", "rle", "polygon")
    )
    expected = np.full(hw, level > 0)
    assert np.array_equal(dense.mask[0], expected)
    assert (
        runs.data["rle"][0]["counts"]
        == coco_mask.encode(np.asfortranarray(expected.astype(np.uint8)))["counts"].decode()
    )
    corners = [[[0, 0], [0, 29], [39, 29], [39, 0]]] if level > 0 else []
    assert [shape.tolist() for shape in polygons.data["polygons"][0]] == corners


def test_unknown_formats_and_formats_of_other_models_are_refused(seg, pose):
    with pytest.raises(ValueError, match="mask_format='png' must be one of 'dense', 'rle', 'polygon'"):
        seg.predict(RGB, mask_format="png")
    for model in (pose, tiny_model(num_classes=3)):
        with pytest.raises(ValueError, match="mask_format='rle' is for segmentation models"):
            model.predict(RGB, mask_format="rle")
        model.predict(RGB, mask_format="dense")


def test_lists_and_the_unused_output_are_treated_as_for_boxes(seg):
    one, other = seg.predict([RGB, RGB[:50, :40]], threshold=0.2)
    assert np.array_equal(one.mask, seg.predict(RGB, threshold=0.2).mask)
    assert other.mask.shape[1:] == (50, 40)
    assert set(one.class_id.tolist()) <= {0, 1, 2}


# Keypoints


def check_key_points(found: Any, count: int, widest: int) -> None:
    kinds = {
        "xy": (found.xy, np.float32, (count, widest, 2)),
        "keypoint_confidence": (found.keypoint_confidence, np.float32, (count, widest)),
        "detection_confidence": (found.detection_confidence, np.float32, (count,)),
        "class_id": (found.class_id, np.int64, (count,)),
        "visible": (found.visible, np.bool_, (count, widest)),
        "xyxy": (found.data["xyxy"], np.float32, (count, 4)),
        "class_name": (found.data["class_name"], np.object_, (count,)),
        "source_shape": (found.data["source_shape"], np.int64, (count, 2)),
        "precision": (found.data["keypoint_precision_cholesky"], np.float32, (count, widest, 3)),
        "covariance": (found.data["covariance"], np.float32, (count, widest, 2, 2)),
    }
    for name, (array, dtype, shape) in kinds.items():
        assert (array.dtype, array.shape) == (dtype, shape), name


@pytest.mark.parametrize("threshold", [0.1, 2.0])
def test_fields_and_types_of_key_points(pose, threshold):
    found = pose.predict(RGB, threshold=threshold)
    assert isinstance(found, supervision().KeyPoints)
    assert (len(found) == 0) == (threshold > 1)
    check_key_points(found, len(found), 4)
    assert found.data["source_image"].shape == (len(found),)
    assert all(np.array_equal(picture, RGB) for picture in found.data["source_image"])
    names = pose.model.name_of_label()
    assert [names[i] for i in found.class_id] == found.data["class_name"].tolist()
    assert (found.detection_confidence > threshold).all()
    assert len(found[found.detection_confidence > 0.3]) <= len(found)


def test_the_keypoints_that_a_class_has_are_visible_and_no_others(pose):
    found = pose.predict(RGB, threshold=0.0)
    exists = np.arange(4) < np.array([4, 2, 0])[found.class_id][:, None]
    assert {0, 1, 2} == set(found.class_id.tolist())
    assert np.array_equal(found.visible, exists)
    assert np.array_equal(found.keypoint_confidence > 0, exists)
    assert np.array_equal(np.isnan(found.data["covariance"]).any((-1, -2)), ~exists)
    assert not found.xy[~exists].any()


def test_the_source_picture_can_be_left_out(pose):
    found = pose.predict([RGB], threshold=0.1, include_source_image=False)[0]
    assert "source_image" not in found.data


@pytest.mark.parametrize("name", [name for name in META if name.startswith("kp")])
def test_key_points_equal_the_recorded_ones(name):
    fields = ("scores", "labels", "boxes", "keypoints", "keypoint_precision_cholesky")
    for i, hw in enumerate(META[name]["target_sizes_hw"]):
        recorded = {field: DATA[f"{name}.out{i}.{field}"].numpy() for field in fields}
        found = to_result(select(recorded, 0.3, ()), [str(n) for n in range(5)], hw, None)
        kept = {field: values[recorded["scores"] > 0.3] for field, values in recorded.items()}
        assert 0 < len(found) <= 15
        check_key_points(found, len(kept["scores"]), kept["keypoints"].shape[1])
        assert_close(found.xy, kept["keypoints"][..., :2], "points")
        assert_close(found.keypoint_confidence, kept["keypoints"][..., 2], "presence")
        assert_close(found.detection_confidence, kept["scores"], "scores")
        assert_close(found.data["xyxy"], kept["boxes"], "boxes")
        assert found.class_id.tolist() == kept["labels"].tolist()
        assert np.array_equal(found.visible, kept["keypoints"][..., 2] > 0)
        assert found.visible.any()
        precision = kept["keypoint_precision_cholesky"]
        assert_close(found.data["keypoint_precision_cholesky"], precision, "precision")
        assert_close(found.data["covariance"], pixel_covariance(precision, *hw), "covariance")


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_a_mask_without_corners_is_the_box_around_it(shape):
    logits = torch.full((1, 20, 20), -5.0)
    logits[0, 4 : 4 + shape[0], 6 : 6 + shape[1]] = 5.0
    (polygon,) = to_masks(cut_outs(logits.numpy(), (20, 20)), 1, (20, 20), "polygon")[1]["polygons"][0]
    right, bottom = 5 + shape[1], 3 + shape[0]
    assert polygon.tolist() == [[6, 4], [right, 4], [right, bottom], [6, bottom]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only here processes are copied")
def test_a_forked_process_has_masks_of_its_own():
    masks, _ = to_masks(cut_outs(np.full((1, 4, 4), 5.0, np.float32), (8, 8)), 1, (8, 8), "dense")
    # A child of a process with threads must do nothing but this.
    child = os.fork()
    if not child:
        masks[:] = False
        os._exit(0)
    os.waitpid(child, 0)
    assert masks.all()
