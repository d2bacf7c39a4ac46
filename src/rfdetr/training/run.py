"""A training run, told in order: data, optimiser, epochs, best weights, test."""

from __future__ import annotations

import datetime
import secrets
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rfdetr.checkpoints.load import read_checkpoint
from rfdetr.checkpoints.save import description
from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.build import build_eval_loader, build_train_loader
from rfdetr.datasets.layout import has_split, read_split
from rfdetr.datasets.loader import TrainOrder
from rfdetr.engine import evaluate, set_drop_path, train_one_epoch
from rfdetr.log import logger
from rfdetr.models.criterion import Criterion, loss_weights
from rfdetr.training import state as files
from rfdetr.training.ema import ModelEma
from rfdetr.training.finish import finish
from rfdetr.training.loggers import Sink, TextLog, finite, open_sinks
from rfdetr.training.metrics import epoch_metrics, epoch_stats, one_line
from rfdetr.training.optim import Rates, build_optimizer, lr_factor
from rfdetr.training.progress import Progress
from rfdetr.training.runtime import Runtime, keeping_memory, mixed_precision, refuse_many_processes, seed_everything
from rfdetr.training.state import EarlyStopping, Parts, RunState

if TYPE_CHECKING:
    from rfdetr.main import Model

Callbacks = dict[str, list[Callable]]


@dataclass
class Job:
    """The splits of a data set, read and checked."""

    train: AnnotationSet
    valid: AnnotationSet
    test: AnnotationSet | None
    class_names: list[str]

    @property
    def raw_labels(self) -> list[int] | None:
        """Label of each class name where the data set's category ids are the labels."""
        categories = self.train.categories
        return list(categories.labels) if categories.raw_ids else None

    @property
    def num_classes(self) -> int:
        """Classes that the head must have."""
        return self.train.categories.num_classes


def prepare(config: TrainConfig) -> Job:
    """Read and check everything that can be checked before time is spent: data, output folder, processes.

    Raises:
        FileNotFoundError, ValueError: what is wrong, by name.
    """
    refuse_many_processes()
    root = Path(config.dataset_dir)
    root = root.parent if root.is_file() else root
    train = read_split(root, "train", config.dataset_file)
    if not len(train):
        raise ValueError(f"{train.source} lists no pictures to train on")
    valid = read_split(root, "valid", config.dataset_file, train.categories)
    test = None
    if config.run_test and has_split(root, "test", config.dataset_file):
        test = read_split(root, "test", config.dataset_file, train.categories)
    names = config.class_names or train.class_names
    if len(names) > len(train.class_names):
        raise ValueError(
            f"class_names has {len(names)} names for the {len(train.class_names)} classes of {train.source}"
        )
    if names != train.class_names:
        warnings.warn(f"class_names differ from those of the data set, {train.class_names}", stacklevel=4)
    if config.resume is not None:
        read_checkpoint(config.resume)
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    return Job(train, valid, test, list(names))


@dataclass
class Run:
    """The parts of a run that its steps share."""

    config: TrainConfig
    settings: Any
    folder: Path
    parts: Parts
    state: RunState
    criterion: Criterion
    postprocess: Callable
    progress: Progress
    description: dict[str, Any]


def run(model: Model, config: TrainConfig, job: Job, callbacks: Callbacks) -> Path | None:
    """Train `model` and return the file with the best weights; None when a resumed run was already finished."""
    with keeping_memory(model.device):
        return _run(model, config, job, callbacks)


def _run(model: Model, config: TrainConfig, job: Job, callbacks: Callbacks) -> Path | None:
    folder = Path(config.output_dir)
    seed = secrets.randbelow(2**31) if config.seed is None else config.seed
    seed_everything(seed)
    module = model.ready()
    order = TrainOrder(len(job.train), config.batch_size * config.grad_accum_steps, seed)
    this = _build_run(model, module, config, job, folder, seed, len(order) // order.effective)
    if config.resume is not None:
        _resume(this, Path(config.resume), order)
        if this.state.epoch >= config.epochs:
            logger.warning("%s is finished: it has %d of %d epochs", config.resume, this.state.epoch, config.epochs)
            return None
    on_cuda = this.parts.runtime.device.type == "cuda"
    train_loader = build_train_loader(config, model.config, job.train, order, on_cuda)
    valid_loader = build_eval_loader(config, model.config, job.valid, on_cuda)
    if config.resume is None and (aside := files.set_aside(folder)):
        logger.info("%s holds an earlier run; its files are in %s now", folder, aside)
    files.write_json(folder / "training_config.json", _record(model.config, config, job))
    text = TextLog(folder, go_on=config.resume is not None)
    sinks: list[Sink] = [text, *open_sinks(folder, config)]
    logger.info("%s", _summary(this, job, order))
    try:
        for epoch in range(this.state.epoch, config.epochs):
            stop = _epoch(this, epoch, train_loader, valid_loader, job, text, sinks, callbacks)
            if stop or model.stop_early:
                logger.info("the run ends early, after epoch %d", epoch + 1)
                break
        best = finish(this, job, text, sinks)
    finally:
        for sink in sinks:
            sink.close()
    for callback in callbacks["on_train_end"]:
        callback()
    return best


def _build_run(
    model: Model, module: torch.nn.Module, config: TrainConfig, job: Job, folder: Path, seed: int, steps: int
) -> Run:
    """Criterion, optimiser, schedule, average: everything that learns."""
    settings = model.args
    settings.__dict__.update(
        config.model_dump(exclude={"group_detr", "segmentation_head", "ia_bce_loss", "num_select"})
    )
    device = next(module.parameters()).device
    amp = mixed_precision(config.amp_dtype, device) if model.config.amp else None
    rates = Rates(
        config.lr,
        config.lr_encoder,
        config.weight_decay,
        config.lr_vit_layer_decay,
        config.lr_component_decay,
        model.config.out_feature_indexes[-1],
    )
    runtime = Runtime(device, amp)
    optimizer = build_optimizer(module, rates, fused=device.type != "mps" and not runtime.scaler.is_enabled())
    factor = lr_factor(
        config.lr_scheduler, steps, config.epochs, config.warmup_epochs, config.lr_drop, config.lr_min_factor
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    ema = ModelEma(module, config.ema_decay, config.ema_tau, config.ema_update_interval) if config.use_ema else None
    use_ia_bce = model.config.ia_bce_loss if config.ia_bce_loss is None else config.ia_bce_loss
    stopping = EarlyStopping(
        config.early_stopping_patience, config.early_stopping_min_delta, config.early_stopping_use_ema
    )
    postprocess = type(model.postprocess)(config.num_select or model.config.num_select)
    return Run(
        config=config,
        settings=settings,
        folder=folder,
        parts=Parts(module, model.config, optimizer, scheduler, ema, runtime),
        state=RunState(seed=seed, stopping=stopping),
        criterion=Criterion(
            loss_weights(model.config.dec_layers, config.cls_loss_coef),
            model.config.group_detr,
            "ia_bce" if use_ia_bce else "focal",
        ).to(device),
        postprocess=postprocess,
        progress=Progress(config.progress_bar),
        description=description(model.config, job.class_names, {**config.model_dump(), "class_labels": job.raw_labels}),
    )


def _resume(this: Run, path: Path, order: TrainOrder) -> None:
    fresh = files.resume(path, this.parts, this.state)
    files.bring_along(path.parent, this.folder, this.state)
    order.seed = this.state.seed
    if fresh:
        warnings.warn(f"{path} holds no state of: {', '.join(fresh)}; these start fresh", stacklevel=5)


def _epoch(
    this: Run,
    epoch: int,
    train_loader: Any,
    valid_loader: Any,
    job: Job,
    text: TextLog,
    sinks: list[Sink],
    callbacks: Callbacks,
) -> bool:
    """Train one epoch, save it, evaluate, keep the best, log; returns whether the run should end."""
    config, parts, state = this.config, this.parts, this.state
    started = time.monotonic()
    train_loader.sampler.set_epoch(epoch)
    steps = len(train_loader)
    set_drop_path(parts.model, config.drop_path)
    trained = train_one_epoch(
        parts.model,
        this.criterion,
        parts.scheduler,
        train_loader,
        parts.optimizer,
        parts.runtime.device,
        epoch,
        train_loader.batch_size,
        config.clip_max_norm,
        parts.ema,
        num_training_steps_per_epoch=steps,
        args=this.settings,
        callbacks=callbacks,
        runtime=parts.runtime,
        progress=this.progress,
    )
    parts.model.eval()
    state.epoch, state.global_step = epoch, state.global_step + steps
    train_time = time.monotonic() - started
    # Saved before the evaluation, so that nothing trained is lost if that fails.
    _save_last(this)
    scores: dict[str, dict[str, Any]] = {}
    if (epoch + 1) % config.eval_interval == 0 or epoch + 1 == config.epochs:
        scores = _evaluate_both(this, valid_loader, job.valid, config.compute_val_loss is not False)
    stop = _keep_best(this, scores)
    if scores:
        _save_last(this)
    seconds = (train_time, time.monotonic() - started)
    stats = finite(epoch_stats(epoch, trained, scores, state, parts.model, seconds))
    text.write_stats(stats)
    metrics = epoch_metrics(state.global_step, trained, scores, parts.optimizer, config)
    for sink in sinks:
        sink.log(epoch, metrics)
    logger.info("%s", one_line(epoch, config.epochs, trained, scores, seconds))
    for callback in callbacks["on_fit_epoch_end"]:
        callback(stats)
    return stop


def _save_last(this: Run) -> None:
    files.save_last(this.folder / files.LAST, this.parts, this.state, this.description)
    if (this.state.epoch + 1) % this.config.checkpoint_interval == 0:
        numbered = this.folder / f"checkpoint_{this.state.epoch}.pth"
        files.save_last(numbered, this.parts, this.state, this.description)


def _modules(this: Run) -> dict[str, torch.nn.Module]:
    """The regular model, and the averaged one if there is one."""
    ema = this.parts.ema
    return {"regular": this.parts.model, **({} if ema is None else {"ema": ema.module})}


def _evaluate_both(this: Run, loader: Any, annotations: AnnotationSet, with_loss: bool) -> dict[str, dict[str, Any]]:
    """Statistics of the regular and of the averaged weights, those that are there and asked for."""
    modules = _modules(this)
    if not this.config.eval_base_model and "ema" in modules:
        del modules["regular"]
    runtime = this.parts.runtime
    if this.config.fp16_eval:
        runtime = Runtime(runtime.device, torch.float16)
    return {
        kind: evaluate(
            module,
            this.criterion if with_loss else None,
            this.postprocess,
            loader,
            annotations,
            runtime.device,
            this.settings,
            runtime=runtime,
            progress=this.progress,
            title=f"evaluate {kind}",
        )[0]
        for kind, module in modules.items()
    }


def score_of(stats: dict[str, Any] | None, metric: str) -> float | None:
    """The number that decides: AP, or AR for "mar"."""
    return None if stats is None else stats["coco_eval_bbox"][8 if metric == "mar" else 0]


def _keep_best(this: Run, scores: dict[str, dict[str, Any]]) -> bool:
    """Save new best weights; returns whether early stopping ends the run."""
    config, state = this.config, this.state
    if not scores or state.epoch < config.skip_best_epochs:
        return False
    values = {kind: score_of(scores.get(kind), config.best_model_metric) for kind in files.BEST_FILES}
    modules = _modules(this)
    for kind, value in values.items():
        if value is not None and state.best[kind].is_beaten_by(value, state.epoch):
            files.save_best(this.folder / files.BEST_FILES[kind], modules[kind], state.epoch, value, this.description)
    return config.early_stopping and state.stopping.should_stop(values["regular"], values["ema"])


def _record(model: ModelConfig, config: TrainConfig, job: Job) -> dict[str, Any]:
    return finite(
        {
            "train_config": config.model_dump(mode="json"),
            "model_config": model.model_dump(mode="json"),
            "model_config_type": type(model).__name__,
            "class_names": job.class_names,
            "num_classes": model.num_classes,
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
    )


def _summary(this: Run, job: Job, order: TrainOrder) -> str:
    trained = sum(p.numel() for p in this.parts.model.parameters() if p.requires_grad) / 1e6
    test = f", {len(job.test)} for the test" if job.test is not None else ""
    return (
        f"{len(job.train)} pictures to train on, {len(job.valid)} to validate{test}; {len(job.class_names)} classes; "
        f"{trained:.1f} M parameters; {len(order) // order.effective} steps of {order.effective} pictures per epoch, "
        f"epochs {this.state.epoch + 1} to {this.config.epochs} on {this.parts.runtime.device}; seed {this.state.seed}"
    )
