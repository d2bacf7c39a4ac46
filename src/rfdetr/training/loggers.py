"""Where the numbers of a run go: log.txt, metrics.csv, a plot, and the services the user asked for."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rfdetr.checkpoints.replacing import replacing
from rfdetr.config import TrainConfig
from rfdetr.extras import require


class Sink(Protocol):
    """Takes the numbers of a run."""

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Take the metrics of an epoch; those of the test come with the number of the last epoch."""

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        """Take values of one optimiser step, such as `train/loss_step`."""

    def close(self) -> None:
        """Write what is left."""


class TextLog:
    """`metrics.csv`, one row per epoch, and `log.txt`, one JSON object per epoch.

    What they hold is held here too and both are written anew every time: a resumed run starts from the rows and
    lines of its checkpoint, so that no epoch stands in a file twice.

    Args:
        history: the rows so far.
        lines: the lines so far, without line ends.
    """

    def __init__(self, folder: Path, history: Sequence[dict[str, Any]] = (), lines: Sequence[str] = ()) -> None:
        self.history = [dict(row) for row in history]
        self.lines = list(lines)
        self._csv_file, self._log_file = folder / "metrics.csv", folder / "log.txt"
        if self.history or self.lines:
            self._write_rows()
            self._write_lines()

    def write_stats(self, stats: dict[str, Any]) -> None:
        """Add the line of an epoch to `log.txt`."""
        self.lines.append(json.dumps(finite(stats), ensure_ascii=False))
        self._write_lines()

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Add the row of an epoch to `metrics.csv`."""
        # Plain numbers, which a checkpoint can hold and which read the same in every file written from it.
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
        self.history.append({"epoch": epoch, **numbers})
        self._write_rows()

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing: the files hold epochs."""

    def close(self) -> None:
        """Nothing is left: every epoch was written at once."""

    def _write_rows(self) -> None:
        columns = list(dict.fromkeys(name for row in self.history for name in row))
        with replacing(self._csv_file, "w") as handle:
            writer = csv.DictWriter(handle, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.history)

    def _write_lines(self) -> None:
        with replacing(self._log_file, "w") as handle:
            handle.writelines(f"{line}\n" for line in self.lines)


class TensorBoard:
    """Event files in the output folder; values per step are a TensorBoard run of their own, `train_steps`.

    What an interrupted run logged from `first_epoch` on is hidden. That counts in the unit of the writer, which is
    why epochs and steps need one each.
    """

    def __init__(self, folder: Path, first_epoch: int) -> None:
        self._folder = folder
        self._open = require("torch.utils.tensorboard").SummaryWriter
        self._epochs = self._open(str(folder), purge_step=first_epoch)
        self._steps = None

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._epochs.add_scalar(name, value, epoch)
        self._epochs.flush()

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        if self._steps is None:
            self._steps = self._open(str(self._folder / "train_steps"), purge_step=step)
        for name, value in metrics.items():
            self._steps.add_scalar(name, value, step)

    def close(self) -> None:
        self._epochs.close()
        if self._steps is not None:
            self._steps.close()


class WeightsAndBiases:
    """A run at Weights & Biases.

    Epoch and step are logged as values and declared the axes of the others: the service's own step may never go
    back or stand still, or values are dropped.
    """

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        settings = config.record()
        self._run = require("wandb").init(
            project=config.project, name=config.run, dir=str(folder), config=finite(settings)
        )
        self._run.define_metric("*", step_metric="epoch")
        self._per_step: set[str] = set()

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        self._run.log({**metrics, "epoch": epoch})

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        for name in metrics.keys() - self._per_step:
            self._run.define_metric(name, step_metric="step_index")
            self._per_step.add(name)
        self._run.log({**metrics, "step_index": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run at the MLflow server that the user's script or environment names, else in `mlruns` of the output folder."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self._entities = require("mlflow.entities")
        chosen = require("mlflow.tracking").is_tracking_uri_set()
        with _file_store_allowed():
            self._client = require("mlflow").MlflowClient(None if chosen else (folder / "mlruns").absolute().as_uri())
        project = config.project or "rfdetr"
        experiment = self._client.get_experiment_by_name(project)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(project)
        self._run_id = self._client.create_run(experiment_id, run_name=config.run).info.run_id
        # Every release and server takes texts of 500 characters, and 100 parameters or 1000 values at once.
        settings = config.record().items()
        params = [self._entities.Param(name, str(value)[:500]) for name, value in settings]
        for start in range(0, len(params), 100):
            self._client.log_batch(self._run_id, params=params[start : start + 100])

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        values = [self._entities.Metric(mlflow_name(name), value, now, epoch) for name, value in metrics.items()]
        for start in range(0, len(values), 1000):
            self._client.log_batch(self._run_id, metrics=values[start : start + 1000])

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        self.log(step, metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


@contextmanager
def _file_store_allowed() -> Iterator[None]:
    """MLflow 3 opens a folder only if this variable allows it; it is read when the client is made."""
    if "MLFLOW_ALLOW_FILE_STORE" in os.environ:
        yield
        return
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    try:
        yield
    finally:
        del os.environ["MLFLOW_ALLOW_FILE_STORE"]


def mlflow_name(name: str) -> str:
    """The name with "_" for what MLflow refuses, also inside class names: `val/AP/a/b (c)` -> `val/AP/a_b _c_`.

    Names are files there: at most two folders deep, so that no class is the folder of another one.
    """
    parts = [re.sub(r"[^\w. -]", "_", part) for part in name.split("/", 2)]
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)[:250]


class ClearML:
    """A task at ClearML: the one that the user's script has opened, else a new one."""

    def __init__(self, config: TrainConfig) -> None:
        tasks = require("clearml").Task
        self._task, self._own = tasks.current_task(), False
        if self._task is None:
            # Its hooks would send our TensorBoard events a second time, and every checkpoint.
            self._task = tasks.init(
                project_name=config.project or "rfdetr",
                task_name=config.run,
                reuse_last_task_id=False,
                auto_connect_arg_parser=False,
                auto_connect_frameworks=False,
            )
            self._own = True
        self._task.connect(finite(config.record()), name="train_config")

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        logger = self._task.get_logger()
        for name, value in metrics.items():
            split, _, rest = name.partition("/")
            # It would draw a zero for a value that is not a number.
            if math.isfinite(value):
                logger.report_scalar(title=rest or name, series=split, value=value, iteration=epoch)

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        self.log(step, metrics)

    def close(self) -> None:
        if self._own:
            self._task.close()


class Guarded:
    """A service that cannot stop a run: its first error becomes a warning, and nothing is sent to it any more."""

    def __init__(self, title: str, sink: Sink) -> None:
        self._title = title
        self._sink: Sink | None = sink

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        self._try(lambda sink: sink.log(epoch, metrics))

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        self._try(lambda sink: sink.log_step(step, metrics))

    def close(self) -> None:
        self._try(lambda sink: sink.close())

    def _try(self, call: Callable[[Sink], None]) -> None:
        if self._sink is None:
            return
        try:
            call(self._sink)
        except Exception as error:  # whatever a service, its server or the network comes up with
            self._sink = None
            warnings.warn(f"{self._title} failed and is off for the rest of the run: {error!r}", stacklevel=4)


def require_services(config: TrainConfig) -> None:
    """Import the packages of the services that were asked for.

    Raises:
        ImportError: one is not installed; the message has the pip command.
    """
    for name in ("wandb", "mlflow", "clearml"):
        if getattr(config, name):
            require(name)


def open_sinks(folder: Path, config: TrainConfig, first_epoch: int = 0) -> list[Sink]:
    """The services of a run; one that cannot be opened is left out with a warning.

    Args:
        first_epoch: what an interrupted run logged from it on is hidden, where a service can do that.

    Raises:
        ImportError: a service other than TensorBoard, which is on by default, is not installed.
    """
    require_services(config)
    services = [
        (config.tensorboard, "TensorBoard", partial(TensorBoard, folder, first_epoch)),
        (config.wandb, "Weights & Biases", partial(WeightsAndBiases, folder, config)),
        (config.mlflow, "MLflow", partial(MLflow, folder, config)),
        (config.clearml, "ClearML", partial(ClearML, config)),
    ]
    opened = [_open(title, build) for wanted, title, build in services if wanted]
    return [sink for sink in opened if sink is not None]


def _open(title: str, build: Callable[[], Sink]) -> Sink | None:
    try:
        return Guarded(title, build())
    except Exception as error:  # as in `Guarded`
        if not isinstance(error, ImportError):
            warnings.warn(f"{title} cannot be opened and is off in this run: {error!r}", stacklevel=4)
        elif title == "TensorBoard":
            warnings.warn(
                f"TensorBoard is not installed or not usable, so no events are written: {error}; "
                "or train(tensorboard=False)",
                stacklevel=4,
            )
        else:
            raise
    return None


def finite(value: Any) -> Any:
    """The same with numbers that JSON cannot hold as None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_PANELS = (
    ("Loss", (("train/loss", "train"), ("val/loss", "validation"))),
    ("AP at IoU 0.50", (("val/mAP_50", "regular"), ("val/ema_mAP_50", "EMA"))),
    ("AP at IoU 0.50:0.95", (("val/mAP_50_95", "regular"), ("val/ema_mAP_50_95", "EMA"))),
    ("AR", (("val/mAR", "regular"), ("val/ema_mAR", "EMA"))),
)


def plot_history(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw losses, AP and AR over the epochs; without matplotlib a warning takes the place of the picture."""
    try:
        figures = require("matplotlib.figure")
    except ImportError as error:
        warnings.warn(f"{path.name} is not drawn: {error}", stacklevel=2)
        return
    figure = figures.Figure(figsize=(11, 8))
    # Fixed spacing: a computed layout draws everything twice.
    spacing = {"left": 0.06, "right": 0.98, "bottom": 0.07, "top": 0.95, "wspace": 0.15, "hspace": 0.28}
    for axes, (title, curves) in zip(figure.subplots(2, 2, gridspec_kw=spacing).flat, _PANELS, strict=True):
        for column, label in curves:
            if points := _points(history, column):
                axes.plot(*zip(*points, strict=True), marker=".", label=label)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with replacing(path) as handle:
        figure.savefig(handle, format="png", dpi=100)


def _points(history: Sequence[dict[str, Any]], column: str) -> list[tuple[int, float]]:
    """(epoch from 1, value) of the rows that have a finite value there."""
    found = [(row["epoch"] + 1, row.get(column)) for row in history]
    return [(epoch, value) for epoch, value in found if value is not None and math.isfinite(value)]
