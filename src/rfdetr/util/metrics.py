"""The sinks that older scripts give a run: `model.callbacks["on_fit_epoch_end"].append(sink.update)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rfdetr.config import TrainConfig
from rfdetr.training.loggers import Sink, TensorBoard, WeightsAndBiases, plot_history


class _MetricsSink:
    """Takes the dict of every epoch, as a line of log.txt has it, and gives its numbers to a service."""

    sink: Sink

    def update(self, values: dict[str, Any]) -> None:
        """Take the numbers of an epoch."""
        self.sink.log(int(values["epoch"]), to_columns(values))

    def close(self) -> None:
        """Write what is left."""
        self.sink.close()


class MetricsTensorBoardSink(_MetricsSink):
    """Writes TensorBoard events."""

    def __init__(self, output_dir: str | Path) -> None:
        self.sink = TensorBoard(Path(output_dir), 0)


class MetricsWandBSink(_MetricsSink):
    """Logs to Weights & Biases."""

    def __init__(self, output_dir: str | Path, project: str | None = None, run: str | None = None) -> None:
        config = TrainConfig(dataset_dir="", output_dir=str(output_dir), project=project, run=run)
        self.sink = WeightsAndBiases(Path(output_dir), config)


class MetricsPlotSink:
    """Draws losses, AP and AR over the epochs to `metrics_plot.png`."""

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self.history: list[dict[str, Any]] = []

    def update(self, values: dict[str, Any]) -> None:
        """Take the numbers of an epoch."""
        self.history.append({"epoch": int(values["epoch"]), **to_columns(values)})

    def save(self) -> None:
        """Write the picture."""
        plot_history(self.history, self.output_dir / "metrics_plot.png")


def to_columns(values: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of log.txt by the names that metrics.csv has for them."""
    columns = {"train/loss": values.get("train_loss"), "val/loss": values.get("test_loss")}
    for kind, prefix in (("test", "val/"), ("ema_test", "val/ema_")):
        boxes = values.get(f"{kind}_coco_eval_bbox")
        if boxes is not None:
            columns |= {f"{prefix}mAP_50_95": boxes[0], f"{prefix}mAP_50": boxes[1], f"{prefix}mAR": boxes[8]}
    return {name: float(value) for name, value in columns.items() if value is not None}
