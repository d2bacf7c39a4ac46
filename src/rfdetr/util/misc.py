"""Batches as older scripts make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rfdetr.datasets.batch import NestedTensor

__all__ = ["NestedTensor", "collate_fn", "nested_tensor_from_tensor_list"]


def nested_tensor_from_tensor_list(tensor_list: Sequence[Tensor], block_size: int = 1) -> NestedTensor:
    """Normalised pictures (C, H, W) as a batch, padded with zeros at the bottom and right to multiples of `block_size`.

    The mask (B, H, W) is True on padding.
    """
    height, width = (max(-(-image.shape[axis] // block_size) * block_size for image in tensor_list) for axis in (1, 2))
    images = tensor_list[0].new_zeros(len(tensor_list), tensor_list[0].shape[0], height, width)
    mask = torch.ones(len(tensor_list), height, width, dtype=torch.bool, device=images.device)
    for place, free, image in zip(images, mask, tensor_list, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
        free[: image.shape[1], : image.shape[2]] = False
    return NestedTensor(images, mask, is_normalised=True)


def collate_fn(batch: Sequence[tuple[Tensor, dict[str, Any]]]) -> tuple[NestedTensor, tuple[dict[str, Any], ...]]:
    """Pictures with their targets as a batch, for `torch.utils.data.DataLoader`."""
    images, targets = zip(*batch, strict=True)
    return nested_tensor_from_tensor_list(images), targets
