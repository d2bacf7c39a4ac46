"""Learning rate and weight decay of every parameter, and the schedule over the run."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Mapping
from inspect import isclass
from typing import Any, NamedTuple

import numpy as np
from torch import nn, optim

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


def find_class(named: Any) -> Callable:
    """A callable as it is, a class of `torch.optim` or its `lr_scheduler` by name, whatever its case, or a dotted path.

    Raises:
        ValueError: there is nothing of that name; the message gives the nearest ones.
    """
    if callable(named):
        return named
    text = str(named)
    module, _, name = text.rpartition(".")
    if module:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{text!r} cannot be imported: {error}") from None
    known = {n.lower(): c for space in (optim, optim.lr_scheduler) for n, c in vars(space).items() if isclass(c)}
    if text.lower() not in known:
        names = {name: one.__name__ for name, one in known.items()} | {n: n for n in ("step", "cosine", "adamw")}
        near = ", ".join(names[close] for close in difflib.get_close_matches(text.lower(), names))
        raise ValueError(f"{text!r} is no class of torch.optim (near: {near or 'none'}), and no dotted path")
    return known[text.lower()]


def build_optimizer(
    model: nn.Module, rates: Rates, fused: bool, kind: Any = "adamw", settings: Mapping[str, Any] | None = None
) -> optim.Optimizer:
    """The optimiser over the parameter groups; `names` stay in them so that a resumed run can match them.

    Args:
        kind: "adamw", or what `find_class` takes; others than AdamW get no other defaults than their own.
        settings: further arguments.
    """
    groups = parameter_groups(model, rates)
    if kind == "adamw":
        given = dict(settings or {})
        # The fused kernel and these exclude each other.
        fused = fused and not {"foreach", "capturable", "differentiable"} & set(given)
        defaults: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "fused": fused}
        return optim.AdamW(groups, **{**defaults, **given})
    return find_class(kind)(groups, lr=rates.lr, **(settings or {}))


def build_scheduler(
    optimizer: optim.Optimizer, factor: Callable[[int], float], kind: Any, settings: Mapping[str, Any]
) -> Any:
    """The schedule: `factor` by optimiser step for "step" and "cosine", else what `find_class` takes."""
    if kind in ("step", "cosine"):
        return optim.lr_scheduler.LambdaLR(optimizer, factor)
    return find_class(kind)(optimizer, **settings)


def drop_path_rates(
    rate: float, epochs: int, steps_per_epoch: int, mode: str = "standard", schedule: str = "constant", cutoff: int = 0
) -> np.ndarray:
    """Drop-path rate of every optimiser step, (epochs * steps_per_epoch,).

    Args:
        mode: "standard": in the whole run; "early": until epoch `cutoff`; "late": from then on.
        schedule: "linear" lets an early rate fall to 0, both ends included.
    """
    cutoff = min(cutoff, epochs)
    before, after = cutoff * steps_per_epoch, (epochs - cutoff) * steps_per_epoch
    if mode == "standard":
        return np.full(epochs * steps_per_epoch, rate)
    if mode == "late":
        return np.concatenate((np.zeros(before), np.full(after, rate)))
    early = np.linspace(rate, 0, before) if schedule == "linear" else np.full(before, rate)
    return np.concatenate((early, np.zeros(after)))


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
