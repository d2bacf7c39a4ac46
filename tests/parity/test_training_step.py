"""One whole training step: assignments, losses, gradients, clipping and the AdamW update."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests import fill
from tests.vectors import assert_close, filled_model, match_layer, read_json, read_tensors, recorded_matches, targets_of

from rfdetr.checkpoints.names import to_published
from rfdetr.config import TrainConfig
from rfdetr.models.criterion import Criterion, loss_weights
from rfdetr.training.optim import Rates, build_optimizer
from rfdetr.training.runtime import Runtime

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def step() -> SimpleNamespace:
    """Everything that one step of our code gives; tensors by published name."""
    meta, tensors = read_json("training/train_step_nano"), read_tensors("training/train_step_nano")
    groups = meta["group_detr"]
    settings = {"resolution": meta["resolution"], "num_queries": meta["num_queries"], "group_detr": groups}
    model = filled_model(meta["variant"], meta["fill_seed"], **settings).train()
    images = torch.from_numpy(fill.make_batch(meta["image_seeds"], meta["resolution"], meta["resolution"]))
    targets = targets_of(tensors, meta["batch"])
    criterion = Criterion(loss_weights(len(model.decoder.layers)), groups).train()
    outputs = model(images, torch.zeros(len(images), *images.shape[2:], dtype=torch.bool))
    losses = criterion(outputs, targets)
    total = criterion.weighted_total(losses)
    runtime = Runtime(torch.device("cpu"))
    runtime.backward(total)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    update(model, runtime)
    return SimpleNamespace(
        meta=meta,
        tensors=tensors,
        layers={"final": outputs, "aux0": outputs["aux_outputs"][0], "enc": outputs["enc_outputs"]},
        targets=targets,
        criterion=criterion,
        losses=losses,
        total=total,
        gradients=to_published(gradients),
        changes=to_published({name: tensor - before[name] for name, tensor in model.state_dict().items()}),
    )


def update(model, runtime: Runtime) -> None:
    """Clip and move the weights as a run with default options does."""
    config = TrainConfig(dataset_dir="")
    rates = Rates(
        config.lr,
        config.lr_encoder,
        config.weight_decay,
        config.lr_vit_layer_decay,
        config.lr_component_decay,
        last_tap=max(model.encoder.taps),
    )
    runtime.optimiser_step(build_optimizer(model, rates, fused=False), config.clip_max_norm)


@pytest.mark.parametrize("layer", ["final", "aux0", "enc"])
def test_assignments_equal_the_recorded_ones(step, layer):
    found = match_layer(step.layers[layer], step.targets, step.criterion.groups, step.criterion.costs)
    assert found == recorded_matches(step.tensors, layer, len(step.targets))


def test_losses_equal_the_recorded_ones(step):
    assert step.losses.keys() == step.meta["losses"].keys()
    for name, value in step.meta["losses"].items():
        assert_close(step.losses[name], value, name, rtol=2e-5)
    assert_close(step.total, step.meta["total"], "total", rtol=1e-5)


def recorded_norms(step) -> dict[str, float]:
    """Norm of the gradient by published name, of every tensor that has one: all but the unused mask token."""
    norms = step.meta["grad_norm_per_parameter"]
    return {name: norm for name, norm in norms.items() if norm is not None}


def test_gradients_equal_the_recorded_ones(step):
    norms = recorded_norms(step)
    assert step.gradients.keys() - {"_kp_active_mask"} == norms.keys()
    floor = 1e-3 * max(norms.values())
    for name, norm in norms.items():
        assert abs(step.gradients[name].double().norm().item() - norm) <= 5e-3 * (norm + floor), name
    everything = torch.cat([step.gradients[name].flatten() for name in norms]).double().norm()
    assert_close(everything, step.meta["grad_norm_before_clip"], "norm of all gradients", rtol=1e-4)


def test_gradient_samples_equal_the_recorded_ones(step):
    norms = recorded_norms(step)
    for name, norm in norms.items():
        gradient = step.gradients[name].flatten()
        found = gradient[:: max(1, len(gradient) // 4)][:4]
        # A single entry carries no more of the noise than the norm does.
        assert_close(found, step.tensors[f"grad_sample/{name}"], name, 5e-3 * (norm + 1e-3 * max(norms.values())))


def test_updates_equal_the_recorded_ones(step):
    norms = recorded_norms(step)
    # AdamW turns the rounding noise of a gradient that is mathematically zero into a step of full size.
    checked = [name for name, norm in norms.items() if norm >= 1e-4 * max(norms.values())]
    assert len(checked) > len(norms) / 2
    for name in checked:
        expected = step.meta["update_norm_per_parameter_after_adamw"][name]
        assert_close(step.changes[name].double().norm(), expected, name, rtol=1e-2)


def test_the_unused_mask_token_does_not_move(step):
    (name,) = [name for name, norm in step.meta["grad_norm_per_parameter"].items() if norm is None]
    assert step.meta["update_norm_per_parameter_after_adamw"][name] == 0
    assert not step.changes[name].any()
