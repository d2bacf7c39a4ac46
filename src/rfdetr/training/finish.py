"""The end of a run: the better weights, judged on the validation and test splits, and the files that say so."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rfdetr.checkpoints.file import store_thresholds
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.engine import evaluate, split_evaluation
from rfdetr.labels import unique_names
from rfdetr.models.criterion import Criterion
from rfdetr.models.lora import merge_adapters_
from rfdetr.training import state as files
from rfdetr.training.job import source_of
from rfdetr.training.loggers import finite, plot_history
from rfdetr.training.metrics import epoch_metrics

if TYPE_CHECKING:
    from rfdetr.training.setup import Run


def finish(this: Run) -> None:
    """Write `checkpoint_best_total.pth`, `results.json` and the plot; the model holds the best weights then."""
    config, first = this.config, this.processes.is_first
    _best_weights(this)
    found = {}
    if this.job.valid is not None:
        found["valid"], this.model.thresholds = _judge(this, this.job.valid, None)
        if first and not config.dont_save_weights:
            total = this.folder / files.BEST_TOTAL
            store_thresholds(total, total, this.model.thresholds)
    if config.run_test and this.job.test is None:
        warnings.warn(
            f"{source_of(config, this.model.config)} has no test split; the test run is left out", stacklevel=4
        )
    elif this.job.test is not None:
        found["test"], _ = _judge(this, this.job.test, this.criterion if config.compute_test_loss else None)
        scores = {"regular": found["test"]}
        metrics = epoch_metrics(this.state.global_step, {}, scores, this.parts.optimizer, config, "test")
        for sink in this.sinks:
            sink.log(this.state.epoch, metrics)
    if not first or this.text is None:
        return
    tables = {name: stats["results_json"]["class_map"] for name, stats in found.items()}
    best = found.get("valid") or found.get("test") or {"results_json": {}}
    boxes = {name: stats["results_json_bbox"] for name, stats in found.items() if "results_json_bbox" in stats}
    results = {**best["results_json"], "class_map": tables, **({"boxes": boxes} if boxes else {})}
    results["thresholds"] = this.model.thresholds
    files.write_json(this.folder / "results.json", finite(results))
    plot_history(this.text.history, this.folder / "metrics_plot.png")


def _best_weights(this: Run) -> None:
    """Choose the better best file, and put its weights into the model of every process."""
    parts, source, model = this.parts, this.state.winner, this.model
    if source is None:
        if this.job.valid is not None:
            skipped = this.config.skip_best_epochs
            why = f"skip_best_epochs={skipped} leaves none" if skipped else "no evaluation gave a score"
            warnings.warn(f"{why}; the final weights become checkpoint_best_total.pth", stacklevel=6)
        source = "regular" if parts.ema is None else "ema"
    weights = files.whole_weights(parts.model if source == "regular" or parts.ema is None else parts.ema.module)
    if this.processes.is_first and not this.config.dont_save_weights:
        weights = files.save_total(this.folder, source, this.description, weights)
    merge_adapters_(model.model)
    model.put_weights(weights)
    this.processes.share_weights(model.model)


def _judge(
    this: Run, annotations: AnnotationSet, criterion: Criterion | None
) -> tuple[dict[str, Any], dict[str, float]]:
    """Statistics on a split, and the best threshold of every class."""
    # The model is whole again, also where its training had split it.
    runtime = replace(this.parts.runtime, splits_model=False)
    loader = this.eval_loader(annotations, keep_workers=False)
    module, settings = this.model.model, this.settings
    evaluation = split_evaluation(annotations, settings)
    shared: dict[str, Any] = {"runtime": runtime, "progress": this.progress, "evaluation": evaluation}
    stats, _ = evaluate(module, criterion, this.postprocess, loader, annotations, runtime.device, settings, **shared)
    # The model may call the classes otherwise than the data set.
    return stats, dict(zip(unique_names(this.job.class_names), evaluation.thresholds().values(), strict=False))
