"""The two loops: one pass of training, one pass of evaluation. They know nothing of files, loggers or processes."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.batch import NestedTensor, cut, split
from rfdetr.datasets.transforms import multi_scale_sizes
from rfdetr.evaluation.coco import CocoEvaluator
from rfdetr.evaluation.split import SplitEvaluation, ground_truth
from rfdetr.log import logger
from rfdetr.models.backbone import Encoder
from rfdetr.models.criterion import Criterion
from rfdetr.training.averages import Averages
from rfdetr.training.progress import Progress
from rfdetr.training.runtime import Runtime, bare, evaluating, is_out_of_memory, mixed_precision


def train_one_epoch(
    model: nn.Module,
    criterion: Criterion,
    lr_scheduler: Any,
    data_loader: Iterable,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    epoch: int,
    batch_size: int,
    max_norm: float = 0,
    ema_m: Any = None,
    schedules: Mapping[str, Any] = {},
    num_training_steps_per_epoch: int | None = None,
    vit_encoder_num_layers: int | None = None,
    args: Any = None,
    callbacks: Mapping[str, list[Callable]] | None = None,
    *,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
    averages: Averages | None = None,
    watch: Watch | None = None,
) -> dict[str, float]:
    """Train for one epoch.

    Args:
        lr_scheduler: its `step()` is called after every optimiser step; None leaves the rates alone.
        data_loader: yields `(NestedTensor, targets)` of `batch_size` pictures, uint8 or float in 0..1.
        batch_size: pictures per optimiser step; `args.grad_accum_steps` micro-batches of equal size.
        max_norm: largest norm of all gradients together; 0 is off.
        ema_m: its `update(model)` is called after every step.
        schedules: "dp", the drop-path rate by optimiser step.
        args: a namespace; read are grad_accum_steps, amp, amp_dtype and the multi-scale settings.
        callbacks: functions of `on_train_batch_start`, called with `step`, `model`, `epoch` before every step.
        averages: what the steps before a break counted; `data_loader` yields the batches after them.
        watch: takes broken batches and may end the pass after any step; without one a broken batch is an error.

    Returns:
        Means over the epoch: `loss`, `class_error`, `lr`, every weighted loss, and every `<name>_unscaled`.

    Raises:
        ValueError: the loss is not finite, or `batch_size` is not divisible by the accumulation steps.
    """
    accumulate = getattr(args, "grad_accum_steps", 1)
    if batch_size % accumulate:
        raise ValueError(f"batch_size={batch_size} is not divisible by grad_accum_steps={accumulate}")
    runtime, progress, watch = runtime or _runtime_of(device, args), progress or Progress(), watch or Watch()
    averages = Averages() if averages is None else averages
    sizes = _scales(args)
    steps = num_training_steps_per_epoch or len(data_loader)  # pyrefly: ignore[bad-argument-type]
    model.train()
    criterion.train()
    for batch in progress.over(data_loader, f"epoch {epoch + 1}", steps, averages.steps):
        step = epoch * steps + averages.steps
        for callback in (callbacks or {}).get("on_train_batch_start", ()):
            callback({"step": step, "model": bare(model), "epoch": epoch})
        if "dp" in schedules:
            set_drop_path(model, float(schedules["dp"][step]))
        # Drawn from the step alone: the same for all micro-batches and processes, and no generator moves.
        size = random.Random(step).choice(sizes) if sizes else None
        loss, broken = _add_gradients(model, criterion, batch, size, accumulate, runtime, averages)
        lr = optimizer.param_groups[0]["lr"]
        any_broken, stop = runtime.processes.any(bool(broken), watch.wants_stop)
        if any_broken:
            optimizer.zero_grad(set_to_none=True)
        elif not runtime.optimiser_step(optimizer, max_norm):
            any_broken, broken = True, ["gradient"]
        # Gradients are broken in all processes alike; the schedule moves on, so that steps keep their place.
        if any_broken:
            watch.broken(step, batch, broken)
        else:
            watch.sound(step, loss, lr)
        if lr_scheduler is not None:
            _advance(lr_scheduler)
        if ema_m is not None and not any_broken:
            ema_m.update(bare(model))
        averages.add_step(lr)
        if progress.live:
            progress.show(loss=f"{loss:.2f}", lr=f"{lr:.1e}")
        if stop:
            break
    return averages.read(criterion.weight_dict, runtime.processes)


def _advance(lr_scheduler: Any) -> None:
    """Move the schedule on; that a left out first step has not moved the weights is as it should be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        lr_scheduler.step()


class Watch:
    """What a training pass reports, and asks, after every step; this one ends it at the first broken batch."""

    wants_stop = False

    def broken(self, step: int, batch: Any, losses: list[str]) -> None:
        """Take a batch whose losses of these names are not finite; empty if it was another process's."""
        raise ValueError(f"the loss is not finite: {', '.join(losses)}; a lower lr or amp_dtype=None may help")

    def sound(self, step: int, loss: float, lr: float) -> None:
        """Take the loss of a step that moved the weights."""


def _add_gradients(
    model: nn.Module,
    criterion: Criterion,
    batch: Any,
    size: int | None,
    accumulate: int,
    runtime: Runtime,
    averages: Averages,
) -> tuple[float, list[str]]:
    """Add the gradients of one optimiser step; returns the last loss and the names of losses that are not finite.

    When memory runs out, the gradients of the step are computed again with each micro-batch cut in more pieces.
    """
    while True:
        counted, broken, loss = [], [], math.nan
        try:
            micros = list(split(batch, accumulate))
            normalisers, shares = _normalisers(criterion, micros, runtime)
            for number, micro in enumerate(micros):
                with runtime.last_of_step(model, number == accumulate - 1):
                    losses = _accumulate(model, criterion, micro, size, normalisers[number], shares[number], runtime)
                total = criterion.weighted_total(losses)
                # The assignment has just waited for the device, so this costs no further wait.
                loss = total.item()
                if not math.isfinite(loss):
                    broken += [name for name, value in losses.items() if not torch.isfinite(value)]
                counted.append((losses, total, len(micro[0]), sum(len(target["labels"]) for target in micro[1])))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            pictures = len(batch[0]) // accumulate
            runtime.cut_smaller(pictures, error)
            logger.warning("memory ran out: batches of %d are computed in %d pieces now", pictures, runtime.pieces)
            bare(model).zero_grad(set_to_none=True)
            continue
        for entry in () if broken else counted:
            averages.add(*entry)
        return loss, broken


def _normalisers(criterion: Criterion, micros: list, runtime: Runtime) -> tuple[list[float], list[float]]:
    """What the losses of each micro-batch are divided by, and its share in the gradient of the step.

    With keypoints every object has the same share, otherwise every micro-batch.
    """
    # Counted over all processes, and before a micro-batch is cut: the sum of the pieces is the loss of the whole.
    objects = [sum(len(target["labels"]) for target in targets) for _, targets in micros]
    normalisers = [criterion.normaliser(runtime.mean_over_processes(count)) for count in objects]
    if criterion.keypoints is None:
        return normalisers, [1 / len(micros)] * len(micros)
    return normalisers, [one / sum(normalisers) for one in normalisers]


def _accumulate(
    model: nn.Module,
    criterion: Criterion,
    micro: Any,
    size: int | None,
    normaliser: float,
    share: float,
    runtime: Runtime,
) -> dict[str, Tensor]:
    """Forward, losses and backward of one micro-batch, whole or in pieces; returns its losses."""
    pictures = len(micro[0])
    joined: dict[str, Tensor] = {}
    for piece in cut(micro, min(runtime.pieces, pictures)):
        samples, targets = runtime.to_device(piece)
        if size is not None:
            samples, targets = runtime.resize((samples, targets), size)
        with runtime.autocast():
            outputs = model(samples.tensors, samples.mask)
        losses = criterion(outputs, targets, normaliser)
        runtime.backward(criterion.weighted_total(losses) * share)
        for name, value in losses.items():
            # Losses are sums over the objects, diagnostics are means.
            part = 1.0 if name.startswith("loss_") else len(targets) / pictures
            joined[name] = joined.get(name, 0.0) + value.detach() * part
    return joined


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Set the stochastic depth of every encoder in a model."""
    for module in model.modules():
        if isinstance(module, Encoder):
            module.set_drop_path(rate)


def split_evaluation(annotations: AnnotationSet, args: Any, across_classes: bool = False) -> SplitEvaluation:
    """What collects the detections of a split; `args` as for `evaluate`."""
    return SplitEvaluation(
        annotations,
        ground_truth(annotations),
        getattr(args, "eval_max_dets", 500),
        at_head_size=getattr(args, "eval_masks_head_resolution", False),
        sigmas=getattr(args, "keypoint_oks_sigmas", None),
        across_classes=across_classes,
    )


def _runtime_of(device: torch.device, args: Any) -> Runtime:
    device = torch.device(device)
    amp = mixed_precision(getattr(args, "amp_dtype", "auto"), device) if getattr(args, "amp", False) else None
    return Runtime(device, amp)


def _scales(args: Any) -> list[int]:
    """Sizes drawn from per step; none without multi-scale training by batch."""
    if getattr(args, "multi_scale", False) not in (True, "per-batch") or not hasattr(args, "resolution"):
        return []
    return multi_scale_sizes(
        args.resolution, args.patch_size * args.num_windows, getattr(args, "expanded_scales", True)
    )


def shares(samples: NestedTensor) -> list[tuple[float, float]]:
    """Part of the height and width of a batch that each picture covers; the rest is padding."""
    if samples.mask is None:
        return [(1.0, 1.0)] * len(samples)
    height, width = ((~samples.mask).any(axis).float().mean(1).tolist() for axis in (2, 1))
    return list(zip(height, width, strict=True))


def evaluate(
    model: nn.Module,
    criterion: Criterion | None,
    postprocess: Callable,
    data_loader: Iterable,
    base_ds: AnnotationSet,
    device: torch.device,
    args: Any = None,
    *,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
    title: str = "evaluate",
    evaluation: SplitEvaluation | None = None,
) -> tuple[dict[str, Any], CocoEvaluator]:
    """Losses and COCO metrics of a model over one split.

    Args:
        criterion: None leaves the losses out.
        postprocess: a `PostProcess`.
        data_loader: yields every picture of `base_ds` once, in order.
        args: a namespace; read are amp, amp_dtype, eval_max_dets, eval_masks_head_resolution and keypoint_oks_sigmas.
        evaluation: collects the detections, and has them all afterwards; None makes one.

    Returns:
        The losses and `SplitEvaluation.stats()`: `coco_eval_bbox` (AP, AP50, AP75, AP by size, AR), `results_json`
        (per class), and `coco_eval_masks` or `coco_eval_keypoints` of models and annotations that have them; the
        evaluator of the boxes.
    """
    runtime, progress = runtime or _runtime_of(device, args), progress or Progress()
    evaluation = split_evaluation(base_ds, args) if evaluation is None else evaluation
    processes, averages = runtime.processes, Averages()
    idle = runtime.idle_passes(data_loader)
    # Of several processes each has every n-th picture.
    index = processes.rank
    with evaluating(model):
        if criterion is not None:
            criterion.eval()
        for batch in progress.over(data_loader, title):
            samples, targets = runtime.to_device(batch)
            with runtime.autocast():
                outputs = model(samples.tensors, samples.mask, last_only=criterion is None, whole_masks=False)
            if criterion is not None:
                objects = sum(len(target["labels"]) for target in targets)
                losses = criterion(outputs, targets)
                averages.add(losses, criterion.weighted_total(losses), len(targets), objects)
            sizes = torch.stack([target["orig_size"] for target in targets])
            images = postprocess(outputs, sizes, enlarge_masks=False)
            for target, found, hw, share in zip(targets, images, sizes.tolist(), shares(samples), strict=True):
                if "unreadable" in target:
                    evaluation.leave_out(index)
                else:
                    evaluation.add(index, found, (hw[0], hw[1]), share)
                index += processes.world
        for _ in range(idle):
            model(torch.zeros(1, 3, args.resolution, args.resolution, device=runtime.device), last_only=True)
    if processes.world > 1:
        evaluation.load_state(processes.gather(evaluation.state()))
    stats: dict[str, Any] = averages.read(criterion.weight_dict, processes) if criterion is not None else {}
    return stats | evaluation.stats(), evaluation.boxes
