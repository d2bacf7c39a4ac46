"""Weights and pictures that the recorded vectors were made with: a pure function of seed, name and shape.

A copy of the generator beside the reference vectors; every number in it is part of the recordings.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

# Salts change the proposal scorers of a query group, so that neighbours in rank are far apart in score.
_SCORER = re.compile(r"^transformer\.(?:enc_output|enc_output_norm|enc_out_class_embed)\.(\d+)\.")


def unit(name: str, shape: Sequence[int], seed: int | str = 0) -> np.ndarray:
    """Float64 array, uniform in [-1, 1)."""
    stream = np.random.RandomState(zlib.crc32(f"{seed}|{name}".encode()))
    return (2.0 * stream.random_sample(math.prod(shape)) - 1.0).reshape(tuple(shape))


def _fan(name: str, shape: tuple[int, ...]) -> float:
    if len(shape) < 2:
        return 1.0
    transposed = "stages_sampling" in name and len(shape) == 4 and shape[2:] == (2, 2)
    return math.sqrt(3.0 / (shape[0] if transposed else math.prod(shape[1:])))


def fill_tensor(
    name: str, shape: Sequence[int], seed: int = 0, salts: Mapping | None = None, scales: Iterable = ()
) -> np.ndarray:
    """Float32 array for one published tensor; `scales` are (regular expression, factor)."""
    shape = tuple(int(n) for n in shape)
    key = str(seed)
    scorer = _SCORER.match(name)
    if scorer and salts:
        salt = int(salts.get(int(scorer.group(1)), salts.get(scorer.group(1), 0)))
        key = f"{seed}/{salt}" if salt else key
    out = _value(name, shape, key)
    for pattern, factor in scales or ():
        if re.search(pattern, name):
            out = out * factor
    return np.ascontiguousarray(out, dtype=np.float32)


def _value(name: str, shape: tuple[int, ...], key: str) -> np.ndarray:
    """The first rule that fits the name."""
    u = unit(name, shape, key)
    fan = _fan(name, shape)
    weight = name.endswith("weight")
    if name.endswith(".lambda1"):
        return 0.30 + 0.20 * u
    if name.endswith("instance_kp_layer_scale"):
        return 0.30 + 0.10 * u
    if name.endswith("embeddings.position_embeddings"):
        return 0.80 * u
    if name.endswith(("embeddings.cls_token", "embeddings.mask_token", "embeddings.register_tokens")):
        return 1.0 * u
    if name.endswith("refpoint_embed.weight"):
        return 0.30 * u
    if name.endswith(("query_feat.weight", "keypoint_pos_embed", ".queries")):
        return 1.70 * u
    if name.endswith("segmentation_head.bias"):
        return -3.5 + 0.10 * u
    if name.endswith(("spatial_features_proj.weight", "query_features_proj.weight")):
        return (0.25 * fan) * u
    if "class_embed" in name:
        return _class_head(name, shape, key, fan, u) if weight else -3.0 + 1.5 * u
    if "bbox_embed" in name and name.endswith("layers.2.weight"):
        return (0.35 * fan) * u
    if "bbox_embed" in name and name.endswith("layers.2.bias"):
        size = 1.2 if "enc_out_bbox_embed" in name else 0.0
        return 0.20 * u + np.array([0.0, 0.0, size, size])
    if "keypoint_embed" in name and name.endswith("layers.2.weight"):
        return (0.50 * fan) * u
    if "keypoint_embed" in name and name.endswith("layers.2.bias"):
        return 0.30 * u
    if name.endswith("sampling_offsets.weight"):
        return (1.0 * fan) * u
    if name.endswith("sampling_offsets.bias"):
        return 2.5 * u
    if len(shape) <= 1:
        return 1.0 + 0.25 * u if weight else 0.15 * u
    if name.endswith(("query.weight", "key.weight", "in_proj_weight", "patch_embeddings.projection.weight")):
        return (1.6 * fan) * u
    return (1.2 * fan) * u


def _class_head(name: str, shape: tuple[int, ...], key: str, fan: float, u: np.ndarray) -> np.ndarray:
    row = 0.6 + 0.4 * unit(name + "#row", (shape[0],), key)
    return (3.0 * fan) * (row * row)[:, None] * u


def make_image(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """(channels, height, width) float32, as if normalised: blocks at four scales and noise."""
    rows, cols = np.arange(height), np.arange(width)
    out = 0.35 * unit(f"image/pixel/{height}x{width}", (channels, height, width), seed)
    for cells, weight in ((3, 0.9), (7, 0.8), (19, 0.7), (53, 0.6)):
        grid = unit(f"image/{cells}", (channels, cells, cells), seed)
        out = out + weight * grid[:, (rows * cells) // height][:, :, (cols * cells) // width]
    return np.ascontiguousarray(out, dtype=np.float32)


def make_batch(seeds: Sequence[int], height: int, width: int) -> np.ndarray:
    """(len(seeds), 3, height, width) float32."""
    return np.stack([make_image(seed, height, width) for seed in seeds])


def sample(array: np.ndarray, count: int) -> np.ndarray:
    """`count` evenly spaced elements in C order: how every recorded `*_sample` was taken."""
    flat = np.ascontiguousarray(array).reshape(-1)
    count = min(flat.size, count)
    return flat[(np.arange(count, dtype=np.int64) * flat.size) // count]
