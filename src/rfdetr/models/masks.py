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


@dataclass(frozen=True, eq=False)
class MaskFactors(Mapping[str, Tensor]):
    """The factors of mask logits; those of the queries are computed when they are read.

    Losses read those of matched queries alone, which are few: no other would get a gradient.

    Args:
        hidden: what the decoder says of the queries, (B, Q, D).
        to_vectors: makes of hidden (..., D) the features of queries, (..., C).
    """

    spatial_features: Tensor
    bias: Tensor
    hidden: Tensor
    to_vectors: Callable[[Tensor], Tensor]

    def __getitem__(self, name: str) -> Tensor:
        if name == "query_features":
            return self.to_vectors(self.hidden)
        return {"spatial_features": self.spatial_features, "bias": self.bias}[name]

    def __iter__(self) -> Iterator[str]:
        return iter(("spatial_features", "query_features", "bias"))

    def __len__(self) -> int:
        return 3


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Maps (N, C, h, w) at points (N, P, 2) as x, y in 0..1, bilinear: (N, C, P)."""
    grid = 2 * points.unsqueeze(1) - 1
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False).squeeze(2)


class TargetMasks:
    """Ground truth masks of a batch, of which only the pixels under points are read.

    Args:
        masks: of each image, (T, H, W) bool; or packed, (ceil(T / 8), H, W) uint8, where bit n % 8 of plane n // 8 is
            object n.
        counts: objects of each image.
    """

    def __init__(self, masks: Sequence[Tensor], counts: Sequence[int]) -> None:
        self.planes = torch.cat([one.view(torch.uint8) for one in masks])
        per_plane = 1 if masks[0].dtype == torch.bool else 8
        number = torch.cat([torch.arange(count) for count in counts]).to(self.planes.device)
        first = torch.tensor([0, *(len(one) for one in masks[:-1])]).cumsum(0)
        self.plane = torch.repeat_interleave(first, torch.tensor(counts)).to(number.device) + number // per_plane
        self.bit = (number % per_plane).to(torch.uint8)
        self.start = [0, *torch.tensor(counts).cumsum(0).tolist()]

    def look_up(self, objects: Tensor, points: Tensor) -> Tensor:
        """0 or 1 of objects (M,), counted over the batch, at points (M, P, 2), or (1, P, 2) for all: (M, P)."""
        height, width = self.planes.shape[-2:]
        x = (points[..., 0] * width).long().clamp(0, width - 1)
        y = (points[..., 1] * height).long().clamp(0, height - 1)
        found = self.planes[self.plane[objects].unsqueeze(1), y, x]
        return (found.bitwise_right_shift(self.bit[objects].unsqueeze(1)) & 1).float()

    def look_up_image(self, image: int, points: Tensor) -> Tensor:
        """The same of all objects of an image, at points (1, P, 2): (T, P)."""
        return self.look_up(torch.arange(*self.start[image : image + 2], device=points.device), points)


def mask_size(masks: Masks) -> tuple[int, int]:
    """Height and width of predicted masks."""
    shape = (masks if isinstance(masks, Tensor) else masks["spatial_features"]).shape
    return shape[-2], shape[-1]


def logits_at(masks: Masks, image: int, points: Tensor) -> Tensor:
    """Logits of all queries of an image at points (1, P, 2): (Q, P)."""
    if isinstance(masks, Tensor):
        return sample(masks[image].float().unsqueeze(0), points)[0]
    features = sample(masks["spatial_features"][image].float().unsqueeze(0), points)[0]
    return _vectors(masks, image).float() @ features + masks["bias"].float()


def _vectors(masks: Mapping[str, Tensor], *place: int | Tensor) -> Tensor:
    """Features of the queries at an image, or at images and queries (M,) and (M,)."""
    if isinstance(masks, MaskFactors):
        return masks.to_vectors(masks.hidden[place].float())
    return masks["query_features"][place]


def logits_of(masks: Masks, image: Tensor, query: Tensor) -> Tensor:
    """Whole mask logits of chosen queries, (M,) and (M,) -> (M, h, w)."""
    if isinstance(masks, Tensor):
        return masks[image, query].float()
    # Pixels by channels is how the mask head leaves its maps in memory, and how their gradient should come back.
    features = masks["spatial_features"].float().flatten(2).transpose(1, 2)
    vectors = _vectors(masks, image, query).float()
    maps = [vectors[image == i] @ one.T for i, one in enumerate(features)]
    return (torch.cat(maps) + masks["bias"].float()).unflatten(1, mask_size(masks))


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

    def costs(self, layers: Sequence[Mapping], masks: TargetMasks) -> Callable[[int, int], Iterator[Tensor]]:
        """A function that gives the weighted costs (Q, T) of a layer and image; all images share a layer's points."""
        drawn = []
        for layer in layers:
            height, width = mask_size(layer["pred_masks"])
            drawn.append(self.uniform(1, max(1, height * width // self.ratio), 2, device=layer["pred_boxes"].device))

        def cost(layer: int, image: int) -> Iterator[Tensor]:
            points = drawn[layer]
            logits = logits_at(layers[layer]["pred_masks"], image, points)
            wanted = masks.look_up_image(image, points)
            yield self.ce * (F.softplus(logits).sum(1, keepdim=True) - logits @ wanted.T) / points.shape[1]
            found = logits.sigmoid()
            total = found.sum(1, keepdim=True) + wanted.sum(1) + 1
            yield self.dice * (1 - (2 * found @ wanted.T + 1) / total)

        return cost

    def losses(
        self, layer: Mapping, image: Tensor, query: Tensor, target: Tensor, masks: TargetMasks
    ) -> dict[str, Tensor]:
        """Sums over the matched pairs (M,) of a layer, given by image, query and object."""
        predicted = layer["pred_masks"]
        if not len(target):
            tensors = [predicted] if isinstance(predicted, Tensor) else predicted.values()
            zero = sum((tensor.sum() * 0 for tensor in tensors), torch.zeros((), device=image.device))
            return {"loss_mask_ce": zero, "loss_mask_dice": zero}
        maps = logits_of(predicted, image, query).unsqueeze(1)
        points = self._uncertain_points(maps.detach())
        logits, wanted = sample(maps, points)[:, 0], masks.look_up(target, points)
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
