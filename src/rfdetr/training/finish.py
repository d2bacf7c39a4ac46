"""The end of a run: the better weights, judged on the validation and test splits, and the files that say so."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rfdetr.checkpoints.load import read_checkpoint
from rfdetr.checkpoints.names import to_internal
from rfdetr.config import TrainConfig
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.build import build_eval_loader
from rfdetr.datasets.layout import read_split
from rfdetr.engine import evaluate
from rfdetr.models.criterion import Criterion
from rfdetr.training import state as files
from rfdetr.training.loggers import Sink, TextLog, finite, plot_history
from rfdetr.training.metrics import epoch_metrics
from rfdetr.training.progress import Progress
from rfdetr.training.runtime import Runtime

if TYPE_CHECKING:
    from rfdetr.main import Model
    from rfdetr.training.run import Job, Run


def finish(this: Run, job: Job, text: TextLog, sinks: list[Sink]) -> Path:
    """Write `checkpoint_best_total.pth`, `results.json` and the plot; returns the first."""
    total = _best_weights(this)
    found = {"valid": _judge(this, job.valid, None)}
    if this.config.run_test and job.test is None:
        warnings.warn(f"{this.config.dataset_dir} has no test split; the test run is left out", stacklevel=4)
    elif job.test is not None:
        found["test"] = _judge(this, job.test, this.criterion if this.config.compute_test_loss else None)
        metrics = epoch_metrics(
            this.state.global_step, {}, {"regular": found["test"]}, this.parts.optimizer, this.config, "test"
        )
        for sink in sinks:
            sink.log(this.state.epoch, metrics)
    tables = {name: stats["results_json"]["class_map"] for name, stats in found.items()}
    files.write_json(this.folder / "results.json", finite({**found["valid"]["results_json"], "class_map": tables}))
    plot_history(text.history, this.folder / "metrics_plot.png")
    return total


def _best_weights(this: Run) -> Path:
    """Choose the better best file, and put its weights into the model."""
    parts, source = this.parts, this.state.winner
    if source is None:
        warnings.warn("no evaluation took place; the final weights become checkpoint_best_total.pth", stacklevel=5)
        source = "regular" if parts.ema is None else "ema"
    last = parts.model if source == "regular" or parts.ema is None else parts.ema.module
    total = files.save_total(this.folder, source, this.description, last)
    parts.model.load_state_dict(to_internal(read_checkpoint(total).weights)[0])
    return total


def _judge(this: Run, annotations: AnnotationSet, criterion: Criterion | None) -> dict[str, Any]:
    runtime = this.parts.runtime
    loader = build_eval_loader(
        this.config, this.parts.config, annotations, runtime.device.type == "cuda", keep_workers=False
    )
    shared = {"runtime": runtime, "progress": this.progress}
    model, settings = this.parts.model, this.settings
    return evaluate(model, criterion, this.postprocess, loader, annotations, runtime.device, settings, **shared)[0]


def evaluate_split(model: Model, config: TrainConfig, split: str) -> dict[str, float]:
    """Metrics of the weights in memory on one split, named `<split>/<metric>`.

    Raises:
        ValueError: an unknown split, or a data set with more classes than the model has.
    """
    annotations = read_split(Path(config.dataset_dir), {"val": "valid"}.get(split, split), config.dataset_file)
    wanted, there = annotations.categories.num_classes, model.config.num_classes
    if wanted > there:
        raise ValueError(f"{annotations.source} has {wanted} classes, the model {there}")
    module = model.ready()
    device = next(module.parameters()).device
    loader = build_eval_loader(config, model.config, annotations, device.type == "cuda", keep_workers=False)
    shared = {
        "runtime": Runtime(device, torch.float16 if config.fp16_eval else None),
        "progress": Progress(config.progress_bar),
    }
    stats, _ = evaluate(module, None, model.postprocess, loader, annotations, device, config, **shared)
    box, table = stats["coco_eval_bbox"], stats["results_json"]
    metrics = {"mAP_50_95": box[0], "mAP_50": box[1], "mAP_75": box[2], "mAR": box[8]}
    metrics |= {"F1": table["f1_score"], "precision": table["precision"], "recall": table["recall"]}
    return {f"{split}/{name}": value for name, value in metrics.items()}
