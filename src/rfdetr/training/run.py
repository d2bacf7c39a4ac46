"""A training run, told in order: optimiser, epochs, best weights, test."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rfdetr.checkpoints.load import read_checkpoint
from rfdetr.config import TrainConfig
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.loader import BadPictures
from rfdetr.engine import evaluate, ground_truth, train_one_epoch
from rfdetr.log import logger
from rfdetr.models.lora import merge_adapters_
from rfdetr.training import state as files
from rfdetr.training.auto_batch import choose_batch_size
from rfdetr.training.averages import Averages
from rfdetr.training.callbacks import Callbacks
from rfdetr.training.finish import finish
from rfdetr.training.job import Job
from rfdetr.training.loggers import TextLog, finite, open_sinks
from rfdetr.training.metrics import epoch_metrics, epoch_stats, one_line, precision_columns, score_of
from rfdetr.training.optim import drop_path_rates
from rfdetr.training.runtime import Processes, Runtime, keeping_memory, mixed_precision
from rfdetr.training.seeds import seed_everything
from rfdetr.training.setup import Run, build_run
from rfdetr.training.summary import record, rehearsed, save_grids, summary
from rfdetr.training.watch import Interrupted

if TYPE_CHECKING:
    from rfdetr.main import Model


def run(model: Model, config: TrainConfig, job: Job, callbacks: Callbacks, processes: Processes) -> int | None:
    """Train `model`, which holds the best weights afterwards.

    Returns:
        None, or the number of the signal that ended the run; the model holds the weights it had then.
    """
    with keeping_memory(model.device):
        seed_everything(job.seed + processes.rank)
        module = model.ready()
        amp = mixed_precision(config.amp_dtype, model.device) if model.config.amp else None
        runtime = Runtime(model.device, amp, processes, config.strategy == "fsdp" and processes.world > 1)
        if config.batch_size == "auto":
            config = choose_batch_size(config, model.config, module, runtime)
        try:
            this = build_run(model, module, config, job, runtime, callbacks)
            # Its tensors are in their places; the file must not stay open while others replace it.
            job.checkpoint = None
            return None if _is_finished(this) else _run(this)
        finally:
            ground_truth.cache_clear()
            # However the run ends, the model in memory is a plain one with the weights of that moment.
            merge_adapters_(module)


def _is_finished(this: Run) -> bool:
    """Whether a resumed run has nothing left to do; its best weights are put into the model then."""
    epochs, total = this.config.epochs, this.folder / files.BEST_TOTAL
    if this.resumed is None or not (this.state.ended or this.state.epoch >= epochs):
        return False
    if not this.processes.share(total.is_file() and (this.folder / "results.json").is_file()):
        return False
    logger.warning("%s is finished: it has %d of %d epochs", this.resumed, min(this.state.epoch, epochs), epochs)
    merge_adapters_(this.model.model)
    this.model.load_weights(total)
    this.model.thresholds = read_checkpoint(total).thresholds
    return True


def _run(this: Run) -> int | None:
    train_loader = this.train_loader()
    valid_loader = None if this.job.valid is None else this.eval_loader(this.job.valid)
    try:
        _open(this)
        with this.watch.listening():
            _check_validation(this, valid_loader)
            for epoch in range(this.state.epoch, this.config.epochs):
                if this.state.ended or _epoch(this, epoch, train_loader, valid_loader):
                    logger.info("the run ends early, after epoch %d", epoch + 1)
                    break
            with this.watch.all_saved():
                finish(this)
    except Interrupted:
        if this.parts.runtime.splits_model:
            this.model.put_weights(files.whole_weights(this.parts.model))
        if not this.config.dont_save_weights:
            logger.warning("the run was interrupted; train(resume=True) goes on from %s", this.folder / files.LAST)
        return max(number or 0 for number in this.processes.gather(this.watch.signal))
    finally:
        for cache in this.caches:
            cache.close()
        _list_bad(this, [train_loader.bad, *([valid_loader.bad] if valid_loader else [])])
        for sink in this.sinks:
            sink.close()
    for callback in this.callbacks["on_train_end"] if this.processes.is_first else ():
        callback()
    # A signal that came too late to interrupt is not forgotten.
    return max(number or 0 for number in this.processes.gather(this.watch.signal)) or None


def _list_bad(this: Run, bad: list[BadPictures]) -> None:
    """Write down which pictures were left out."""
    lines = [f"{reason}\n" for split in bad for reason in split.found.values()]
    if lines:
        suffix = f"_process_{this.processes.rank}" if this.processes.rank else ""
        path = this.folder / f"bad_pictures{suffix}.txt"
        path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
        logger.warning("%d pictures could not be decoded and were left out; they are listed in %s", len(lines), path)


def _open(this: Run) -> None:
    """Files and services of the run, and what is said of it before its first step."""
    largest_step = rehearsed(this)
    if not this.processes.is_first:
        return
    config, folder = this.config, this.folder
    # A folder is gone on with only by its own run; without the history its logs would start anew.
    old = this.resumed.parent if this.resumed else None
    own = old is not None and old.resolve() == folder.resolve()
    if not (own and this.history) and (aside := files.set_aside(folder)):
        logger.info("%s holds an earlier run; its files are in %s now", folder, aside)
        old = aside if own else old
    if old is not None:
        files.bring_along(old, folder, this.state)
        # It tells a finished run from one that is going on.
        (folder / "results.json").unlink(missing_ok=True)
    files.write_json(folder / "training_config.json", record(this))
    if this.job.report is not None:
        files.write_json(folder / "dataset_check.json", this.job.report.as_dict())
    this.text = TextLog(folder, **json.loads(this.history or "{}"))
    this.sinks = [this.text, *open_sinks(folder, config, this.state.epoch)]
    if config.train_log_on_step:

        def log_step(step: int, loss: float, lr: float) -> None:
            for sink in this.sinks:
                sink.log_step(step, {"train/loss_step": loss, "train/lr_step": lr})

        this.watch.on_step = log_step
    logger.info("%s", summary(this, largest_step))
    if config.save_dataset_grids:
        save_grids(this)


def _check_validation(this: Run, loader: Any) -> None:
    """Run a few validation batches, so that what is wrong there shows now and not after an epoch."""
    count = this.config.num_sanity_val_steps
    if count and loader is not None and this.state.step == 0:
        batches = list(islice(loader, count))
        logger.info("checking %d validation batches", len(batches))
        _judge(this, this.parts.model, batches, this.job.valid, False, "check")


def _epoch(this: Run, epoch: int, train_loader: Any, valid_loader: Any) -> bool:
    """Train one epoch, save it, evaluate, keep the best, log; returns whether the run should end.

    Raises:
        Interrupted: a signal came; what was trained is saved.
    """
    config, parts, state = this.config, this.parts, this.state
    started = time.monotonic()
    state.begin(epoch)
    trained = _train(this, train_loader)
    train_time, waited = time.monotonic() - started, this.progress.waited
    due = (epoch + 1) % config.eval_interval == 0 or epoch + 1 == config.epochs
    # Saved before the evaluation, so that nothing trained is lost if that fails.
    _save(this)
    (leave,) = this.processes.any(this.watch.wants_stop)
    if leave or state.step < this.steps:
        raise Interrupted
    scores: dict[str, dict[str, Any]] = {}
    if due and valid_loader is not None:
        with this.watch.all_saved():
            scores = _evaluate(this, valid_loader)
    extra = _evaluate_training(this) if config.compute_train_metrics else {}
    stop = _keep_best(this, scores)
    seconds = (train_time, time.monotonic() - started)
    stats = finite(epoch_stats(epoch, trained, scores, state, parts.model, seconds))
    metrics = {**epoch_metrics(state.global_step, trained, scores, parts.optimizer, config), **extra}
    _step_schedule(this, metrics)
    state.judged, state.ended, this.averages = True, stop, Averages()
    if this.text is not None:
        this.text.write_stats(stats)
        this.text.log(epoch, metrics)
    _save(this)
    if this.processes.is_first:
        for sink in this.sinks[1:]:
            sink.log(epoch, metrics)
        logger.info("%s", one_line(epoch, config.epochs, trained, scores, seconds, waited))
        for callback in this.callbacks["on_fit_epoch_end"]:
            callback(stats)
    return any(this.processes.any(stop, this.model.stop_early))


def _train(this: Run, loader: Any) -> dict[str, float]:
    """The steps of an epoch that are left; their means, with those of the steps before a break."""
    config, parts, state = this.config, this.parts, this.state
    this.order.set_epoch(state.epoch, state.step)
    schedules = {}
    if config.drop_path:
        mode = (config.drop_mode, config.drop_schedule, config.cutoff_epoch)
        schedules["dp"] = drop_path_rates(config.drop_path, config.epochs, this.steps, *mode)
    before = this.averages.steps
    trained = train_one_epoch(
        parts.trained,
        this.criterion,
        None if _by_epoch(config) else parts.scheduler,
        loader if state.step < this.steps else (),
        parts.optimizer,
        parts.runtime.device,
        state.epoch,
        this.order.effective,
        config.clip_max_norm,
        parts.ema,
        schedules,
        this.steps,
        args=this.settings,
        callbacks=this.callbacks,
        runtime=parts.runtime,
        progress=this.progress,
        averages=this.averages,
        watch=this.watch,
    )
    parts.model.eval()
    state.step = this.averages.steps
    state.global_step += state.step - before
    return trained


def _by_epoch(config: TrainConfig) -> bool:
    """Whether the schedule moves on after epochs instead of steps; those of this package never do."""
    if config.lr_scheduler in ("step", "cosine"):
        return False
    return config.lr_scheduler_interval == "epoch" or "plateau" in str(config.lr_scheduler).lower()


def _step_schedule(this: Run, metrics: dict[str, float]) -> None:
    """Move a schedule that goes by epochs; one that watches a metric gets it.

    Raises:
        ValueError: there is no such metric; the message lists those there are.
    """
    config = this.config
    if not _by_epoch(config):
        return
    if not isinstance(this.parts.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        this.parts.scheduler.step()
    elif config.lr_scheduler_monitor in metrics:
        this.parts.scheduler.step(metrics[config.lr_scheduler_monitor])
    elif (this.state.epoch + 1) % config.eval_interval == 0:
        names = ", ".join(sorted(metrics))
        raise ValueError(f"lr_scheduler_monitor={config.lr_scheduler_monitor!r} is not measured; there are {names}")


def _save(this: Run) -> None:
    if this.config.dont_save_weights:
        return
    extra: dict[str, Any] = {
        "steps": this.steps,
        "averages": this.processes.gather(this.averages.state()),
    }
    if this.text is not None:
        extra["history"] = json.dumps({"history": this.text.history, "lines": this.text.lines})
    numbered = this.state.judged and (this.state.epoch + 1) % this.config.checkpoint_interval == 0
    # The numbered one first: a run killed between the two would go on from the other without ever writing it.
    for name in (*([f"checkpoint_{this.state.epoch}.pth"] if numbered else ()), files.LAST):
        files.save_last(this.folder / name, this.parts, this.state, this.description, extra)


def _modules(this: Run) -> dict[str, nn.Module]:
    """The regular model, and the averaged one if there is one; those that are evaluated."""
    modules = {"regular": this.parts.model}
    if this.parts.ema is not None:
        modules["ema"] = this.parts.ema.module
        if not this.config.eval_base_model:
            del modules["regular"]
    return modules


def _evaluate(this: Run, loader: Any) -> dict[str, dict[str, Any]]:
    """Statistics on the validation split of the regular and of the averaged weights."""
    with_loss = this.config.compute_val_loss is not False
    return {
        kind: _judge(this, module, loader, this.job.valid, with_loss, f"evaluate {kind}")
        for kind, module in _modules(this).items()
    }


def _judge(
    this: Run, module: nn.Module, loader: Any, annotations: AnnotationSet | None, with_loss: bool, title: str
) -> dict[str, Any]:
    runtime = this.parts.runtime
    if this.config.fp16_eval:
        runtime = replace(runtime, amp=torch.float16)
    assert annotations is not None
    return evaluate(
        module,
        this.criterion if with_loss else None,
        this.postprocess,
        loader,
        annotations,
        runtime.device,
        this.settings,
        runtime=runtime,
        progress=this.progress,
        title=title,
    )[0]


def _evaluate_training(this: Run) -> dict[str, float]:
    """AP of the regular weights on the training split, prepared as the validation split is."""
    loader = this.eval_loader(this.job.train, keep_workers=False)
    found = _judge(this, this.parts.model, loader, this.job.train, False, "evaluate training split")
    return {f"train/{name}": value for name, value in precision_columns(found).items()}


def _keep_best(this: Run, scores: dict[str, dict[str, Any]]) -> bool:
    """Save new best weights; returns whether early stopping ends the run."""
    config, state = this.config, this.state
    if not scores or state.epoch < config.skip_best_epochs:
        return False
    values = {kind: score_of(scores.get(kind), config.best_model_metric) for kind in files.BEST_FILES}
    regular = values["regular"]
    if regular is not None:
        values["regular"] = state.smooth(regular, config.smooth_alpha)
    modules = _modules(this)
    for kind, value in values.items():
        if value is not None and state.best[kind].is_beaten_by(value, state.epoch) and not config.dont_save_weights:
            weights = files.whole_weights(modules[kind])
            if this.processes.is_first:
                path = this.folder / files.BEST_FILES[kind]
                files.save_best(path, weights, state.epoch, value, this.description)
    return config.early_stopping and state.stopping.should_stop(regular, values["ema"])
