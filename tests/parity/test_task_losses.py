"""Assignments, losses and gradients of masks and keypoints on recorded predictions, targets and sampled points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.vectors import assert_close, pairs_of, read_arrays, read_json, recorded_matches, targets_of
from torch import Tensor

from rfdetr.models import criterion as criterion_module
from rfdetr.models import keypoints as keypoints_module
from rfdetr.models.criterion import Criterion
from rfdetr.models.keypoints import KeypointTerms
from rfdetr.models.masks import MaskTerms

CASES = ("seg_sparse_train", "seg_dense_eval", "seg_no_targets", "keypoints_k5", "keypoints_k0_4", "keypoints_k3_5")
CASES += ("keypoints_overflow",)
LOSS_RTOL, LOSS_ATOL, TOTAL_RTOL, GRADIENT_TOLERANCE = 2e-5, 1e-6, 1e-5, 1e-4


class Case:
    """A recording: predictions by layer that ask for gradients, targets, and the criterion with its random points."""

    def __init__(self, name: str) -> None:
        self.meta, arrays = read_json(f"training/loss_{name}"), read_arrays(f"training/loss_{name}")
        self.tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
        self.layers = {layer: self._layer(layer) for layer in self.meta["layers"]}
        width = self.meta.get("target_mask_shape", (None, None))[1]
        self.targets = targets_of(self.tensors, self.meta["num_images"], mask_width=width)
        self.points = self._points()

    def _layer(self, layer: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, tensor in self.tensors.items():
            if key.startswith(f"in/{layer}/"):
                _, _, field, *part = key.split("/")
                tensor.requires_grad_()
                if part:
                    found.setdefault(field, {})[part[0]] = tensor
                else:
                    found[field] = tensor
        return found

    def _points(self) -> Iterator[Tensor]:
        for key, shape in self.meta.get("rand_calls", ()):
            yield self.tensors[key].view(shape)

    def criterion(self) -> Criterion:
        settings = self.meta["criterion"]
        weights, kinds = settings["matcher"], settings["num_keypoints_per_class"]

        def uniform(*shape: int, device: Any) -> Tensor:
            points = next(self.points)
            assert tuple(points.shape) == shape
            return points

        masks = MaskTerms(weights["cost_mask_ce"], weights["cost_mask_dice"], uniform=uniform)
        keypoints = KeypointTerms(tuple(kinds)) if kinds else None
        return Criterion(
            settings["weight_dict"],
            settings["group_detr"],
            masks=None if kinds else masks,
            keypoints=keypoints,
        ).train(settings["training"])


@pytest.mark.parametrize("name", CASES)
def test_assignments_losses_and_gradients_equal_the_recorded_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(name)
    criterion, found = case.criterion(), []
    match = criterion_module.match
    monkeypatch.setattr(criterion_module, "match", lambda *parts: found.append(match(*parts)) or found[-1])
    aux = [one for layer, one in case.layers.items() if layer.startswith("aux")]
    outputs = {**case.layers["final"], "aux_outputs": aux, "enc_outputs": case.layers["enc"]}
    losses = criterion(outputs, case.targets)
    for number, layer in enumerate(case.meta["layers"]):
        ours = pairs_of(found[0], number, case.meta["targets_per_image"])
        assert ours == recorded_matches(case.tensors, layer, case.meta["num_images"]), layer
    assert losses.keys() == case.meta["losses"].keys()
    for key, value in case.meta["losses"].items():
        assert_close(losses[key], value, key, LOSS_ATOL, LOSS_RTOL)
    total = criterion.weighted_total(losses)
    assert_close(total, case.meta["total"], "total", rtol=TOTAL_RTOL)
    total.backward()
    for key, expected in case.tensors.items():
        if key.startswith("grad/"):
            given = case.tensors[f"in/{key.removeprefix('grad/')}"]
            gradient = torch.zeros_like(given) if given.grad is None else given.grad
            assert torch.isfinite(gradient).all()
            scale = max(expected.abs().max().item(), 1e-12) if expected.numel() else 1.0
            assert_close(gradient, expected, key, GRADIENT_TOLERANCE * scale)


def test_the_keypoints_of_a_crowd_are_compared_part_by_part_with_the_same_costs(monkeypatch):
    random = torch.Generator().manual_seed(0)
    layer = {"pred_keypoints": torch.randn(1, 6, 2 * 3, 8, generator=random)}
    labels, boxes = torch.randint(0, 2, (11,), generator=random), torch.rand(11, 4, generator=random)
    keypoints = torch.cat((torch.rand(11, 3, 2, generator=random), torch.ones(11, 3, 1)), dim=-1)
    terms = KeypointTerms((3, 2), 1.0, 2.0, 3.0, 4.0)
    whole = list(terms.costs([layer], [labels], [boxes], [keypoints])(0, 0))
    monkeypatch.setattr(keypoints_module, "CHUNK_VALUES", 6 * 3 * 8 * 4)
    parts = list(terms.costs([layer], [labels], [boxes], [keypoints])(0, 0))
    assert len(whole) == len(parts) == 4
    for one, other in zip(whole, parts, strict=True):
        assert one.shape == (6, 11)
        assert torch.equal(one, other)
