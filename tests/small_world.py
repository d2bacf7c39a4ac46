"""A world in which scripts that name a published size run in seconds: a tiny row for it, and weights in the cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import rfdetr
from rfdetr.checkpoints import download
from rfdetr.checkpoints.identify import class_name
from rfdetr.checkpoints.save import description, published_weights, save_checkpoint
from rfdetr.datasets.loader import TrainOrder
from rfdetr.variants import VARIANTS, Variant


def shrink(key: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a size a tiny network, put random weights of it under their published name, and make an epoch one step."""
    task, size, name = VARIANTS[key].task, VARIANTS[key].size, VARIANTS[key].weights
    assert name is not None
    tiny = Variant(
        task, size, 28, 14, 1, 2, 10, name,
        encoder="dinov2_windowed_tiny", taps=(2, 4), hidden_dim=32, heads=(4, 4),
    )  # fmt: skip
    monkeypatch.setitem(VARIANTS, key, tiny)
    monkeypatch.setattr(TrainOrder, "min_steps", 1)
    monkeypatch.setenv("RF_HOME", str(cache))
    weights = cache / name
    if not weights.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = getattr(rfdetr, class_name(key))(pretrain_weights=None)
        about = description(model.model_config, model.class_names)
        save_checkpoint(weights, {"model": published_weights(model.model.model.state_dict()), **about})
    monkeypatch.setitem(download.PUBLISHED, name, ("nowhere", hashlib.md5(weights.read_bytes()).hexdigest()))
