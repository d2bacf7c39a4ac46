"""Finding objects with the network in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rfdetr.datasets.network_input import to_network_size
from rfdetr.datasets.transforms import normalise, resize_on_device
from rfdetr.inference.decode import Found
from rfdetr.inference.threads import polite_threads
from rfdetr.main import Model


class NetworkRunner:
    """The network of a model, on its device (`rfdetr.inference.predictor.Runner`)."""

    chunk = 32

    def __init__(self, model: Model) -> None:
        config = model.config
        self.model, self.labels = model, model.labels
        self.has_masks = config.segmentation_head
        self.hw = (config.resolution, config.resolution)
        self.block, self.patch_size = config.block_size, config.patch_size

    def check_size(self, hw: tuple[int, int]) -> None:
        """Any multiple of the block will do."""

    @torch.inference_mode()
    def detect(self, pictures: Sequence[np.ndarray], hw: tuple[int, int], threshold: float) -> list[Found]:
        """See `Runner`; the masks of what does not score above the threshold are left out."""
        sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
        with polite_threads() if self.model.device.type == "cpu" else nullcontext():
            return self.read(self.compute(self.prepare(pictures, hw)), sizes, threshold)

    def prepare(self, pictures: Sequence[np.ndarray], hw: tuple[int, int]) -> Tensor:
        """The network's input, (B, C, height, width), on its device."""
        device = self.model.device
        if device.type == "cpu":
            inputs = torch.empty(len(pictures), pictures[0].shape[2], *hw)
            for row, picture in zip(inputs.numpy(), pictures, strict=True):
                row[:] = to_network_size(picture, hw, normalised=True)
            return inputs
        # The picture goes over as it is, as a rule as one byte per value, and is resized there.
        tensors = [torch.from_numpy(np.ascontiguousarray(picture)).to(device) for picture in pictures]
        return normalise(torch.stack([resize_on_device(one, hw) for one in tensors]))

    def compute(self, inputs: Tensor) -> Mapping[str, Any]:
        """The network's outputs."""
        return self.model.for_prediction()(inputs, last_only=True, whole_masks=False)

    def read(self, outputs: Mapping[str, Any], sizes: Sequence[tuple[int, int]], threshold: float) -> list[Found]:
        """The detections in outputs for pictures of these heights and widths."""
        found = self.model.postprocess(outputs, torch.tensor(sizes), threshold, enlarge_masks=False)
        return [{name: value.cpu().numpy() for name, value in one.items()} for one in found]
