"""What fits into the memory of the device: the batch size "auto", and a rehearsal of the largest step of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.datasets.transforms import multi_scale_sizes
from rfdetr.log import logger
from rfdetr.models.build import build_criterion
from rfdetr.models.criterion import Criterion
from rfdetr.training.runtime import Runtime, is_out_of_memory

LARGEST = 128
MARGIN = 0.9


def find_largest(fits: Callable[[int], bool]) -> int:
    """The largest batch size that fits: 1 is tried twice, then 2, 4, 8, ... up to 128, then the gap is halved.

    Raises:
        RuntimeError: not even one picture fits.
    """
    # The second trial sees what the first one left behind in the device's caches.
    if not (fits(1) and fits(1)):
        raise RuntimeError(
            "batch_size='auto': not even one picture fits; use a lower resolution, gradient_checkpointing=True, "
            "multi_scale=False or a smaller model"
        )
    good, size = 1, 2
    while size <= LARGEST and fits(size):
        good, size = size, 2 * size
    if size > LARGEST:
        return good
    bad = size
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def safe_size(largest: int, headroom: float = 1.0) -> int:
    """The batch size to use when `largest` fits: a tenth less, and less again by `headroom`; at least 1."""
    return max(1, math.floor(max(1, math.floor(MARGIN * largest)) * headroom))


def choose_batch_size(config: TrainConfig, model: ModelConfig, module: nn.Module, runtime: Runtime) -> TrainConfig:
    """The configuration with `batch_size` and `grad_accum_steps` in place of "auto"; the same in all processes."""
    crowd = config.auto_batch_max_targets_per_image
    criterion = build_criterion(model, config).to(runtime.device)
    side = largest_side(config, model)
    largest = find_largest(lambda size: _fits(module, criterion, runtime, size, side, crowd))
    size = safe_size(largest, config.auto_batch_ema_headroom if config.use_ema else 1.0)
    size = min(runtime.processes.gather(size))
    accumulate = math.ceil(config.auto_batch_target_effective / size)
    logger.info("batch_size='auto': %d fits; batch_size=%d, grad_accum_steps=%d", largest, size, accumulate)
    chosen = config.model_copy()
    chosen.batch_size, chosen.grad_accum_steps = size, accumulate
    return chosen


def largest_side(config: TrainConfig, model: ModelConfig) -> int:
    """Side of the largest input of a run, in pixels."""
    if config.multi_scale in (False, "off"):
        return model.resolution
    return max(multi_scale_sizes(model.resolution, model.block_size, config.expanded_scales))


def _fits(module: nn.Module, criterion: Criterion, runtime: Runtime, pictures: int, side: int, crowd: int) -> bool:
    try:
        worst_step(module, criterion, runtime, pictures, side, crowd)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        module.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True


def worst_step(module: nn.Module, criterion: Criterion, runtime: Runtime, pictures: int, side: int, crowd: int) -> None:
    """One whole training step on drawn pictures of `side` pixels with `crowd` objects each.

    The optimiser moves copies of the weights, so that its state takes its place in memory and the network stays as
    it is, generators and mode too; the gradients are left to the caller.
    """
    device, was_training = runtime.device, module.training
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        channels = module.encoder.patches.in_channels  # pyrefly: ignore[missing-attribute]
        images = torch.rand(pictures, channels, side, side, device=device)
        corner, size = torch.rand(2, pictures, crowd, 2, device=device) * 0.5
        boxes = torch.cat((corner + size / 2, size + 0.01), dim=-1)
        targets = [{"boxes": one, "labels": one.new_zeros(crowd, dtype=torch.int64)} for one in boxes]
        if criterion.masks is not None:
            packed = torch.zeros(-(-crowd // 8), side, side, dtype=torch.uint8, device=device)
            targets = [{**one, "masks": packed} for one in targets]
        if criterion.keypoints is not None:
            points = torch.rand(crowd, max(criterion.keypoints.schema), 3, device=device)
            targets = [{**one, "keypoints": points} for one in targets]
        module.train()
        criterion.train()
        try:
            with runtime.autocast():
                outputs = module(images)
            criterion.weighted_total(criterion(outputs, targets)).backward()
            copies = [p.detach().clone() for p in module.parameters() if p.grad is not None]
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            for one, grad in zip(copies, grads, strict=True):
                one.grad = grad
            torch.optim.AdamW(copies, lr=0.0, weight_decay=0.0).step()
        finally:
            module.train(was_training)


def rehearse(
    module: nn.Module, criterion: Criterion, runtime: Runtime, pictures: int, side: int, crowd: int
) -> int | None:
    """Run the largest step there can be before the first one, on a GPU; returns its peak in bytes, None elsewhere.

    Micro-batches that do not fit are cut in pieces from the start, by all processes alike.

    Raises:
        RuntimeError: not even single pictures fit.
    """
    # Split weights are gathered from all processes, which would not all stop at the same size.
    if runtime.device.type != "cuda" or runtime.splits_model:
        return None
    torch.cuda.reset_peak_memory_stats(runtime.device)
    while not _fits(module, criterion, runtime, -(-pictures // runtime.pieces), side, crowd):
        if runtime.pieces >= pictures:
            raise RuntimeError("a single picture does not fit into memory; use a lower resolution or a smaller model")
        runtime.pieces = min(2 * runtime.pieces, pictures)
    runtime.pieces = max(runtime.processes.gather(runtime.pieces))
    if runtime.pieces > 1:
        logger.warning("batches of %d pictures do not fit; they are computed in %d pieces", pictures, runtime.pieces)
    return torch.cuda.max_memory_allocated(runtime.device)
