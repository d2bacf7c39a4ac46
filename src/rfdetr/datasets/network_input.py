"""What the network sees of a picture: resized and normalised, in NumPy, so that exported files need no PyTorch."""

from __future__ import annotations

import functools

import numpy as np

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Rows that are made at a time: few enough for the cache of a core.
_STRIPE = 16


def to_network_size(image: np.ndarray, hw: tuple[int, int], normalised: bool = False) -> np.ndarray:
    """Resize a picture (H, W, C), uint8 or float32 in 0..1, to (C, h, w) float32 in 0..1: bilinear, not antialiased.

    This is the resize of prediction, evaluation and exported files. Only the pixels that count are read: a large
    picture costs no more than a small one. Every number is that of `rfdetr.datasets.transforms.resize_on_device`.

    Args:
        normalised: give the result zero mean and unit deviation of ImageNet.
    """
    height, width = hw
    upper, lower, weight = axis_taps(image.shape[0], height)
    # Neighbouring rows of the result read the same rows of a small picture: each of them is made once.
    rows, place = np.unique(np.concatenate((upper, lower)), return_inverse=True)
    across = _across(image, rows, width)
    mean, std = (np.tile(cyclic(values, image.shape[2]), width) for values in (MEAN, STD))
    result = np.empty((image.shape[2], height, width), np.float32)
    for start in range(0, height, _STRIPE):
        stop = min(start + _STRIPE, height)
        first, second = (across.take(half[start:stop], 0, mode="clip") for half in (place[:height], place[height:]))
        stripe = _mix(first, second, weight[start:stop, None])
        if normalised:
            stripe -= mean
            stripe /= std
        result[:, start:stop] = stripe.reshape(-1, width, image.shape[2]).transpose(2, 0, 1)
    return result


def _across(image: np.ndarray, rows: np.ndarray, width: int) -> np.ndarray:
    """Chosen rows of a picture at another width, (rows, width * C) float32 in 0..1."""
    channels = image.shape[2]
    left, right, weight = axis_taps(image.shape[1], width)
    columns, weight = np.concatenate((left, right)), np.repeat(weight, channels)
    found = np.empty((len(rows), width * channels), np.float32)
    for start in range(0, len(rows), _STRIPE):
        part = image.take(rows[start : start + _STRIPE], 0, mode="clip").take(columns, 1, mode="clip")
        pixels = part.astype(np.float32).reshape(len(part), 2, -1)
        if image.dtype == np.uint8:
            pixels /= np.float32(255)
        found[start : start + _STRIPE] = _mix(pixels[:, 0], pixels[:, 1], weight)
    return found


def _mix(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The weighted mean of two arrays, which are used up."""
    first *= 1 - weight
    second *= weight
    first += second
    return first


@functools.lru_cache(maxsize=64)
def axis_taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both neighbours and the weight of the second one for every output position along an axis.

    The positions follow `F.interpolate(align_corners=False)` in float32.
    """
    scale = np.float32(length / size)
    position = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    first = np.minimum(position.astype(np.int64), length - 1)
    second = np.minimum(first + 1, length - 1)
    taps = first, second, position - first.astype(np.float32)
    for one in taps:
        one.flags.writeable = False
    return taps


def cyclic(values: tuple[float, ...], count: int) -> np.ndarray:
    """The values again and again, one for each of a number of channels."""
    return np.resize(np.array(values, np.float32), count)
