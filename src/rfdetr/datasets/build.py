"""Loaders from the configuration."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.loader import Pictures, TrainOrder, make_loader
from rfdetr.datasets.transforms import EvalTransform, TrainTransform, multi_scale_sizes


def build_train_loader(
    config: TrainConfig, model: ModelConfig, annotations: AnnotationSet, order: TrainOrder, on_cuda: bool
) -> DataLoader:
    """Augmented pictures as uint8 in the given order, one effective batch at a time."""
    sizes = [model.resolution]
    if config.multi_scale in (True, "per-batch", "per-sample"):
        sizes = multi_scale_sizes(model.resolution, model.block_size, config.expanded_scales)
        # By batch, all pictures come at the largest size and the step shrinks them.
        sizes = sizes if config.multi_scale == "per-sample" else sizes[-1:]
    mirror = config.aug_config is None
    transform = TrainTransform(tuple(sizes), config.square_resize_div_64, config.scale_jitter, mirror)
    pictures = Pictures(annotations, transform, order.seed)
    return make_loader(pictures, batch_size=order.effective, order=order, **_shared(config, model, on_cuda))


def build_eval_loader(
    config: TrainConfig, model: ModelConfig, annotations: AnnotationSet, on_cuda: bool, keep_workers: bool = True
) -> DataLoader:
    """Every picture once, in order, prepared as `predict` does."""
    pictures = Pictures(annotations, EvalTransform(model.resolution, config.square_resize_div_64))
    shared = _shared(config, model, on_cuda)
    shared["persistent_workers"] = shared["persistent_workers"] if keep_workers else False
    return make_loader(pictures, batch_size=config.eval_batch_size or config.batch_size, **shared)


def _shared(config: TrainConfig, model: ModelConfig, on_cuda: bool) -> dict[str, Any]:
    return {
        "block": model.block_size,
        "num_workers": config.num_workers,
        "pin_memory": on_cuda if config.pin_memory is None else config.pin_memory,
        "persistent_workers": config.persistent_workers,
        "prefetch_factor": config.prefetch_factor,
    }
