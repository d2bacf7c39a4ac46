"""Objects365 by its older path; `train(dataset_file="o365")` reads it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rfdetr.datasets.older import OlderDataset, build_dataset


def build_o365(image_set: str, args: Any, resolution: int) -> OlderDataset:
    """A split of a folder in the layout of Objects365; see `rfdetr.datasets.build_dataset`."""
    return build_dataset(image_set, SimpleNamespace(**{**vars(args), "dataset_file": "o365"}), resolution)
