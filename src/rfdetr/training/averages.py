"""Means of the losses of an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rfdetr.training.runtime import ALONE, Processes


class Averages:
    """Means of losses over an epoch, weighted by pictures; they stay tensors until read.

    `steps` is how many optimiser steps of the epoch were made, so that a pass can begin after them.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._names: list[str] = []
        self._sum: Tensor | None = None
        self._weights = 0.0
        # Sum and number of batches of the class error, sum and number of steps of the learning rate.
        self._others = [0.0, 0.0, 0.0, 0.0]
        self._class_error: list[Tensor] = []

    def add(self, losses: Mapping[str, Tensor], total: Tensor, pictures: int, objects: int) -> None:
        """Count one batch. `class_error` says nothing about a batch without objects and is left out there."""
        if objects:
            self._class_error.append(losses["class_error"].detach())
        self._names = ["loss", *(name for name in losses if name != "class_error")]
        values = torch.stack([total.detach(), *(losses[name].detach() for name in self._names[1:])]) * pictures
        self._sum = values if self._sum is None else self._sum.to(values.device) + values
        self._weights += pictures

    def add_step(self, lr: float) -> None:
        """Count one optimiser step."""
        self.steps += 1
        self._others[2:] = [self._others[2] + lr, self._others[3] + 1]

    def state(self) -> dict[str, Any]:
        """What this process counted so far, in plain types."""
        if self._class_error:
            self._others[0] += sum(torch.stack(self._class_error).tolist())
            self._others[1] += len(self._class_error)
            self._class_error = []
        sums = [] if self._sum is None else self._sum.tolist()
        values = {"names": self._names, "weights": self._weights, "others": list(self._others), "sums": sums}
        return {"steps": self.steps, **values}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` gave."""
        self.steps, self._names = int(state["steps"]), list(state["names"])
        self._weights, self._others = float(state["weights"]), list(state["others"])
        self._sum = torch.tensor(state["sums"]) if state["sums"] else None

    def read(self, weight_dict: Mapping[str, float], processes: Processes = ALONE) -> dict[str, float]:
        """`loss`, `lr`, `class_error`, each weighted loss by name, each loss and diagnostic as `<name>_unscaled`."""
        state = self.state()
        # A process that counted nothing knows no names.
        names: list[str] = max(processes.gather(state["names"]), key=len)
        counted = [state["weights"], *state["others"], *(state["sums"] or [0.0] * len(names))]
        weights, class_error, batches, rates, steps, *sums = processes.sum(counted)
        values = {name: value / weights for name, value in zip(names, sums, strict=True)}
        read = {"loss": values.pop("loss", math.nan), "class_error": class_error / batches if batches else 100.0}
        read.update({name: value * weight_dict[name] for name, value in values.items() if name in weight_dict})
        read.update({f"{name}_unscaled": value for name, value in values.items()})
        read["class_error_unscaled"] = read["class_error"]
        return {**read, "lr": rates / steps} if steps else read
