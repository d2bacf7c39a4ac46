"""Adapters on the encoder: they start as nothing, train alone, and merge into exactly what they computed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tests.tiny import tiny_model
from torch import nn

from rfdetr.checkpoints.load import merge_adapters
from rfdetr.checkpoints.names import published_names, to_published
from rfdetr.models.backbone import Encoder
from rfdetr.models.lora import (
    AdaptedLinear,
    adapter_state,
    adapters_of,
    add_adapters,
    load_adapter_state,
    merge_adapters_,
    merged_state,
)
from rfdetr.training.optim import Rates, parameter_groups, rate_of

RATES = Rates(lr=1e-4, lr_encoder=1.5e-4, weight_decay=1e-4, layer_decay=0.8, component_decay=0.7, last_tap=12)
ADAPTER = ("lora_A", "lora_B", "magnitude")


def tiny_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return tiny_model().model.model


def tiny_encoder(seed: int = 0) -> Encoder:
    return tiny_network(seed).encoder


def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))


def train(encoder: Encoder, steps: int = 3) -> Encoder:
    """A few steps with a large rate, so that adapted and plain weights differ clearly."""
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(level.square().mean() for level in encoder(pictures())).backward()
        optimizer.step()
    return encoder


def outputs(encoder: Encoder) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(encoder.eval()(pictures()))


def test_S061_fresh_adapters_change_nothing():
    encoder = tiny_encoder()
    before = outputs(encoder)
    add_adapters(encoder)
    assert torch.allclose(outputs(encoder), before, rtol=0, atol=1e-6)
    assert all((adapted.lora_B == 0).all() and (adapted.lora_A != 0).any() for adapted in adapters_of(encoder).values())


def test_S061_only_adapters_are_trained():
    encoder = tiny_encoder()
    plain = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    add_adapters(encoder)
    train(encoder)
    for name, parameter in encoder.named_parameters():
        is_adapter = name.endswith(ADAPTER)
        assert parameter.requires_grad == is_adapter == (parameter.grad is not None), name
        if is_adapter:
            assert (parameter.grad != 0).any(), name
        else:
            assert torch.equal(parameter, plain[name]), name


def test_S061_merging_keeps_the_output_and_gives_the_plain_encoder_back():
    encoder = tiny_encoder()
    names, trainable = list(encoder.state_dict()), [p.requires_grad for p in encoder.parameters()]
    before = outputs(encoder)
    add_adapters(encoder)
    assert [p.requires_grad for p in encoder.parameters()] != trainable
    adapted = outputs(train(encoder))
    state = merged_state(encoder)
    random_state = torch.get_rng_state()
    merge_adapters_(encoder)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.allclose(outputs(encoder), adapted, rtol=0, atol=1e-6)
    assert (adapted - before).abs().max() > 1e-2
    assert list(encoder.state_dict()) == names
    assert [p.requires_grad for p in encoder.parameters()] == trainable
    assert not adapters_of(encoder)
    assert set(state) == set(names)
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.state_dict().items())


def test_S061_flags_that_were_off_before_stay_off():
    encoder = tiny_encoder().requires_grad_(False)
    encoder.norm.weight.requires_grad_(True)
    add_adapters(encoder)
    merge_adapters_(encoder)
    assert [name for name, p in encoder.named_parameters() if p.requires_grad] == ["norm.weight"]


# Names in published files of what an adapted linear holds.
PUBLISHED = {
    "weight": "base_layer.weight",
    "bias": "base_layer.bias",
    "lora_A": "lora_A.default.weight",
    "lora_B": "lora_B.default.weight",
    "magnitude": "lora_magnitude_vector.default.weight",
}


def in_published_layout(network: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a network with adapters as files of the published package name them."""
    layout = {}
    for name, tensor in network.state_dict().items():
        stem, own = name.rsplit(".", 1) if "." in name else ("", name)
        if stem not in adapters_of(network):
            layout.update(to_published({name: tensor}))
            continue
        parts = tensor.chunk(3) if own in ("weight", "bias") else tensor.unbind(0)
        for published, part in zip(published_names(name), parts, strict=True):
            layout[published.removesuffix(own) + PUBLISHED[own]] = part
    old, new = "backbone.0.encoder.", "backbone.0.encoder.base_model.model."
    return {name.replace(old, new, 1): tensor for name, tensor in layout.items()}


def test_S061_the_merged_weights_are_those_of_a_published_file_with_the_same_adapters():
    network = tiny_network()
    add_adapters(network.encoder)
    train(network.encoder)
    layout = in_published_layout(network)
    blocks = len(adapters_of(network))
    assert sum(name.endswith("query.lora_A.default.weight") for name in layout) == blocks == 4
    expected = merge_adapters(layout)
    merged = to_published(merged_state(network))
    assert set(expected) == set(merged)
    for name, tensor in expected.items():
        assert torch.allclose(merged[name], tensor, rtol=0, atol=1e-7), name


def test_S061_the_length_is_a_constant_in_the_gradient():
    torch.manual_seed(0)
    adapted = AdaptedLinear(nn.Linear(6, 18), rank=2, alpha=4.0)
    nn.init.normal_(adapted.lora_B)
    nn.init.uniform_(adapted.magnitude, 0.5, 2.0)
    upstream = torch.randn(18, 6)
    (adapted.merged() * upstream).sum().backward()
    with torch.no_grad():
        change = 2.0 * adapted.lora_B @ adapted.lora_A
        directions = adapted.weight.view(3, 6, 6) + change
        lengths = directions.norm(dim=2)
        grad = upstream.view(3, 6, 6)
        scaled = grad * (adapted.magnitude / lengths).unsqueeze(2) * 2.0
        assert torch.allclose(adapted.lora_B.grad, scaled @ adapted.lora_A.transpose(1, 2), atol=1e-5)
        assert torch.allclose(adapted.lora_A.grad, adapted.lora_B.transpose(1, 2) @ scaled, atol=1e-5)
        assert torch.allclose(adapted.magnitude.grad, (grad * directions / lengths.unsqueeze(2)).sum(2), atol=1e-5)


def test_S061_under_autocast_the_merged_weight_is_the_one_that_is_saved():
    adapted = AdaptedLinear(nn.Linear(8, 24), rank=2, alpha=2.0)
    nn.init.normal_(adapted.lora_B)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(adapted.merged(), adapted.merged().float())
        inside = adapted.merged()
        assert adapted(torch.randn(2, 8)).dtype == torch.bfloat16
    assert torch.equal(inside, adapted.merged())


def test_S061_rows_of_zeros_stay_finite():
    linear = nn.Linear(4, 12)
    nn.init.zeros_(linear.weight)
    adapted = AdaptedLinear(linear, rank=2, alpha=2.0)
    adapted.merged().sum().backward()
    assert torch.equal(adapted.merged(), torch.zeros(12, 4))
    assert all(torch.isfinite(getattr(adapted, name).grad).all() for name in ADAPTER)


def encoder_of(dim: int, heads: int, depth: int, taps: tuple[int, ...]) -> Encoder:
    with torch.device("meta"):
        return Encoder(dim=dim, heads=heads, depth=depth, patch_size=16, num_windows=2, position_side=24, taps=taps)


@pytest.mark.parametrize(
    ("dim", "heads", "taps", "blocks"),
    [
        (384, 6, (3, 6, 9, 12), 12),
        (768, 12, (3, 6, 9, 12), 12),
        (384, 6, (2, 5, 8, 11), 11),  # nothing reads the output of the last block
    ],
)
def test_S061_the_number_of_trained_values(dim, heads, taps, blocks):
    encoder = encoder_of(dim, heads, 12, taps)
    assert add_adapters(encoder) == blocks * 3 * (2 * 16 * dim + dim)
    assert list(adapters_of(encoder)) == [f"blocks.{i}.attention.qkv" for i in range(blocks)]


@pytest.mark.parametrize("own", ADAPTER)
def test_S061_adapters_have_the_rates_of_their_block(own):
    names = published_names(f"encoder.blocks.3.attention.qkv.{own}")
    stem = "backbone.0.encoder.encoder.encoder.layer.3.attention.attention"
    assert names == tuple(f"{stem}.{part}.{own}" for part in ("query", "key", "value"))
    lr, decay = rate_of(names[0], RATES)
    assert lr == pytest.approx(1.5e-4 * 0.8 ** (13 + 1 - 4) * 0.7**2)
    assert decay == 1e-4


def test_S061_the_optimiser_takes_the_adapters_of_a_network():
    network = tiny_network()
    add_adapters(network.encoder)
    names = [name for group in parameter_groups(network, RATES) for name in group["names"]]
    assert sum(name.endswith(ADAPTER) for name in names) == 3 * len(adapters_of(network))
    assert all(name.endswith(ADAPTER) for name in names if name.startswith("encoder."))


def test_S061_adapters_go_through_a_state_bit_by_bit():
    first, second = tiny_encoder(0), tiny_encoder(1)
    for encoder in (first, second):
        add_adapters(encoder, rank=4, alpha=4.0)
    train(first)
    state = {name: tensor.clone() for name, tensor in adapter_state(first).items()}
    assert {name.rsplit(".", 1)[1] for name in state} == {"weight", *ADAPTER}
    second.load_state_dict(merged_state(first), strict=False)
    load_adapter_state(second, state)
    assert all(torch.equal(second.state_dict()[name], tensor) for name, tensor in first.state_dict().items())
    assert torch.equal(outputs(second), outputs(first))
    train(second, 1)
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter_state(first).items())


def test_S061_a_state_of_other_adapters_is_refused_by_name():
    encoder = tiny_encoder()
    add_adapters(encoder, rank=4)
    state = adapter_state(encoder)
    name = "blocks.0.attention.qkv.lora_A"
    missing = {key: tensor for key, tensor in state.items() if key != name}
    for wrong in (missing, {**missing, name: torch.zeros(3, 8, 192)}):
        with pytest.raises(ValueError, match=name):
            load_adapter_state(encoder, wrong)
    with pytest.raises(ValueError, match="blocks"):
        load_adapter_state(tiny_encoder(), state)


def test_S061_a_plain_module_has_its_plain_state():
    encoder = tiny_encoder()
    assert adapter_state(encoder) == {}
    assert all(torch.equal(merged_state(encoder)[name], tensor) for name, tensor in encoder.state_dict().items())
    flags = [p.requires_grad for p in encoder.parameters()]
    merge_adapters_(encoder)
    assert [p.requires_grad for p in encoder.parameters()] == flags


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["copy", "pickle"]
)
def test_S061_copies_are_whole_and_merge_by_themselves(duplicate):
    encoder = tiny_encoder()
    trainable = [p.requires_grad for p in encoder.parameters()]
    add_adapters(encoder)
    train(encoder)
    other = duplicate(encoder)
    expected = outputs(encoder)
    assert torch.equal(outputs(other), expected)
    merge_adapters_(other)
    assert [p.requires_grad for p in other.parameters()] == trainable
    assert torch.allclose(outputs(other), expected, rtol=0, atol=1e-6)
    assert len(adapters_of(encoder)) == 4
    assert torch.equal(outputs(encoder), expected)
