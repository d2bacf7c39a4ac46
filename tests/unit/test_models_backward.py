"""Backward passes written by hand give the gradients that autograd gives."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.tiny import TASK_MODEL, tiny_keypoints, tiny_model, tiny_segmenter
from torch import Tensor, nn

from rfdetr.models import backward
from rfdetr.models.backward import feed_forward, negative_loss, through_few
from rfdetr.models.heads import MLP, GroupMLP

NEAR = {"rtol": 1e-5, "atol": 1e-6}


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward, "by_hand", lambda features: False)


def gradients(run: Callable[[Tensor], Tensor], features: Tensor, module: nn.Module, weight: Tensor) -> list[Tensor]:
    """The output of a function, and the gradients of its input and of parameters; zero where there is none."""
    features = features.clone().requires_grad_()
    module.zero_grad()
    out = run(features)
    (out * weight).sum().backward()
    found = [features.grad, *(one.grad for one in module.parameters())]
    return [out.detach(), *(torch.zeros(()) if one is None else one.clone() for one in found)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **NEAR)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_a_feed_forward_network(activation, rows, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(backward, "CHUNK_ROWS", rows)
    network = nn.ModuleDict({"first": nn.Linear(6, 20), "last": nn.Linear(20, 6)})
    features, weight = torch.randn(2, 7, 6), torch.randn(2, 7, 6)

    def run(given: Tensor) -> Tensor:
        return feed_forward(given, network["first"], network["last"], activation)

    found = gradients(run, features, network, weight)
    plainly(monkeypatch)
    assert_same(found, gradients(run, features, network, weight))


@pytest.mark.parametrize("frozen", ["first.weight", "first.bias", "last.weight", "last.bias", "first", "last"])
def test_what_is_frozen_gets_no_gradient(frozen):
    network = nn.ModuleDict({"first": nn.Linear(6, 20), "last": nn.Linear(20, 6)})
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    feed_forward(torch.randn(3, 6), network["first"], network["last"], "gelu").sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen)


REACHED = {
    "none": [],
    "one": [(1, 2)],
    "different numbers in each group": [(0, 0), (0, 4), (0, 3), (2, 1)],
    "all": [(group, row) for group in range(3) for row in range(5)],
}


@pytest.mark.parametrize("reached", REACHED.values(), ids=REACHED)
@pytest.mark.parametrize("kind", ["groups", "plain"])
def test_rows_without_a_gradient_are_left_out(kind, reached, monkeypatch):
    torch.manual_seed(0)
    module = GroupMLP(3, 6, 8, 4) if kind == "groups" else MLP(6, 8, 4)
    features, weight = torch.randn(3, 5, 6), torch.zeros(3, 5, 4)
    for place in reached:
        weight[place] = torch.randn(4)
    arguments = (3,) if kind == "groups" else ()
    seen = []
    module.register_forward_hook(lambda module, given, out: seen.append(given[0].shape[1]))

    def run(given: Tensor) -> Tensor:
        return through_few(module, given, *arguments)

    found = gradients(run, features, module, weight)
    most = max((sum(place[0] == group for place in reached) for group in range(3)), default=0)
    assert seen == [5, most]
    plainly(monkeypatch)
    expected = gradients(run, features, module, weight)
    assert_same(found, expected)


def test_a_gradient_that_is_no_number_is_not_lost():
    module = MLP(6, 8, 4)
    features = torch.randn(1, 5, 6, requires_grad=True)
    weight = torch.zeros(1, 5, 4)
    weight[0, 3, 1] = torch.nan
    (through_few(module, features) * weight).sum().backward()
    assert features.grad[0, 3].isnan().all()
    assert module.layers[0].weight.grad.isnan().any()


def test_the_loss_without_objects():
    logits = torch.cat((torch.linspace(-90, 90, 48), torch.randn(12))).view(3, 2, 5, 2).requires_grad_()
    weight = torch.tensor([0.5, 2.0, -1.0])
    found = negative_loss(logits)
    (found * weight).sum().backward()
    double = logits.detach().double().requires_grad_()
    expected = (double.sigmoid() ** 2 * torch.nn.functional.softplus(double)).sum((1, 2, 3))
    (expected * weight).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad.double(), double.grad, rtol=1e-5, atol=1e-30)


MODELS = {"detect": tiny_model, "segment": tiny_segmenter, "keypoints": tiny_keypoints}
WAYS = {"plain": {}, "checkpointed": {"gradient_checkpointing": True}, "frozen": {"freeze_encoder": 2}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", MODELS)
def test_networks_learn_the_same(task, way, monkeypatch):
    options = {"num_keypoints_per_class": [4]} if task == "keypoints" else {}
    network = MODELS[task](**options, **WAYS[way]).model.ready().train()
    images = torch.randn(2, 3, *(2 * [TASK_MODEL["resolution"] if task != "detect" else 64]))
    torch.manual_seed(0)
    other = copy.deepcopy(network)
    found = _learned(network, images)
    plainly(monkeypatch)
    expected = _learned(other, images)
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        scale = float(one.abs().max())
        torch.testing.assert_close(found[name], one, rtol=1e-3, atol=max(2e-5 * scale, 1e-7), msg=name)


def _learned(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    outputs = network(images)
    layers = [outputs, *outputs["aux_outputs"], outputs["enc_outputs"]]
    # Boxes of a few queries, logits of all.
    total = sum(one["pred_boxes"][:, ::7].square().sum() + one["pred_logits"].square().mean() for one in layers)
    total.backward()
    return {name: one.grad for name, one in network.named_parameters() if one.grad is not None}


def test_other_precisions_take_the_plain_way():
    features = torch.randn(2, 3)
    assert backward.by_hand(features)
    assert not backward.by_hand(features.double())
    assert not backward.by_hand(features.to("meta"))
    with torch.no_grad():
        assert not backward.by_hand(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert not backward.by_hand(features)
