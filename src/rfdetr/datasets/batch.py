"""One batch: pictures stacked or padded to one tensor, targets as a list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

Sample = tuple[np.ndarray, dict[str, np.ndarray]]


@dataclass
class NestedTensor:
    """Pictures (B, C, H, W) and their padding mask (B, H, W), True on padding; None when nothing is padded.

    Pictures are uint8, or float in 0..1, unless `is_normalised`.
    """

    tensors: Tensor
    mask: Tensor | None
    is_normalised: bool = False

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, part: slice) -> NestedTensor:
        return self._with(self.tensors[part], None if self.mask is None else self.mask[part])

    def decompose(self) -> tuple[Tensor, Tensor | None]:
        """The two tensors."""
        return self.tensors, self.mask

    def to(self, device: torch.device | str, non_blocking: bool = False) -> NestedTensor:
        """The same batch on another device."""
        mask = None if self.mask is None else self.mask.to(device, non_blocking=non_blocking)
        return self._with(self.tensors.to(device, non_blocking=non_blocking), mask)

    def pin_memory(self) -> NestedTensor:
        """The same batch in page-locked memory."""
        return self._with(self.tensors.pin_memory(), None if self.mask is None else self.mask.pin_memory())

    def _with(self, tensors: Tensor, mask: Tensor | None) -> NestedTensor:
        return NestedTensor(tensors, mask, self.is_normalised)


Batch = tuple[NestedTensor, list[dict[str, Any]]]


def collate(samples: list[Sample], block: int = 1) -> Batch:
    """Stack pictures (H, W, C); different sizes are padded at the bottom and right to a multiple of `block`.

    Masks (planes, H, W) of the targets are padded like their pictures.
    """
    # Resized pictures lie plane by plane in memory, so this order is the one that costs no copy.
    images = [torch.from_numpy(image).permute(2, 0, 1) for image, _ in samples]
    # Arrays, not tensors: each tensor that leaves a loading process costs a shared memory file.
    targets = [target for _, target in samples]
    height, width = (max(-(-image.shape[axis] // block) * block for image in images) for axis in (1, 2))
    if all(image.shape[1:] == (height, width) for image in images):
        # It stacks, and in a loading process right into the memory that goes to the other process.
        return NestedTensor(default_collate(images), None), targets
    padded = images[0].new_zeros(len(images), len(images[0]), height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for place, free, image in zip(padded, mask, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
        free[: image.shape[1], : image.shape[2]] = False
    return NestedTensor(padded, mask), [_padded(target, height, width) for target in targets]


def _padded(target: dict[str, np.ndarray], height: int, width: int) -> dict[str, np.ndarray]:
    if "masks" not in target:
        return target
    rest = [(0, 0), *((0, side - own) for side, own in zip((height, width), target["masks"].shape[1:], strict=True))]
    return {**target, "masks": np.pad(target["masks"], rest)}


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Cut a batch into micro-batches of equal size, in order.

    Raises:
        ValueError: the batch cannot be cut evenly.
    """
    pictures = len(batch[0])
    if pictures % parts:
        raise ValueError(f"a batch of {pictures} pictures cannot be split into {parts} equal parts")
    return cut(batch, parts)


def cut(batch: Batch, pieces: int) -> Iterator[Batch]:
    """Cut a batch into pieces of nearly equal size, in order; the last ones may be smaller."""
    samples, targets = batch
    size = -(-len(samples) // pieces)
    for start in range(0, len(samples), size):
        yield samples[start : start + size], targets[start : start + size]
