"""What a run does when something goes wrong: numbers that are none, no validation, no memory, services that fail."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import TRAINING, tiny_data, tiny_model

import rfdetr
from rfdetr.config import TrainConfig
from rfdetr.datasets.build import build_train_loader
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.loader import TrainOrder
from rfdetr.engine import train_one_epoch
from rfdetr.models.criterion import Criterion, loss_weights
from rfdetr.training import finish, run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the plot takes longer than the training."""
    monkeypatch.setattr(finish, "plot_history", lambda history, path: path.write_bytes(b"plot"))


def train(data: Path, out: Path, model: Any = None, **options: Any) -> Any:
    """A trained model, whose weights are always the same at the start."""
    torch.manual_seed(0)
    model = model or tiny_model()
    model.train(**{"dataset_dir": data, "output_dir": out, "epochs": 1, **TRAINING, "multi_scale": False, **options})
    return model


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]


# Losses that are no numbers


class Broken:
    """Makes one loss of some training steps something else than a number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float = math.nan) -> None:
        self.step, self.starts, forward = -1, [], Criterion.forward
        torch.manual_seed(0)
        self.model = tiny_model()
        self.model.callbacks["on_train_batch_start"].append(self._before_batch)

        def broken(criterion: Criterion, *given: Any) -> dict[str, torch.Tensor]:
            losses = forward(criterion, *given)
            if criterion.training and self.step in steps:
                losses["loss_bbox_0"] = losses["loss_bbox_0"] * value
            return losses

        monkeypatch.setattr(Criterion, "forward", broken)

    def _before_batch(self, info: dict[str, Any]) -> None:
        self.step = info["step"]
        self.starts.append({name: tensor.clone() for name, tensor in info["model"].state_dict().items()})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_batch_is_described_and_left_out(
    value: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken(monkeypatch, {2}, value)
    train(data, tmp_path, broken.model, ema_tau=0, ema_decay=0.5, lr_scheduler="cosine")
    # Which pictures and boxes it was.
    path = tmp_path / "broken_batches" / "step_2.json"
    assert [one.name for one in path.parent.iterdir()] == ["step_2.json"]
    told = json.loads(path.read_text())
    assert (told["step"], told["not_finite"]) == (2, ["loss_bbox_0"])
    pictures = read_split(data, "train", "roboflow")
    drawn = [index for _, _, index in TrainOrder(10, 2, 1)][4:6]
    assert [entry["picture"] for entry in told["batch"]] == [str(pictures.path(index)) for index in drawn]
    for entry in told["batch"]:
        assert len(entry["labels"]) == len(entry["boxes_cxcywh"])
        assert all(0 <= number <= 1 for box in entry["boxes_cxcywh"] for number in box)
    assert any(entry["labels"] for entry in told["batch"])
    assert f"step 2 is left out: loss_bbox_0 not finite; its batch is in {path}" in caplog.text
    # No weight moved in that step; in the others they did.
    last = load(tmp_path / "checkpoint.pth")
    moved = [
        any(not torch.equal(before[name], after[name]) for name in before)
        for before, after in itertools.pairwise(broken.starts)
    ]
    assert moved == [True, True, False, True]
    assert (last["global_step"], last["ema_updates"], last["lr_scheduler"]["last_epoch"]) == (5, 4, 5)
    # The average took no step either.
    live = [start["query_boxes"] for start in broken.starts]
    live = [live[1], live[2], live[4], last["model"]["refpoint_embed.weight"]]
    mean = broken.starts[0]["query_boxes"]
    for weights in live:
        mean = 0.5 * mean + 0.5 * weights
    assert torch.allclose(last["ema_model"]["refpoint_embed.weight"], mean, rtol=0, atol=1e-7)
    # The logs are of the sound steps.
    (line,) = lines_of(tmp_path)
    assert math.isfinite(line["train_loss"])
    assert math.isfinite(line["train_loss_bbox_0"])
    assert all(torch.isfinite(tensor).all() for tensor in last["model"].values())


def test_a_broken_gradient_of_a_sound_loss_leaves_out_its_step(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, step = tiny_model(), [-1]
    model.callbacks["on_train_batch_start"].append(lambda info: step.append(info["step"]))
    queries = model.model.model.query_boxes
    queries.register_hook(lambda grad: grad * math.nan if step[-1] == 2 else grad)
    train(data, tmp_path, model)
    told = json.loads((tmp_path / "broken_batches" / "step_2.json").read_text())
    assert told["not_finite"] == ["gradient"]
    last = load(tmp_path / "checkpoint.pth")
    assert (last["global_step"], last["ema_updates"]) == (5, 4)
    assert all(torch.isfinite(tensor).all() for tensor in last["model"].values())


def test_a_broken_micro_batch_leaves_out_its_step(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Broken(monkeypatch, {1})
    train(data, tmp_path, broken.model, grad_accum_steps=2)
    told = json.loads((tmp_path / "broken_batches" / "step_1.json").read_text())
    assert len(told["batch"]) == 4
    assert all(torch.equal(tensor, broken.starts[2][name]) for name, tensor in broken.starts[1].items())


def test_five_broken_steps_in_a_row_end_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Four in a row, twice, are borne; an epoch has five steps.
    broken = Broken(monkeypatch, {1, 2, 3, 4, 6, 7, 8, 9})
    train(data, tmp_path / "borne", broken.model, epochs=2)
    assert len(lines_of(tmp_path / "borne")) == 2
    assert len(list((tmp_path / "borne" / "broken_batches").iterdir())) == 8
    monkeypatch.undo()
    # Five are too many, also across epochs.
    broken = Broken(monkeypatch, {3, 4, 5, 6, 7, 8})
    message = (
        r"the loss was not finite in 5 steps in a row, so the run ends; the batches are described in "
        rf"{tmp_path}/ended/broken_batches\. Look at their pictures and boxes, or try a lower lr, or amp_dtype=None"
    )
    with pytest.raises(RuntimeError, match=message):
        train(data, tmp_path / "ended", broken.model, epochs=2)
    described = {path.name for path in (tmp_path / "ended" / "broken_batches").iterdir()}
    assert described == {f"step_{step}.json" for step in range(3, 8)}
    # The epoch before is saved, and the model in memory is sound.
    assert load(tmp_path / "ended" / "checkpoint.pth")["position"]["epoch"] == 0
    assert all(torch.isfinite(tensor).all() for tensor in broken.model.model.model.state_dict().values())


def test_a_broken_first_step_is_told_of_and_nothing_else(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch would warn of a schedule that moves before the optimiser, and every warning is an error here."""
    train(data, tmp_path, Broken(monkeypatch, {0}).model, lr_scheduler="cosine")
    assert load(tmp_path / "checkpoint.pth")["lr_scheduler"]["last_epoch"] == 5
    assert (tmp_path / "broken_batches" / "step_0.json").is_file()


def test_S097_the_training_pass_alone_ends_at_a_loss_that_is_no_number(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(monkeypatch, {0, 1, 2, 3, 4})
    broken.step = 0
    model, module = broken.model.model_config, broken.model.model.model
    broken.model.model.reinitialize_detection_head(5)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    order = TrainOrder(10, 2, 1)
    config = TrainConfig(dataset_dir=data, batch_size=2, grad_accum_steps=1, num_workers=0)
    batches = build_train_loader(config, model, read_split(data, "train", "roboflow"), order, False)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    criterion = Criterion(loss_weights(model.dec_layers), model.group_detr)
    with pytest.raises(ValueError, match="the loss is not finite: loss_bbox_0; a lower lr or amp_dtype=None may help"):
        train_one_epoch(
            module,
            criterion,
            None,
            batches,
            optimizer,
            torch.device("cpu"),
            0,
            2,
            0.1,
            args=SimpleNamespace(grad_accum_steps=1),
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


# Scores of zero, and scores that are no numbers


def test_a_run_that_finds_nothing_ends_normally(data: Path, tmp_path: Path) -> None:
    model = train(data, tmp_path, epochs=2)
    assert [line["test_coco_eval_bbox"][0] for line in lines_of(tmp_path)] == [0.0, 0.0]
    # The first evaluation is the best there is.
    for kind in ("regular", "ema"):
        best = load(tmp_path / f"checkpoint_best_{kind}.pth")
        assert (best["epoch"], best["metric"]) == (0, 0.0)
    assert load(tmp_path / "checkpoint_best_total.pth")["best_total_source"] == "regular"
    assert model.class_names == ["circle", "square", "triangle", "star"]


def scored(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """Let the evaluations of regular and averaged weights, in turns, give these AP."""
    evaluate, values = run.evaluate, iter(scores)

    def with_score(*given: Any, **named: Any) -> Any:
        stats, evaluator = evaluate(*given, **named)
        return {**stats, "coco_eval_bbox": [next(values)] * 12}, evaluator

    monkeypatch.setattr(run, "evaluate", with_score)


def test_scores_that_are_no_numbers_are_never_the_best(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, math.nan, 0.3, 0.2, math.nan, math.nan, math.nan)
    train(data, tmp_path, epochs=3)
    best = {kind: load(tmp_path / f"checkpoint_best_{kind}.pth") for kind in ("regular", "ema")}
    assert {kind: (one["epoch"], one["metric"]) for kind, one in best.items()} == {"regular": (1, 0.2), "ema": (0, 0.3)}
    assert load(tmp_path / "checkpoint_best_total.pth")["best_total_source"] == "ema"
    # JSON has no such number.
    assert [line["test_coco_eval_bbox"][0] for line in lines_of(tmp_path)] == [None, 0.2, None]


def test_S014_early_stopping_ends_a_run_whose_score_is_no_number(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, *[math.nan] * 8)
    with pytest.warns(UserWarning, match=r"the final weights become checkpoint_best_total\.pth"):
        model = train(data, tmp_path, epochs=4, early_stopping=True)
    assert len(lines_of(tmp_path)) == 1
    total = load(tmp_path / "checkpoint_best_total.pth")
    assert total["best_total_source"] == "ema"
    last = load(tmp_path / "checkpoint.pth")["ema_model"]
    assert all(torch.equal(tensor, last[name]) for name, tensor in total["model"].items())
    assert torch.equal(model.model.model.query_boxes, last["refpoint_embed.weight"])
    assert (tmp_path / "results.json").is_file()


# Splits that are missing


def with_splits(data: Path, folder: Path, *splits: str) -> Path:
    for split in splits:
        shutil.copytree(data / split, folder / split)
    return folder


@pytest.mark.filterwarnings("ignore:.* has no (validation|test) split:UserWarning")
@pytest.mark.parametrize(
    ("splits", "options", "source"),
    [
        pytest.param(("train", "test"), {}, "ema", id="S067-no-validation"),
        pytest.param(("train", "test"), {"use_ema": False}, "regular", id="S067-no-validation-no-average"),
        pytest.param(
            ("train", "test"), {"early_stopping": True, "num_sanity_val_steps": 2}, "ema", id="early-stopping"
        ),
        pytest.param(("train",), {}, "ema", id="S067-training-alone"),
    ],
)
def test_a_run_without_validation_keeps_its_last_weights(
    splits: tuple[str, ...], options: dict[str, Any], source: str, data: Path, tmp_path: Path
) -> None:
    some = with_splits(data, tmp_path / "data", *splits)
    out = tmp_path / "out"
    train(some, out, run_test=True, **options)
    assert not list(out.glob("checkpoint_best_[re]*"))
    total, last = load(out / "checkpoint_best_total.pth"), load(out / "checkpoint.pth")
    assert total["best_total_source"] == source
    weights = last["ema_model" if source == "ema" else "model"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in total["model"].items())
    assert set(json.loads((out / "results.json").read_text())["class_map"]) == set(splits) - {"train"}
    (line,) = lines_of(out)
    assert not any(name.startswith("test_") for name in line)
    columns = set((out / "metrics.csv").read_text().splitlines()[0].split(","))
    assert any(name.startswith("test/") for name in columns) == ("test" in splits)
    assert not any(name.startswith("val/") for name in columns)
    assert rfdetr.from_checkpoint(out / "checkpoint_best_total.pth").class_names[0] == "circle"


def test_S067_S088_missing_splits_are_told(data: Path, tmp_path: Path) -> None:
    some = with_splits(data, tmp_path / "data", "train")
    with pytest.warns(UserWarning) as told:
        train(some, tmp_path / "out", run_test=True)
    assert [str(one.message) for one in told] == [
        f"{some} has no validation split: nothing is evaluated, and the last weights become checkpoint_best_total.pth",
        f"{some} has no test split; the test run is left out",
    ]
    both = with_splits(data, tmp_path / "both", "train", "valid")
    with pytest.warns(UserWarning) as told:
        train(both, tmp_path / "second", run_test=True)
    assert [str(one.message) for one in told] == [f"{both} has no test split; the test run is left out"]
    with pytest.raises(FileNotFoundError, match="train"):
        train(with_splits(data, tmp_path / "third", "valid"), tmp_path / "none")


# Memory


def room_for(monkeypatch: pytest.MonkeyPatch, pictures: int, error: Callable[[], BaseException]) -> list[int]:
    """Memory for so many pictures in a training pass; the list fills with the pictures of the passes that fit."""
    forward, fitted = Criterion.forward, []

    def limited(criterion: Criterion, outputs: Any, targets: Any, *rest: Any) -> dict[str, torch.Tensor]:
        if criterion.training and len(targets) > pictures:
            raise error()
        fitted.extend([len(targets)] if criterion.training else [])
        return forward(criterion, outputs, targets, *rest)

    monkeypatch.setattr(Criterion, "forward", limited)
    return fitted


# Weights that all but stand still, so that Adam's first moment compares gradients alone.
STILL = {"lr": 1e-12, "lr_encoder": 1e-12, "clip_max_norm": 0, "use_ema": False, "multi_scale": True}


@pytest.fixture(scope="module")
def plenty(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs that have all the memory they ask for, each made once."""
    made: dict[str, Path] = {}

    def get(**options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("plenty")
            train(data, made[key], **options)
        return made[key]

    return get


@pytest.mark.parametrize(
    ("batch", "accumulate", "room", "pieces"),
    [(4, 1, 2, [2, 2]), (4, 1, 1, [1, 1, 1, 1]), (3, 1, 2, [2, 1]), (2, 2, 1, [1, 1, 1, 1])],
)
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(lambda: torch.OutOfMemoryError("CUDA out of memory"), id="gpu"),
        pytest.param(lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"), id="torch"),
    ],
)
def test_a_run_that_is_short_of_memory_goes_on_in_pieces(
    batch: int,
    accumulate: int,
    room: int,
    pieces: list[int],
    error: Callable[[], BaseException],
    plenty: Callable[..., Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {**STILL, "batch_size": batch, "grad_accum_steps": accumulate}
    undisturbed = plenty(**options)
    fitted = room_for(monkeypatch, room, error)
    train(data, tmp_path, **options)
    # What was done of the first step before memory ran out is done again.
    steps = len(TrainOrder(10, batch * accumulate, 1)) // (batch * accumulate)
    assert fitted[-steps * len(pieces) :] == pieces * steps
    assert f"memory ran out: batches of {batch} are computed in 2 pieces now" in caplog.text
    whole, short = (load(out / "checkpoint.pth") for out in (undisturbed, tmp_path))
    for slot, state in whole["optimizer"]["state"].items():
        assert torch.allclose(state["exp_avg"], short["optimizer"]["state"][slot]["exp_avg"], rtol=1e-4, atol=1e-6)
    one, other = lines_of(undisturbed)[0], lines_of(tmp_path)[0]
    for name in ("train_loss", "train_loss_ce", "train_loss_giou_enc", "train_cardinality_error_unscaled"):
        assert other[name] == pytest.approx(one[name], rel=1e-4)
    # A resumed run knows from the start.
    assert short["pieces"] == len(pieces) // accumulate


def test_a_single_picture_that_does_not_fit_ends_the_run_with_advice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for(monkeypatch, 0, lambda: torch.OutOfMemoryError("CUDA out of memory"))
    advice = (
        r"out of memory with 1 pictures at a time; use a smaller batch_size with more grad_accum_steps, "
        r"gradient_checkpointing=True, a lower resolution, or multi_scale=False"
    )
    with pytest.raises(RuntimeError, match=advice) as ended:
        train(data, tmp_path, batch_size=3)
    assert isinstance(ended.value.__cause__, torch.OutOfMemoryError)


def test_another_error_of_the_network_is_not_taken_for_a_lack_of_memory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for(monkeypatch, 0, lambda: RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(data, tmp_path)


# Services


@pytest.mark.parametrize("fails", ["init", "define_metric", "log", "finish"])
def test_S043_S083_a_service_that_fails_does_not_stop_the_run(
    fails: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def call(name: str, answer: Any = None) -> Callable[..., Any]:
        def answered(*_: Any, **__: Any) -> Any:
            calls.append(name)
            if name == fails:
                raise ConnectionError("the server is away")
            return answer

        return answered

    opened = SimpleNamespace(**{name: call(name) for name in ("define_metric", "log", "finish")})
    package = types.ModuleType("wandb")
    package.init = call("init", opened)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    told = "cannot be opened and is off in this run" if fails in ("init", "define_metric") else "failed and is off"
    with pytest.warns(UserWarning, match=f"Weights & Biases {told}.*the server is away") as warned:
        train(data, tmp_path, epochs=2, wandb=True)
    assert len(warned) == 1
    assert calls.count(fails) == 1
    assert len(lines_of(tmp_path)) == 2
    assert (tmp_path / "checkpoint_best_total.pth").is_file()
