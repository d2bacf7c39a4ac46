"""What the recordings of the mask head and the keypoint network leave open: start values, other schemas, shortcuts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rfdetr import config as configs
from rfdetr.checkpoints.names import to_internal, to_published
from rfdetr.config import ModelConfig
from rfdetr.models.build import build_model, initialise
from rfdetr.models.criterion import Criterion, loss_weights
from rfdetr.models.detector import Detector
from rfdetr.models.keypoint_network import schema_masks
from rfdetr.models.keypoints import KeypointTerms
from rfdetr.models.masks import MaskTerms

SMALL = {
    "encoder": "dinov2_windowed_tiny",
    "out_feature_indexes": [2, 4, 6],
    "pretrain_weights": None,
    "resolution": 96,
    "hidden_dim": 32,
    "sa_nheads": 4,
    "ca_nheads": 4,
    "num_queries": 7,
    "group_detr": 3,
    "num_classes": 4,
}
TASKS = [
    configs.RFDETRNanoConfig(**SMALL),
    configs.RFDETRSegSmallConfig(**SMALL),
    configs.RFDETRKeypointPreviewConfig(**SMALL, num_keypoints_per_class=[3, 0, 2]),
]


def lively(config: ModelConfig) -> Detector:
    """A network whose every part moves the outputs, and stays in range."""
    torch.manual_seed(0)
    model = initialise(build_model(config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return model


def same(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return all(same(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("config", TASKS, ids=lambda c: c.variant)
def test_the_last_layer_alone_gives_the_same_numbers(config):
    model, images = lively(config), torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        everything, last = model(images), model(images, last_only=True)
    assert everything.keys() - last.keys() == {"aux_outputs", "enc_outputs"}
    assert len(everything["aux_outputs"]) == config.dec_layers - 1
    for one in (*everything["aux_outputs"], everything["enc_outputs"]):
        assert {key: type(value) for key, value in one.items()} == dict.fromkeys(last, Tensor)
    assert same({key: everything[key] for key in last}, last)


@pytest.mark.parametrize("config", TASKS, ids=lambda c: c.variant)
def test_the_first_group_of_training_sees_what_evaluation_sees(config):
    model, images = lively(config), torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        evaluated, trained = model(images), model.train()(images)
    for one, other in (
        (evaluated, trained),
        (evaluated["aux_outputs"][0], trained["aux_outputs"][0]),
        (evaluated["enc_outputs"], trained["enc_outputs"]),
    ):
        for key in one.keys() - {"aux_outputs", "enc_outputs"}:
            value = other[key]
            if key == "pred_masks":
                maps = torch.einsum("bqc,bchw->bqhw", value["query_features"], value["spatial_features"])
                value = maps + value["bias"]
            assert value.shape[1] == 3 * 7
            torch.testing.assert_close(value[:, :7], one[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", TASKS, ids=lambda c: c.variant)
def test_files_hold_what_the_network_is_made_of(config):
    state = initialise(build_model(config)).state_dict()
    again, unknown = to_internal(to_published(state))
    assert not unknown
    assert same(dict(sorted(again.items())), dict(sorted(state.items())))


def test_a_mask_head_starts_at_the_defaults_of_its_layers():
    head = initialise(build_model(TASKS[1])).mask_head
    assert not head.bias.any()
    for name, parameter in head.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones(32) if name.endswith("weight") else torch.zeros(32))
        elif name != "bias":
            bound = 1 / math.sqrt({"blocks": 9, "query_out": 128}.get(name.split(".")[0], 32))
            bound = 1 / math.sqrt(32) if ".mix." in name else bound
            assert 0.8 * bound < parameter.abs().max() <= bound, name


def xavier(table: Tensor) -> bool:
    bound = math.sqrt(6 / sum(table.shape))
    return bool(0.8 * bound < table.abs().max() <= bound)


def test_a_keypoint_network_starts_at_the_documented_values():
    torch.manual_seed(0)
    network = initialise(build_model(TASKS[2])).keypoints
    for start in (network.start, network.box_start):
        tables = (start.tokens, start.modulation_in.weight, start.modulation_out.weight, start.output.weight)
        assert all(xavier(table) for table in tables)
        assert not start.modulation_out.bias.any()
        assert start.modulation_in.bias.all()
        assert start.output.bias.all()
    assert xavier(network.position)
    assert not torch.equal(network.start.tokens, network.box_start.tokens)
    first = network.layers[0]
    for layer in network.layers:
        assert layer.instance_scale.item() == pytest.approx(1e-6)
        for linear in (layer.self_attention.qkv, layer.self_attention.output, layer.mlp_in, layer.mlp_out):
            assert xavier(linear.weight)
        assert not layer.self_attention.qkv.bias.any()
        assert not layer.self_attention.output.bias.any()
        assert not layer.cross_attention.offsets.weight.any()
        assert torch.equal(layer.cross_attention.offsets.bias, first.cross_attention.offsets.bias)
        assert layer.mlp_in.bias.all()
        assert torch.equal(layer.mlp_in.bias, first.mlp_in.bias)
        assert torch.equal(layer.mlp_out.bias, first.mlp_out.bias)
        assert layer is first or not torch.equal(layer.mlp_in.weight, first.mlp_in.weight)
    assert not any(parameter.any() for parameter in network.head.layers[-1].parameters())
    for single, copies in zip(network.head.parameters(), network.box_heads.parameters(), strict=True):
        assert all(torch.equal(copy, single) for copy in copies)
    assert 0.8 / math.sqrt(32) < network.head.layers[0].weight.abs().max() <= 1 / math.sqrt(32)


def test_the_masks_of_a_schema_say_what_exists_and_who_sees_whom():
    active, blocked = schema_masks([2, 0, 1])
    assert active.tolist() == [[True, True], [False, False], [True, False]]
    assert blocked.int().tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 1, 0]]


def test_keypoints_stand_in_the_slots_of_their_class_and_join_its_logit():
    model = lively(TASKS[2])
    network, images = model.keypoints, torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        outputs = model(images)
        network.head.layers[-1].bias[7] += 1
        network.box_heads.layers[-1].bias[:, 7] += 1
        moved = model(images)
    for one, other in ((outputs, moved), (outputs["enc_outputs"], moved["enc_outputs"])):
        assert one["pred_keypoints"].shape == (2, 7, 3 * 3, 8)
        exists = one["pred_keypoints"].any(-1).all((0, 1))
        assert exists.tolist() == [True] * 3 + [False] * 3 + [True] * 2 + [False]
        grown = (other["pred_logits"] - one["pred_logits"]).mean((0, 1))
        torch.testing.assert_close(grown, torch.tensor([3.0, 0, 2, 0, 0]), rtol=0, atol=1e-5)


def test_outputs_that_are_no_numbers_are_zero_before_they_are_placed():
    model = lively(TASKS[2])
    model.keypoints.head.layers[-1].bias.data[0] = torch.nan
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 96, 96), last_only=True)
    assert outputs["pred_keypoints"].isfinite().all()


def test_keypoints_of_different_classes_meet_only_through_their_instance():
    network = lively(TASKS[2]).keypoints
    tokens = torch.randn(1, 1, 5, 32, requires_grad=True)
    queries, after = network.layers[0](
        torch.randn(1, 1, 32), tokens, network.position, ~network.blocked, lambda _, tokens: tokens
    )
    (own,) = torch.autograd.grad(after[0, 0, 0].sum(), tokens, retain_graph=True)
    assert own[0, 0].any(-1).tolist() == [True] * 3 + [False] * 2
    (of_instance,) = torch.autograd.grad(queries.square().sum(), tokens)
    assert of_instance[0, 0].any(-1).all()


def test_keypoints_never_read_padding():
    model, images = lively(TASKS[2]), torch.randn(1, 3, 96, 96)
    mask = torch.zeros(1, 96, 96, dtype=torch.bool)
    mask[:, 60:] = True
    with torch.no_grad():
        expected = model(images, mask)["pred_keypoints"]
        model.keypoints.projector.register_forward_hook(
            lambda _, args, maps: [maps[0].index_fill(2, torch.tensor([5, 6, 7]), 9.0)]
        )
        assert torch.equal(model(images, mask)["pred_keypoints"], expected)
        assert not torch.equal(model(images)["pred_keypoints"], expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_keypoints_per_class": []}, "num_keypoints_per_class"),
        ({"num_keypoints_per_class": [0]}, "num_keypoints_per_class"),
        ({"num_keypoints_per_class": [3, -1]}, "num_keypoints_per_class"),
        ({"num_keypoints_per_class": [1] * 6}, "at most 5 classes"),
        ({"dual_projector": False}, "dual_projector"),
        ({"dual_projector_kp_only": False}, "dual_projector"),
        ({"use_grouppose_keypoints": False}, "use_grouppose_keypoints"),
        ({"keypoint_cross_attn": False}, "keypoint_cross_attn"),
        ({"grouppose_keypoint_dim_downscale": 2}, "grouppose_keypoint_dim_downscale"),
        ({"postprocess_trace_alpha": -1}, "postprocess_trace_alpha"),
    ],
)
def test_settings_that_no_keypoint_model_has_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        configs.RFDETRKeypointPreviewConfig(**SMALL, **given)


def test_other_models_have_no_schema():
    with pytest.raises(ValueError, match="num_keypoints_per_class"):
        configs.RFDETRNanoConfig(num_keypoints_per_class=[17])


@pytest.mark.parametrize(("config", "extra"), [(TASKS[1], "mask"), (TASKS[2], "keypoints")], ids=["masks", "keypoints"])
def test_losses_of_a_pass_in_mixed_precision_are_near_those_in_full(config, extra):
    model, images = lively(config).train(), torch.randn(2, 3, 96, 96)
    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.3, 0.4, 0.2, 0.2]])
    target = {"labels": torch.tensor([0, 2]), "boxes": boxes, "masks": torch.rand(2, 96, 96) > 0.5}
    target["keypoints"] = torch.rand(2, 3, 3).ceil() * 0.5
    masks = MaskTerms(uniform=lambda *shape, device: torch.full(shape, 0.3).cumsum(1) % 1)
    terms = {"masks": masks} if extra == "mask" else {"keypoints": KeypointTerms((3, 0, 2))}
    criterion, found = Criterion(loss_weights(4), 3, **terms).train(), []
    for reduced in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            outputs = model(images)
        found.append(criterion(outputs, [target, target]))
    names = [name for name in found[0] if name.startswith(f"loss_{extra}")]
    assert len(names) == 5 * (2 if extra == "mask" else 4)
    for name in names:
        assert found[1][name].dtype == torch.float32
        torch.testing.assert_close(found[1][name], found[0][name], rtol=0.1, atol=0.05)
