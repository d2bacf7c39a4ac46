"""Every stage of the network on recorded weights and pictures, its gradients, and its published tensors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests import fill
from tests.vectors import CONFIGS, assert_close, filled_model, read_case, read_spec
from torch import Tensor

from rfdetr.checkpoints.names import to_internal, to_published
from rfdetr.models.build import build_model

# Case, and whether it takes long on one core.
CASES = {
    "nano": False,
    "nano_wide": False,  # not square: the position table is resampled
    "nano_few": False,  # fewer cells than queries
    "nano_padded": False,  # two sizes in one batch, a last column of patches partly covered
    "nano_eps": False,  # inputs so small that every epsilon of a norm shows
    "base": False,
    "large": False,
    "large_deprecated": True,
    "seg_nano": False,
    "seg_nano_eps": False,
    "seg_small": True,
    "seg_medium": True,
    "seg_preview": True,
    "seg_xlarge": True,
    "seg_2xlarge": True,
    "keypoint_preview": True,
    "keypoint_preview_eps": False,
}

# Largest absolute difference by the recording's name without numbers; the README of the vectors has the noise.
TOLERANCE = {
    "embed_sample": 5e-5,
    "block_sample": 5e-5,
    "tap_mean": 5e-5,
    "tap_sample": 5e-5,
    "proj_mean": 1e-4,
    "proj_sample": 1e-4,
    "topk_index": 0,
    "topk_score": 2e-4,
    "enc_hs_sample": 2e-4,
    "refpoints": 2e-5,
    "query_pos_sample": 2e-5,
    "dec_sample": 2e-3,
    "hs_sample": 2e-3,
    "pred_logits": 2e-3,
    "pred_boxes": 5e-5,
    "aux_pred_logits": 2e-3,
    "aux_pred_boxes": 5e-5,
    "enc_pred_logits": 2e-4,
    "enc_pred_boxes": 2e-5,
    "dec_kp_sample": 2e-3,
    **dict.fromkeys(("pred_keypoints", "aux_pred_keypoints", "enc_pred_keypoints"), 5e-4),
    **{
        f"{layer}pred_masks_{kind}": tolerance
        for layer in ("", "aux_", "enc_")
        for kind, tolerance in {
            "mean": 5e-3,
            "sample": 5e-3,
            "spatial_features_sample": 1e-3,
            "query_features_sample": 1e-3,
        }.items()
    },
}
MEAN_TOLERANCE = 5e-5
EPS_TOLERANCE = 2e-5

COUNTS = {
    # variant: (parameters of the training network, those that can reach an inference output)
    "nano": (30_467_298, 26_863_278),
    "small": (32_111_170, 28_507_150),
    "medium": (33_687_458, 30_083_438),
    "base": (32_174_530, 26_795_278),
    "large": (33_933_218, 30_329_198),
    "large_deprecated": (135_637_474, 121_380_142),
    "xlarge": (126_357_154, 114_446_062),
    "xxlarge": (126_903_202, 114_992_110),
    "seg_preview": (34_153_555, 30_861_535),
    "seg_nano": (33_577_475, 30_597_455),
    "seg_small": (33_711_107, 30_731_087),
    "seg_medium": (35_694_259, 32_402_239),
    "seg_large": (35_873_971, 32_581_951),
    "seg_xlarge": (38_113_635, 34_509_615),
    "seg_2xlarge": (38_648_163, 35_044_143),
    "keypoint_preview": (41_044_470, 35_993_818),
}


def case_images(case) -> tuple[Tensor, Tensor | None]:
    """Pictures of a case and their padding mask."""
    if case.image_sizes is None:
        return torch.from_numpy(fill.make_batch(case.image_seeds, case.height, case.width)), None
    images = torch.zeros(len(case.image_seeds), 3, case.height, case.width)
    mask = torch.ones(len(images), case.height, case.width, dtype=torch.bool)
    for i, (seed, (height, width)) in enumerate(zip(case.image_seeds, case.image_sizes, strict=True)):
        images[i, :, :height, :width] = torch.from_numpy(fill.make_image(seed, height, width))
        mask[i, :height, :width] = False
    return images, mask


def run_with_stages(model, images: Tensor, mask: Tensor | None) -> tuple[dict[str, Tensor], dict]:
    """Stages by recorded name, in the order of the computation, and the outputs."""
    seen: dict[str, Tensor] = {}

    def keep(module, read):
        return module.register_forward_hook(lambda _, args, output: seen.update(read(args, output)))

    hooks = [keep(model.encoder.blocks[0], lambda args, out: {"embed": args[0]})]
    hooks += [keep(b, lambda args, out, i=i: {f"block{i}": out}) for i, b in enumerate(model.encoder.blocks)]
    hooks += [
        keep(model.encoder, lambda args, out: {f"tap{j}": one for j, one in enumerate(out)}),
        keep(model.projector, lambda args, out: {f"proj{j}": one for j, one in enumerate(out)}),
        keep(model.proposals, lambda args, out: proposal_stages(out)),
        model.decoder.register_forward_pre_hook(lambda _, args: seen.update(refpoints=args[1])),
        keep(model.decoder.position, lambda args, out: {"query_pos": out}),
        keep(model.decoder, lambda args, out: {"hs": out[-1]}),
    ]
    hooks += [keep(one, lambda args, out, j=j: {f"dec{j}": out}) for j, one in enumerate(model.decoder.layers)]
    if model.keypoints is not None:
        hooks.append(keep(model.keypoints.projector, lambda args, out: {f"proj2{j}": one for j, one in enumerate(out)}))
        hooks += [
            keep(one, lambda args, out, j=j: {f"dec{j}": out[0], f"dec{j}_kp": out[1]})
            for j, one in enumerate(model.keypoints.layers)
        ]
    outputs = model(images, mask)
    run_dead_blocks(model.encoder, seen)
    for hook in hooks:
        hook.remove()
    return seen, outputs


def proposal_stages(proposed) -> dict[str, Tensor]:
    groups, batch, count = proposed.index.shape
    features = proposed.features.view(groups, batch, count, -1).transpose(0, 1).flatten(1, 2)
    return {"topk_index": proposed.index, "topk_score": proposed.score, "enc_hs": features}


def run_dead_blocks(encoder, seen: dict[str, Tensor]) -> None:
    """Blocks behind the last tap never run in our network; the recording has them."""
    for index in range(max(encoder.taps), len(encoder.blocks)):
        span = encoder.num_windows**2 if index in encoder.taps else 1
        encoder.blocks[index](seen[f"block{index - 1}"], span)


def recorded_stages(seen: dict[str, Tensor], outputs: dict, arrays: dict, training: bool) -> dict[str, np.ndarray]:
    """What was recorded of each stage: means, samples, every n-th query."""
    found = {}
    for name, tensor in seen.items():
        array = tensor.detach().numpy()
        if f"{name}_mean" in arrays:
            found[f"{name}_mean"] = array.mean((2, 3))
        if f"{name}_sample" in arrays:
            found[f"{name}_sample"] = fill.sample(array, arrays[f"{name}_sample"].size)
    for name in ("topk_index", "topk_score"):
        found[name] = seen[name].detach().numpy() if training else seen[name][0].detach().numpy()
    found["refpoints"] = seen["refpoints"][:, :: 7 if training else 1].detach().numpy()
    every = {"": (37, 7), "aux": (37, 7), "enc": (37, 7)} if training else {"": (1, 1), "aux": (10, 3), "enc": (10, 1)}
    for prefix, one in named_outputs(outputs).items():
        logits, boxes = every[prefix.rstrip("0123456789_")]
        found[f"{prefix}pred_logits"] = one["pred_logits"][:, ::logits].detach().numpy()
        found[f"{prefix}pred_boxes"] = one["pred_boxes"][:, ::boxes].detach().numpy()
        if "pred_keypoints" in one:
            found[f"{prefix}pred_keypoints"] = one["pred_keypoints"][:, ::logits].detach().numpy()
        masks = one.get("pred_masks", {})
        if isinstance(masks, Tensor):
            found[f"{prefix}pred_masks_mean"] = masks.mean((2, 3)).numpy()
            masks = {"": masks}
        for part, tensor in masks.items():
            name = f"{prefix}pred_masks_{part}_sample".replace("__", "_")
            if name in arrays:
                found[name] = fill.sample(tensor.detach().numpy(), arrays[name].size)
    return found


def named_outputs(outputs: dict) -> dict[str, dict]:
    """Output layers by recorded prefix."""
    aux = {f"aux{i}_": one for i, one in enumerate(outputs["aux_outputs"])}
    return {"": outputs, **aux, "enc_": outputs["enc_outputs"]}


def check_stages(found: dict[str, np.ndarray], arrays: dict[str, np.ndarray], tolerance: float | None) -> None:
    """Compare stage by stage, so that the first that differs names the culprit."""
    for name, array in found.items():
        expected, kind = arrays[name], "".join(c for c in name if not c.isdigit())
        assert array.shape == expected.shape, name
        assert_close(
            array, expected, name, atol=TOLERANCE[kind] if tolerance is None else min(tolerance, TOLERANCE[kind])
        )
        if kind in ("dec_sample", "dec_kp_sample", "hs_sample", "pred_logits", "aux_pred_logits"):
            assert np.abs(array - expected).mean() <= MEAN_TOLERANCE, name


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * slow) for n, slow in CASES.items()])
def test_forward_equals_the_recorded_stages(name):
    case, arrays = read_case(name)
    model = filled_model(case.variant, case.fill_seed, case.salts, case.scales)
    with torch.no_grad():
        seen, outputs = run_with_stages(model, *case_images(case))
    found = recorded_stages(seen, outputs, arrays, training=False)
    assert found.keys() == arrays.keys()
    check_stages(found, arrays, EPS_TOLERANCE if name.endswith("_eps") else None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nano_train", "seg_nano_train", "keypoint_preview_train"])
def test_training_pass_and_gradients_equal_the_recorded_ones(name):
    case, arrays = read_case(name)
    names = json.loads(bytes(arrays.pop("grad_names")))
    gradients = {name: arrays.pop(name) for name in ("loss", "grad_norm", "grad_probe")}
    model = filled_model(case.variant, case.fill_seed, case.salts, case.scales).train()
    seen, outputs = run_with_stages(model, *case_images(case))
    found = recorded_stages(seen, outputs, arrays, training=True)
    assert found.keys() == arrays.keys()
    check_stages(found, arrays, None)
    loss = sum(probe_loss(f"{prefix.replace('_', '/')}", one) for prefix, one in named_outputs(outputs).items())
    assert abs(loss.item() - gradients["loss"]) <= 1e-6
    loss.backward()
    check_gradients(model, names, gradients["grad_norm"], gradients["grad_probe"])


def probe_loss(prefix: str, output: dict) -> Tensor:
    tensors = {key: output[key] for key in ("pred_logits", "pred_boxes", "pred_keypoints") if key in output}
    tensors |= {f"pred_masks/{part}": tensor for part, tensor in output.get("pred_masks", {}).items()}
    return sum(
        (tensor.double() * torch.from_numpy(fill.unit(f"coef/{prefix}{key}", tensor.shape))).mean()
        for key, tensor in tensors.items()
    )


def check_gradients(model, names: list[str], norms: np.ndarray, probes: np.ndarray) -> None:
    """Norm of every gradient, and its inner product with a random direction."""
    published = to_published({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    without = {name for name, norm in zip(names, norms, strict=True) if np.isnan(norm)}
    assert set(names) - without == published.keys() - {"_kp_active_mask"}
    floor = 1e-4 * np.nanmax(norms)
    for name, norm, probe in zip(names, norms, probes, strict=True):
        if name in without:
            continue
        gradient = published[name].double()
        direction = torch.from_numpy(fill.unit(f"probe/{name}", gradient.shape))
        assert abs(gradient.norm().item() - norm) <= 0.02 * (norm + floor), name
        assert abs((gradient * direction).sum().item() - probe) <= 0.05 * (norm + floor), name


def meta_model(variant: str, **options):
    return build_model(CONFIGS[variant](pretrain_weights=None, **options))


@pytest.mark.parametrize("variant", CONFIGS)
def test_published_names_and_shapes_equal_the_recorded_ones(variant):
    published = to_published(meta_model(variant).state_dict())
    kinds = {torch.float32: "float32", torch.bool: "bool"}
    found = {name: (tuple(tensor.shape), kinds[tensor.dtype]) for name, tensor in published.items()}
    assert found == {name: (shape, dtype) for name, shape, dtype in read_spec(variant)}


@pytest.mark.parametrize("variant", CONFIGS)
def test_parameter_counts_equal_the_documented_ones(variant):
    everything = sum(parameter.numel() for parameter in meta_model(variant).parameters())
    one_group = meta_model(variant, group_detr=1)
    unread = list(one_group.encoder.blocks[max(one_group.encoder.taps) :].parameters())
    if one_group.keypoints is not None:
        unread += [*one_group.keypoints.box_heads.parameters(), *one_group.keypoints.box_start.parameters()]
    dead = one_group.encoder.mask_token.numel() + sum(parameter.numel() for parameter in unread)
    assert (everything, sum(p.numel() for p in one_group.parameters()) - dead) == COUNTS[variant]


@pytest.mark.parametrize("variant", CONFIGS)
def test_renaming_there_and_back_keeps_every_tensor(variant):
    # Small tensors of distinct values: what matters is which part ends where, not the published shapes.
    masks = () if "keypoint" in variant else ("_kp_active_mask",)
    names = [name for name, _, _ in read_spec(variant) if name not in masks]
    published = {name: torch.arange(6.0).view(3, 2) + 6 * i for i, name in enumerate(names)}
    internal, unknown = to_internal(published)
    assert not unknown
    assert internal.keys() == meta_model(variant).state_dict().keys()
    back = to_published(internal)
    assert back.keys() - set(masks) == published.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in published.items())


@pytest.mark.parametrize("variant", CONFIGS)
def test_renaming_back_and_there_keeps_every_shape(variant):
    state = meta_model(variant).state_dict()
    internal, unknown = to_internal(to_published(state))
    assert not unknown
    assert {name: tensor.shape for name, tensor in internal.items()} == {n: t.shape for n, t in state.items()}
