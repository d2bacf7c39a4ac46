"""Gradients of a step that is made of several micro-batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import MODEL

from rfdetr.config import ModelConfig, RFDETRKeypointPreviewConfig, RFDETRNanoConfig, train_config_class
from rfdetr.datasets.batch import NestedTensor, split
from rfdetr.engine import train_one_epoch
from rfdetr.models.build import build_criterion, build_model, initialise

COUNTS = (3, 0, 1, 7)
SMALL = {**MODEL, "resolution": 48, "num_classes": 2}
NANO = RFDETRNanoConfig(**{**SMALL, "resolution": 64})
KEYPOINTS = RFDETRKeypointPreviewConfig(**SMALL, num_keypoints_per_class=[3, 2])


def batch(side: int) -> Any:
    rng = np.random.default_rng(0)
    targets = [
        {
            "labels": rng.integers(0, 2, count),
            "boxes": rng.uniform(0.2, 0.5, (count, 4)).astype(np.float32),
            "keypoints": np.concatenate((rng.random((count, 3, 2)), rng.integers(0, 3, (count, 3, 1))), 2),
        }
        for count in COUNTS
    ]
    return NestedTensor(torch.from_numpy(rng.random((4, 3, side, side), np.float32)), None), targets


def gradients(config: ModelConfig, accumulate: int, parts: list | None = None) -> dict[str, torch.Tensor]:
    """Of one step over the whole batch, or over one part of it."""
    torch.manual_seed(0)
    model = initialise(build_model(config))
    criterion = build_criterion(config, train_config_class(config)(dataset_dir="."))
    given = parts or batch(config.resolution)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        found.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    optimizer.register_step_pre_hook(keep)
    settings = SimpleNamespace(grad_accum_steps=accumulate)
    pictures = len(given[0])
    train_one_epoch(
        model, criterion, None, [given], optimizer, torch.device("cpu"), 0, pictures, args=settings, schedules={}
    )
    return found


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    scale = max(float(value.norm()) for value in one.values())
    return max(float((one[name] - other[name]).norm()) for name in one) / scale


@pytest.mark.parametrize("accumulate", [2, 4])
def test_with_keypoints_every_object_has_the_same_share(accumulate):
    whole, parts = gradients(KEYPOINTS, 1), gradients(KEYPOINTS, accumulate)
    groups, micro_batches = KEYPOINTS.group_detr, np.array_split(COUNTS, accumulate)
    # A micro-batch without objects counts as one object of one group.
    counted = sum(max(1, int(counts.sum()) * groups) for counts in micro_batches)
    scale = counted / (sum(COUNTS) * groups)
    assert largest_difference(whole, {name: value * scale for name, value in parts.items()}) < 2e-6


def test_without_keypoints_every_micro_batch_has_the_same_share():
    parts = [gradients(NANO, 1, part) for part in split(batch(64), 2)]
    mean = {name: sum(part[name] for part in parts) / 2 for name in parts[0]}
    together = gradients(NANO, 2)
    assert largest_difference(mean, together) < 2e-6
    assert largest_difference(gradients(NANO, 1), together) > 1e-2
