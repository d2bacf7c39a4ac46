"""Assignments, losses and gradients of the criterion on recorded predictions and targets."""

from __future__ import annotations

import pytest
import torch
from tests.vectors import assert_close, match_layer, read_json, read_tensors, recorded_matches, targets_of

from rfdetr.models.criterion import Criterion
from rfdetr.models.matcher import MatchCosts, pair_costs

CASES = (
    "g1",  # an empty and a crowded image
    "g13",
    "eval_g13",  # evaluation mode ignores the groups
    "more_targets_than_queries",
    "no_targets",
    "batch1",
    "sum_group_losses",
    "num_boxes_override",
    "cls_focal",
    "cls_varifocal",
    "cls_position_supervised",
    "degenerate",
)
FIELDS = ("pred_logits", "pred_boxes")
LOSS_RTOL, LOSS_ATOL, TOTAL_RTOL = 2e-5, 1e-6, 1e-5
# Of the largest gradient of an array.
GRADIENT_TOLERANCE = 1e-4


def read_case(name: str):
    return read_json(f"training/loss_det_{name}"), read_tensors(f"training/loss_det_{name}")


def build_criterion(settings: dict) -> Criterion:
    kinds = {
        "ia_bce_loss": "ia_bce",
        "use_position_supervised_loss": "position",
        "use_varifocal_loss": "varifocal",
    }
    kind = next((ours for theirs, ours in kinds.items() if settings[theirs]), "focal")
    criterion = Criterion(
        settings["weight_dict"], settings["group_detr"], kind, settings["focal_alpha"], settings["sum_group_losses"]
    )
    return criterion.train(settings["training"])


def layer_of(tensors: dict, layer: str, prefix: str = "") -> dict:
    return {field: tensors[f"{prefix}in/{layer}/{field}"] for field in FIELDS}


def outputs_of(layers: dict[str, dict]) -> dict:
    """The detector's output with the layers called final, aux0, aux1, ..., enc."""
    aux = [one for name, one in layers.items() if name.startswith("aux")]
    return {**layers["final"], "aux_outputs": aux, "enc_outputs": layers["enc"]}


@pytest.mark.parametrize("name", CASES)
def test_assignments_equal_the_recorded_ones(name):
    meta, tensors = read_case(name)
    criterion = build_criterion(meta["criterion"])
    groups = criterion.groups if criterion.training else 1
    targets = targets_of(tensors, meta["num_images"])
    for layer in meta["layers"]:
        found = match_layer(layer_of(tensors, layer), targets, groups, criterion.costs)
        assert found == recorded_matches(tensors, layer, meta["num_images"]), layer


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_equal_the_recorded_ones(name):
    meta, tensors = read_case(name)
    criterion = build_criterion(meta["criterion"])
    layers = {layer: layer_of(tensors, layer) for layer in meta["layers"]}
    for one in layers.values():
        for tensor in one.values():
            tensor.requires_grad_()
    targets = targets_of(tensors, meta["num_images"])
    losses = criterion(outputs_of(layers), targets, meta["num_boxes_override"])
    total = criterion.weighted_total(losses)
    assert losses.keys() == meta["losses"].keys()
    for key, value in meta["losses"].items():
        assert_close(losses[key], value, key, LOSS_ATOL, LOSS_RTOL)
    assert_close(total, meta["total"], "total", rtol=TOTAL_RTOL)
    total.backward()
    for layer, one in layers.items():
        for field, tensor in one.items():
            expected = tensors[f"grad/{layer}/{field}"]
            gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            scale = expected.abs().max().item()
            assert_close(gradient, expected, f"gradient of {layer} {field}", GRADIENT_TOLERANCE * scale)


@pytest.mark.parametrize("name", [name for name in CASES if name != "num_boxes_override"])
def test_normaliser_equals_the_recorded_one(name):
    meta, _ = read_case(name)
    assert build_criterion(meta["criterion"]).normaliser(sum(meta["targets_per_image"])) == meta["normaliser"]


@pytest.mark.parametrize("layer", ["final", "aux0", "aux1", "enc"])
def test_costs_equal_the_recorded_ones(layer):
    meta, tensors = read_case("g1")
    one, targets = layer_of(tensors, layer), targets_of(tensors, meta["num_images"])
    columns = [
        pair_costs(logits[None], boxes[None], target["labels"][None], target["boxes"][None], MatchCosts())[0]
        for logits, boxes, target in zip(one["pred_logits"], one["pred_boxes"], targets, strict=True)
    ]
    expected = tensors[f"cost/{layer}"]
    assert_close(torch.cat(columns, dim=1), expected, "cost", 1e-6 * expected.abs().max().item(), 1e-5)


SCENARIOS = {
    # scenario: whether its assignment is unambiguous
    "nan_logits": True,
    "inf_boxes": True,
    "all_nan": False,
    "nan_target_box": False,
}


@pytest.mark.parametrize("layer", ["a", "b"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_values_that_are_not_finite_are_matched_last(name, layer):
    groups = read_json("training/match_nonfinite")["scenarios"][name]["group_detr"]
    tensors = read_tensors("training/match_nonfinite")
    prefix = f"{name}/"
    targets = targets_of(tensors, 3, prefix)
    with pytest.warns(RuntimeWarning, match="not finite"):
        found = match_layer(layer_of(tensors, layer, prefix), targets, groups, MatchCosts())
    expected = recorded_matches(tensors, layer, 3, prefix)
    if SCENARIOS[name]:
        assert found == expected
    for (queries, wanted), (reference, _), target in zip(found, expected, targets, strict=True):
        assert len(set(queries)) == len(reference)
        assert sorted(wanted) == sorted([*range(len(target["labels"]))] * groups)


def test_a_finite_alternative_wins_over_a_target_that_is_not_finite():
    tensors = read_tensors("training/match_nonfinite")
    one, targets = layer_of(tensors, "a", "nan_target_box/"), targets_of(tensors, 3, "nan_target_box/")
    with pytest.warns(RuntimeWarning, match="not finite"):
        found = match_layer(one, targets, 1, MatchCosts())
    good = [target["boxes"].isfinite().all(1) for target in targets]
    clean = [{key: value[keep] for key, value in target.items()} for target, keep in zip(targets, good, strict=True)]
    without = match_layer(one, clean, 1, MatchCosts())
    for (queries, wanted), (expected, _), keep in zip(found, without, good, strict=True):
        assert [q for q, t in zip(queries, wanted, strict=True) if keep[t]] == expected


@pytest.mark.parametrize("case", read_json("training/ddp_normaliser")["cases"], ids=lambda c: f"{c['world_size']}")
def test_normaliser_of_several_processes_equals_the_recorded_one(case):
    criterion = Criterion({}, case["group_detr"]).train()
    targets = sum(sum(rank) for rank in case["targets_per_image_per_rank"])
    found = criterion.normaliser(targets, case["world_size"])
    assert [found] * case["world_size"] == case["normaliser_per_rank"]
