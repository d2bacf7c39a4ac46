"""Learning rate and weight decay of every parameter, and the schedule over the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from rfdetr.checkpoints.names import published_names

# Parts of published names whose encoder parameters are not decayed. Layer scales match none of them.
_UNDECAYED = ("gamma", "pos_embed", "rel_pos", "bias", "norm", "embeddings")


class Rates(NamedTuple):
    """The numbers that the learning rate of a parameter is made of."""

    lr: float
    lr_encoder: float
    weight_decay: float
    layer_decay: float
    component_decay: float
    last_tap: int


def rate_of(published: str, rates: Rates) -> tuple[float, float]:
    """Learning rate and weight decay of a parameter, by its published name."""
    if published.startswith("backbone.0.encoder"):
        layers = rates.last_tap + 1
        if "embeddings" in published:
            depth = 0
        elif ".layer." in published:
            depth = int(published.split(".layer.")[1].split(".")[0]) + 1
        else:
            depth = layers + 1
        lr = rates.lr_encoder * rates.layer_decay ** (layers + 1 - depth) * rates.component_decay**2
        return lr, 0.0 if any(part in published for part in _UNDECAYED) else rates.weight_decay
    if "transformer.decoder" in published:
        return rates.lr * rates.component_decay, rates.weight_decay
    return rates.lr, rates.weight_decay


def parameter_groups(model: nn.Module, rates: Rates) -> list[dict]:
    """Trainable parameters with equal rates together; each group also has the `names` of its parameters."""
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr, decay = rate_of(published_names(name)[0], rates)
        group = groups.setdefault((lr, decay), {"params": [], "lr": lr, "weight_decay": decay, "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(model: nn.Module, rates: Rates, fused: bool) -> torch.optim.AdamW:
    """AdamW over the parameter groups; `names` stay in the groups so that a resumed run can match them."""
    return torch.optim.AdamW(parameter_groups(model, rates), betas=(0.9, 0.999), eps=1e-8, fused=fused)


def lr_factor(
    kind: str, steps_per_epoch: int, epochs: int, warmup_epochs: float = 0.0, lr_drop: int = 100, floor: float = 0.0
) -> Callable[[int], float]:
    """Factor on every learning rate as a function of the optimiser step, 0, 1, ...

    Args:
        kind: "step" (times 0.1 from epoch `lr_drop` on) or "cosine" (down to `floor` at the end of the run).
    """
    warmup = int(steps_per_epoch * warmup_epochs)
    total = steps_per_epoch * epochs

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        if kind == "step":
            return 1.0 if step < lr_drop * steps_per_epoch else 0.1
        # Clamped: beyond the end the cosine would rise again.
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
