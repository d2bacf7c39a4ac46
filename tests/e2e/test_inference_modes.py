"""`inference()`: what it changes is the speed, on a GPU; everything else stays as it was."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.sets import Apart, assert_same_set
from tests.tiny import TRAINING, decided_model, tiny_data
from torch import Tensor

from rfdetr import RFDETR
from rfdetr.datasets.synthetic import draw_dataset
from rfdetr.inference import optimised
from rfdetr.inference.optimised import InPrecision, Optimised, is_faster, to_dtype

TASKS = ("detect", "segment", "keypoints")
HALVES = ("bfloat16", "float16")
PICTURES = [
    np.random.default_rng(i).integers(0, 256, (*hw, 3), np.uint8) for i, hw in enumerate([(48, 64), (80, 50), (64, 64)])
]
# Encoder and projector round to 8 or 11 bits: scores differ by what that does to a logit of about 3.
NEAR = {"bfloat16": Apart(0.05, 0.03, 0.03), "float16": Apart(0.01, 0.004, 0.004)}


@pytest.fixture(params=TASKS)
def model(request: pytest.FixtureRequest) -> RFDETR:
    return decided_model(request.param)


@pytest.fixture
def fast_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is faster in half precision, as this one may be or not."""
    monkeypatch.setattr(optimised, "is_faster", lambda dtype: True)


def arrays_of(result: Any) -> list[np.ndarray]:
    """Every number of a result."""
    names = ["xy", "keypoint_confidence", "detection_confidence", "visible", "class_id"]
    if hasattr(result, "xyxy"):
        names = ["xyxy", "confidence", "class_id", *(["mask"] if result.mask is not None else [])]
    return [getattr(result, name) for name in names] + [
        value for name, value in result.data.items() if name not in ("class_name", "source_image")
    ]


def assert_equal(found: Any, expected: Any) -> None:
    pairs = list(zip(arrays_of(found), arrays_of(expected), strict=True))
    assert len(expected) > 3
    assert all(np.array_equal(one, other, equal_nan=other.dtype.kind == "f") for one, other in pairs)


def predict(model: RFDETR, picture: np.ndarray = PICTURES[0], **options: Any) -> Any:
    return model.predict(picture, **{"threshold": 0.0, **options})


def snapshot(model: RFDETR) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.model.model.state_dict().items()}


def assert_untouched(model: RFDETR, before: dict[str, Tensor]) -> None:
    now = model.model.model.state_dict()
    assert list(now) == list(before)
    assert all(now[name].dtype == tensor.dtype and torch.equal(now[name], tensor) for name, tensor in before.items())
    usual = decided_model().model.model.encoder
    learn = [[one.requires_grad for one in encoder.parameters()] for encoder in (model.model.model.encoder, usual)]
    assert learn[0] == learn[1]


# Results


def test_in_single_precision_no_number_changes(model):
    expected, before = [predict(model, one) for one in PICTURES], snapshot(model)
    assert model.inference() is None
    for picture, wanted in zip(PICTURES, expected, strict=True):
        assert_equal(predict(model, picture), wanted)
    assert_untouched(model, before)
    assert not model.is_optimized_inplace


@pytest.mark.usefixtures("fast_halves")
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_finds_nearly_the_same(model, dtype):
    expected, before = [predict(model, one) for one in PICTURES], snapshot(model)
    model.inference(dtype=getattr(torch, dtype))
    parts = [one for one in model.model.for_prediction().network.modules() if isinstance(one, InPrecision)]
    assert len(parts) == (3 if model.model.model.keypoints is not None else 2)
    kinds = {parameter.dtype for part in parts for parameter in part.parameters()}
    assert kinds == {getattr(torch, dtype)}
    found = [predict(model, one) for one in PICTURES]
    for one, wanted in zip(found, expected, strict=True):
        assert_same_set(one, wanted, NEAR[dtype])
    assert any(
        not np.array_equal(*pair) for pair in zip(arrays_of(found[0])[0], arrays_of(expected[0])[0], strict=True)
    )
    assert_untouched(model, before)
    model.remove_optimized_model()
    assert_equal(predict(model), expected[0])


@pytest.mark.parametrize("dtype", HALVES)
def test_a_cpu_that_is_slower_in_half_precision_stays_in_single(dtype, monkeypatch):
    asked = []
    monkeypatch.setattr(optimised, "is_faster", lambda kind: asked.append(kind))
    model = decided_model()
    expected = predict(model)
    with pytest.warns(UserWarning, match=f"slower in torch.{dtype} than in float32, so predict.. stays in") as caught:
        model.inference(dtype=dtype)
    assert [Path(one.filename).name for one in caught] == [Path(__file__).name]
    assert asked == [getattr(torch, dtype)]
    assert_equal(predict(model), expected)


def test_the_speed_of_a_cpu_is_measured_and_single_precision_is_not_asked_about(monkeypatch):
    assert all(type(is_faster(dtype)) is bool for dtype in (torch.bfloat16, torch.float16))
    monkeypatch.setattr(optimised, "is_faster", lambda dtype: pytest.fail("asked"))
    decided_model().inference(dtype="float32")


@pytest.mark.usefixtures("fast_halves")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_any_number_and_shape_works_afterwards(dtype):
    model = decided_model()
    plain = decided_model()
    model.inference(batch_size=2, dtype=dtype)
    apart = NEAR.get(dtype, Apart(1e-3, 1e-5))
    # Tiles join what overlaps by half, which rounding decides.
    more = [{"tile": 40}] if dtype == "float32" else []
    for options in ({}, {"batch_size": 1}, {"batch_size": 2}, {"shape": (96, 32)}, {"resolution": 128}, *more):
        for count in (1, 3):
            found, expected = (predict(one, PICTURES[:count], **options) for one in (model, plain))
            for one, wanted in zip(found, expected, strict=True):
                assert_same_set(one, wanted, apart)


# Weights that change


@pytest.mark.usefixtures("fast_halves")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_change_later_are_seen(dtype):
    model, other = decided_model(), decided_model()
    with torch.no_grad():
        for parameter in other.model.model.encoder.parameters():
            parameter.mul_(1.1)
    for one in (model, other):
        one.inference(dtype=dtype)
    first, second, weights = predict(model), predict(other), snapshot(model)
    assert not np.array_equal(first.confidence, second.confidence)
    # All at once, written to in place, and replaced.
    model.model.model.load_state_dict(other.model.model.state_dict())
    assert_equal(predict(model), second)
    with torch.no_grad():
        for name, parameter in model.model.model.named_parameters():
            parameter.copy_(weights[name])
    assert_equal(predict(model), first)
    model.model.model.encoder = other.model.model.encoder
    assert_equal(predict(model), second)
    made = model.model.inference_model
    predict(model)
    assert model.model.inference_model is made


@pytest.mark.usefixtures("fast_halves")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_number_of_classes_is_seen(dtype):
    model = decided_model()
    model.inference(dtype=dtype)
    predict(model)
    model.model.reinitialize_detection_head(7)
    assert model.model.for_prediction()(torch.zeros(1, 3, 64, 64))["pred_logits"].shape == (1, 6, 7)


@pytest.mark.usefixtures("fast_halves")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_in_training_mode_predicts_as_in_evaluation(dtype):
    """In training mode the queries of every group would be there, and blocks would be dropped."""
    model = decided_model(group_detr=3)
    model.model.model.encoder.set_drop_path(0.9)
    model.inference(dtype=dtype)
    expected = predict(model)
    model.model.model.train()
    assert_equal(predict(model), expected)
    # Also where the copies are made anew.
    model.model.model.train()
    with torch.no_grad():
        model.model.model.class_head.bias.add_(0)
    assert_equal(predict(model), expected)
    assert not model.model.model.training


@pytest.mark.usefixtures("fast_halves")
def test_training_goes_on_from_single_precision(tmp_path):
    """The weights afterwards are those of a model that was never prepared."""
    data = draw_dataset(tmp_path / "data", {"train": 2, "valid": 1}, hw=(64, 64), max_objects=2)
    trained = []
    for dtype in (None, "bfloat16"):
        model = decided_model(num_classes=4)
        if dtype:
            model.inference(dtype=dtype)
            predict(model)
        model.train(dataset_dir=str(data), output_dir=str(tmp_path / str(dtype)), epochs=1, **TRAINING)
        assert model.model.inference_model is None
        assert {parameter.dtype for parameter in model.model.model.parameters()} == {torch.float32}
        trained.append((snapshot(model), predict(model)))
    (weights, expected), (again, found) = trained
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    assert_equal(found, expected)


# In place


@pytest.mark.usefixtures("fast_halves")
def test_in_place_gives_up_what_it_converts(model, tmp_path):
    expected = predict(model)
    model.inference(compile=False, dtype="bfloat16", inplace=True)
    assert model.is_optimized_inplace
    network = model.model.model
    assert {p.dtype for p in network.encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in network.decoder.parameters()} == {torch.float32}
    assert_same_set(predict(model), expected, NEAR["bfloat16"])
    assert_same_set(predict(model, [PICTURES[0]] * 3)[2], expected, NEAR["bfloat16"])
    calls: dict[str, Callable[[], Any]] = {
        "train": lambda: model.train(dataset_dir=str(tmp_path)),
        "export": lambda: model.export(tmp_path / "export"),
        "export_for_roboflow": lambda: model.export_for_roboflow(tmp_path / "bundle"),
        "inference": model.inference,
    }
    for name, call in calls.items():
        with pytest.raises(RuntimeError, match=rf"{name}\(\) needs the weights that inference\(inplace=True\) gave up"):
            call()
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(UserWarning, match="cannot be undone; build the model anew") as caught:
        model.remove_optimized_model()
    assert caught[0].filename == __file__
    assert model.is_optimized_inplace
    found = predict(model)
    assert_same_set(found, expected, NEAR["bfloat16"])
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.is_optimized_inplace
        assert_equal(predict(copied), found)


@pytest.mark.usefixtures("fast_halves")
def test_a_model_in_place_can_be_judged(tmp_path):
    data, model = tiny_data(tmp_path / "data"), decided_model(num_classes=4)
    expected = model.evaluate(data, split="val", num_workers=0, progress_bar=None)
    model.inference(compile=False, dtype="float16", inplace=True)
    found = model.evaluate(data, split="val", num_workers=0, progress_bar=None)
    assert found.keys() == expected.keys()
    assert found["val/mAP_50"] == pytest.approx(expected["val/mAP_50"], abs=0.05)


# Options


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": torch.float64}, ValueError, "dtype=torch.float64 must be one of float32, float16, bfloat16"),
        ({"dtype": "int8"}, ValueError, "dtype='int8' must be one of float32, float16, bfloat16"),
        ({"dtype": 16}, TypeError, r"dtype=16 must be a torch\.dtype or its name"),
        ({"dtype": None}, TypeError, r"dtype=None must be a torch\.dtype or its name"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be a positive whole number"),
        ({"batch_size": 1.5}, ValueError, r"batch_size=1\.5 must be a positive whole number"),
        ({"batch_size": True}, ValueError, "batch_size=True must be a positive whole number"),
        ({"compile_backend": "tvm"}, ValueError, "compile_backend='tvm' must be 'torchscript' or 'inductor'"),
        ({"inplace": True}, ValueError, "inplace=True needs compile=False"),
    ],
)
def test_wrong_options_are_refused_and_change_nothing(options, error, message):
    model = decided_model()
    model.inference()
    made = model.model.inference_model
    with pytest.raises(error, match=message):
        model.inference(**options)
    assert model.model.inference_model is made
    assert not model.is_optimized_inplace


def test_precisions_by_name():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert {to_dtype(dtype), to_dtype(str(dtype)), to_dtype(str(dtype).removeprefix("torch."))} == {dtype}


def test_the_older_name_and_backends_do_the_same():
    model = decided_model()
    expected = predict(model)
    model.optimize_for_inference(compile=False, batch_size=2, dtype="float32")
    assert_equal(predict(model), expected)
    model.remove_optimized_model()
    model.remove_optimized_model()
    model.inference(compile_backend="inductor")
    assert_equal(predict(model), expected)


@pytest.mark.usefixtures("fast_halves")
def test_a_network_that_does_not_run_in_a_precision_stays_as_it_was(monkeypatch):
    model = decided_model()
    expected, before = predict(model), snapshot(model)

    def refuse(self: InPrecision, given: Any) -> Any:
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(InPrecision, "forward", refuse)
    for inplace in (False, True):
        with pytest.raises(RuntimeError, match="not implemented"):
            model.inference(compile=False, dtype="bfloat16", inplace=inplace)
        assert not model.is_optimized_inplace
        assert_equal(predict(model), expected)
        assert_untouched(model, before)


# Copies


@pytest.mark.usefixtures("fast_halves")
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("make", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_find_the_same_before_and_after(dtype, make):
    model = decided_model("segment")
    if dtype:
        model.inference(dtype=dtype)
    expected = predict(model)
    copied = make(model)
    assert_equal(predict(copied), expected)
    assert (copied.model.inference_model is None) == (dtype is None)
    with torch.no_grad():
        for parameter in copied.model.model.parameters():
            parameter.mul_(0.9)
    assert not np.array_equal(predict(copied).confidence, predict(model).confidence)
    assert_equal(predict(model), expected)
    copied.remove_optimized_model()
    copied.inference()
    predict(copied)


# Graphs: a GPU is not there, but what holds its graphs is. A stand-in for a graph always writes into the same memory.


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that graphs were captured for, in order."""
    shapes: list[tuple[int, ...]] = []

    def capture(network: Any, images: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
        shapes.append(tuple(images.shape))
        memory = {name: value.clone() for name, value in network(images, last_only=True, whole_masks=True).items()}

        def replay(given: Tensor) -> dict[str, Tensor]:
            assert given.shape == images.shape
            for name, value in network(given, last_only=True, whole_masks=True).items():
                memory[name].copy_(value)
            return memory

        return replay

    monkeypatch.setattr(optimised, "capture", capture)
    return shapes


def with_graphs(task: str = "detect", **options: Any) -> tuple[RFDETR, RFDETR]:
    """A model that runs as graphs, and the same without."""
    model, plain = (decided_model(task, **options) for _ in range(2))
    model.inference()
    model.model.inference_model.graphs = True
    return model, plain


@pytest.mark.parametrize("task", TASKS)
def test_graphs_find_what_the_network_finds(task, captured):
    model, plain = with_graphs(task)
    for picture in PICTURES:
        assert_same_set(predict(model, picture), predict(plain, picture), Apart(0, 0))
    side = model.model_config.resolution
    assert captured == [(1, 3, side, side)]
    for one, wanted in zip(predict(model, PICTURES), predict(plain, PICTURES), strict=True):
        assert_same_set(one, wanted, Apart(1e-3, 1e-5))
    assert captured == [(1, 3, side, side), (3, 3, side, side)]


def test_the_graphs_of_the_last_shapes_are_kept(captured):
    model, plain = with_graphs()
    shapes = [(32 * i, 32) for i in range(1, optimised.KEPT_GRAPHS + 2)]
    first, *others, last = shapes
    for shape in (first, *others):
        predict(model, shape=shape)
    predict(model, shape=first)  # which is the newest now
    assert captured == [(1, 3, *shape) for shape in (first, *others)]
    predict(model, shape=last)
    predict(model, shape=first)
    assert captured == [(1, 3, *shape) for shape in shapes]
    assert len(model.model.inference_model._captured) == optimised.KEPT_GRAPHS
    assert_same_set(predict(model, shape=others[0]), predict(plain, shape=others[0]), Apart(0, 0))
    assert captured[-1] == (1, 3, *others[0])


def test_outputs_of_a_graph_are_left_alone_by_the_next_call(captured):
    model, plain = with_graphs("segment")
    images = torch.randn(2, 1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    run = model.model.for_prediction()
    first, second = run(images[0]), run(images[1])
    assert len(captured) == 1
    for outputs, one in ((first, images[0]), (second, images[1])):
        with torch.no_grad():
            wanted = plain.model.model.eval()(one, last_only=True)
        assert all(torch.equal(outputs[name], value) for name, value in wanted.items())


def test_new_weights_are_captured_anew(captured):
    model, other = with_graphs()
    predict(model)
    with torch.no_grad():
        for one in (model, other):
            one.model.model.class_head.weight.mul_(1.2)
    assert_same_set(predict(model), predict(other), Apart(0, 0))
    assert len(captured) == 2


@pytest.mark.usefixtures("captured")
def test_threads_on_one_model_get_what_one_thread_gets():
    model, plain = with_graphs("segment")
    pictures = [np.random.default_rng(i).integers(0, 256, (40 + i, 60, 3), np.uint8) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: predict(model, picture), pictures))
    for found, picture in zip(together, pictures, strict=True):
        assert_same_set(found, predict(plain, picture), Apart(1e-3, 1e-5, 1e-4))


def test_where_no_graph_can_be_captured_the_model_goes_on_without(monkeypatch):
    model, plain = with_graphs()
    tries = []

    def refuse(network: Any, images: Tensor) -> Any:
        tries.append(images.shape)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(optimised, "capture", refuse)
    with pytest.warns(UserWarning, match="no CUDA graph could be captured.*not permitted when stream") as caught:
        found = predict(model)
    assert len(caught) == 1
    assert_equal(found, predict(plain))
    assert_same_set(predict(model, shape=(96, 32)), predict(plain, shape=(96, 32)), Apart(0, 0))
    with torch.no_grad():
        model.model.model.class_head.bias.add_(0)
    assert_equal(predict(model), found)
    assert len(tries) == 1


@pytest.mark.usefixtures("captured")
def test_copies_of_a_model_with_graphs_capture_their_own():
    model, plain = with_graphs()
    predict(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.model.inference_model.graphs
        assert not copied.model.inference_model._captured
        assert_same_set(predict(copied), predict(plain), Apart(0, 0))


def test_graphs_are_for_gpus_alone(monkeypatch):
    monkeypatch.setattr(optimised, "capture", lambda *_: pytest.fail("captured"))
    model = decided_model()
    model.inference()
    predict(model)
    assert not model.model.inference_model.graphs


def test_a_capture_at_the_call_of_inference_warns_its_caller(monkeypatch):
    def refuse(network: Any, images: Tensor) -> Any:
        raise RuntimeError("no stream")

    class Always(Optimised):
        def __init__(self, network: Any, dtype: torch.dtype, graphs: bool) -> None:
            super().__init__(network, dtype, True)

    monkeypatch.setattr(optimised, "capture", refuse)
    monkeypatch.setattr(optimised, "Optimised", Always)
    model = decided_model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.inference()
    assert [one.filename for one in caught] == [__file__]
    assert len(predict(model)) > 3
