"""Geometry of pictures and their boxes. Pictures are (H, W, 3) uint8 arrays, boxes xyxy in pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rfdetr.datasets.geometry import Target, shift_and_scale, warp_target
from rfdetr.datasets.network_input import MEAN, STD, axis_taps, cyclic, to_network_size

# Sides of the crops of training pictures, and of the short side of the picture they are cut from.
SMALLEST_CROP, LARGEST_SIDE = 384, 600


def resize(image: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Bilinear with antialias on 8 bits, as Pillow does it (at most one level apart)."""
    if image.shape[:2] == hw:
        return image
    pixels = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)
    resized = F.interpolate(pixels, size=hw, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


def resize_target(target: Target, hw: tuple[int, int], new_hw: tuple[int, int], sample: float = 0) -> Target:
    """Scale everything of a target from a picture of size `hw` to `new_hw`; `sample`: see `warp_target`."""
    matrix = shift_and_scale(scale_x=new_hw[1] / hw[1], scale_y=new_hw[0] / hw[0])
    return warp_target(target, matrix, new_hw, whole=True, sample=sample)


def short_side_size(hw: tuple[int, int], short: int, longest: int | None = None) -> tuple[int, int]:
    """The size with the short side at `short`, unless the long side would exceed `longest`."""
    height, width = hw
    low, high = min(hw), max(hw)
    if longest is not None and high / low * short > longest:
        short = round(longest * low / high)
    if low == short:
        return hw
    long = round(short * high / low)
    return (short, long) if height <= width else (long, short)


def crop_target(target: Target, top: int, left: int, hw: tuple[int, int]) -> Target:
    """Move a target into a crop of size `hw`: boxes are clamped, and what ends empty is dropped."""
    return warp_target(target, shift_and_scale(-left, -top), hw)


def to_relative(target: Target) -> Target:
    """The form the network learns: boxes as relative cxcywh, keypoints relative, masks packed (ceil(N / 8), H, W)."""
    height, width = target["size"]
    boxes = target["boxes"]
    joined = np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)
    relative = {**target, "boxes": (joined / np.array([width, height, width, height])).astype(np.float32)}
    if "keypoints" in target:
        relative["keypoints"] = (target["keypoints"] / np.array([width, height, 1])).astype(np.float32)
    if "masks" in target:
        relative["masks"] = target["masks"].packed()
    return relative


def normalise(images: Tensor) -> Tensor:
    """Images (B, 3, H, W), uint8 or float in 0..1, to zero mean and unit deviation of ImageNet, as float."""
    if images.dtype == torch.uint8:
        images = images.float() / 255
    mean, std = (torch.from_numpy(cyclic(values, images.shape[1])).to(images).view(-1, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def resize_on_device(image: Tensor, hw: tuple[int, int]) -> Tensor:
    """`rfdetr.datasets.network_input.to_network_size` for a tensor (H, W, C) on any device, to (C, h, w) in 0..1."""
    y, x = (_taps(length, size, image.device) for length, size in zip(image.shape[:2], hw, strict=True))
    rows = image.index_select(0, torch.cat(y[:2]))
    corners = rows.index_select(1, torch.cat(x[:2]))
    corners = corners.float() / 255 if corners.dtype == torch.uint8 else corners.float()
    upper, lower = corners[: hw[0]], corners[hw[0] :]
    weight = x[2].view(1, -1, 1)
    upper = upper[:, : hw[1]] * (1 - weight) + upper[:, hw[1] :] * weight
    lower = lower[:, : hw[1]] * (1 - weight) + lower[:, hw[1] :] * weight
    weight = y[2].view(-1, 1, 1)
    return (upper * (1 - weight) + lower * weight).permute(2, 0, 1)


@functools.lru_cache(maxsize=64)
def _taps(length: int, size: int, device: torch.device) -> list[Tensor]:
    with torch.inference_mode(False):
        return [torch.from_numpy(one.copy()).to(device) for one in axis_taps(length, size)]


def multi_scale_sizes(resolution: int, block: int, expanded: bool = True) -> list[int]:
    """Input sizes of multi-scale training: multiples of `block` around the resolution, at least two blocks."""
    offsets = range(-5, 6) if expanded else range(-3, 5)
    return [size for o in offsets if (size := (resolution // block + o) * block) >= 2 * block]


Augmentation = Callable[[np.ndarray, Target, np.random.Generator], tuple[np.ndarray, Target]]


@dataclass(frozen=True)
class TrainTransform:
    """Resize, or with probability 1/2 crop and resize, then augment.

    Args:
        sizes: square sizes (or short sides) of which one is drawn per picture.
        square: resize to squares; otherwise keep the aspect ratio, with the long side at most 1333.
        jitter: crop every second picture before the resize.
        augment: changes the resized picture and its target, but not its size; None for nothing.
    """

    sizes: tuple[int, ...]
    square: bool = True
    jitter: bool = True
    augment: Augmentation | None = None

    def reduction(self, hw: tuple[int, int]) -> int:
        """How much smaller (1, 2, 4 or 8 times) a picture may be decoded, so that none of its crops is enlarged."""
        smallest = min(hw) * (SMALLEST_CROP / LARGEST_SIDE if self.jitter else 1)
        fits = [n for n in (8, 4, 2) if smallest / n >= max(self.sizes)]
        return fits[0] if fits else 1

    def __call__(self, image: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        cropped = self.jitter and rng.random() < 0.5
        if cropped:
            image, target = self._crop(image, target, rng)
        size = int(rng.choice(self.sizes))
        hw = (size, size)
        if not self.square:
            hw = (min(size, 1333),) * 2 if cropped else short_side_size(image.shape[:2], min(size, 1333), 1333)
        target = resize_target(target, image.shape[:2], hw)
        image = resize(image, hw)
        if self.augment is not None:
            image, target = self.augment(image, target, rng)
        return image, to_relative(target)

    def _crop(self, image: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        """The square of 384 to 600 pixels of the picture whose short side were 400, 500 or 600.

        It is cut out of the picture as it is, to whole pixels, so that one resize follows instead of two.
        """
        real = image.shape[:2]
        scaled = short_side_size(real, int(rng.choice((400, 500, LARGEST_SIDE))))
        short = min(scaled)
        side = int(rng.integers(SMALLEST_CROP, min(LARGEST_SIDE, short) + 1)) if short > SMALLEST_CROP else short
        spans = []
        for length, pixels in zip(scaled, real, strict=True):
            start = int(rng.integers(0, length - side + 1))
            first = min(round(start * pixels / length), pixels - 1)
            spans.append((first, max(first + 1, round((start + side) * pixels / length))))
        (top, bottom), (left, right) = spans
        return image[top:bottom, left:right], crop_target(target, top, left, (bottom - top, right - left))


@dataclass(frozen=True)
class EvalTransform:
    """What prediction does to a picture: resize to the network's size, without antialias; float in 0..1."""

    resolution: int
    square: bool = True

    def __call__(self, image: np.ndarray, target: Target, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
        size = self.resolution
        hw = (size, size) if self.square else short_side_size(image.shape[:2], size, 1333)
        pixels = to_network_size(image, hw).transpose(1, 2, 0)
        return pixels, to_relative(resize_target(target, image.shape[:2], hw))
