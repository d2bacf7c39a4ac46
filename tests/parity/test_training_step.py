"""One whole training step: assignments, losses, gradients, clipping and the AdamW update."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests import fill
from tests.vectors import assert_close, filled_model, pairs_of, read_json, read_tensors, recorded_matches, targets_of

from rfdetr.checkpoints.names import to_published
from rfdetr.config import TrainConfig
from rfdetr.models import criterion as criterion_module
from rfdetr.models.criterion import Criterion, loss_weights
from rfdetr.models.keypoints import KeypointTerms, Terms
from rfdetr.models.masks import MaskTerms
from rfdetr.models.matcher import match
from rfdetr.training.optim import Rates, build_optimizer
from rfdetr.training.runtime import Runtime

pytestmark = pytest.mark.slow


def criterion_of(variant: str, meta: dict, layers: int) -> Criterion:
    """The losses of the variant's task with the documented weights; sampled points as recorded."""
    names = iter(meta.get("rand_names", ()))

    def uniform(*shape: int, device: torch.device) -> torch.Tensor:
        name, recorded = next(names)
        assert tuple(recorded) == shape
        drawn = (0.5 * (fill.unit(name, shape, meta["fill_seed"]) + 1)).astype(np.float32)
        return torch.from_numpy(np.minimum(drawn, np.float32(1 - 2**-24)))

    if variant == "seg_nano":
        weights = loss_weights(layers, loss_mask_ce=5.0, loss_mask_dice=5.0)
        return Criterion(weights, meta["group_detr"], masks=MaskTerms(uniform=uniform))
    if variant == "keypoint_preview":
        weights = loss_weights(layers, cls=2.0, **{f"loss_keypoints_{name}": 1.0 for name in Terms._fields})
        return Criterion(weights, meta["group_detr"], keypoints=KeypointTerms((17,)))
    return Criterion(loss_weights(layers), meta["group_detr"])


@pytest.fixture(scope="module", params=["nano", "seg_nano", "keypoint_preview"])
def step(request: pytest.FixtureRequest) -> SimpleNamespace:
    """Everything that one step of our code gives; tensors by published name."""
    name = f"training/train_step_{request.param}"
    meta, tensors = read_json(name), read_tensors(name)
    groups = meta["group_detr"]
    settings = {"resolution": meta["resolution"], "num_queries": meta["num_queries"], "group_detr": groups}
    model = filled_model(meta["variant"], meta["fill_seed"], **settings).train()
    images = torch.from_numpy(fill.make_batch(meta["image_seeds"], meta["resolution"], meta["resolution"]))
    targets = targets_of(tensors, meta["batch"], mask_width=meta.get("target_mask_shape", (None, None))[1])
    criterion = criterion_of(request.param, meta, len(model.decoder.layers)).train()
    outputs = model(images, torch.zeros(len(images), *images.shape[2:], dtype=torch.bool))
    matches = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(criterion_module, "match", lambda *parts: matches.append(match(*parts)) or matches[-1])
        losses = criterion(outputs, targets)
    total = criterion.weighted_total(losses)
    runtime = Runtime(torch.device("cpu"))
    runtime.backward(total)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    update(model, runtime)
    return SimpleNamespace(
        meta=meta,
        tensors=tensors,
        matches=matches,
        losses=losses,
        total=total,
        gradients=to_published(gradients),
        changes=to_published({name: tensor.detach() - before[name] for name, tensor in model.named_parameters()}),
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


def test_assignments_equal_the_recorded_ones(step):
    (matches,), counts = step.matches, step.meta["targets_per_image"]
    earlier = [f"aux{i}" for i in range(len(matches.image) - 2)]
    for number, layer in enumerate(["final", *earlier, "enc"]):
        assert pairs_of(matches, number, counts) == recorded_matches(step.tensors, layer, len(counts)), layer


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
