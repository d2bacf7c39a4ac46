"""Raw outputs to detections, up to what `predict` returns; position tables fitted to another grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.vectors import assert_close, read_arrays, read_json, read_tensors
from torch import Tensor, nn

from rfdetr import RFDETRNano
from rfdetr.inference.decode import pixel_covariance
from rfdetr.models import enlarge, postprocess
from rfdetr.models.backbone import resize_positions
from rfdetr.models.postprocess import PostProcess

MODEL = read_tensors("model/postprocess")
META, DATA = read_json("inference/postprocess"), read_tensors("inference/postprocess")


@pytest.mark.parametrize("select", [30, 300])
def test_saturated_equal_and_outlying_predictions_equal_the_recorded_ones(select):
    outputs = {name: MODEL[f"det/{name}"] for name in ("pred_logits", "pred_boxes")}
    found = PostProcess(select)(outputs, MODEL["det/target_sizes"])
    for field in ("scores", "labels", "boxes"):
        assert torch.equal(torch.stack([one[field] for one in found]), MODEL[f"det/select{select}/{field}"]), field


@pytest.mark.parametrize("name", ["det40", "det300", "det_all"])
def test_detections_equal_the_recorded_ones(name):
    case = META[name]
    outputs = {key: DATA[f"det40.in.{key}"] for key in ("pred_logits", "pred_boxes")}
    found = PostProcess(case["num_select"])(outputs, torch.tensor(case["target_sizes_hw"]))
    for i, one in enumerate(found):
        assert one["labels"].dtype == torch.int64
        assert torch.equal(one["labels"], DATA[f"{name}.out{i}.labels"])
        assert_close(one["scores"], DATA[f"{name}.out{i}.scores"], "scores", 1e-6)
        assert_close(one["boxes"], DATA[f"{name}.out{i}.boxes"], "boxes", 1e-3)


def outputs_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The raw outputs of a recorded case."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(f"{prefix}pred_")}


@pytest.mark.parametrize(("name", "select", "threshold"), [("full", 10, None), ("thr", 40, 0.6)])
def test_masks_equal_the_recorded_ones(name, select, threshold):
    found = PostProcess(select)(outputs_of(MODEL, "seg/"), MODEL["seg/target_sizes"], threshold)
    for i, one in enumerate(found):
        recorded = f"seg/{name}/{i}/"
        assert list(one["masks"].shape) == MODEL[f"{recorded}masks_shape"].tolist()
        assert np.array_equal(np.packbits(one["masks"].numpy()), MODEL[f"{recorded}masks_bits"].numpy())
        assert torch.equal(one["labels"], MODEL[f"{recorded}labels"])
        assert torch.equal(one["boxes"], MODEL[f"{recorded}boxes"])
        assert_close(one["scores"], MODEL[f"{recorded}scores"], "scores", 1e-7)


@pytest.mark.parametrize("pixels", [1, 2**24])
@pytest.mark.parametrize("name", ["seg20", "seg20_thr"])
def test_masks_of_large_images_equal_the_recorded_ones_in_stripes_of_any_size(name, pixels, monkeypatch):
    monkeypatch.setattr(enlarge, "_STRIPE", pixels)
    monkeypatch.setattr(postprocess, "_CHUNK", pixels)
    case = META[name]
    made, outputs, sizes = PostProcess(case["num_select"]), outputs_of(DATA, "seg20.in."), case["target_sizes_hw"]
    found = made(outputs, torch.tensor(sizes), case.get("score_threshold"))
    small = made(outputs, torch.tensor(sizes), case.get("score_threshold"), enlarge_masks=False)
    for i, (one, hw) in enumerate(zip(found, sizes, strict=True)):
        assert list(one["masks"].shape) == case["masks_shape"][i]
        assert np.array_equal(np.packbits(one["masks"].numpy()), DATA[f"{name}.out{i}.masks_packed"].numpy())
        assert torch.equal(one["labels"], DATA[f"{name}.out{i}.labels"])
        # What runs on a GPU.
        assert torch.equal(postprocess._enlarge_whole(small[i]["mask_logits"], tuple(hw)), one["masks"])


def test_masks_at_head_size_equal_the_recorded_ones():
    found = PostProcess(10)(outputs_of(MODEL, "seg/"), MODEL["seg/target_sizes"], enlarge_masks=False)
    for i, one in enumerate(found):
        recorded = f"seg/head/{i}/"
        assert "masks" not in one
        assert [10, 1, *one["mask_logits"].shape[1:]] == MODEL[f"{recorded}masks_shape"].tolist()
        assert np.array_equal(np.packbits(one["mask_logits"].numpy() > 0), MODEL[f"{recorded}masks_bits"].numpy())
        assert torch.equal(one["labels"], MODEL[f"{recorded}labels"])
        assert torch.equal(one["boxes"], MODEL[f"{recorded}boxes"])


def check_keypoints(found: list[dict[str, Tensor]], tensors: dict[str, Tensor], where: str) -> None:
    """Compare with a recording whose names hold image and field."""
    for i, one in enumerate(found):
        expected = {name: tensors[where.format(i, name)] for name in one}
        assert torch.equal(one["labels"], expected["labels"])
        assert_close(one["scores"], expected["scores"], "scores", 1e-6)
        assert_close(one["boxes"], expected["boxes"], "boxes", 1e-3)
        assert_close(one["keypoints"], expected["keypoints"], "keypoints", 1e-4)
        precision = "keypoint_precision_cholesky"
        assert_close(one[precision], expected[precision], precision)


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("name", ["active", "bgfirst", "mixed"])
def test_keypoints_and_their_scores_equal_the_recorded_ones(name, alpha):
    prefix = f"kp/{name}/"
    schema, sizes = MODEL[f"{prefix}schema"].tolist(), MODEL[f"{prefix}target_sizes"]
    found = PostProcess(15, schema, alpha)(outputs_of(MODEL, prefix), sizes)
    case = {f"{i}/{key}": MODEL[f"{prefix}alpha{alpha}/{key}"][i] for i in range(2) for key in found[0]}
    check_keypoints(found, case, "{}/{}")
    for i, one in enumerate(found):
        covariance = pixel_covariance(one["keypoint_precision_cholesky"].numpy(), *sizes[i].tolist())
        assert_close(covariance, MODEL[f"{prefix}covariance/{i}"], "covariance", rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in META if name.startswith("kp")])
def test_keypoints_of_other_schemas_equal_the_recorded_ones(name):
    case, source = META[name], name.split("_alpha")[0]
    made = PostProcess(case["num_select"], case["num_keypoints_per_class"], case["trace_alpha"])
    found = made(outputs_of(DATA, f"{source}_alpha0.2.in."), torch.tensor(case["target_sizes_hw"]))
    check_keypoints(found, DATA, f"{name}.out{{}}.{{}}")


class Fixed(nn.Module):
    """Stands in for the network and returns the recorded outputs."""

    def __init__(self, case: dict) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        self.logits = torch.full((1, 300, 91), case["default_logit"])
        self.boxes = torch.tensor(case["default_box"]).repeat(1, 300, 1)
        for one in case["non_default_logits"]:
            self.logits[0, one["query"], one["channel"]] = one["logit"]
        exact = DATA["predict_nano.in.pred_boxes"]
        self.boxes[0, : len(exact)] = exact

    def forward(self, images: Tensor, **_: bool) -> dict[str, Tensor]:
        return {"pred_logits": self.logits, "pred_boxes": self.boxes}


@pytest.fixture(scope="module")
def nano() -> RFDETRNano:
    model = RFDETRNano(pretrain_weights=None, device="cpu")
    model.model.model = Fixed(META["predict_nano"])
    return model


@pytest.mark.parametrize("recorded", META["predict_nano"]["results"], ids=lambda r: f"threshold {r['threshold']}")
def test_predict_returns_the_recorded_detections(nano, recorded):
    picture = np.zeros((*META["predict_nano"]["image_hw"], 3), np.uint8)
    found = nano.predict(picture, threshold=recorded["threshold"])
    assert_close(found.xyxy, recorded["xyxy"], "boxes", 1e-3)
    assert_close(found.confidence, recorded["confidence"], "scores", 1e-6)
    assert found.class_id.tolist() == recorded["class_id"]
    assert found.data["class_name"].tolist() == recorded["class_name"]
    assert found.data["source_shape"].tolist() == recorded["source_shape"]
    assert {name: str(getattr(found, name).dtype) for name in recorded["dtypes"]} == recorded["dtypes"]


@pytest.mark.parametrize("side", [20, 24, 37])
def test_resized_position_tables_equal_the_recorded_ones(side):
    resized = resize_positions(MODEL["pe/source"], side, side)
    assert_close(resized, MODEL[f"pe/to{side}"], "table", 1e-6)


def test_recordings_hold_no_detection_case_without_a_test():
    assert {name for name in META if name.startswith("det")} == {"det40", "det300", "det_all"}
    assert {key for key in read_arrays("model/postprocess") if key.startswith("pe/")} == {
        "pe/source",
        "pe/to20",
        "pe/to24",
        "pe/to37",
    }
