"""Loaders from the configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.augment import Augment, build_augmentations
from rfdetr.datasets.cache import PictureCache
from rfdetr.datasets.keypoints import KeypointSchema
from rfdetr.datasets.loader import EvalOrder, Loader, Pictures, TrainOrder, make_loader
from rfdetr.datasets.transforms import EvalTransform, TrainTransform, multi_scale_sizes


def build_train_loader(
    config: TrainConfig,
    model: ModelConfig,
    annotations: AnnotationSet,
    order: TrainOrder,
    on_cuda: bool,
    cache: PictureCache | None = None,
) -> Loader:
    """Augmented pictures as uint8 in the given order, one effective batch at a time."""
    transform = train_transform(config, model, augmentations(config, annotations))
    skip = config.on_bad_image == "skip"
    pictures = Pictures(annotations, transform, order.seed, reduction=transform.reduction, cache=cache, skip=skip)
    return make_loader(pictures, batch_size=order.effective, order=order, **_shared(config, model, on_cuda))


def train_transform(config: TrainConfig, model: ModelConfig, augment: Augment | None = None) -> TrainTransform:
    """What happens to a training picture before it is augmented."""
    sizes = [model.resolution]
    if config.multi_scale in (True, "per-batch", "per-sample"):
        sizes = multi_scale_sizes(model.resolution, model.block_size, config.expanded_scales)
        # By batch, all pictures come at the largest size and the step shrinks them.
        sizes = sizes if config.multi_scale == "per-sample" else sizes[-1:]
    return TrainTransform(tuple(sizes), config.square_resize_div_64, config.scale_jitter, augment)


def augmentations(config: TrainConfig, annotations: AnnotationSet) -> Augment:
    """The augmentations of a run, which swap keypoints as the configuration says, or else the data set."""
    schema = annotations.schema
    if schema is None:
        return build_augmentations(config.aug_config)
    check_flip_pairs(config.keypoint_flip_pairs, schema, annotations.source)
    pairs = config.keypoint_flip_pairs or schema.flip_pairs
    return build_augmentations(config.aug_config, pairs, has_keypoints=True)


def check_flip_pairs(pairs: Sequence[int], schema: KeypointSchema, source: Path) -> None:
    """ValueError if a given pair names a keypoint that not every class with keypoints has."""
    count = min(count for count in schema.counts if count)
    if max(pairs, default=0) >= count:
        raise ValueError(
            f"keypoint_flip_pairs={list(pairs)}: a class of {source} has only {count} keypoints, 0 to {count - 1}, and "
            "the pairs are for all classes; give fewer pairs, or none and aug_config={}, which mirrors nothing"
        )


def build_eval_loader(
    config: TrainConfig,
    model: ModelConfig,
    annotations: AnnotationSet,
    on_cuda: bool,
    keep_workers: bool = True,
    rank: int = 0,
    world: int = 1,
    cache: PictureCache | None = None,
) -> Loader:
    """Every picture once, in order, prepared as `predict` does; process `rank` of `world` has every `world`-th."""
    transform, skip = EvalTransform(model.resolution, config.square_resize_div_64), config.on_bad_image == "skip"
    pictures = Pictures(annotations, transform, cache=cache, skip=skip)
    shared = _shared(config, model, on_cuda)
    shared["persistent_workers"] = shared["persistent_workers"] if keep_workers else False
    order = EvalOrder(len(annotations), rank, world)
    # "auto" is for training: an evaluation takes the size that training has by default.
    size = config.eval_batch_size or (4 if config.batch_size == "auto" else config.batch_size)
    return make_loader(pictures, batch_size=size, order=order, **shared)


def workers_of(config: TrainConfig, on_cuda: bool) -> int:
    """Loading processes of each process of a run: what was asked for, or what fits the cores."""
    if config.is_explicit("num_workers") or config.num_workers != type(config).model_fields["num_workers"].default:
        return config.num_workers
    own = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    # Beside the CPU that trains there is no use for more than the usual two.
    return min(own, 8 if on_cuda else config.num_workers)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shared(config: TrainConfig, model: ModelConfig, on_cuda: bool) -> dict[str, Any]:
    return {
        "block": model.block_size,
        "num_workers": workers_of(config, on_cuda),
        "pin_memory": on_cuda if config.pin_memory is None else config.pin_memory,
        "persistent_workers": config.persistent_workers,
        "prefetch_factor": config.prefetch_factor,
    }
