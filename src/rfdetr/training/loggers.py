"""Where the numbers of a run go: log.txt, metrics.csv, a plot, and the services the user asked for."""

from __future__ import annotations

import csv
import json
import math
import warnings
from pathlib import Path
from typing import Any, Protocol

from rfdetr.checkpoints.save import replacing
from rfdetr.config import TrainConfig
from rfdetr.extras import require


class Sink(Protocol):
    """Takes the numbers of every epoch."""

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Take the metrics of an epoch."""

    def close(self) -> None:
        """Write what is left."""


class TextLog:
    """`log.txt`, one JSON object per epoch, and `metrics.csv`, one row per epoch."""

    def __init__(self, folder: Path, go_on: bool) -> None:
        self.log_file, self.csv_file = folder / "log.txt", folder / "metrics.csv"
        self._rows = self._read_rows() if go_on else []

    def _read_rows(self) -> list[dict[str, Any]]:
        if not self.csv_file.is_file():
            return []
        with self.csv_file.open(encoding="utf-8", newline="") as handle:
            return list(csv.DictReader(handle))

    def write_stats(self, stats: dict[str, Any]) -> None:
        """Add the line of an epoch."""
        with self.log_file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(finite(stats), ensure_ascii=False) + "\n")

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Add the row of an epoch; the file is written anew because later rows may bring new columns."""
        self._rows.append({"epoch": epoch, **metrics})
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        with replacing(self.csv_file, "w") as handle:
            writer = csv.DictWriter(handle, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)

    def close(self) -> None:
        """Nothing is left: every epoch was written at once."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of `metrics.csv`, those of the run before a break too."""
        return self._rows


class TensorBoard:
    """Event files in the output folder."""

    def __init__(self, folder: Path) -> None:
        self._writer = require("torch.utils.tensorboard").SummaryWriter(str(folder))

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self._run = require("wandb").init(
            project=config.project, name=config.run, dir=str(folder), config=config.model_dump()
        )

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=epoch)

    def close(self) -> None:
        self._run.finish()


def open_sinks(folder: Path, config: TrainConfig) -> list[Sink]:
    """The services of a run.

    Raises:
        ImportError: W&B was asked for and is not installed.
    """
    sinks: list[Sink] = []
    if config.tensorboard:
        try:
            sinks.append(TensorBoard(folder))
        except ImportError:
            warnings.warn(
                'TensorBoard is not installed, so no events are written: pip install "rfdetr[loggers]", '
                "or train(tensorboard=False)",
                stacklevel=2,
            )
    if config.wandb:
        sinks.append(WeightsAndBiases(folder, config))
    return sinks


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


def plot_history(history: list[dict[str, Any]], path: Path) -> None:
    """Draw losses, AP and AR over the epochs."""
    figures = require("matplotlib.figure")
    figure = figures.Figure(figsize=(11, 8), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for column, label in curves:
            points = [
                (int(row["epoch"]) + 1, float(row[column])) for row in history if row.get(column) not in (None, "")
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=label)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with replacing(path) as handle:
        figure.savefig(handle, format="png", dpi=120)
