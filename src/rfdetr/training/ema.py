"""A moving average of the weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from rfdetr.training.runtime import local_part


def ema_decay(update: int, decay: float, tau: float) -> float:
    """Decay at the n-th update, n = 1, 2, ...: it warms up over about `tau` updates."""
    return decay * (1 - math.exp(-update / tau)) if tau > 0 else decay


class ModelEma:
    """The average of a model's weights, as a model in evaluation mode.

    Args:
        interval: optimiser steps per update.
    """

    def __init__(self, model: nn.Module, decay: float = 0.993, tau: float = 100, interval: int = 1) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.tau, self.interval = decay, tau, interval
        self.updates = 0
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the live weights; integer and boolean buffers are copied."""
        self.steps += 1
        if self.steps % self.interval:
            return
        self.updates += 1
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        pairs = [(local_part(mean), local_part(live)) for mean, live in pairs]
        averaged = [(mean, live) for mean, live in pairs if mean.is_floating_point()]
        weight = 1 - ema_decay(self.updates, self.decay, self.tau)
        torch._foreach_lerp_([mean for mean, _ in averaged], [live for _, live in averaged], weight)
        for mean, live in pairs:
            if not mean.is_floating_point():
                mean.copy_(live)
