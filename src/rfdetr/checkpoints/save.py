"""Writing checkpoints, and what a checkpoint says about itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rfdetr
from rfdetr.checkpoints.names import to_published
from rfdetr.checkpoints.replacing import replacing
from rfdetr.config import ModelConfig


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint that `torch.load(weights_only=True)` reads: plain containers, tensors, numbers and texts.

    Raises:
        TypeError: some value is of another type; the message names it.
    """
    with replacing(path) as handle:
        torch.save(plain(content), handle)


def plain(value: Any, where: str = "") -> Any:
    """`value` with tuples, sets and paths as lists and texts; everything else must already be plain."""
    if value is None or isinstance(value, bool | Tensor):
        return value
    # Subclasses, such as NumPy's numbers and enums, become what they are made of: the safe reader refuses them.
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{where.lstrip('.')} is a {type(value).__name__}, which a checkpoint cannot hold")


def published_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their published names, on the CPU, each with memory of its own."""
    return {name: tensor.detach().cpu().clone() for name, tensor in to_published(state).items()}


def description(config: ModelConfig, class_names: list[str], train: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The entries by which a checkpoint says what it is: `args`, `model_name`, `model_config`, `rfdetr_version`."""
    settings = config.model_dump()
    return {
        "args": {**settings, **(train or {}), "class_names": list(class_names), "num_classes": config.num_classes},
        "model_name": config.model_name,
        "model_config": settings,
        "rfdetr_version": rfdetr.__version__,
    }
