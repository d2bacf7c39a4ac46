"""Every option of training: what changes in a run when it changes, and what is said when it cannot be.

A row of a table compares a run with one that has another value of one option. A check reads what the runs left and did
(`Seen`) and must fail if the option were ignored; options that a CPU or one process has no use for are asked at the
function that decides.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import logging
import math
import os
import random
import re
import shutil
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import annotated_types
import numpy as np
import pytest
import torch
from tests.tiny import TRAINING, tiny_data, tiny_model
from tests.vectors import DATA, assert_close, read_json, read_tensors
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.datasets import loader as loading
from rfdetr.datasets.build import build_eval_loader, build_train_loader
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.synthetic import draw_dataset
from rfdetr.main import _device_of
from rfdetr.models.criterion import Criterion, loss_weights
from rfdetr.training import auto_batch, finish, launch, run
from rfdetr.training.optim import drop_path_rates, lr_factor
from rfdetr.training.runtime import ALONE, Processes, Runtime, launched, mixed_precision
from rfdetr.training.setup import _build_parts

FIELDS = TrainConfig.model_fields
NAMES = ["circle", "square", "triangle", "star"]
# Options that have a test of their own below; the decorator `covers` fills it.
TESTED: set[str] = set()


def covers(*options: str) -> Callable:
    """Say which options a test is about."""
    TESTED.update(options)
    return lambda test: test


# What is seen of a run


@dataclass
class Pass:
    """One forward pass of the network."""

    training: bool
    shape: tuple[int, ...]
    masked: bool
    precision: torch.dtype | None
    drop_path: float


@dataclass
class Step:
    """What the optimiser had when it moved the weights."""

    optimizer: type
    settings: list[dict[str, Any]]
    rates: dict[str, float]
    decays: dict[str, float]
    norm: float


@dataclass
class Seen:
    """A finished run. The network itself is not kept, since there are many runs."""

    out: Path
    class_names: list[str] = field(default_factory=list)
    class_labels: list[int] = field(default_factory=list)
    queries: torch.Tensor | None = None
    # Query boxes and class rows before every step.
    starts: list[dict[str, torch.Tensor]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    loaders: list[SimpleNamespace] = field(default_factory=list)
    services: list[tuple] = field(default_factory=list)
    said: str = ""
    stderr: str = ""
    warned: str = ""

    @property
    def files(self) -> set[str]:
        """Names in the output folder."""
        return {path.name for path in self.out.iterdir()}

    def load(self, name: str = "checkpoint.pth") -> dict[str, Any]:
        """A checkpoint."""
        return torch.load(self.out / name, weights_only=True)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """log.txt."""
        return [json.loads(line) for line in (self.out / "log.txt").read_text().splitlines()]

    @property
    def rows(self) -> list[dict[str, str]]:
        """metrics.csv."""
        return list(csv.DictReader((self.out / "metrics.csv").read_text().splitlines()))

    @property
    def columns(self) -> set[str]:
        """Columns of metrics.csv that have a value."""
        return {name for row in self.rows for name, value in row.items() if value != ""}

    @property
    def trained(self) -> list[Pass]:
        """Forward passes of the training."""
        return [one for one in self.passes if one.training]

    @property
    def judged(self) -> list[Pass]:
        """Forward passes of evaluations."""
        return [one for one in self.passes if not one.training]

    def factors(self) -> list[float]:
        """Learning rate of every step relative to `lr`."""
        return [step.rates["class_head.bias"] / 1e-4 for step in self.steps]


class Terminal(io.StringIO):
    """A terminal to look at afterwards; rich draws on nothing else."""

    def isatty(self) -> bool:
        return True


class Service(types.ModuleType):
    """Stands in for the package of a service: every call is noted and answered with another stand-in."""

    def __init__(self, name: str, calls: list[tuple]) -> None:
        super().__init__(name)
        self.calls = calls

    def __getattr__(self, name: str) -> Service:
        if name.startswith("__"):
            raise AttributeError(name)
        return Service(f"{self.__name__}.{name}", self.calls)

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.calls.append((self.__name__, given, named))
        # No task was opened by the user's script.
        return None if self.__name__ == "clearml.Task.current_task" else self


def scripted(scores: dict[str, list[float]]) -> Callable:
    """In place of `evaluate`: AP (and AR, "mar") of the regular and of the averaged weights by epoch."""
    given = {kind: iter(values) for kind, values in scores.items()}

    def evaluate(module: Any, criterion: Any, *_: Any, title: str, **__: Any) -> tuple[dict[str, Any], None]:
        box = [next(given.get(title.removeprefix("evaluate "), itertools.repeat(0.0)))] * 12
        if "mar" in given:
            box[8] = next(given["mar"])
        table = {"class_map": [], "f1_score": 0.0, "precision": 0.0, "recall": 0.0}
        return {"coco_eval_bbox": box, "results_json": table}, None

    return evaluate


def see(folder: Path, data: Path, warns: str = "", **options: Any) -> Seen:
    """Train a network whose weights are always the same, and note what happens.

    `options` may hold also: `model`, fields of the network; `min_steps`, shortest epoch; `scores`, see `scripted`;
    `save`, whether to write checkpoints. Without it, and at one input size, a run takes half the time.
    """
    torch.manual_seed(0)
    seen, model = Seen(folder), tiny_model(**options.pop("model", {}))
    min_steps, scores = options.pop("min_steps", 5), options.pop("scores", None)
    options = {"dont_save_weights": not options.pop("save", False), "multi_scale": False, **options}
    noted = logging.StreamHandler(io.StringIO())

    def before_batch(info: dict[str, Any]) -> None:
        module = info["model"]
        rows = {"queries": module.query_boxes, "class_rows": module.class_head.weight}
        seen.starts.append({name: tensor.detach().clone() for name, tensor in rows.items()})

    def before_pass(module: Any, inputs: tuple) -> None:
        images, mask = (*inputs, None)[:2]
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        drop = module.encoder.blocks[-1].drop_path
        seen.passes.append(Pass(module.training, tuple(images.shape), mask is not None, kind, drop))

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = optimizer.param_groups
        settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        rates = {name: group["lr"] for group in groups for name in group["names"]}
        decays = {name: group["weight_decay"] for group in groups for name in group["names"]}
        norms = [p.grad.norm() for group in groups for p in group["params"] if p.grad is not None]
        seen.steps.append(Step(type(optimizer), settings, rates, decays, float(torch.stack(norms).norm())))

    loader_class = loading.Loader

    def loader(*given: Any, **named: Any) -> loading.Loader:
        made = loader_class(*given, **named)
        names = ("dataset", "sampler", "collate_fn", "batch_size", "num_workers", "persistent_workers")
        about = {name: getattr(made, name) for name in (*names, "prefetch_factor", "pin_memory")}
        seen.loaders.append(SimpleNamespace(**about))
        return made

    model.callbacks["on_train_batch_start"].append(before_batch)
    model.model.model.register_forward_pre_hook(before_pass)
    handle = register_optimizer_step_pre_hook(before_step)
    logging.getLogger("rf-detr").addHandler(noted)
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stderr(Terminal()) as stderr,
            warnings.catch_warnings(record=True) as warned,
        ):
            warnings.simplefilter("always")
            # Drawing takes longer than the training; one run below does it.
            patch.setattr(finish, "plot_history", lambda history, path: path.write_bytes(b"plot"))
            patch.setenv("TERM", "xterm")
            patch.setattr(loading, "Loader", loader)
            patch.setattr(loading.TrainOrder, "min_steps", min_steps)
            for name in ("wandb", "mlflow", "mlflow.entities", "mlflow.tracking", "clearml"):
                patch.setitem(sys.modules, name, Service(name, seen.services))
            if scores is not None:
                patch.setattr(run, "evaluate", scripted(scores))
            model.train(**{"dataset_dir": data, "output_dir": folder, "epochs": 1, **TRAINING, **options})
    finally:
        handle.remove()
        logging.getLogger("rf-detr").removeHandler(noted)
    seen.said, seen.stderr = noted.stream.getvalue(), stderr.getvalue()
    seen.class_names, seen.class_labels = model.class_names, model.model.class_labels
    seen.queries = model.model.model.query_boxes.detach().clone()
    seen.warned = "\n".join(str(one.message) for one in warned)
    unexpected = [str(one.message) for one in warned if not (warns and re.search(warns, str(one.message)))]
    assert not unexpected
    return seen


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def seen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Seen]:
    """Runs by their options, each made once."""
    made: dict[str, Seen] = {}

    def get(**options: Any) -> Seen:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = see(tmp_path_factory.mktemp("run"), data, **options)
        return made[key]

    return get


@pytest.fixture(scope="module")
def known(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose validation pictures show what the untrained network finds: three boxes of one class each."""
    folder = tmp_path_factory.mktemp("known")
    shutil.copytree(data, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    model = tiny_model()
    model.train(dataset_dir=data, output_dir=folder / "out", epochs=1, **{**TRAINING, **STILL})
    document = json.loads((folder / "valid" / "_annotations.coco.json").read_text())
    document["annotations"] = []
    for image in document["images"]:
        found = model.predict(folder / "valid" / image["file_name"], threshold=0.0)
        label = found.class_id[0]
        for x0, y0, x1, y1 in found.xyxy[found.class_id == label][:3].tolist():
            about = {"id": len(document["annotations"]) + 1, "image_id": image["id"], "category_id": int(label) + 1}
            document["annotations"].append({**about, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0})
    assert len(document["annotations"]) == 12
    (folder / "valid" / "_annotations.coco.json").write_text(json.dumps(document))
    return folder


# Oracles


def rates_change(factor: Callable[[str], float]) -> Callable[[Seen, Seen], None]:
    """The learning rate of every parameter is multiplied by `factor(name)`."""

    def check(plain: Seen, other: Seen) -> None:
        before, after = plain.steps[0].rates, other.steps[0].rates
        assert after == pytest.approx({name: rate * factor(name) for name, rate in before.items()}, rel=1e-9)

    return check


def in_encoder(name: str) -> bool:
    return name.startswith("encoder.")


def depth_of(name: str) -> int:
    """How many decays lie between a parameter of the encoder and its end (two of six blocks are not trained)."""
    if not in_encoder(name):
        return 0
    if ".blocks." in name:
        return 5 - int(name.split(".")[2])
    return 0 if "norm" in name else 6


def by_component(name: str) -> int:
    """How often `lr_component_decay` is a factor of a learning rate."""
    return 2 if in_encoder(name) else int(name.startswith("decoder."))


def decay_changes(plain: Seen, other: Seen) -> None:
    before, after = plain.steps[0].decays, other.steps[0].decays
    assert set(before.values()) == {0.0, 1e-4}
    assert after == {name: 100 * value for name, value in before.items()}


def follows(*factors: float) -> Callable[[Seen, Seen], None]:
    """The learning rate is multiplied by one factor per step."""

    def check(plain: Seen, other: Seen) -> None:
        assert other.factors() == pytest.approx(list(factors), rel=1e-6, abs=1e-12)
        assert plain.factors() != pytest.approx(list(factors), rel=1e-6, abs=1e-12)

    return check


def cosine(floor: float) -> list[float]:
    return [floor + (1 - floor) * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]


def norms(limit: float) -> Callable[[Seen, Seen], None]:
    """The gradients of every step are cut to this norm; without a limit some are longer than the default."""

    def check(plain: Seen, other: Seen) -> None:
        assert max(step.norm for step in plain.steps) <= 0.1 * 1.0001
        if limit:
            assert max(step.norm for step in other.steps) == pytest.approx(limit, rel=1e-4)
        else:
            assert min(step.norm for step in other.steps) > 1

    return check


def is_a(kind: type, **defaults: Any) -> Callable[[Seen, Seen], None]:
    """The optimiser is of a class and has these settings in all its groups."""

    def check(plain: Seen, other: Seen) -> None:
        assert (plain.steps[0].optimizer, other.steps[0].optimizer) == (torch.optim.AdamW, kind)
        for group in other.steps[0].settings:
            assert {name: group[name] for name in defaults} == defaults
        assert len(other.steps) == 5

    return check


def drops(*rates: float) -> Callable[[Seen, Seen], None]:
    """Stochastic depth of the last block by step."""

    def check(plain: Seen, other: Seen) -> None:
        assert [one.drop_path for one in other.trained] == pytest.approx(list(rates), rel=1e-6)
        assert [one.drop_path for one in plain.trained] != pytest.approx(list(rates), rel=1e-6)
        assert not torch.equal(plain.starts[-1]["queries"], other.starts[-1]["queries"])

    return check


def averaged(decay: float = 0.993, tau: float = 100, interval: int = 1) -> Callable[[Seen, Seen], None]:
    """The average is that of the weights after every step, by the formula (training.md 5)."""

    def mean(seen: Seen, decay: float, tau: float, interval: int) -> torch.Tensor:
        live = [start["queries"].double() for start in seen.starts]
        live.append(seen.load()["model"]["refpoint_embed.weight"].double())
        found = live[0]
        for update, after in enumerate(live[interval::interval], 1):
            d = decay * (1 - math.exp(-update / tau)) if tau else decay
            found = d * found + (1 - d) * after
        return found

    def check(plain: Seen, other: Seen) -> None:
        found = other.load()["ema_model"]["refpoint_embed.weight"].double()
        scale = float((other.starts[0]["queries"].double() - found).abs().max())
        assert scale > 1e-5
        assert_close(found, mean(other, decay, tau, interval), "average", atol=1e-4 * scale)
        for usual in ((0.993, tau, interval), (decay, 100, interval), (decay, tau, 1)):
            if usual != (decay, tau, interval):
                assert (found - mean(other, *usual)).abs().max() > 1e-2 * scale

    return check


def without_average(plain: Seen, other: Seen) -> None:
    assert "checkpoint_best_ema.pth" in plain.files - other.files
    assert {"ema_model", "ema_updates"} <= plain.load().keys() - other.load().keys()
    assert {"val/mAP_50_95", "val/ema_mAP_50_95"} & other.columns == {"val/mAP_50_95"}
    assert other.load("checkpoint_best_total.pth")["best_total_source"] == "regular"


def without_regular(plain: Seen, other: Seen) -> None:
    """Both kinds of weights are judged and kept, or the average alone."""
    both = {"checkpoint_best_regular.pth", "checkpoint_best_ema.pth"}
    assert both <= plain.files
    assert both & other.files == {"checkpoint_best_ema.pth"}
    assert len(other.judged) < len(plain.judged)
    assert {"val/mAP_50_95", "val/ema_mAP_50_95"} & other.columns == {"val/ema_mAP_50_95"}
    assert "test_coco_eval_bbox" in plain.lines[0].keys() - other.lines[0].keys()
    assert other.load("checkpoint_best_total.pth")["best_total_source"] == "ema"


def ends_after(epochs: int) -> Callable[[Seen, Seen], None]:
    """The run ends early, and normally."""

    def check(plain: Seen, other: Seen) -> None:
        assert len(plain.lines) == 5
        assert [line["epoch"] for line in other.lines] == list(range(epochs))
        assert f"the run ends early, after epoch {epochs}" in other.said
        assert "results.json" in other.files

    return check


def best_is(epoch: int, score: float) -> Callable[[Seen, Seen], None]:
    """Epoch and score of the best regular weights."""

    def check(plain: Seen, other: Seen) -> None:
        before, after = (seen.load("checkpoint_best_regular.pth") for seen in (plain, other))
        assert (after["epoch"], after["metric"]) == (epoch, pytest.approx(score))
        assert (before["epoch"], before["metric"]) != (epoch, pytest.approx(score))

    return check


def sizes(allowed: Sequence[int], usual: Sequence[int] = range(64, 225, 32)) -> Callable[[Seen, Seen], None]:
    """Every step has one of these input sizes, drawn from its number (training.md 6)."""

    def check(plain: Seen, other: Seen) -> None:
        drawn = [random.Random(step).choice(allowed) for step in range(5)]
        assert [one.shape[-2:] for one in other.trained] == [(size, size) for size in drawn]
        before = [random.Random(step).choice(usual) for step in range(5)]
        assert [one.shape[-1] for one in plain.trained] == before != drawn

    return check


def per_picture(plain: Seen, other: Seen) -> None:
    """Pictures of one batch have different sizes, so that smaller ones are padded."""
    assert not any(one.masked for one in plain.trained)
    assert any(one.masked for one in other.trained)
    batches = train_batches(other)
    assert any(
        (~mask).flatten(1).sum(1).unique().numel() > 1 for batch in batches if (mask := batch[0].mask) is not None
    )


def aspect_kept(plain: Seen, other: Seen) -> None:
    """Pictures of 64 x 80: the short side is 64, the long one padded to the next multiple of 32."""
    assert {one.shape[-2:] for one in plain.judged} == {(64, 64)}
    assert {(*one.shape[-2:], one.masked) for one in other.judged} == {(64, 96, True)}


def train_batches(seen: Seen) -> list:
    """The batches of the first epoch once more."""
    train = seen.loaders[0]
    train.sampler.set_epoch(0)
    order = list(train.sampler)
    groups = [order[start : start + train.batch_size] for start in range(0, len(order), train.batch_size)]
    return [train.collate_fn([train.dataset[draw] for draw in group]) for group in groups]


def pictures_of(seen: Seen) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Boxes of every picture of the first epoch as they were trained on, and as they are annotated (cxcywh)."""
    train = seen.loaders[0]
    order = [index for _, _, index in train.sampler]
    targets = [target for batch in train_batches(seen) for target in batch[1]]
    for index, target in zip(order, targets, strict=True):
        x0, y0, x1, y1 = (train.dataset.annotations.boxes_xyxy_px(index, 64, 80) / (80, 64, 80, 64)).T
        yield target["boxes"], np.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), axis=1)


def whole_pictures(plain: Seen, other: Seen) -> None:
    """No picture was cropped: all objects are there in their size."""
    cropped = [len(a) != len(b) or not np.allclose(a[:, 2:], b[:, 2:], atol=1e-5) for a, b in pictures_of(plain)]
    assert any(cropped)
    for trained, annotated in pictures_of(other):
        np.testing.assert_allclose(trained[:, 2:], annotated[:, 2:], atol=1e-5)


def upside_down(plain: Seen, other: Seen) -> None:
    """The one augmentation that was asked for took place, in every picture, and no other."""
    for trained, annotated in pictures_of(other):
        annotated[:, 1] = 1 - annotated[:, 1]
        np.testing.assert_allclose(trained, annotated, atol=1e-5)
    described = [
        json.loads((seen.out / "training_config.json").read_text())["augmentations"] for seen in (plain, other)
    ]
    assert described == [["HorizontalFlip(p=0.5)"], ["VerticalFlip(p=1.0)"]]


def columns(more: set[str], fewer: set[str]) -> Callable[[Seen, Seen], None]:
    """Columns of metrics.csv that come and go."""

    def check(plain: Seen, other: Seen) -> None:
        assert more <= other.columns - plain.columns
        assert fewer <= plain.columns - other.columns

    return check


def fresh_rows(plain: Seen, other: Seen) -> None:
    """None of the names is one of COCO's, so no row is kept; otherwise the first rows are."""
    torch.manual_seed(0)
    rows = tiny_model().model.model.class_head.weight.detach()[:5]
    assert torch.equal(plain.starts[0]["class_rows"], rows)
    assert (other.starts[0]["class_rows"] != rows).all(1).all()


def service(name: str) -> Callable[[Seen, Seen], None]:
    """A service was opened, got the metrics of the epoch and was closed."""

    def check(plain: Seen, other: Seen) -> None:
        own = [call for call in other.services if call[0].split(".")[0] == name]
        assert not plain.services
        opened = {"wandb": "wandb.init", "mlflow": "mlflow.MlflowClient.create_run", "clearml": "clearml.Task.init"}
        closed = {
            "wandb": "wandb.init.finish",
            "mlflow": "mlflow.MlflowClient.set_terminated",
            "clearml": "clearml.Task.init.close",
        }
        assert [call[0] for call in own].count(opened[name]) == 1
        assert own[-1][0] == closed[name]
        loss = float(other.rows[0]["val/loss"])
        assert any(loss in walk(call) for call in own)

    return check


def walk(value: Any) -> list[Any]:
    """Everything inside nested containers."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return [one for item in value for one in walk(item)] if isinstance(value, list | tuple) else [value]


def named(role: str) -> Callable[[Seen, Seen], None]:
    """The services get the name of the project or of the run."""
    keys = {
        "project": {"wandb.init": "project", "clearml.Task.init": "project_name"},
        "run": {"wandb.init": "name", "clearml.Task.init": "task_name", "mlflow.MlflowClient.create_run": "run_name"},
    }

    def check(plain: Seen, other: Seen) -> None:
        for function, key in keys[role].items():
            (given,) = [call[2] for call in other.services if call[0] == function]
            assert given[key] == f"my {role}"
        if role == "project":
            (experiment,) = [c[1] for c in other.services if c[0] == "mlflow.MlflowClient.get_experiment_by_name"]
            assert experiment == ("my project",)

    return check


def every_step(plain: Seen, other: Seen) -> None:
    logged = [call[1][0] for call in other.services if call[0] == "wandb.init.log"]
    steps = [one for one in logged if "train/loss_step" in one]
    assert [one["step_index"] for one in steps] == [0, 1, 2, 3, 4]
    assert [one["train/lr_step"] for one in steps] == [1e-4] * 5
    mean = sum(one["train/loss_step"] for one in steps) / 5
    # The option beside it in this run changes the weight of one loss and with it the total.
    assert mean == pytest.approx(float(other.rows[0]["train/loss"]), rel=1e-5)


def bar(kind: str) -> Callable[[Seen, Seen], None]:
    """A bar was drawn on the standard error, by tqdm with a share in percent, by rich with a line."""

    def check(plain: Seen, other: Seen) -> None:
        assert "epoch 1" not in plain.stderr.replace("epoch 1/1", "")
        bars = other.stderr.replace("epoch 1/1", "")
        assert "epoch 1" in bars
        assert ("%|" in bars, "━━━" in bars) == (kind == "tqdm", kind == "rich")

    return check


def test_row(plain: Seen, other: Seen) -> None:
    """The best weights were judged on the test split."""
    assert not any(name.startswith("test/") for name in plain.columns)
    assert {"test/mAP_50_95", "test/mAP_50", "test/mAR", "test/F1", "test/loss"} <= other.columns
    assert len(other.rows) == len(plain.rows) + 1
    tables = [json.loads((seen.out / "results.json").read_text())["class_map"] for seen in (plain, other)]
    assert [set(table) for table in tables] == [{"valid"}, {"valid", "test"}]


test_row.__test__ = False  # a check, not a test


def all_found(plain: Seen, other: Seen) -> None:
    """Three boxes of one class in every picture: of one detection per picture, a third is found."""
    before, after = (float(seen.rows[0]["val/mAR"]) for seen in (plain, other))
    assert before > 0.9
    assert after == pytest.approx(before / 3, abs=0.05)


def half_precision(plain: Seen, other: Seen) -> None:
    assert {one.precision for one in plain.passes} == {None}
    assert {one.precision for one in other.trained} == {None}
    # All but the passes of the end, which has a loader of its own.
    assert torch.float16 in {one.precision for one in other.judged}
    assert {one.precision for one in other.judged[:4]} == {torch.float16}


def mixed(plain: Seen, other: Seen) -> None:
    assert {one.precision for one in plain.passes} == {None}
    assert {one.precision for one in other.trained} == {torch.bfloat16}
    assert {one.precision for one in other.judged} == {torch.bfloat16}
    before, after = (seen.starts[-1]["queries"] for seen in (plain, other))
    assert after.dtype == torch.float32
    assert not torch.equal(before, after)


def workers(name: str, plainly: Any, otherwise: Any, which: int = 0) -> Callable[[Seen, Seen], None]:
    """A setting of the loader of the training (the first) or of the validation (the second)."""

    def check(plain: Seen, other: Seen) -> None:
        assert getattr(plain.loaders[which], name) == plainly
        assert getattr(other.loaders[which], name) == otherwise

    return check


def class_weight(plain: Seen, other: Seen) -> None:
    before, after = plain.lines[0], other.lines[0]
    assert before["train_loss_ce"] == pytest.approx(before["train_loss_ce_unscaled"])
    assert after["train_loss_ce"] == pytest.approx(3 * after["train_loss_ce_unscaled"])
    assert after["train_loss_ce_enc"] == pytest.approx(3 * after["train_loss_ce_enc_unscaled"])
    assert after["train_loss_bbox"] == pytest.approx(5 * after["train_loss_bbox_unscaled"])


def sanity(plain: Seen, other: Seen) -> None:
    assert "validation batches" not in plain.said
    assert "checking 1 validation batches" in other.said
    assert [one.training for one in plain.passes[:2]] == [True, True]
    assert [one.training for one in other.passes[:2]] == [False, True]


def evaluated(*epochs: int) -> Callable[[Seen, Seen], None]:
    def check(plain: Seen, other: Seen) -> None:
        assert ["test_coco_eval_bbox" in line for line in plain.lines] == [True] * len(plain.lines)
        assert [line["epoch"] for line in other.lines if "test_coco_eval_bbox" in line] == list(epochs)

    return check


def numbered(plain: Seen, other: Seen) -> None:
    assert other.files - plain.files == {"checkpoint_0.pth"}
    last, kept = other.load(), other.load("checkpoint_0.pth")
    assert kept.keys() == last.keys()
    assert kept["epoch"] == last["epoch"] == 0


def nothing_saved(plain: Seen, other: Seen) -> None:
    assert not any(name.endswith(".pth") for name in other.files)
    assert {"log.txt", "metrics.csv", "training_config.json", "results.json"} <= other.files
    # The model has the weights after the last step, which are those of the other run's checkpoint.
    assert torch.equal(other.queries, plain.load()["model"]["refpoint_embed.weight"])


def longer(plain: Seen, other: Seen) -> None:
    assert [line["epoch"] for line in other.lines] == [0, 1]
    assert (len(plain.steps), len(other.steps)) == (5, 10)


def larger_batches(plain: Seen, other: Seen) -> None:
    assert [one.shape[0] for one in plain.trained] == [2] * 5
    assert [one.shape[0] for one in other.trained] == [5] * 5
    assert "effective batch 5 = 5 x 1 accumulated" in other.said


def accumulated(plain: Seen, other: Seen) -> None:
    """Three passes per optimiser step."""
    assert len(plain.trained) == len(plain.steps) == 5
    assert (len(other.trained), len(other.steps)) == (15, 5)
    assert {one.shape[0] for one in other.trained} == {2}
    assert "effective batch 6 = 2 x 3 accumulated" in other.said


def other_seed(plain: Seen, other: Seen) -> None:
    assert ("seed 1\n" in plain.said, "seed 2\n" in other.said) == (True, True)
    orders = [[draw.index for draw in seen.loaders[0].sampler] for seen in (plain, other)]
    assert orders[0] != orders[1]
    # The weights at the start are those that the model was made with, whatever the seed.
    assert torch.equal(plain.starts[0]["queries"], other.starts[0]["queries"])
    assert not torch.equal(plain.starts[-1]["queries"], other.starts[-1]["queries"])


def drawn_seed(plain: Seen, other: Seen) -> None:
    (seed,) = re.findall(r"seed (\d+)\n", other.said)
    assert int(seed) not in (0, 1, 42)


def other_names(plain: Seen, other: Seen) -> None:
    for seen, names in ((plain, NAMES), (other, ["a", "b", "c", "d"])):
        assert seen.class_names == names
        assert seen.load("checkpoint_best_total.pth")["args"]["class_names"] == names
        assert json.loads((seen.out / "training_config.json").read_text())["class_names"] == names
    assert "class_names differ from those of the data set" in other.warned


def annotated(plain: Seen, other: Seen) -> None:
    for name in ("checkpoint.pth", "checkpoint_best_total.pth"):
        assert plain.load(name)["args"]["notes"] is None
        assert other.load(name)["args"]["notes"] == {"who": ["me", 1]}


def grids(plain: Seen, other: Seen) -> None:
    assert other.files - plain.files == {"dataset_grids"}
    # Five batches of training, two of validation; the first three of each.
    pictures = {path.name for path in (other.out / "dataset_grids").iterdir()}
    assert pictures == {"train_0.png", "train_1.png", "train_2.png", "valid_0.png", "valid_1.png"}
    assert all(torch.equal(a["queries"], b["queries"]) for a, b in zip(plain.starts, other.starts, strict=True))


def events(plain: Seen, other: Seen) -> None:
    assert not any(name.startswith("events.out") for name in plain.files)
    assert any(name.startswith("events.out.tfevents") for name in other.files)


def focal(plain: Seen, other: Seen) -> None:
    """Negatives count 0.75 of what they do by default, and hardly anything is matched at the start."""
    before, after = (seen.lines[0]["train_loss_ce_unscaled"] for seen in (plain, other))
    assert after != pytest.approx(before, rel=0.05)
    assert "ia_bce_loss is an option of the model" in other.warned


def unchecked(plain: Seen, other: Seen) -> None:
    assert plain.files - other.files == {"dataset_check.json"}
    assert ("pictures   background" in plain.said, "pictures   background" in other.said) == (True, False)


def kept_in(folder: str) -> Callable[[Seen, Seen], None]:
    """The decoded pictures are kept, the run is the same, and nothing stays behind."""

    def check(plain: Seen, other: Seen) -> None:
        assert [loader.dataset.cache is None for loader in (*plain.loaders[:2], *other.loaders[:2])] == [
            True,
            True,
            False,
            False,
        ]
        for loader in other.loaders[:2]:
            assert loader.dataset.cache.file.parent == (other.out if folder == "output" else Path(folder))
            assert loader.dataset.cache.get(0).shape == (64, 80, 3)
            assert not loader.dataset.cache.file.exists()
        assert [step.norm for step in plain.steps] == [step.norm for step in other.steps]

    return check


# The table

# Checkpoints to look into.
SAVED = {"save": True}
# Weights that stand still.
STILL = {"lr": 1e-12, "lr_encoder": 0.0, "use_ema": False}
# Input sizes as they are by default.
MANY = {"multi_scale": True}
# Epochs of one step.
SHORT = {"batch_size": 10, "min_steps": 1, "num_workers": 0}
JUDGED = {**SHORT, "epochs": 5, "scores": {"regular": [0.1, 0.2, 0.2, 0.2, 0.2], "ema": [0.0] * 5}}
RISING = {**SHORT, "epochs": 5, "scores": {"regular": [0.1, 0.11, 0.12, 0.13, 0.14], "ema": [0.05] * 5}}
PEAKS = {
    **SAVED,
    **SHORT,
    "epochs": 3,
    "scores": {"regular": [0.2, 0.4, 0.3], "ema": [0.0] * 3, "mar": [0.5, 0, 0.1, 0, 0.9, 0]},
}
STEPWISE = {"lr_scheduler": "StepLR", "lr_scheduler_kwargs": {"step_size": 1, "gamma": 0.5}}
PLATEAU = {
    **SHORT,
    "epochs": 3,
    "lr_scheduler": "ReduceLROnPlateau",
    "lr_scheduler_kwargs": {"patience": 0, "mode": "max"},
}


@dataclass(frozen=True)
class Row:
    """An option, another value of it, and what that changes.

    Args:
        check: gets a run with the default and one with the other value.
        beside: options of both runs.
        group: rows of one group share the second run, which has all their values.
        about: capabilities of features.md.
        warns: what the second run may warn of.
    """

    option: str
    value: Any
    check: Callable[[Seen, Seen], None]
    about: str = ""
    beside: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    warns: str = ""


# fmt: off
ROWS = [
    Row("epochs", 2, longer, "S020"),
    Row("class_names", ["a", "b", "c", "d"], other_names, "S091", beside=SAVED, warns="class_names differ"),
    Row("keep_classes", True, fresh_rows, "S076"),
    Row("seed", 2, other_seed, "S022"),
    Row("seed", None, drawn_seed, "S022"),
    Row("batch_size", 5, larger_batches, "S023"),
    Row("grad_accum_steps", 3, accumulated, "S006-S025-S027"),
    # Learning rates
    Row("lr", 3e-4, rates_change(lambda name: 1.0 if in_encoder(name) else 3.0), "S028"),
    Row("lr_encoder", 4.5e-4, rates_change(lambda name: 3.0 if in_encoder(name) else 1.0), "S029"),
    Row("lr_vit_layer_decay", 0.4, rates_change(lambda name: 0.5 ** depth_of(name)), "S077"),
    Row("lr_component_decay", 0.35, rates_change(lambda name: 0.5 ** by_component(name)), "S077"),
    Row("lr_scheduler", "cosine", follows(*cosine(0.0)), "S031"),
    Row("lr_scheduler", "ConstantLR", follows(*[1 / 3] * 5), "N018"),
    Row("lr_scheduler", "torch.optim.lr_scheduler.LinearLR", follows(*[(5 + 2 * i) / 15 for i in range(5)]), "N018"),
    Row("lr_scheduler", partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
        follows(*(0.5**i for i in range(5))), "N018"),
    Row("lr_scheduler_kwargs", {"gamma": 0.25}, follows(1, 1, 0.25, 0.25, 0.0625), "N018",
        {"lr_scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=2)}),
    Row("lr_scheduler_interval", "epoch", follows(*[1.0] * 5, *[0.5] * 5), "N018", {**STEPWISE, "epochs": 2}),
    # A column that rises is no reason to lower the rate, one that stands still is.
    Row("lr_scheduler_monitor", "step", follows(1, 1, 1), "N018", PLATEAU),
    Row("lr_drop", 1, follows(*[1.0] * 5, *[0.1] * 5), "S030", {"epochs": 2}),
    Row("lr_min_factor", 0.5, follows(*cosine(0.5)), "S032", {"lr_scheduler": "cosine"}),
    Row("warmup_epochs", 0.6, follows(0, 1 / 3, 2 / 3, 1, 1), "S033"),
    # Optimiser
    Row("optimizer", "sgd", is_a(torch.optim.SGD, momentum=0), "N018"),
    Row("optimizer", "torch.optim.RMSprop", is_a(torch.optim.RMSprop, alpha=0.99), "N018"),
    Row("optimizer", partial(torch.optim.Adagrad, lr_decay=0.5), is_a(torch.optim.Adagrad, lr_decay=0.5), "N018"),
    Row("optimizer_kwargs", {"betas": (0.5, 0.6)}, is_a(torch.optim.AdamW, betas=(0.5, 0.6)), "N018"),
    Row("weight_decay", 1e-2, decay_changes, "S036"),
    Row("clip_max_norm", 0.02, norms(0.02), "S078-N025"),
    Row("clip_max_norm", 0, norms(0), "S078-N025"),
    Row("drop_path", 0.5, drops(*[0.5] * 5), "S037"),
    Row("drop_mode", "late", drops(*[0.0] * 5, *[0.5] * 5), "S037", {"drop_path": 0.5, "cutoff_epoch": 1, "epochs": 2}),
    Row("cutoff_epoch", 1, drops(*[0.5] * 5, *[0.0] * 5), "S037", {"drop_path": 0.5, "drop_mode": "early",
        "epochs": 2}),
    Row("drop_schedule", "linear", drops(0.5, 0.375, 0.25, 0.125, *[0.0] * 6), "S037", {"drop_path": 0.5,
        "drop_mode": "early", "cutoff_epoch": 1, "epochs": 2}),
    # Average
    Row("use_ema", False, without_average, "S009-S038-S062", beside=SAVED),
    Row("ema_decay", 0.9, averaged(decay=0.9, tau=0), "S062", {**SAVED, "ema_tau": 0}),
    Row("ema_tau", 2, averaged(tau=2), "S062", SAVED),
    Row("ema_update_interval", 2, averaged(tau=2, interval=2), "S062", {**SAVED, "ema_tau": 2}),
    # Files
    Row("checkpoint_interval", 1, numbered, "S008-S039-S086", beside=SAVED),
    Row("dont_save_weights", True, nothing_saved, beside=SAVED),
    Row("notes", {"who": ["me", 1]}, annotated, "N028", SAVED),
    Row("save_dataset_grids", True, grids, "N027"),
    # The end of a run, and its best weights
    Row("early_stopping", True, ends_after(4), "S014", {**JUDGED, "early_stopping_patience": 2}),
    Row("early_stopping_patience", 1, ends_after(3), "S015-S040", {**JUDGED, "early_stopping": True}),
    Row("early_stopping_min_delta", 0.05, ends_after(3), "S015-S040", {**RISING, "early_stopping": True,
        "early_stopping_patience": 2}),
    Row("early_stopping_use_ema", True, ends_after(3), "S015-S040", {**RISING, "early_stopping": True,
        "early_stopping_patience": 2}),
    Row("best_model_metric", "mar", best_is(2, 0.9), "N022", PEAKS),
    Row("smooth_alpha", 0.75, best_is(2, 0.75 * 0.25 + 0.25 * 0.3), "N022", PEAKS),
    Row("skip_best_epochs", 2, best_is(2, 0.3), "N022", PEAKS),
    # Pictures
    Row("multi_scale", False, sizes([64]), "S063-N026", MANY),
    Row("multi_scale", "off", sizes([64]), "S063-N026", MANY),
    Row("multi_scale", "per-sample", per_picture, "S063-N026", MANY),
    Row("expanded_scales", False, sizes(range(48, 161, 16), range(32, 177, 16)), "S063",
        {**MANY, "model": {"resolution": 96, "num_windows": 1}}),
    Row("square_resize_div_64", False, aspect_kept),
    Row("scale_jitter", False, whole_pictures, "N026", group="pictures"),
    Row("aug_config", {"VerticalFlip": {"p": 1.0}}, upside_down, "S058-S079", group="pictures"),
    # Logs
    Row("tensorboard", True, events, "S041-S083"),
    Row("wandb", True, service("wandb"), "S043-S083-S123", group="services"),
    Row("mlflow", True, service("mlflow"), "S044", group="services"),
    Row("clearml", True, service("clearml"), "N032", group="services"),
    Row("project", "my project", named("project"), "S045", group="services"),
    Row("run", "my run", named("run"), "S045", group="services"),
    Row("train_log_on_step", True, every_step, group="services"),
    Row("compact_train_metrics", False, columns({"train/loss_bbox_0", "train/loss_ce_enc"}, {"train/loss_bbox_aux"}),
        group="logs"),
    Row("compute_train_metrics", True, columns({"train/mAP_50_95", "train/mAR"}, set()), group="logs"),
    Row("log_per_class_metrics", False, columns(set(), {"val/AP/circle"}), "S048", group="logs"),
    Row("progress_bar", True, bar("tqdm"), "S049", group="logs"),
    Row("progress_bar", "rich", bar("rich"), "S049"),
    # Evaluation
    Row("num_sanity_val_steps", 1, sanity, group="checked first"),
    Row("run_test", True, test_row, "S087-S088", {"compute_test_loss": True}),
    Row("compute_test_loss", False, columns(set(), {"test/loss", "test/loss_bbox"}), "S055", {"run_test": True}),
    Row("eval_batch_size", 3, workers("batch_size", 2, 3, 1), "N023", group="logs"),
    Row("eval_interval", 2, evaluated(1, 2), "S047", {**SHORT, "epochs": 3}),
    Row("eval_base_model", False, without_regular, "S010-S084-N023", beside=SAVED),
    Row("compute_val_loss", False, columns(set(), {"val/loss", "val/loss_bbox", "val/class_error"}), "S054"),
    Row("fp16_eval", True, half_precision, "S053"),
    Row("amp_dtype", "bf16", mixed, "S064-N019"),
    # Loading
    Row("num_workers", 1, workers("num_workers", 0, 1), "S050"),
    Row("check_data", False, unchecked),
    Row("cache", "ram", kept_in("/dev/shm")),
    Row("cache", "disk", kept_in("output")),
    Row("persistent_workers", False, workers("persistent_workers", True, False), "S051", {"num_workers": 1}, "workers"),
    Row("prefetch_factor", 3, workers("prefetch_factor", 2, 3), "S051", {"num_workers": 1}, "workers"),
    # Losses
    Row("cls_loss_coef", 3.0, class_weight, group="logs"),
    Row("ia_bce_loss", False, focal, "S057", warns="ia_bce_loss is an option of the model"),
]
# fmt: on


def test_every_option_is_in_a_table() -> None:
    assert {row.option for row in ROWS} | {option for option, *_ in REFUSED} | TESTED == set(FIELDS)


def name_of(row: Row) -> str:
    value = getattr(row.value, "__name__", type(row.value).__name__ if callable(row.value) else row.value)
    return "-".join([*([row.about] if row.about else []), row.option, re.sub(r"[^\w.]+", "_", str(value)).strip("_")])


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_an_option_changes_what_it_says(row: Row, seen: Callable[..., Seen]) -> None:
    together = [one for one in ROWS if row.group and one.group == row.group and one.option != row.option]
    others = {one.option: one.value for one in together}
    warns = {"warns": row.warns} if row.warns else {}
    assert TRAINING.get(row.option, FIELDS[row.option].get_default(call_default_factory=True)) != row.value
    plain, other = seen(**row.beside), seen(**{**row.beside, **others, row.option: row.value}, **warns)
    row.check(plain, other)
    # The check would notice an option without effect.
    with pytest.raises((AssertionError, LookupError, ValueError, FileNotFoundError)):
        row.check(plain, plain)


# Options that need a folder of their own


@covers("dataset_dir", "dataset_file")
def test_S017_S018_S068_S069_the_data_set_and_its_layout(data: Path, seen: Callable[..., Seen], tmp_path: Path) -> None:
    # The folder of a YOLO data set is recognised; its data.yaml stands for the folder.
    yolo = seen(dataset_dir=DATA / "datasets" / "yolo" / "data.yaml", warns="empty or outside")
    assert yolo.class_names != seen().class_names == NAMES
    assert "7 pictures to train on" in yolo.said
    assert "10 pictures to train on" in seen().said
    with pytest.raises(ValueError, match="dataset_dir"):
        TrainConfig()
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "nowhere"))):
        tiny_model().train(dataset_dir=tmp_path / "nowhere", output_dir=tmp_path / "out", **TRAINING)
    # COCO's own layout is asked for by name, and its category ids are the labels.
    tree = tmp_path / "coco"
    (tree / "annotations").mkdir(parents=True)
    for split, name in (("train", "train2017"), ("valid", "val2017")):
        (tree / name).symlink_to(data / split)
        shutil.copy(data / split / "_annotations.coco.json", tree / "annotations" / f"instances_{name}.json")
    coco = see(tmp_path / "out", tree, dataset_file="coco")
    assert coco.class_labels == [1, 2, 3, 4]
    assert seen().class_labels == [0, 1, 2, 3]
    with pytest.raises(FileNotFoundError, match="instances_"):
        tiny_model().train(dataset_dir=data, dataset_file="coco", output_dir=tmp_path / "none", **TRAINING)


@covers("output_dir")
def test_S019_the_output_folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    other = see(tmp_path / "home" / "new" / "folder", data, output_dir="~/new/folder", save=True)
    assert {"checkpoint.pth", "log.txt"} <= other.files
    assert {path.name for path in tmp_path.iterdir()} == {"home"}
    tiny_model().train(dataset_dir=data, epochs=1, **TRAINING)
    assert {path.name for path in (tmp_path / "output").iterdir()} == other.files


@covers("resume")
@pytest.mark.parametrize("how", ["path", True, "last"])
def test_S012_S013_a_run_goes_on(how: Any, data: Path, seen: Callable[..., Seen], tmp_path: Path) -> None:
    before = seen(**SAVED)
    shutil.copytree(before.out, tmp_path, dirs_exist_ok=True)
    resume = tmp_path / "checkpoint.pth" if how == "path" else how
    more = see(tmp_path, data, epochs=2, resume=resume, save=True)
    assert len(more.steps) == 5
    assert [line["epoch"] for line in more.lines] == [0, 1]
    assert more.load()["global_step"] == 10
    assert torch.equal(more.starts[0]["queries"], before.load()["model"]["refpoint_embed.weight"])


@covers("eval_max_dets", "num_select")
@pytest.mark.parametrize(
    ("option", "warns"),
    [pytest.param("eval_max_dets", "", id="S046"), pytest.param("num_select", "option of the model", id="S057")],
)
def test_one_detection_per_picture(option: str, warns: str, known: Path, tmp_path: Path) -> None:
    """The network knows three boxes of one class in every picture: of one detection each, a third is found."""
    for folder, options in (("all", {}), ("one", {option: 1, "warns": warns})):
        found = see(tmp_path / folder, known, **STILL, **options)
        recall = float(found.rows[0]["val/mAR"])
        # The one detection of num_select may be of the hidden class.
        assert recall > 0.95 if folder == "all" else recall < 0.34
        assert option == "num_select" or recall > 0.32
    assert TrainConfig(dataset_dir=".").eval_max_dets == 500


@covers("pin_memory")
def test_S051_page_locked_batches_are_for_cuda(data: Path) -> None:
    train, order, model = read_split(data, "train", "roboflow"), loading.TrainOrder(10, 2, 0), tiny_model().model_config
    for given, on_cuda, pinned in (
        (None, False, False),
        (None, True, True),
        (True, False, True),
        (False, True, False),
    ):
        config = TrainConfig(dataset_dir=data, pin_memory=given, num_workers=0)
        loaders = (
            build_train_loader(config, model, train, order, on_cuda),
            build_eval_loader(config, model, train, on_cuda),
        )
        assert [loader.pin_memory for loader in loaders] == [pinned] * 2


@covers("train", "valid", "test")
def test_splits_are_taken_from_where_they_are_said_to_be(tmp_path: Path, data: Path, seen: Callable[..., Seen]) -> None:
    plain = seen()
    for split in ("train", "valid"):
        shutil.copytree(data / split, tmp_path / "elsewhere" / f"my {split}")
    places = {"train": [tmp_path / "elsewhere" / "my train"], "valid": str(tmp_path / "elsewhere" / "my valid")}
    other = see(tmp_path / "out", data, dataset_dir=None, test=data / "test", run_test=True, **places)
    assert [step.norm for step in plain.steps] == [step.norm for step in other.steps]
    assert "10 pictures to train on, 4 to validate, 2 to test; 4 classes" in other.said
    with pytest.raises(ValueError, match="dataset_dir"):
        TrainConfig()


@covers("on_bad_image")
def test_a_picture_that_cannot_be_decoded(tmp_path: Path) -> None:
    data = draw_dataset(tmp_path / "data", {"train": 200, "valid": 4}, hw=(64, 80), max_objects=3)
    bad = sorted((data / "train").glob("*.jpg"))[7]
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    options = {"batch_size": 100, "min_steps": 2}
    found = see(tmp_path / "skip", data, **options)
    assert bad.name in (tmp_path / "skip" / "bad_pictures.txt").read_text()
    assert f"1 pictures could not be decoded and were left out; they are listed in {tmp_path}" in found.said
    with pytest.raises(ValueError, match=rf"picture .*{bad.name} cannot be decoded"):
        see(tmp_path / "error", data, on_bad_image="error", **options)


# Devices and processes, asked at the functions that decide


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with four GPUs; the list fills with those that are chosen."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@covers("device", "accelerator", "devices")
@pytest.mark.parametrize(
    ("options", "own", "world", "local", "device"),
    [
        pytest.param({}, "cpu", 1, 0, "cpu", id="the-models"),
        pytest.param({"device": "cuda:2"}, "cpu", 1, 0, "cuda:2", id="S117-device"),
        pytest.param({"device": torch.device("cuda", 1)}, "cpu", 1, 0, "cuda:1", id="S117-device-object"),
        pytest.param({"device": "cpu"}, "cuda:0", 1, 0, "cpu", id="S117-device-cpu"),
        pytest.param({"accelerator": "gpu"}, "cpu", 1, 0, "cuda:0", id="S052-gpu"),
        pytest.param({"accelerator": "cuda"}, "cpu", 1, 0, "cuda:0", id="S052-cuda"),
        pytest.param({"accelerator": "cpu"}, "cuda:0", 1, 0, "cpu", id="S052-cpu"),
        pytest.param({"accelerator": "auto"}, "cuda:3", 1, 0, "cuda:3", id="S052-auto"),
        pytest.param({"accelerator": "gpu", "device": "cpu"}, "cuda:3", 1, 0, "cpu", id="device-wins"),
        pytest.param({"device": "cuda"}, "cpu", 3, 2, "cuda:2", id="N025-each-process-its-own"),
        pytest.param({"device": "cuda", "devices": [3, 1]}, "cpu", 2, 1, "cuda:1", id="N025-devices-list"),
        pytest.param({"device": "cuda", "devices": [2]}, "cpu", 1, 0, "cuda:2", id="N025-devices-list-of-one"),
    ],
)
def test_the_device_of_a_run(
    options: dict[str, Any], own: str, world: int, local: int, device: str, four_gpus: list[torch.device]
) -> None:
    config = TrainConfig(dataset_dir=".", **options)
    assert _device_of(config, torch.device(own), world, local) == torch.device(device)
    assert four_gpus == ([torch.device(device)] if world > 1 else [])


def test_N025_a_process_without_a_gpu_is_an_error(four_gpus: list[torch.device]) -> None:
    for devices, world, local in ((1, 8, 4), (5, 5, 0), ([0, 7], 2, 0), ([1], 2, 1)):
        config = TrainConfig(dataset_dir=".", device="cuda", devices=devices)
        with pytest.raises(ValueError, match=re.escape(f"devices={devices}: this machine has 4 GPUs")):
            _device_of(config, torch.device("cpu"), world, local)
    with pytest.raises(ValueError, match="device='cuda:9' does not exist here; there are auto, cuda:0, "):
        _device_of(TrainConfig(dataset_dir=".", device="cuda:9"), torch.device("cpu"), 1, 0)


@pytest.mark.parametrize(("given", "count"), [(1, 1), (3, 3), ("auto", 4), (-1, 4), ("-1", 4), ([0, 2], 2), ([5], 1)])
def test_N025_how_many_processes_devices_asks_for(
    given: Any, count: int, four_gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(dataset_dir=".", devices=given)
    assert launch.wanted_processes(config) == count
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert launch.wanted_processes(config) == (1 if given in ("auto", -1, "-1") else count)


LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")


@pytest.mark.parametrize(
    ("env", "processes"),
    [
        pytest.param({}, ALONE, id="nobody"),
        pytest.param({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, ALONE, id="torchrun-of-one"),
        pytest.param({"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"}, Processes(5, 8, 1), id="S066-torchrun"),
        pytest.param({"WORLD_SIZE": "2", "RANK": "1"}, Processes(1, 2, 1), id="without-local-rank"),
        pytest.param(
            {
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_PROCID": "3",
                "SLURM_LOCALID": "1",
                "MASTER_ADDR": "node0",
            },
            Processes(3, 4, 1),
            id="N025-srun",
        ),
        pytest.param({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, ALONE, id="srun-of-one"),
        pytest.param({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "MASTER_ADDR": "node0"}, ALONE, id="batch-script"),
    ],
)
def test_who_started_this_process(env: dict[str, str], processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**{k: v for k, v in os.environ.items() if k not in LAUNCHER}, **env})
    assert launched() == processes


@covers("num_nodes")
def test_N025_several_machines_need_a_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = TrainConfig(dataset_dir=tmp_path, devices=4, num_nodes=2)
    command = r"num_nodes=2 needs a launcher.*torchrun --nnodes=2 --nproc_per_node=4 .*HOST:PORT script.py"
    with pytest.raises(ValueError, match=command), launch.helpers(SimpleNamespace(), config, {}):
        pass
    # A launcher has started the eight that were asked for, or another number of them.
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with launch.helpers(SimpleNamespace(), config, {}) as processes:
        assert processes == Processes(5, 8, 1)
    monkeypatch.setenv("WORLD_SIZE", "6")
    with (
        pytest.warns(UserWarning, match="devices=4, num_nodes=2 are not used: 6 processes were started"),
        launch.helpers(SimpleNamespace(), config, {}) as processes,
    ):
        assert processes.world == 6


@covers("strategy")
@pytest.mark.parametrize(
    ("given", "world", "splits"),
    [("auto", 2, False), ("ddp", 2, False), ("ddp_find_unused_parameters_true", 2, False), ("fsdp", 2, True),
     ("FSDP2", 2, True), ("fsdp", 1, False)],
)  # fmt: skip
def test_N025_the_strategy_decides_whether_the_model_is_split(
    given: str, world: int, splits: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are trained by two processes in test_processes."""
    got: list[Runtime] = []

    def build(model: Any, module: Any, config: Any, job: Any, runtime: Runtime, callbacks: Any) -> None:
        got.append(runtime)
        raise InterruptedError

    monkeypatch.setattr(run, "build_run", build)
    config = TrainConfig(dataset_dir=data, strategy=given)
    with pytest.raises(InterruptedError):
        run.run(tiny_model().model, config, SimpleNamespace(seed=1), {}, Processes(0, world))
    assert got[0].splits_model == splits


@covers("sync_bn")
@pytest.mark.parametrize(
    ("wanted", "world", "kind"), [(True, 2, "SyncBatchNorm"), (False, 2, "BatchNorm1d"), (True, 1, "BatchNorm1d")]
)
def test_N025_batch_norms_are_synchronised_between_processes(
    wanted: bool, world: int, kind: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No size has a batch norm; a network that was given one keeps it, or gets one over all processes."""
    monkeypatch.setattr(Runtime, "over_processes", lambda self, module, layers=(): module)
    monkeypatch.setattr(Processes, "share_weights", lambda self, module: None)
    model = tiny_model().model
    model.model.extra = torch.nn.BatchNorm1d(3, affine=False)
    config = TrainConfig(dataset_dir=data, sync_bn=wanted)
    runtime = Runtime(torch.device("cpu"), None, Processes(0, world))
    parts, _ = _build_parts(model, model.model, config, SimpleNamespace(checkpoint=None), runtime, 5)
    assert type(parts.trained.extra).__name__ == kind


@pytest.mark.parametrize(
    ("wanted", "device", "capability", "kind"),
    [
        ("auto", "cpu", None, None),
        ("auto", "cuda", (8, 0), torch.bfloat16),
        ("auto", "cuda", (7, 5), torch.float16),
        ("auto", "mps", None, torch.float16),
        ("bf16", "cuda", (7, 5), torch.bfloat16),
        ("fp16", "cuda", (9, 0), torch.float16),
        (None, "cuda", (9, 0), None),
    ],
)
def test_S064_N019_the_type_of_mixed_precision(
    wanted: str | None, device: str, capability: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert mixed_precision(wanted, torch.device(device)) is kind


# The batch size "auto"

RECORDED = read_json("training/auto_batch")["rows"]


def limited(largest: int, tried: list[Any]) -> Callable[..., bool]:
    """Memory for so many pictures."""

    def fits(*about: Any) -> bool:
        tried.append(about)
        # The pictures come after network, criterion and runtime, or alone.
        return (about[3] if len(about) > 1 else about[0]) <= largest

    return fits


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: f"{row['largest_size_that_fits']}")
def test_S024_the_search_equals_the_recorded_one(row: dict[str, Any]) -> None:
    tried: list[tuple[int]] = []
    found = auto_batch.find_largest(limited(row["largest_size_that_fits"], tried))
    assert found == min(row["largest_size_that_fits"], 128)
    assert [size for (size,) in tried] == row["probes"]
    assert auto_batch.safe_size(found) == row["safe_micro_batch"]
    assert auto_batch.safe_size(found, 0.7) == row["safe_with_ema_headroom_0_7"]


@covers("auto_batch_target_effective", "auto_batch_ema_headroom", "auto_batch_max_targets_per_image")
@pytest.mark.parametrize("row", RECORDED, ids=lambda row: f"{row['largest_size_that_fits']}")
def test_S024_S056_the_batch_size_that_is_chosen(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().model_config

    def chosen(**options: Any) -> tuple[Any, ...]:
        tried: list[tuple] = []
        monkeypatch.setattr(auto_batch, "_fits", limited(row["largest_size_that_fits"], tried))
        config = TrainConfig(dataset_dir=".", batch_size="auto", **options)
        found = auto_batch.choose_batch_size(config, model, torch.nn.Identity(), Runtime(torch.device("cpu")))
        assert [about[3] for about in tried] == row["probes"]
        # Nothing else changes, and the given options stay as they are.
        assert config.batch_size == "auto"
        others = found.model_dump(exclude={"batch_size", "grad_accum_steps"})
        assert others == config.model_dump(exclude={"batch_size", "grad_accum_steps"})
        ((side, crowd),) = {about[4:] for about in tried}
        return found.batch_size, found.grad_accum_steps, side, crowd

    with_ema, without = row["safe_with_ema_headroom_0_7"], row["safe_micro_batch"]
    assert chosen() == (with_ema, row["grad_accum_for_target_16"], 224, 100)
    assert chosen(use_ema=False)[:2] == (without, row["grad_accum_without_ema"])
    assert chosen(auto_batch_ema_headroom=1.0)[:2] == (without, row["grad_accum_without_ema"])
    assert chosen(auto_batch_target_effective=64)[:2] == (with_ema, math.ceil(64 / with_ema))
    assert chosen(auto_batch_max_targets_per_image=7, multi_scale=False)[2:] == (64, 7)
    assert chosen(expanded_scales=False)[2] == 192


def test_S024_not_even_one_picture_fits() -> None:
    with pytest.raises(RuntimeError, match=r"not even one picture fits; .*resolution, gradient_checkpointing=True"):
        auto_batch.find_largest(lambda size: False)
    # What the first trial leaves behind can be too much for the second.
    left = iter([True, False])
    with pytest.raises(RuntimeError, match="not even one picture fits"):
        auto_batch.find_largest(lambda size: next(left))


def test_S024_a_trial_step_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    module, config = tiny_model().model.model.eval(), tiny_model().model_config
    criterion, runtime = Criterion(loss_weights(config.dec_layers), config.group_detr), Runtime(torch.device("cpu"))
    counts: list[list[int]] = []
    criterion.register_forward_pre_hook(lambda _, inputs: counts.append([len(t["labels"]) for t in inputs[1]]))
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    generator = torch.get_rng_state()
    assert auto_batch._fits(module, criterion, runtime, 3, 96, 7)
    assert counts == [[7, 7, 7]]
    assert torch.equal(torch.get_rng_state(), generator)
    assert not module.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    for error, outcome in (
        (torch.OutOfMemoryError("full"), False),
        (MemoryError(), False),
        (ValueError("other"), None),
    ):

        def fail(*_: Any, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(auto_batch, "worst_step", fail)
        if outcome is None:
            with pytest.raises(ValueError, match="other"):
                auto_batch._fits(module, criterion, runtime, 3, 96, 7)
        else:
            assert auto_batch._fits(module, criterion, runtime, 3, 96, 7) is outcome


@pytest.mark.parametrize(("pictures", "largest", "pieces"), [(6, 6, 1), (6, 3, 2), (6, 2, 4), (6, 1, 6), (1, 1, 1)])
def test_the_rehearsal_of_the_largest_step_cuts_it_until_it_fits(
    pictures: int, largest: int, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_batch, "_fits", limited(largest, []))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    runtime = Runtime(torch.device("cuda"))
    assert auto_batch.rehearse(None, None, runtime, pictures, 64, 3) == 7
    assert runtime.pieces == pieces
    monkeypatch.setattr(auto_batch, "_fits", limited(0, []))
    with pytest.raises(RuntimeError, match="a single picture does not fit into memory; use a lower resolution"):
        auto_batch.rehearse(None, None, runtime, pictures, 64, 3)
    assert auto_batch.rehearse(None, None, Runtime(torch.device("cpu")), pictures, 64, 3) is None


# Formulas of whole runs


@pytest.mark.parametrize(
    "case", read_json("training/drop_schedule")["cases"], ids=lambda c: f"{c['mode']}-{c['schedule']}"
)
def test_S037_the_schedule_of_drop_path_equals_the_recorded_one(case: dict[str, Any]) -> None:
    expected = read_tensors("training/drop_schedule")[f"schedule/{case['index']}"]
    settings = (case["mode"], case["schedule"], case["cutoff_epoch"])
    rates = drop_path_rates(case["drop_rate"], case["epochs"], case["steps_per_epoch"], *settings)
    assert_close(rates, expected, "rates", rtol=1e-6)


def test_S031_the_cosine_does_not_rise_again_after_its_end() -> None:
    factor = lr_factor("cosine", 5, 2, floor=0.25)
    assert [factor(step) for step in (10, 11, 15)] == [0.25] * 3


# What is refused

REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    # option, options of train(), fields of the model, what the error says
    ("batch_size", {"batch_size": "auto"}, {}, "batch_size='auto' measures GPU memory, but the device is cpu"),
    ("device", {"device": "cuda:1"}, {}, "there is no CUDA device here; leave out device='cuda:1'"),
    ("device", {"device": "tpu"}, {}, "device='tpu' does not exist here; there are auto, "),
    ("accelerator", {"accelerator": "gpu"}, {}, "there is no CUDA device here; .*accelerator"),
    ("accelerator", {"accelerator": "mps"}, {}, "device='mps' does not exist here"),
    ("accelerator", {"accelerator": "tpu"}, {}, "accelerator='tpu': Input should be 'auto', 'gpu'"),
    ("num_nodes", {"num_nodes": 2}, {}, "num_nodes=2 needs a launcher"),
    ("strategy", {"strategy": "fsdp"}, {"backbone_lora": True}, "backbone_lora .* use strategy='ddp'"),
    ("strategy", {"strategy": "deepspeed"}, {}, "strategy='deepspeed'"),
    ("devices", {"devices": 0}, {}, "devices=0: must be a number of processes, 'auto', or a list of GPU numbers"),
    ("devices", {"devices": []}, {}, "devices=\\[\\]: must be"),
    ("devices", {"devices": True}, {}, "devices=True: must be"),
    ("class_names", {"class_names": list("abcde")}, {}, "class_names has 5 names for the 4 classes"),
    ("resume", {"resume": "nowhere.pth"}, {}, "nowhere.pth: there is no such file"),
    ("lr_scheduler", {"lr_scheduler": "CosineAnnealing"}, {}, "lr_scheduler='Cos.* \\(near: .*CosineAnnealingLR"),
    ("lr_scheduler", {"lr_scheduler": "my.Schedule"}, {}, "lr_scheduler='my.Schedule'.* cannot be imported"),
    ("lr_scheduler_kwargs", {"lr_scheduler_kwargs": {"gamma": 2}}, {}, "\\['gamma'\\]; with step it takes min_factor"),
    ("warmup_epochs", {"warmup_epochs": 1, "lr_scheduler": "StepLR"}, {}, "warmup_epochs works with step and cosine"),
    (
        "compute_val_loss",
        {"compute_val_loss": False, "lr_scheduler": "ReduceLROnPlateau"},
        {},
        "compute_val_loss=False leaves nothing for lr_scheduler_monitor='val/loss'",
    ),
    ("optimizer", {"optimizer": "adamx"}, {}, "optimizer='adamx'.* \\(near: .*Adam"),
    ("optimizer_kwargs", {"optimizer_kwargs": {"lr": 1}}, {}, "optimizer_kwargs: lr are options of their own"),
    ("optimizer_kwargs", {"optimizer_kwargs": {"weight_decay": 1, "params": 2}}, {}, "params, weight_decay are"),
    ("aug_config", {"aug_config": {"HorizontalFlop": {}}}, {}, "aug_config=.*HorizontalFlip"),
    ("progress_bar", {"progress_bar": "alive"}, {}, "progress_bar='alive'"),
    ("multi_scale", {"multi_scale": "often"}, {}, "multi_scale.*'often'"),
    ("notes", {"notes": object()}, {}, "TrainConfig.notes is a object, which a checkpoint cannot hold"),
    ("group_detr", {"group_detr": 3}, {}, "train\\(group_detr=3\\) contradicts the model's group_detr=2"),
    (
        "segmentation_head",
        {"segmentation_head": True},
        {},
        "train\\(segmentation_head=True\\) contradicts the model's segmentation_head=False",
    ),
    (
        "eval_masks_head_resolution",
        {"eval_masks_head_resolution": True},
        {},
        "eval_masks_head_resolution: the model does not predict that",
    ),
    ("keypoint_flip_pairs", {"keypoint_flip_pairs": [0, 1]}, {}, "keypoint_flip_pairs: the model does not"),
    ("keypoint_flip_pairs", {"keypoint_flip_pairs": [0, 1, 2]}, {}, "keypoint_flip_pairs=.* an even number of them"),
    ("keypoint_flip_pairs", {"keypoint_flip_pairs": [-1, 1]}, {}, "keypoint_flip_pairs="),
    ("keypoint_oks_sigmas", {"keypoint_oks_sigmas": [0.1]}, {}, "keypoint_oks_sigmas: the model does not predict that"),
    *(
        (f"keypoint_{part}_loss_coef", {f"keypoint_{part}_loss_coef": 1.0}, {}, f"keypoint_{part}_loss_coef: the model")
        for part in ("l1", "findable", "visible", "nll")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("option", "options", "model", "message"), REFUSED)
@pytest.mark.filterwarnings("ignore:group_detr is an option of the model:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:segmentation_head is an option of the model:DeprecationWarning")
def test_what_cannot_be_is_said_before_time_is_spent(
    option: str, options: dict[str, Any], model: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message) as error:
        tiny_model(**model).train(**{"dataset_dir": data, "output_dir": tmp_path / "out", **TRAINING, **options})
    assert option in str(error.value) or options.get(option) in ("nowhere.pth", "mps")
    assert not (tmp_path / "out").exists()


def test_N018_a_metric_that_is_not_measured_is_an_error_that_lists_those_there_are(data: Path, tmp_path: Path) -> None:
    options = {**PLATEAU, "epochs": 1, "lr_scheduler_monitor": "val/mAP"}
    with pytest.raises(ValueError, match=r"lr_scheduler_monitor='val/mAP' is not measured; there are .*val/mAP_50_95"):
        see(tmp_path, data, **options)


def limits(info: Any) -> Iterator[Any]:
    """Bounds of an option, and of the parts of its type."""
    yield from info.metadata
    for part in typing.get_args(info.annotation):
        for one in getattr(part, "__metadata__", ()):
            yield from getattr(one, "metadata", [one])


def bounds() -> Iterator[tuple[str, Any]]:
    """For every bound of every option, a value beyond it."""
    for name, info in FIELDS.items():
        step = 1 if "int" in str(info.annotation) else 1e-3
        for bound in limits(info):
            match bound:
                case annotated_types.Ge(ge=low):
                    yield name, low - step
                case annotated_types.Gt(gt=low):
                    yield name, low
                case annotated_types.Le(le=high):
                    yield name, high + step
                case annotated_types.Lt(lt=high):
                    yield name, high


@pytest.mark.filterwarnings("ignore:.* is an option of the model:DeprecationWarning")
@pytest.mark.parametrize(("option", "value"), [pytest.param(*pair, id=f"{pair[0]}-{pair[1]}") for pair in bounds()])
def test_a_value_beyond_its_bound_is_an_error_that_names_the_option(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"TrainConfig: {option}\b.*={value}: Input should be (greater|less) than"):
        TrainConfig(dataset_dir=".", **{option: value})


def test_every_number_has_a_bound() -> None:
    numbers = {name for name, info in FIELDS.items() if re.search(r"\b(int|float)\b", str(info.annotation))}
    # What these take is checked by functions, see the table above.
    assert numbers - {name for name, _ in bounds()} == {"devices", "keypoint_flip_pairs", "keypoint_oks_sigmas"}


@pytest.mark.parametrize("option", FIELDS)
def test_a_misspelled_option_is_refused_with_the_right_name(option: str) -> None:
    wrong = option + option[-1]
    with pytest.raises(ValueError, match=rf"has no option '{wrong}' \(did you mean '{option}'\?\)\. The options are: "):
        TrainConfig(dataset_dir=".", **{wrong: 1})


# Older spellings

WITHOUT_EFFECT = {
    "eval_backend": "vernier",
    "augmentation_backend": "albumentations",
    "pack_targets": True,
    "pad_targets_to": 8,
    "train_log_sync_dist": True,
    "do_random_resize_via_padding": False,
}
SPELLED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # given, meant
    ({"eval_ema_only": True}, {"eval_base_model": False}),
    ({"eval_ema_only": False}, {}),
    ({"lr_scheduler_kwargs": {"min_factor": 0.5}}, {"lr_min_factor": 0.5}),
    ({"lr_scheduler_kwargs": {"lr_drop": 7}}, {"lr_drop": 7}),
    (
        {"lr_scheduler_kwargs": {"min_factor": 0.5}, "lr_scheduler": "cosine"},
        {"lr_min_factor": 0.5, "lr_scheduler": "cosine"},
    ),
    ({"group_detr": 2}, {"group_detr": 2}),
    ({"segmentation_head": False}, {"segmentation_head": False}),
    ({"ia_bce_loss": True}, {"ia_bce_loss": True}),
    ({"num_select": 20}, {"num_select": 20}),
    *(({name: value}, {}) for name, value in WITHOUT_EFFECT.items()),
]  # fmt: skip


def test_every_retired_option_is_in_a_table() -> None:
    assert set(TrainConfig.retired) == {*WITHOUT_EFFECT, "eval_ema_only"}
    assert not set(TrainConfig.retired) & set(FIELDS)


@pytest.mark.parametrize(("given", "meant"), SPELLED, ids=lambda part: "-".join(part) or "nothing")
def test_S057_an_older_spelling_gives_one_warning_and_works(given: dict[str, Any], meant: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = TrainConfig(dataset_dir=".", **given)
    assert [one.category for one in caught] == [DeprecationWarning]
    assert next(iter(given)) in str(caught[0].message)
    usual = TrainConfig(dataset_dir=".").model_dump()
    assert config.model_dump() == {**usual, **meant}


def test_older_spellings_train_and_the_warning_is_shown_where_they_are_written(data: Path, tmp_path: Path) -> None:
    older = {**WITHOUT_EFFECT, "eval_ema_only": True, "group_detr": 2, "segmentation_head": False, "do_benchmark": True}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_model().train(dataset_dir=data, output_dir=tmp_path, epochs=1, **TRAINING, **older)
    told = [one for one in caught if one.category is DeprecationWarning]
    assert len(told) == len(caught) == len(older)
    assert {one.filename for one in told} == {__file__}
    assert not (tmp_path / "checkpoint_best_regular.pth").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eval_ema_only": True, "use_ema": False}, "eval_ema_only=True needs use_ema"),
        ({"eval_ema_only": True, "eval_base_model": True}, "contradicts eval_base_model=True"),
        ({"augmentation_backend": "dali"}, "augmentation_backend='dali' must be one of cpu, auto, "),
    ],
)
def test_an_older_spelling_that_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(dataset_dir=".", **given)


def test_options_of_the_model_that_train_takes_too(data: Path, tmp_path: Path) -> None:
    """S034 resolution, S118 gradient_checkpointing; callbacks as a dict or as objects (S080, S093)."""
    told: list[Any] = []

    class Listener:
        def on_train_batch_start(self, info: dict[str, Any]) -> None:
            told.append((info["step"], info["model"].encoder.checkpointing))

        def on_fit_epoch_end(self, stats: dict[str, Any]) -> None:
            told.append(stats["epoch"])

        def on_train_end(self) -> None:
            told.append("end")

    options = {"resolution": 96, "gradient_checkpointing": True, "callbacks": Listener()}
    seen = see(tmp_path, data, **options)
    assert {one.shape[-2:] for one in seen.passes} == {(96, 96)}
    record = json.loads((tmp_path / "training_config.json").read_text())["model_config"]
    assert (record["resolution"], record["gradient_checkpointing"]) == (96, True)
    assert told == [*((step, True) for step in range(5)), 0, "end"]


def test_a_run_by_default(seen: Callable[..., Seen]) -> None:
    """What every row compares with: S007 S009 S010 S011 S065 S081 S082 S084 S085 S086 S087 N027."""
    plain = seen(**SAVED)
    assert plain.files == {
        "checkpoint.pth",
        "checkpoint_best_regular.pth",
        "checkpoint_best_ema.pth",
        "checkpoint_best_total.pth",
        "dataset_check.json",
        "log.txt",
        "metrics.csv",
        "metrics_plot.png",
        "results.json",
        "training_config.json",
    }
    names = {"mAP_50_95", "mAP_50", "mAP_75", "mAR", "ema_mAP_50_95", "ema_mAP_50", "F1", "precision", "recall"}
    assert {f"val/{name}" for name in names} <= plain.columns
    record = json.loads((plain.out / "training_config.json").read_text())
    assert set(record["train_config"]) == set(FIELDS)
    assert set(record["model_config"]) == set(ModelConfig.model_fields)
    assert set(FIELDS) <= plain.load()["args"].keys()
    results = json.loads((plain.out / "results.json").read_text())
    assert {"map@50:95", "precision", "recall", "f1_score"} <= results["class_map"]["valid"][-1].keys()
