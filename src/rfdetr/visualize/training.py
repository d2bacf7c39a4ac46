"""The curves of a run, drawn from its metrics.csv."""

from __future__ import annotations

import csv
from pathlib import Path

from rfdetr.training.loggers import plot_history


def plot_metrics(metrics_csv: str | Path, output_path: str | Path | None = None) -> Path:
    """Draw losses, AP and AR over the epochs; returns the path of the picture.

    Args:
        metrics_csv: the file that a run has written, or its folder.
        output_path: a `.png`; default `metrics_plot.png` beside the file.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is none of a run.
    """
    path = Path(metrics_csv).expanduser()
    path = path / "metrics.csv" if path.is_dir() else path
    target = Path(output_path).expanduser() if output_path else path.with_name("metrics_plot.png")
    with path.open(encoding="utf-8", newline="") as handle:
        rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(handle)]
    if not rows or "epoch" not in rows[0]:
        raise ValueError(f"{path} has no column epoch, or no row: it is no metrics.csv of a run")
    plot_history([{**row, "epoch": int(row["epoch"])} for row in rows], target)
    return target
