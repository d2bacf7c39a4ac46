"""The parts of a run, at its start or where a checkpoint left them: network, optimiser, schedule, average, order."""

from __future__ import annotations

import copy
import secrets
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from rfdetr.checkpoints.load import Checkpoint, fit
from rfdetr.checkpoints.names import to_published
from rfdetr.checkpoints.save import description
from rfdetr.config import TrainConfig
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.build import build_eval_loader, build_train_loader, train_transform, workers_of
from rfdetr.datasets.cache import PictureCache, cache_folder
from rfdetr.datasets.decode import HW, reduced
from rfdetr.datasets.loader import Loader, TrainOrder, whole
from rfdetr.engine import set_drop_path
from rfdetr.log import logger
from rfdetr.models.build import build_criterion, build_postprocess
from rfdetr.models.criterion import Criterion
from rfdetr.models.detector import Detector
from rfdetr.models.lora import add_adapters, load_adapter_state
from rfdetr.training import state as files
from rfdetr.training.averages import Averages
from rfdetr.training.callbacks import Callbacks
from rfdetr.training.ema import ModelEma
from rfdetr.training.job import Job
from rfdetr.training.loggers import Sink, TextLog
from rfdetr.training.optim import Rates, build_optimizer, build_scheduler, lr_factor
from rfdetr.training.progress import Progress
from rfdetr.training.runtime import Processes, Runtime
from rfdetr.training.state import EarlyStopping, Parts, RunState
from rfdetr.training.watch import RunWatch

if TYPE_CHECKING:
    from rfdetr.main import Model


@dataclass
class Run:
    """The parts of a run that its steps share."""

    model: Model
    config: TrainConfig
    job: Job
    settings: Any
    folder: Path
    parts: Parts
    state: RunState
    order: TrainOrder
    criterion: Criterion
    postprocess: Callable
    progress: Progress
    description: dict[str, Any]
    callbacks: Callbacks
    averages: Averages
    watch: RunWatch
    # The checkpoint that the run goes on from, and the logs in it.
    resumed: Path | None = None
    history: str = ""
    # Only the first process has them.
    text: TextLog | None = None
    sinks: list[Sink] = field(default_factory=list)
    caches: list[PictureCache] = field(default_factory=list)

    @property
    def processes(self) -> Processes:
        """The processes of the run."""
        return self.parts.runtime.processes

    @property
    def on_cuda(self) -> bool:
        """Whether batches go to a GPU."""
        return self.parts.runtime.device.type == "cuda"

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return len(self.order) // self.order.effective

    def train_loader(self) -> Loader:
        """The pictures that this process trains on."""
        transform = train_transform(self.config, self.model.config)
        cache = self._cache(self.job.train, transform.reduction)
        return build_train_loader(self.config, self.model.config, self.job.train, self.order, self.on_cuda, cache)

    def eval_loader(self, annotations: AnnotationSet, keep_workers: bool = True) -> Loader:
        """The pictures of a split that this process evaluates; they are cached for a loader that is kept."""
        ranks = (self.processes.rank, self.processes.world)
        cache = self._cache(annotations, whole) if keep_workers else None
        return build_eval_loader(
            self.config, self.model.config, annotations, self.on_cuda, keep_workers, *ranks, cache=cache
        )

    def _cache(self, annotations: AnnotationSet, reduction: Callable[[HW], int]) -> PictureCache | None:
        """A place for the decoded pictures of a split, one for all processes of a machine."""
        if self.config.cache is None:
            return None
        sizes = [reduced((h, w), reduction((h, w))) if h else (0, 0) for h, w in annotations.sizes.tolist()]
        name = self.processes.share(f".rfdetr_{secrets.token_hex(8)}.cache")
        file, cache = cache_folder(self.config.cache, self.folder) / name, None
        if self.processes.local == 0:
            cache = PictureCache(np.array(sizes), file)
        self.processes.gather(None)
        cache = cache or PictureCache(np.array(sizes), file, create=False)
        self.processes.gather(None)
        cache.all_have_opened()
        logger.info("%s: %.1f GB for decoded pictures in %s", annotations.source, cache.num_bytes / 1e9, file.parent)
        self.caches.append(cache)
        return cache


def build_run(
    model: Model, module: Detector, config: TrainConfig, job: Job, runtime: Runtime, callbacks: Callbacks
) -> Run:
    """Everything that learns and remembers, at the start of the run or where a checkpoint left it."""
    settings, folder, processes = model.args, Path(config.output_dir), runtime.processes
    settings.__dict__.update(
        config.model_dump(exclude={"group_detr", "segmentation_head", "ia_bce_loss", "num_select"})
    )
    patience, delta = config.early_stopping_patience, config.early_stopping_min_delta
    state = RunState(seed=job.seed, stopping=EarlyStopping(patience, delta, config.early_stopping_use_ema))
    if job.checkpoint is not None:
        files.resume_state(job.checkpoint, state, config.early_stopping)
    effective = int(config.batch_size) * config.grad_accum_steps
    order = TrainOrder(len(job.train), effective, state.seed, processes.world, processes.rank)
    parts, fresh = _build_parts(model, module, config, job, runtime, len(order) // effective)
    averages = Averages()
    if job.checkpoint is not None:
        if not fresh:
            _warn_of_kept(config, job.checkpoint)
        _find_place(job.checkpoint, parts, state, order, averages)
        fresh += files.resume_generators(job.checkpoint, processes)
    if fresh:
        warnings.warn(f"{config.resume} holds no state of: {', '.join(fresh)}; these start fresh", stacklevel=6)
    return Run(
        model=model,
        config=config,
        job=job,
        settings=settings,
        folder=folder,
        parts=parts,
        state=state,
        order=order,
        criterion=build_criterion(model.config, config).to(runtime.device),
        postprocess=build_postprocess(model.config, config.num_select),
        progress=Progress(config.progress_bar if processes.is_first else None, _advise(config, runtime)),
        description=description(model.config, job.class_names, {**config.record(), "class_labels": job.raw_labels}),
        callbacks=callbacks,
        averages=averages,
        resumed=job.checkpoint.path if job.checkpoint else None,
        history=job.checkpoint.content.get("history", "") if job.checkpoint else "",
        watch=RunWatch(folder, job.train, processes.rank, processes.world == 1),
    )


def _advise(config: TrainConfig, runtime: Runtime) -> Callable[[float], None]:
    """What is said when a run waits for its pictures."""
    workers = workers_of(config, runtime.device.type == "cuda")
    cache = "" if config.cache else ' and cache="ram" or "disk"'

    def advise(share: float) -> None:
        text = "the run waits for data %.0f %% of its time: more num_workers (%d now)%s may help"
        logger.info(text, 100 * share, workers, cache)

    return advise


def _build_parts(
    model: Model, module: Detector, config: TrainConfig, job: Job, runtime: Runtime, steps: int
) -> tuple[Parts, list[str]]:
    """The network, its average, optimiser and schedule, with their state; and what a checkpoint lacked of it."""
    fresh: list[str] = []
    saved = job.checkpoint
    if runtime.splits_model:
        # FSDP2 changes a module in place; the user's stays whole and gets the result.
        module = copy.deepcopy(module)
    if saved is not None:
        _check_shapes(module, saved)
        module.load_state_dict(fit(saved, model.config))
    if model.config.backbone_lora:
        add_adapters(module.encoder)
        if saved is not None and saved.content.get("adapters"):
            load_adapter_state(module, saved.content["adapters"])
    # What was drawn at random differs between the processes until here.
    runtime.processes.share_weights(module)
    if config.sync_bn and runtime.processes.world > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
    ema = ModelEma(module, config.ema_decay, config.ema_tau, config.ema_update_interval) if config.use_ema else None
    if ema is not None and saved is not None:
        fresh += files.resume_ema(saved, ema)
    set_drop_path(module, 0.0)
    trained = runtime.over_processes(module, (*module.encoder.blocks, *module.decoder.layers))
    trained = runtime.compiled(trained, model.config.compile, model.config.cuda_graphs)
    if ema is not None and runtime.splits_model:
        runtime.split(ema.module, (*ema.module.encoder.blocks, *ema.module.decoder.layers))  # pyrefly: ignore[missing-attribute, not-iterable]
    rates = Rates(
        config.lr,
        config.lr_encoder,
        config.weight_decay,
        config.lr_vit_layer_decay,
        config.lr_component_decay,
        model.config.out_feature_indexes[-1],
    )
    fused = runtime.device.type != "mps" and not runtime.scaler.is_enabled() and not runtime.splits_model
    fused = fused and model.config.fused_optimizer
    optimizer = build_optimizer(module, rates, fused, config.optimizer, config.optimizer_kwargs)
    factor = lr_factor(
        config.lr_scheduler, steps, config.epochs, config.warmup_epochs, config.lr_drop, config.lr_min_factor
    )
    scheduler = build_scheduler(optimizer, factor, config.lr_scheduler, config.lr_scheduler_kwargs)
    parts = Parts(module, trained, model.config, optimizer, scheduler, ema, runtime)
    if saved is not None:
        fresh += files.resume_optimizer(saved, parts)
    return parts, fresh


def _check_shapes(module: Detector, saved: Checkpoint) -> None:
    """Raise a ValueError if a run of another resolution or other classes is to go on."""
    own = to_published(module.state_dict())
    wrong = [n for n, t in own.items() if n in saved.weights and saved.weights[n].shape != t.shape and t.numel()]
    if wrong:
        raise ValueError(
            f"{saved.path} was written with another resolution, other classes or queries ({wrong[0]} has another "
            "shape), so its run cannot go on; start a new one with pretrain_weights"
        )


# What a resumed run takes from its checkpoint, whatever is asked for.
_KEPT = ("lr", "lr_encoder", "weight_decay", "lr_vit_layer_decay", "lr_component_decay", "seed")


def _warn_of_kept(config: TrainConfig, checkpoint: Checkpoint) -> None:
    for name in _KEPT:
        given, kept = getattr(config, name), checkpoint.args.get(name)
        if config.is_explicit(name) and name in checkpoint.args and given != kept:
            warnings.warn(f"{name}={given} has no effect: a resumed run keeps {kept}", stacklevel=7)


def _find_place(checkpoint: Checkpoint, parts: Parts, state: RunState, order: TrainOrder, averages: Averages) -> None:
    """Where a resumed run goes on, also when its steps hold another number of pictures than before."""
    before, steps = checkpoint.content.get("steps"), len(order) // order.effective
    counted, processes = checkpoint.content.get("averages") or [], parts.runtime.processes
    if counted and not state.judged:
        # With another number of processes some counts are left out: they only go to the logs of this epoch.
        averages.load(counted[processes.rank % len(counted)])
    if before is None or before == steps:
        return
    done = state.step / before
    state.step = averages.steps = int(done * steps)
    state.global_step = state.epoch * steps + state.step
    if isinstance(parts.scheduler, torch.optim.lr_scheduler.LambdaLR):
        parts.scheduler.last_epoch = state.global_step
    text = "an epoch has %d steps now and had %d; it goes on at step %d of epoch %d"
    logger.warning(text, steps, before, state.step, state.epoch + 1)
