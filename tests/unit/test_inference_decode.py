"""Raw outputs to detections in NumPy alone: the recorded vectors, and what PyTorch makes of drawn outputs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vectors import assert_close, read_arrays, read_json

from rfdetr.inference.decode import Found, best_pairs, decode
from rfdetr.models.enlarge import cut_outs, paste
from rfdetr.models.postprocess import PostProcess

MODEL = read_arrays("model/postprocess")
META, DATA = read_json("inference/postprocess"), read_arrays("inference/postprocess")
# The file's name of each of the network's outputs.
NAMES = {"pred_logits": "labels", "pred_boxes": "dets", "pred_masks": "masks", "pred_keypoints": "keypoints"}
# Logits whose scores are the same or clearly apart in any arithmetic, also where they saturate.
LOGITS = (-np.inf, -300.0, -120.0, *np.arange(-6, 6.5, 0.5).tolist(), 60.0, 300.0, np.inf)
# Scores, of exponentials that are rounded otherwise, by a few steps of single precision.
FEW_STEPS = 2**-22
SETTINGS = {"deadline": None, "database": None, "derandomize": True}


def outputs_of(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The raw outputs of a recorded case, as a file names them."""
    start = f"{prefix}pred_"
    return {NAMES[key.removeprefix(prefix)]: value for key, value in arrays.items() if key.startswith(start)}


def pairs_of(sizes: np.ndarray) -> list[tuple[int, int]]:
    return [(int(height), int(width)) for height, width in sizes]


def enlarged(found: Found, hw: tuple[int, int]) -> np.ndarray:
    masks = np.zeros((len(found["scores"]), *hw), bool)
    paste(masks, cut_outs(found["mask_logits"], hw))
    return masks


# Recorded vectors, with the tolerances that PostProcess is held to


@pytest.mark.parametrize("select", [30, 300])
def test_saturated_equal_and_outlying_predictions_equal_the_recorded_ones(select):
    sizes = MODEL["det/target_sizes"]
    for i, one in enumerate(decode(outputs_of(MODEL, "det/"), pairs_of(sizes), select)):
        recorded = {name: MODEL[f"det/select{select}/{name}"][i] for name in ("scores", "labels", "boxes")}
        assert one.keys() == recorded.keys()
        assert np.array_equal(one["labels"], recorded["labels"])
        assert_close(one["scores"], recorded["scores"], "scores", FEW_STEPS)
        assert np.array_equal(one["boxes"], recorded["boxes"])


@pytest.mark.parametrize("name", ["det40", "det300", "det_all"])
def test_detections_equal_the_recorded_ones(name):
    case = META[name]
    found = decode(outputs_of(DATA, "det40.in."), pairs_of(case["target_sizes_hw"]), case["num_select"])
    for i, one in enumerate(found):
        assert (one["labels"].dtype, one["scores"].dtype, one["boxes"].dtype) == (np.int64, np.float32, np.float32)
        assert np.array_equal(one["labels"], DATA[f"{name}.out{i}.labels"])
        assert_close(one["scores"], DATA[f"{name}.out{i}.scores"], "scores", 1e-6)
        assert_close(one["boxes"], DATA[f"{name}.out{i}.boxes"], "boxes", 1e-3)


@pytest.mark.parametrize(("name", "select", "threshold"), [("full", 10, -np.inf), ("thr", 40, 0.6)])
def test_masks_equal_the_recorded_ones(name, select, threshold):
    sizes = pairs_of(MODEL["seg/target_sizes"])
    found = decode(outputs_of(MODEL, "seg/"), sizes, select, threshold)
    for i, (one, hw) in enumerate(zip(found, sizes, strict=True)):
        recorded = f"seg/{name}/{i}/"
        masks = enlarged(one, hw)
        assert [len(masks), 1, *hw] == MODEL[f"{recorded}masks_shape"].tolist()
        assert np.array_equal(np.packbits(masks), MODEL[f"{recorded}masks_bits"])
        assert np.array_equal(one["labels"], MODEL[f"{recorded}labels"])
        assert np.array_equal(one["boxes"], MODEL[f"{recorded}boxes"])
        assert_close(one["scores"], MODEL[f"{recorded}scores"], "scores", FEW_STEPS)


def test_masks_at_head_size_equal_the_recorded_ones():
    found = decode(outputs_of(MODEL, "seg/"), pairs_of(MODEL["seg/target_sizes"]), 10)
    for i, one in enumerate(found):
        assert np.array_equal(np.packbits(one["mask_logits"] > 0), MODEL[f"seg/head/{i}/masks_bits"])
        assert np.array_equal(one["labels"], MODEL[f"seg/head/{i}/labels"])


@pytest.mark.parametrize("name", ["seg20", "seg20_thr"])
def test_masks_of_large_pictures_equal_the_recorded_ones(name):
    case = META[name]
    sizes = pairs_of(case["target_sizes_hw"])
    found = decode(outputs_of(DATA, "seg20.in."), sizes, case["num_select"], case.get("score_threshold", -np.inf))
    for i, (one, hw) in enumerate(zip(found, sizes, strict=True)):
        assert [len(one["scores"]), 1, *hw] == case["masks_shape"][i]
        assert np.array_equal(np.packbits(enlarged(one, hw)), DATA[f"{name}.out{i}.masks_packed"])
        assert np.array_equal(one["labels"], DATA[f"{name}.out{i}.labels"])


def check_keypoints(found: list[Found], arrays: dict[str, np.ndarray], where: str) -> None:
    for i, one in enumerate(found):
        expected = {name: arrays[where.format(i, name)] for name in one}
        assert np.array_equal(one["labels"], expected["labels"])
        assert_close(one["scores"], expected["scores"], "scores", 1e-6)
        assert_close(one["boxes"], expected["boxes"], "boxes", 1e-3)
        assert_close(one["keypoints"], expected["keypoints"], "keypoints", 1e-4)
        assert_close(one["keypoint_precision_cholesky"], expected["keypoint_precision_cholesky"], "precision")


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("name", ["active", "bgfirst", "mixed"])
def test_keypoints_and_their_scores_equal_the_recorded_ones(name, alpha):
    prefix = f"kp/{name}/"
    sizes, schema = pairs_of(MODEL[f"{prefix}target_sizes"]), MODEL[f"{prefix}schema"].tolist()
    found = decode(outputs_of(MODEL, prefix), sizes, 15, schema=schema, trace_alpha=alpha)
    case = {f"{i}/{key}": MODEL[f"{prefix}alpha{alpha}/{key}"][i] for i in range(2) for key in found[0]}
    check_keypoints(found, case, "{}/{}")


@pytest.mark.parametrize("name", [name for name in META if name.startswith("kp")])
def test_keypoints_of_other_schemas_equal_the_recorded_ones(name):
    case, source = META[name], name.split("_alpha")[0]
    options = {"schema": case["num_keypoints_per_class"], "trace_alpha": case["trace_alpha"]}
    outputs = outputs_of(DATA, f"{source}_alpha0.2.in.")
    found = decode(outputs, pairs_of(case["target_sizes_hw"]), case["num_select"], **options)
    check_keypoints(found, DATA, f"{name}.out{{}}.{{}}")


# Drawn outputs, compared with PostProcess


@st.composite
def drawn(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], list[tuple[int, int]], tuple[int, ...], int]:
    """Outputs of one task, sizes of the pictures, keypoints of each class and how many pairs are chosen."""
    batch, queries, classes = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = np.array(draw(st.lists(st.sampled_from(LOGITS), min_size=1, max_size=6)), np.float32)
    outputs = {
        "labels": random.choice(levels, (batch, queries, classes)),
        # Also outside of the picture, and without a positive size.
        "dets": random.normal(0.5, 0.6, (batch, queries, 4)).astype(np.float32),
    }
    schema: tuple[int, ...] = ()
    task = draw(st.sampled_from(["detect", "segment", "keypoints"]))
    if task == "segment":
        outputs["masks"] = random.normal(0, 1, (batch, queries, 5, 7)).astype(np.float32)
    if task == "keypoints":
        # Fewer or more classes than logits; some without keypoints.
        schema = (*draw(st.lists(st.integers(0, 4), max_size=5)), draw(st.integers(1, 4)))
        outputs["keypoints"] = random.normal(0, 2, (batch, queries, len(schema) * max(schema), 8)).astype(np.float32)
    sizes = draw(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=batch, max_size=batch))
    return outputs, sizes, schema, draw(st.integers(1, 40))


def by_torch(outputs: dict, sizes: list, schema: tuple, select: int, alpha: float = 0.2) -> list[Found]:
    tensors = {ours: torch.from_numpy(outputs[file]) for ours, file in NAMES.items() if file in outputs}
    found = PostProcess(select, schema, alpha)(tensors, torch.tensor(sizes), enlarge_masks=False)
    return [{name: value.numpy() for name, value in one.items()} for one in found]


@settings(max_examples=300, **SETTINGS)
@given(case=drawn(), alpha=st.sampled_from([0.0, 0.2, 1.0]))
def test_drawn_outputs_give_what_pytorch_makes_of_them(case, alpha):
    outputs, sizes, schema, select = case
    before = {name: value.copy() for name, value in outputs.items()}
    found = decode(outputs, sizes, select, schema=schema, trace_alpha=alpha)
    for one, wanted in zip(found, by_torch(*case, alpha), strict=True):
        assert one.keys() == wanted.keys()
        for name, value in one.items():
            assert (value.dtype, value.shape) == (wanted[name].dtype, wanted[name].shape), name
        assert np.array_equal(one["labels"], wanted["labels"])
        assert np.array_equal(one["boxes"], wanted["boxes"])
        assert_close(one["scores"], wanted["scores"], "scores", 2e-6)
        if "mask_logits" in one:
            assert np.array_equal(one["mask_logits"], wanted["mask_logits"])
        if "keypoints" in one:
            assert np.array_equal(one["keypoints"][..., :2], wanted["keypoints"][..., :2])
            assert_close(one["keypoints"], wanted["keypoints"], "presence", 1e-6)
            factors = "keypoint_precision_cholesky"
            assert np.array_equal(one[factors], wanted[factors], equal_nan=True)
    assert all(np.array_equal(value, before[name]) for name, value in outputs.items())


@settings(max_examples=300, **SETTINGS)
@given(
    case=drawn(),
    threshold=st.one_of(
        st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, float(np.float32(1 / (1 + np.exp(-2.0))))]), st.floats(0, 1)
    ),
)
def test_a_threshold_before_the_choice_leaves_out_what_one_after_it_does(case, threshold):
    outputs, sizes, schema, select = case
    whole = decode(outputs, sizes, select, schema=schema)
    for one, all_of_it in zip(decode(outputs, sizes, select, threshold, schema), whole, strict=True):
        # Keypoints change scores, in both directions: those of their models are compared with it later.
        keep = (
            all_of_it["scores"] > np.float32(threshold) if "keypoints" not in one else np.ones(len(one["scores"]), bool)
        )
        assert one.keys() == all_of_it.keys()
        for name, value in one.items():
            assert np.array_equal(value, all_of_it[name][keep], equal_nan=True), name


@settings(max_examples=200, **SETTINGS)
@given(
    values=st.lists(st.sampled_from(LOGITS), min_size=1, max_size=40),
    count=st.integers(1, 50),
    threshold=st.sampled_from([-np.inf, 0.0, 0.3, 0.5, 1.0]),
)
def test_the_best_pairs_are_those_of_a_stable_sort(values, count, threshold):
    logits = np.array(values, np.float32)[:, None]
    exact = [1 / (1 + np.exp(-value)) if value > -700 else 0.0 for value in values]
    ranked = sorted((-float(np.float32(score)), index) for index, score in enumerate(exact) if score > threshold)
    scores, chosen = best_pairs(logits, count, threshold)
    assert chosen.tolist() == [index for _, index in ranked[:count]]
    assert_close(scores, np.array([-score for score, _ in ranked[:count]], np.float32), "scores", FEW_STEPS)


def test_a_hundred_thousand_pairs_are_chosen_as_by_pytorch():
    """As many as a model of 1,000 classes has; equal scores are many."""
    logits = np.random.default_rng(0).integers(-12, 12, (1, 300, 1000)).astype(np.float32) / 2
    outputs = {"labels": logits, "dets": np.full((1, 300, 4), 0.5, np.float32)}
    (found,), (wanted,) = decode(outputs, [(10, 10)], 300), by_torch(outputs, [(10, 10)], (), 300)
    assert np.array_equal(found["labels"], wanted["labels"])
    assert_close(found["scores"], wanted["scores"], "scores", FEW_STEPS)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_outputs_of_another_precision_are_read_as_single(dtype):
    random = np.random.default_rng(0)
    outputs = {"labels": random.normal(0, 2, (1, 6, 3)), "dets": random.uniform(0.2, 0.6, (1, 6, 4))}
    outputs = {name: value.astype(np.float16).astype(dtype) for name, value in outputs.items()}
    (found,) = decode(outputs, [(50, 70)], 10)
    (wanted,) = decode({name: value.astype(np.float32) for name, value in outputs.items()}, [(50, 70)], 10)
    for name, value in wanted.items():
        assert value.dtype == found[name].dtype
        assert np.array_equal(found[name], value)


def test_logits_that_are_no_numbers_are_never_above_a_threshold():
    logits = np.array([[[np.nan, 1.0], [-2.0, np.nan]]], np.float32)
    (found,) = decode({"labels": logits, "dets": np.full((1, 2, 4), 0.5, np.float32)}, [(10, 10)], 4, 0.5)
    kept = found["scores"] > 0.5
    assert found["labels"][kept].tolist() == [1]


def test_nothing_above_the_threshold_keeps_every_shape():
    random = np.random.default_rng(0)
    outputs = {"labels": random.normal(size=(1, 4, 3)), "dets": random.uniform(size=(1, 4, 4))}
    (found,) = decode({**outputs, "masks": random.normal(size=(1, 4, 5, 6))}, [(20, 30)], 10, 1.0)
    shapes = {name: value.shape for name, value in found.items()}
    assert shapes == {"scores": (0,), "labels": (0,), "boxes": (0, 4), "mask_logits": (0, 5, 6)}


def test_decoding_imports_no_pytorch():
    code = "import sys, rfdetr.inference.decode, rfdetr.inference.predictor; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
