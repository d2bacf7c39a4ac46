"""How many operators a training step dispatches: on a GPU each is a launch, which small batches wait for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rfdetr import RFDETRNano
from rfdetr.config import TrainConfig
from rfdetr.models import backward
from rfdetr.models.build import build_criterion
from rfdetr.training.ema import ModelEma
from rfdetr.training.optim import Rates, build_optimizer
from rfdetr.training.runtime import Runtime

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Of the published package 1.11.2, nano, two pictures, `python benchmarks/compare.py --only "step nano operators"`.
PUBLISHED = {"forward": 476, "losses": 578, "sum": 18, "backward": 1310, "optimiser": 950}


@pytest.fixture(scope="module")
def counter():
    spec = importlib.util.spec_from_file_location("operators", BENCHMARKS / "operators.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CountOperators


def drawn(pictures: int, objects: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    targets = [
        {"labels": torch.randint(0, 90, (objects,)), "boxes": torch.rand(objects, 4) * 0.3 + 0.2}
        for _ in range(pictures)
    ]
    return torch.randn(pictures, 3, 288, 288), targets


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_step_has_at_most_half_of_the_published_operators(by_hand, counter, monkeypatch):
    """Their number does not depend on how many groups, pictures and objects there are."""
    if not by_hand:
        monkeypatch.setattr(backward, "by_hand", lambda features: False)
    model = RFDETRNano(pretrain_weights=None, resolution=288, group_detr=2, device="cpu")
    network = model.model.ready().train()
    criterion = build_criterion(model.model_config, TrainConfig(dataset_dir=".")).train()
    optimizer = build_optimizer(network, Rates(1e-6, 1e-6, 1e-4, 0.8, 0.7, 12), fused=True)
    runtime, ema = Runtime(torch.device("cpu")), ModelEma(network)

    def step(pictures: int, objects: int) -> dict[str, int]:
        images, targets = drawn(pictures, objects)
        with counter() as forward:
            outputs = network(images)
        with counter() as losses:
            found = criterion(outputs, targets)
        with counter() as added:
            total = criterion.weighted_total(found)
        with counter() as back:
            total.backward()
        with counter() as tail:
            assert runtime.optimiser_step(optimizer, 0.1)
            ema.update(network)
        parts = (forward, losses, added, back, tail)
        return dict(zip(PUBLISHED, (one.total for one in parts), strict=True))

    step(1, 3)  # the optimiser makes its state in the first step
    found = step(2, 7)
    assert found == step(3, 11)
    assert found["losses"] <= 120
    assert sum(found.values()) <= sum(PUBLISHED.values()) / 2
    if not by_hand:
        without = sum(found.values()) - found["optimiser"]
        assert without <= (sum(PUBLISHED.values()) - PUBLISHED["optimiser"]) / 2
