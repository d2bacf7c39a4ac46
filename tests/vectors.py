"""Recorded vectors: reading the files, and our network with the weights they were recorded with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rfdetr import config as configs
from rfdetr.checkpoints.names import to_internal, to_published
from rfdetr.models.build import build_model
from rfdetr.models.criterion import gather_targets
from rfdetr.models.detector import Detector
from rfdetr.models.keypoint_network import schema_masks
from rfdetr.models.matcher import MatchCosts, Matches, match
from tests import fill

DATA = Path(__file__).parent / "data"
PICTURES = DATA / "pictures"

# Query and target indices of every image.
Pairs = list[tuple[list[int], list[int]]]

CONFIGS = {
    # name in the recordings: configuration class
    "nano": configs.RFDETRNanoConfig,
    "small": configs.RFDETRSmallConfig,
    "medium": configs.RFDETRMediumConfig,
    "base": configs.RFDETRBaseConfig,
    "large": configs.RFDETRLargeConfig,
    "large_deprecated": configs.RFDETRLargeDeprecatedConfig,
    "xlarge": configs.RFDETRXLargeConfig,
    "xxlarge": configs.RFDETR2XLargeConfig,
    "seg_preview": configs.RFDETRSegPreviewConfig,
    "seg_nano": configs.RFDETRSegNanoConfig,
    "seg_small": configs.RFDETRSegSmallConfig,
    "seg_medium": configs.RFDETRSegMediumConfig,
    "seg_large": configs.RFDETRSegLargeConfig,
    "seg_xlarge": configs.RFDETRSegXLargeConfig,
    "seg_2xlarge": configs.RFDETRSeg2XLargeConfig,
    "keypoint_preview": configs.RFDETRKeypointPreviewConfig,
}


def read_json(name: str) -> Any:
    """A JSON file below `tests/data`, without its suffix."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def read_arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of an npz file below `tests/data`, without its suffix."""
    with np.load(DATA / f"{name}.npz") as arrays:
        return dict(arrays)


def read_tensors(name: str) -> dict[str, Tensor]:
    """The same as tensors."""
    return {key: torch.from_numpy(array) for key, array in read_arrays(name).items()}


def read_spec(variant: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, shape, dtype) of every published tensor of the training network."""
    return [(name, tuple(shape), dtype) for name, shape, dtype in read_json(f"model/{variant}.state")]


def read_case(name: str) -> tuple[SimpleNamespace, dict[str, np.ndarray]]:
    """Settings and arrays of a recorded forward pass."""
    arrays = read_arrays(f"model/{name}")
    return SimpleNamespace(**json.loads(bytes(arrays.pop("meta")))), arrays


def filled_model(variant: str, seed: int, salts: dict | None = None, scales: Any = (), **options: Any) -> Detector:
    """A network with the weights of a recording; `options` are fields of its configuration."""
    model = build_model(CONFIGS[variant](pretrain_weights=None, **options))
    published = {
        name: torch.from_numpy(fill.fill_tensor(name, tensor.shape, seed, salts, scales))
        for name, tensor in to_published(model.state_dict()).items()
        if tensor.is_floating_point()
    }
    weights = to_internal(published)[0]
    if model.keypoints is not None:
        masks = schema_masks(model.keypoints.schema)
        weights |= zip(("keypoints.active", "keypoints.blocked"), masks, strict=True)
    model.load_state_dict(weights, assign=True)
    return model


def targets_of(tensors: dict, count: int, prefix: str = "", mask_width: int | None = None) -> list[dict[str, Tensor]]:
    """Targets per image of a recorded batch; masks are recorded as bits."""
    found = []
    for start in (f"{prefix}target/{i}/" for i in range(count)):
        target = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        if "masks" in target:
            bits = np.unpackbits(target["masks"].numpy(), axis=-1, count=mask_width)
            target["masks"] = torch.from_numpy(bits.astype(bool))
        found.append(target)
    return found


def match_layer(one: dict, targets: list[dict], groups: int, costs: MatchCosts) -> Pairs:
    """Query and target indices per image of one output layer."""
    joined = gather_targets(targets)
    return pairs_of(match(one["pred_logits"][None], one["pred_boxes"][None], joined, groups, costs), 0, joined.counts)


def pairs_of(matches: Matches, layer: int, counts: list[int]) -> Pairs:
    """Query and target indices per image of one of the layers, by the number of targets of each image."""
    image, query, target = (one[layer] for one in matches[:3])
    starts = np.cumsum([0, *counts])
    return [(query[image == i].tolist(), (target[image == i] - int(starts[i])).tolist()) for i in range(len(counts))]


def recorded_matches(tensors: dict, layer: str, count: int, prefix: str = "") -> Pairs:
    """Query and target indices per image as they were recorded."""
    key = f"{prefix}match/{layer}"
    return [(tensors[f"{key}/{i}/query"].tolist(), tensors[f"{key}/{i}/target"].tolist()) for i in range(count)]


def assert_close(actual: Any, expected: Any, what: str, atol: float = 0.0, rtol: float = 0.0) -> None:
    """Compare tensors, arrays or numbers; `what` stands in the error."""
    actual = actual.detach().numpy() if isinstance(actual, Tensor) else actual
    expected = expected.detach().numpy() if isinstance(expected, Tensor) else expected
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=what)
