"""What is said of a run before its first step: numbers, learning rates, memory, what the network sees."""

from __future__ import annotations

import datetime
import random
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from rfdetr.datasets.build import augmentations, build_eval_loader, build_train_loader
from rfdetr.datasets.grids import save_grid
from rfdetr.datasets.transforms import multi_scale_sizes
from rfdetr.training.auto_batch import largest_side, rehearse
from rfdetr.training.loggers import finite

if TYPE_CHECKING:
    from rfdetr.training.setup import Run

GRIDS = "dataset_grids"


def record(this: Run) -> dict[str, Any]:
    """The content of `training_config.json`: every setting of the run, and the augmentations as they are applied."""
    model = this.model.config
    return finite(
        {
            "train_config": this.config.record(),
            "model_config": model.record(),
            "model_config_type": type(model).__name__,
            "class_names": this.job.class_names,
            "num_classes": model.num_classes,
            "augmentations": augmentations(this.config, this.job.train).describe(),
            "processes": this.processes.world,
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
    )


def summary(this: Run, largest_step: str) -> str:
    """Pictures, batches, steps, learning rates, what is frozen, memory, augmentations; one line each."""
    job, config, world = this.job, this.config, this.processes.world
    splits = {"validate": job.valid, "test": job.test}
    counts = [f"{len(split)} to {name}" for name, split in splits.items() if split is not None]
    processes = f" x {world} processes" if world > 1 else ""
    effective = this.order.effective * world
    lines = [
        f"{', '.join([f'{len(job.train)} pictures to train on', *counts])}; {len(job.class_names)} classes",
        f"effective batch {effective} = {config.batch_size} x {config.grad_accum_steps} accumulated{processes}; "
        f"{this.steps} steps per epoch, epochs {this.state.epoch + 1} to {config.epochs}, "
        f"{this.steps * config.epochs} steps in all, on {this.parts.runtime.device}; seed {this.state.seed}",
        f"learning rates: {_rates(this)}",
        f"parameters: {_parameters(this.parts.model)}",
        f"memory: {_memory(this)}{largest_step}",
        f"augmentations: {', '.join(augmentations(config, job.train).describe()) or 'none'}",
    ]
    return "\n  ".join(lines)


def _rates(this: Run) -> str:
    """The span of base learning rates of each part of the network."""
    spans: dict[str, list[float]] = {}
    for group in this.parts.optimizer.param_groups:
        for name in group["names"]:
            spans.setdefault(name.split(".")[0], []).append(group.get("initial_lr", group["lr"]))
    parts: dict[str, list[str]] = {}
    for part, rates in spans.items():
        text = " to ".join(f"{rate:.2e}" for rate in sorted({min(rates), max(rates)}))
        parts.setdefault(text, []).append(part)
    return "; ".join(f"{text} {', '.join(names)}" for text, names in parts.items())


def _parameters(model: nn.Module) -> str:
    frozen: dict[str, int] = {}
    trained = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained += parameter.numel()
        else:
            part = ".".join(name.split(".")[:3]) if name.startswith("encoder.blocks") else name
            frozen[part] = frozen.get(part, 0) + parameter.numel()
    names = ", ".join(list(frozen)[:4]) + (", ..." if len(frozen) > 4 else "")
    return f"{trained / 1e6:.1f} M trained, {sum(frozen.values()) / 1e6:.1f} M frozen ({names})"


def _memory(this: Run) -> str:
    """What weights, gradients, optimiser and average take."""
    model = this.parts.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    sizes = {"weights": weights, "gradients": trained, "optimiser": 2 * trained}
    if this.parts.ema is not None:
        sizes["average"] = weights
    return ", ".join(f"{name} {size / 2**20:.0f} MB" for name, size in sizes.items())


def rehearsed(this: Run) -> str:
    """The peak memory of the largest step, tried on a GPU before the first one; every process has to take part."""
    crowd = int(np.diff(this.job.train.offsets).max(initial=1))
    side = largest_side(this.config, this.model.config)
    pictures = int(this.config.batch_size)
    peak = rehearse(this.parts.model, this.criterion, this.parts.runtime, pictures, side, crowd)
    return f", largest step ({side} px, {crowd} objects per picture) {peak / 2**30:.1f} GB" if peak else ""


def save_grids(this: Run, batches: int = 3) -> None:
    """Save the first batches of training and validation as the network is going to see them."""
    config, model, runtime = this.config.model_copy(), this.model.config, this.parts.runtime
    # The pictures follow from seed, epoch and position alone, so looking at them changes nothing.
    config.num_workers = 0
    this.order.set_epoch(this.state.epoch, this.state.step)
    splits: dict[str, Any] = {"train": build_train_loader(config, model, this.job.train, this.order, False)}
    if this.job.valid is not None:
        splits["valid"] = build_eval_loader(config, model, this.job.valid, False)
    names = dict(zip(this.job.train.categories.labels, this.job.class_names, strict=False))
    sizes = multi_scale_sizes(model.resolution, model.block_size, config.expanded_scales)
    for split, loader in splits.items():
        for number, batch in enumerate(islice(loader, batches)):
            samples, targets = runtime.to_device(batch)
            if split == "train" and config.multi_scale in (True, "per-batch"):
                step = this.state.epoch * this.steps + this.state.step + number
                samples, targets = runtime.resize((samples, targets), random.Random(step).choice(sizes))
            path = this.folder / GRIDS / f"{split}_{number}.png"
            path.parent.mkdir(exist_ok=True)
            save_grid(samples.tensors, targets, names, path)
