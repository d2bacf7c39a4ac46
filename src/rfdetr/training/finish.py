"""The end of a run: the better weights, judged on the validation and test splits, and the files that say so."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from rfdetr.config import TrainConfig
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.build import build_eval_loader
from rfdetr.datasets.merge import with_labels
from rfdetr.engine import evaluate
from rfdetr.evaluation.oks import warn_of_guess
from rfdetr.models.criterion import Criterion
from rfdetr.models.lora import merge_adapters_
from rfdetr.training import state as files
from rfdetr.training.job import check_use, source_of
from rfdetr.training.loggers import finite, plot_history
from rfdetr.training.metrics import epoch_metrics, precision_columns
from rfdetr.training.progress import Progress
from rfdetr.training.runtime import Runtime

if TYPE_CHECKING:
    from rfdetr.main import Model
    from rfdetr.training.setup import Run


def finish(this: Run) -> None:
    """Write `checkpoint_best_total.pth`, `results.json` and the plot; the model holds the best weights then."""
    config, first = this.config, this.processes.is_first
    _best_weights(this)
    found = {}
    if this.job.valid is not None:
        found["valid"] = _judge(this, this.job.valid, None)
    if config.run_test and this.job.test is None:
        warnings.warn(
            f"{source_of(config, this.model.config)} has no test split; the test run is left out", stacklevel=4
        )
    elif this.job.test is not None:
        found["test"] = _judge(this, this.job.test, this.criterion if config.compute_test_loss else None)
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


def _judge(this: Run, annotations: AnnotationSet, criterion: Criterion | None) -> dict[str, Any]:
    # The model is whole again, also where its training had split it.
    runtime = replace(this.parts.runtime, splits_model=False)
    loader = this.eval_loader(annotations, keep_workers=False)
    shared = {"runtime": runtime, "progress": this.progress}
    module, settings = this.model.model, this.settings
    return evaluate(module, criterion, this.postprocess, loader, annotations, runtime.device, settings, **shared)[0]


def evaluate_split(model: Model, config: TrainConfig, split: str) -> dict[str, float]:
    """Metrics of the weights in memory on one split, named `<split>/<metric>`.

    Raises:
        ValueError: an unknown split, or a data set with more classes than the model has.
    """
    if split not in ("train", "val", "valid", "test"):
        raise ValueError(f"split={split!r} is not known; choose one of train, val, test")
    check_use(config, model.config)
    annotations = _read_for(model, config, {"val": "valid"}.get(split, split))
    if annotations.schema is not None:
        warn_of_guess(annotations.schema.counts, config.keypoint_oks_sigmas)
    module = model.ready()
    device = next(module.parameters()).device
    loader = build_eval_loader(config, model.config, annotations, device.type == "cuda", keep_workers=False)
    shared = {
        "runtime": Runtime(device, torch.float16 if config.fp16_eval else None),
        "progress": Progress(config.progress_bar),
    }
    stats, _ = evaluate(module, None, model.postprocess, loader, annotations, device, config, **shared)
    table = stats["results_json"]
    metrics = precision_columns(stats)
    metrics |= {"F1": table["f1_score"], "precision": table["precision"], "recall": table["recall"]}
    return {f"{split}/{name}": value for name, value in metrics.items()}


def _read_for(model: Model, config: TrainConfig, split: str) -> AnnotationSet:
    """A split with the labels of the model, by the names of the classes.

    Raises:
        ValueError: the model does not know the name of a class.
    """
    source, counts = source_of(config, model.config), tuple(model.config.num_keypoints_per_class)
    annotations = source.read(split)
    names = list(config.class_names or annotations.class_names)
    if len(names) != len(annotations.class_names):
        raise ValueError(
            f"class_names has {len(names)} names for the {len(annotations.class_names)} classes of "
            f"{annotations.source}, {annotations.class_names}; give the model's name of each of them"
        )
    label_of = dict(zip(model.class_names, model.class_labels, strict=False))
    if model.has_names:
        _check_names(names, label_of, annotations)
    else:
        # Nobody knows what its classes are called, so that they are what their places say.
        label_of = dict(zip(names, annotations.categories.labels, strict=True))
        if (wanted := annotations.categories.num_classes) > model.config.num_classes:
            raise ValueError(f"{annotations.source} has {wanted} classes, the model {model.config.num_classes}")
        if counts:
            return source.read(split, schema=counts)
    labels, schema = [label_of[name] for name in names], annotations.schema
    if schema is not None:
        own = annotations.categories.labels
        here, there = ([c[n] if n < len(c) else 0 for n in of] for c, of in ((schema.counts, own), (counts, labels)))
        if here != there:
            raise ValueError(f"{annotations.source}: {names} have {here} keypoints, but {there} in the model")
        schema = replace(schema, counts=counts)
    return replace(with_labels(annotations, labels), schema=schema)


def _check_names(names: list[str], known: Mapping[str, int], annotations: AnnotationSet) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) < len(names):
        what = f"classes that the model does not know: {', '.join(unknown)}" if unknown else "a class name twice"
        raise ValueError(
            f"{annotations.source} has {what}. The model's classes are {', '.join(known)}. Give "
            f"class_names=[...] with the model's name of each of {names}, in this order"
        )
