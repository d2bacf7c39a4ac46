"""The network as exports see it: images in, named outputs out; what depends on its size alone is constant."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rfdetr.models.boxes import to_xyxy
from rfdetr.models.detector import Detector
from rfdetr.models.postprocess import PostProcess

# The model's name of each raw output, in the order of the file's.
RAW = {"dets": "pred_boxes", "labels": "pred_logits", "masks": "pred_masks", "keypoints": "pred_keypoints"}


class ExportGraph(nn.Module):
    """A copy of a network on the CPU for normalised images (B, 3, height, width).

    Args:
        hw: height and width of the images.

    Attributes:
        names: the outputs: `dets` (B, Q, 4) relative cxcywh, `labels` (B, Q, C) raw logits, and where the network has
            them `masks` (B, Q, h, w) raw logits or `keypoints` (B, Q, slots, 8).
    """

    def __init__(self, network: Detector, hw: tuple[int, int]) -> None:
        super().__init__()
        # A copy: the live network keeps its device and its tables.
        self.network = copy.deepcopy(network).cpu().requires_grad_(False)
        self.hw = hw
        has = {"masks": network.mask_head is not None, "keypoints": network.keypoints is not None}
        self.names = [name for name in RAW if has.get(name, True)]
        self.eval()

    def example(self, batch_size: int) -> Tensor:
        """Images to trace with; the network has seen some of this size then, and holds the constants of the size."""
        images = _noise(batch_size, self.network.encoder.patches.in_channels, *self.hw)
        with torch.no_grad():
            self(images)
        return images

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(images, last_only=True, whole_masks=True)
        return tuple(outputs[RAW[name]] for name in self.names)


class FinalGraph(nn.Module):
    """A graph whose outputs are detections.

    Args:
        hidden: outputs of the class head that are no class.

    Attributes:
        names: `boxes` (B, K, 4) relative xyxy, `scores` (B, K), best first, `classes` (B, K) int64; and where the
            network has them `masks` (B, K, h, w) raw logits, or `keypoints` and `precision` (B, K, P, 3): relative x, y
            and presence, and the Cholesky factors of the precision.
    """

    def __init__(self, graph: ExportGraph, postprocess: PostProcess, hidden: Sequence[int]) -> None:
        super().__init__()
        self.graph, self.postprocess, self.hw = graph, postprocess, graph.hw
        more = {"masks": ["masks"], "keypoints": ["keypoints", "precision"]}
        self.names = ["boxes", "scores", "classes", *more.get(graph.names[-1], [])]
        allowed = torch.zeros(graph.network.class_head.out_features)
        allowed[list(hidden)] = -torch.inf
        self.register_buffer("allowed", allowed)
        self.eval()

    def example(self, batch_size: int) -> Tensor:
        """See `ExportGraph.example`."""
        return self.graph.example(batch_size)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = dict(zip(self.graph.names, self.graph(images), strict=True))
        scores = (outputs["labels"] + self.allowed).sigmoid()
        count = min(self.postprocess.num_select, scores.shape[1] * scores.shape[2])
        scores, chosen = scores.flatten(1).topk(count, dim=1)
        classes = chosen % outputs["labels"].shape[2]
        query = torch.div(chosen, outputs["labels"].shape[2], rounding_mode="floor")
        boxes = to_xyxy(outputs["dets"]).clamp(0, 1).gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
        if "masks" in outputs:
            height, width = outputs["masks"].shape[-2:]
            index = query.view(query.shape[0], -1, 1, 1).expand(-1, -1, height, width)
            return boxes, scores, classes, outputs["masks"].gather(1, index)
        if "keypoints" in outputs:
            size = torch.ones(images.shape[0], 2)
            found = self.postprocess.keypoints(outputs["keypoints"], query, scores, classes, size)
            return boxes, found["scores"], classes, found["keypoints"], found["keypoint_precision_cholesky"]
        return boxes, scores, classes


class BackboneGraph(nn.Module):
    """Encoder and projector alone: `features`, or `features_0`, `features_1`, ...: (B, C, h, w) of each level."""

    def __init__(self, network: Detector, hw: tuple[int, int]) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(network.encoder).cpu().requires_grad_(False)
        self.projector = copy.deepcopy(network.projector).cpu().requires_grad_(False)
        self.hw, count = hw, len(network.projector.levels)
        self.names = ["features"] if count == 1 else [f"features_{i}" for i in range(count)]
        self.eval()

    def example(self, batch_size: int) -> Tensor:
        """See `ExportGraph.example`."""
        images = _noise(batch_size, self.encoder.patches.in_channels, *self.hw)
        with torch.no_grad():
            self(images)
        return images

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.projector(self.encoder(images)))


Graph = ExportGraph | FinalGraph | BackboneGraph


def _noise(*shape: int) -> Tensor:
    """Always the same, and without a draw from what seeds the user's own numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
