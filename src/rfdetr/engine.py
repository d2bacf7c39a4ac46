"""The two loops: one pass of training, one pass of evaluation. They know nothing of files, loggers or processes."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rfdetr.datasets.annotations import AnnotationSet, clamp_boxes, has_extent
from rfdetr.datasets.batch import split
from rfdetr.datasets.transforms import multi_scale_sizes
from rfdetr.evaluation.coco import CocoEvaluator, GroundTruth
from rfdetr.evaluation.f1 import results_table, sweep_confidence
from rfdetr.models.backbone import Encoder
from rfdetr.models.criterion import Criterion
from rfdetr.training.progress import Progress
from rfdetr.training.runtime import Runtime, evaluating, mixed_precision


class Averages:
    """Means of losses over an epoch, weighted by pictures; they stay tensors until read."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sum: Tensor | None = None
        self._weights = 0
        self._class_error: list[Tensor] = []

    def add(self, losses: Mapping[str, Tensor], total: Tensor, pictures: int, objects: int) -> None:
        """Count one batch. `class_error` says nothing about a batch without objects and is left out there."""
        if objects:
            self._class_error.append(losses["class_error"].detach())
        self._names = ["loss", *(name for name in losses if name != "class_error")]
        values = torch.stack([total.detach(), *(losses[name].detach() for name in self._names[1:])]) * pictures
        self._sum = values if self._sum is None else self._sum + values
        self._weights += pictures

    def read(self, weight_dict: Mapping[str, float]) -> dict[str, float]:
        """`loss`, each weighted loss under its name, each loss and diagnostic as `<name>_unscaled`, `class_error`."""
        if self._sum is None:
            return {}
        values = dict(zip(self._names, (self._sum / self._weights).tolist(), strict=True))
        read = {"loss": values.pop("loss")}
        read["class_error"] = torch.stack(self._class_error).mean().item() if self._class_error else 100.0
        read.update({name: value * weight_dict[name] for name, value in values.items() if name in weight_dict})
        read.update({f"{name}_unscaled": value for name, value in values.items()})
        read["class_error_unscaled"] = read["class_error"]
        return read


def train_one_epoch(
    model: nn.Module,
    criterion: Criterion,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
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
) -> dict[str, float]:
    """Train for one epoch.

    Args:
        data_loader: yields `(NestedTensor, targets)` of `batch_size` pictures, uint8 or float in 0..1.
        batch_size: pictures per optimiser step; `args.grad_accum_steps` micro-batches of equal size.
        max_norm: largest norm of all gradients together; 0 is off.
        ema_m: its `update(model)` is called after every step.
        schedules: "dp", the drop-path rate by optimiser step.
        args: a namespace; read are grad_accum_steps, amp, amp_dtype and the multi-scale settings.
        callbacks: functions of `on_train_batch_start`, called with `step`, `model`, `epoch` before every step.

    Returns:
        Means over the epoch: `loss`, `class_error`, `lr`, every weighted loss, and every `<name>_unscaled`.

    Raises:
        ValueError: the loss is not finite, or `batch_size` is not divisible by the accumulation steps.
    """
    accumulate = getattr(args, "grad_accum_steps", 1)
    if batch_size % accumulate:
        raise ValueError(f"batch_size={batch_size} is not divisible by grad_accum_steps={accumulate}")
    runtime = runtime or _runtime_of(device, args)
    progress = progress or Progress()
    sizes = _scales(args)
    steps = num_training_steps_per_epoch or len(data_loader)  # pyrefly: ignore[bad-argument-type]
    averages, rates = Averages(), []
    model.train()
    criterion.train()
    for i, batch in enumerate(progress.over(data_loader, f"epoch {epoch + 1}")):
        step = epoch * steps + i
        for callback in (callbacks or {}).get("on_train_batch_start", ()):
            callback({"step": step, "model": model, "epoch": epoch})
        if "dp" in schedules:
            set_drop_path(model, float(schedules["dp"][step]))
        # Drawn from the step alone: the same for all micro-batches and processes, and no generator moves.
        size = random.Random(step).choice(sizes) if sizes else None
        total = math.nan
        for micro in split(batch, accumulate):
            total = _accumulate(model, criterion, micro, size, accumulate, runtime, averages)
        rates.append(optimizer.param_groups[0]["lr"])
        runtime.optimiser_step(optimizer, max_norm)
        lr_scheduler.step()
        if ema_m is not None:
            ema_m.update(model)
        if progress.live:
            progress.show(loss=f"{total:.2f}", lr=f"{rates[-1]:.1e}")
    return {**averages.read(criterion.weight_dict), "lr": sum(rates) / max(1, len(rates))}


def _accumulate(
    model: nn.Module,
    criterion: Criterion,
    micro: Any,
    size: int | None,
    parts: int,
    runtime: Runtime,
    averages: Averages,
) -> float:
    """Forward, losses and backward of one micro-batch; returns its loss."""
    samples, targets = runtime.to_device(micro)
    if size is not None:
        samples, targets = runtime.resize((samples, targets), size)
    with runtime.autocast():
        outputs = model(samples.tensors, samples.mask)
    losses = criterion(outputs, targets)
    total = criterion.weighted_total(losses)
    # The assignment has just waited for the device, so this costs no further wait.
    value = total.item()
    if not np.isfinite(value):
        broken = [name for name, loss in losses.items() if not torch.isfinite(loss)]
        raise ValueError(f"the loss is {value}: {', '.join(broken)} not finite; a lower lr or amp_dtype=None may help")
    runtime.backward(total / parts)
    averages.add(losses, total, len(samples), sum(len(target["labels"]) for target in targets))
    return value


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Set the stochastic depth of every encoder in a model."""
    for module in model.modules():
        if isinstance(module, Encoder):
            module.set_drop_path(rate)


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
) -> tuple[dict[str, Any], CocoEvaluator]:
    """Losses and COCO metrics of a model over one split.

    Args:
        criterion: None leaves the losses out.
        postprocess: raw outputs and (B, 2) picture sizes to detections.
        data_loader: yields every picture of `base_ds` once, in order.
        args: a namespace; read are amp, amp_dtype, fp16_eval and eval_max_dets.

    Returns:
        `coco_eval_bbox` (12 numbers: AP, AP50, AP75, AP by size, AR), `results_json` (per class) and losses; evaluator.
    """
    runtime = runtime or _runtime_of(device, args)
    progress = progress or Progress()
    evaluator = CocoEvaluator(ground_truth(base_ds), max_dets=getattr(args, "eval_max_dets", 500))
    positions = _class_positions(base_ds)
    averages, seen = Averages(), 0
    with evaluating(model):
        if criterion is not None:
            criterion.eval()
        for batch in progress.over(data_loader, title):
            samples, targets = runtime.to_device(batch)
            with runtime.autocast():
                outputs = model(samples.tensors, samples.mask, last_only=criterion is None)
            if criterion is not None:
                losses = criterion(outputs, targets)
                objects = sum(len(target["labels"]) for target in targets)
                averages.add(losses, criterion.weighted_total(losses), len(targets), objects)
            sizes = torch.stack([target["orig_size"] for target in targets])
            for found in postprocess(outputs, sizes):
                arrays = {name: value.cpu().numpy() for name, value in found.items()}
                classes = positions.take(arrays["labels"], mode="clip")
                known = classes >= 0
                evaluator.update(seen, arrays["scores"][known], classes[known], arrays["boxes"][known])
                seen += 1
    result = evaluator.summarize()
    stats: dict[str, Any] = averages.read(criterion.weight_dict) if criterion is not None else {}
    stats["coco_eval_bbox"] = [float(value) for value in result.stats]
    stats["results_json"] = results_table(result, sweep_confidence(evaluator))
    return stats, evaluator


def _class_positions(annotations: AnnotationSet) -> np.ndarray:
    """Position in `class_names` of every label, -1 where a label, or any above them, is no class of the data set."""
    labels = np.array(annotations.categories.labels)
    positions = np.full(labels.max(initial=-1) + 2, -1)
    positions[labels] = np.arange(len(labels))
    return positions


@functools.lru_cache(maxsize=2)
def ground_truth(annotations: AnnotationSet) -> GroundTruth:
    """What detections of a split are compared with: boxes cut to their pictures, crowd regions to be ignored.

    Kept for the next evaluation of the same split, since it opens every picture to learn its size.
    """
    boxes, pictures = [np.zeros((0, 4))], []
    for index in range(len(annotations)):
        with Image.open(annotations.path(index)) as picture:
            width, height = picture.size
        cut = clamp_boxes(annotations.boxes_xyxy_px(index, height, width), height, width)
        boxes.append(cut)
        pictures.append(np.full(len(cut), index, np.int64))
    joined = np.concatenate(boxes)
    size = joined[:, 2:] - joined[:, :2]
    keep = has_extent(joined) | annotations.crowd
    areas = np.where(np.isnan(annotations.areas), size.prod(1), annotations.areas)
    return GroundTruth(
        image_index=np.concatenate([np.zeros(0, np.int64), *pictures])[keep],
        label=_class_positions(annotations)[annotations.labels[keep]],
        boxes_xywh_px=np.concatenate((joined[:, :2], size), axis=1)[keep],
        area=areas[keep],
        crowd=annotations.crowd[keep],
        num_images=len(annotations),
        class_names=annotations.class_names,
    )
