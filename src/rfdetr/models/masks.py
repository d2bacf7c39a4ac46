"""What masks add to matching and losses, computed on sampled points (PointRend, arXiv 1912.08193)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Mask logits (B, Q, h, w), or what they are the product of: `spatial_features` (B, C, h, w), `query_features` (B, Q, C)
# and `bias` (1,).
Masks = Tensor | Mapping[str, Tensor]


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Maps (N, C, h, w) at points (N, P, 2) as x, y in 0..1, bilinear: (N, C, P)."""
    grid = 2 * points.unsqueeze(1) - 1
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False).squeeze(2)


def look_up(masks: Tensor, points: Tensor) -> Tensor:
    """Masks (N, H, W) of bool at the pixels under points (N, P, 2), or (1, P, 2) for all: (N, P) of 0 and 1."""
    height, width = masks.shape[-2:]
    x = (points[..., 0] * width).long().clamp(0, width - 1)
    y = (points[..., 1] * height).long().clamp(0, height - 1)
    row = torch.arange(len(masks), device=masks.device).unsqueeze(1)
    return masks[row, y, x].float()


def mask_size(masks: Masks) -> tuple[int, int]:
    """Height and width of predicted masks."""
    shape = (masks if isinstance(masks, Tensor) else masks["spatial_features"]).shape
    return shape[-2], shape[-1]


def logits_at(masks: Masks, image: int, points: Tensor) -> Tensor:
    """Logits of all queries of an image at points (1, P, 2): (Q, P)."""
    if isinstance(masks, Tensor):
        return sample(masks[image].float().unsqueeze(0), points)[0]
    features = sample(masks["spatial_features"][image].float().unsqueeze(0), points)[0]
    return masks["query_features"][image].float() @ features + masks["bias"].float()


def logits_of(masks: Masks, image: Tensor, query: Tensor) -> Tensor:
    """Whole mask logits of chosen queries, (M,) and (M,) -> (M, h, w)."""
    if isinstance(masks, Tensor):
        return masks[image, query].float()
    features, vectors = masks["spatial_features"].float(), masks["query_features"].float()
    maps = [torch.einsum("chw,mc->mhw", one, vectors[i, query[image == i]]) for i, one in enumerate(features)]
    return torch.cat(maps) + masks["bias"].float()


@dataclass(frozen=True)
class MaskTerms:
    """Matching costs and losses of masks.

    Args:
        ce, dice: weights of the two matching costs.
        ratio: pixels of the predicted mask per sampled point.
        uniform: draws numbers in 0..1 of a shape on a device.
    """

    ce: float = 5.0
    dice: float = 5.0
    ratio: int = 16
    uniform: Callable[..., Tensor] = torch.rand

    def costs(self, layers: Sequence[Mapping], masks: Sequence[Tensor]) -> Callable[[int, int], Iterator[Tensor]]:
        """A function that gives the weighted costs (Q, T) of a layer and image; all images share a layer's points.

        Args:
            masks: ground truth of each image, (T, H, W) bool.
        """
        drawn = []
        for layer in layers:
            height, width = mask_size(layer["pred_masks"])
            drawn.append(self.uniform(1, height * width // self.ratio, 2, device=layer["pred_boxes"].device))

        def cost(layer: int, image: int) -> Iterator[Tensor]:
            points = drawn[layer]
            logits = logits_at(layers[layer]["pred_masks"], image, points)
            wanted = look_up(masks[image], points)
            yield self.ce * (F.softplus(logits).sum(1, keepdim=True) - logits @ wanted.T) / points.shape[1]
            found = logits.sigmoid()
            total = found.sum(1, keepdim=True) + wanted.sum(1) + 1
            yield self.dice * (1 - (2 * found @ wanted.T + 1) / total)

        return cost

    def losses(self, layer: Mapping, image: Tensor, query: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Sums over the matched pairs (M,) of a layer with their ground truth masks (M, H, W) bool."""
        predicted = layer["pred_masks"]
        if not len(masks):
            tensors = [predicted] if isinstance(predicted, Tensor) else predicted.values()
            zero = sum((tensor.sum() * 0 for tensor in tensors), torch.zeros((), device=image.device))
            return {"loss_mask_ce": zero, "loss_mask_dice": zero}
        maps = logits_of(predicted, image, query).unsqueeze(1)
        points = self._uncertain_points(maps.detach())
        logits, wanted = sample(maps, points)[:, 0], look_up(masks, points)
        found = logits.sigmoid()
        overlap = (2 * (found * wanted).sum(1) + 1) / (found.sum(1) + wanted.sum(1) + 1)
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return {"loss_mask_ce": entropy.mean(1).sum(), "loss_mask_dice": (1 - overlap).sum()}

    def _uncertain_points(self, maps: Tensor) -> Tensor:
        """Three quarters of the points where a map (M, 1, h, w) is least sure, the others anywhere: (M, P, 2)."""
        height, width = maps.shape[-2:]
        count = max(height, height * width // self.ratio)
        over = self.uniform(len(maps), 3 * count, 2, device=maps.device)
        unsure = count * 3 // 4
        chosen = sample(maps, over)[:, 0].abs().topk(unsure, dim=1, largest=False).indices
        rest = self.uniform(len(maps), count - unsure, 2, device=maps.device)
        return torch.cat((over.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 2)), rest), dim=1)
