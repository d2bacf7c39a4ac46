"""What keypoints add to matching and losses: distance, presence, visibility, likelihood under a precision."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Values of pairs of predicted and wanted keypoints that are compared at once.
CHUNK_VALUES = 2**22
SMALLEST_AREA = torch.finfo(torch.float32).eps


class Terms(NamedTuple):
    """Distance, presence, visibility and negative log likelihood of pairs, each (...,)."""

    l1: Tensor
    findable: Tensor
    visible: Tensor
    nll: Tensor


def keypoint_terms(predicted: Tensor, wanted: Tensor, area: Tensor, exists: Tensor, by_labelled: bool = False) -> Terms:
    """The four terms of predicted keypoints for wanted ones; leading axes are broadcast.

    Channels of a prediction: x, y, findable and visible logit, log l11, l21, log l22 of the Cholesky factor of the
    precision. What is not finite is left out, with a gradient of exactly zero.

    Args:
        predicted: (..., K, 7 or more), relative to the image.
        wanted: (..., K, 3) as x, y, visibility 0, 1 or 2.
        area: (...,) of the wanted box, relative.
        exists: (..., K) bool, the keypoints that the class has.
        by_labelled: divide the likelihood by the labelled keypoints instead of those that entered it.
    """
    seen = wanted[..., 2]
    usable = torch.isfinite(area) & (area > SMALLEST_AREA)
    labelled = exists & (seen > 0) & torch.isfinite(wanted[..., :2]).all(-1) & usable.unsqueeze(-1)
    safe_area = torch.where(usable, area, 1.0)
    near = labelled & torch.isfinite(predicted[..., :2]).all(-1)
    away = torch.where(near.unsqueeze(-1), predicted[..., :2] - wanted[..., :2].nan_to_num(), 0.0)
    distance = away.abs().sum((-1, -2)) / safe_area.sqrt() / near.sum(-1).clamp(min=1)
    nll = _likelihood(predicted[..., 4:7], away, safe_area, near, labelled if by_labelled else None)
    logits = predicted[..., 2:4]
    counted = exists.unsqueeze(-1) & torch.isfinite(logits)
    goals = torch.stack((seen > 0, seen > 1), dim=-1).to(logits.dtype)
    safe = torch.where(counted, logits, 0.0)
    entropy = torch.where(counted, F.softplus(safe) - safe * goals, 0.0).sum(-2) / counted.sum(-2).clamp(min=1)
    return Terms(distance, entropy[..., 0], entropy[..., 1], nll)


def _likelihood(factor: Tensor, away: Tensor, area: Tensor, near: Tensor, labelled: Tensor | None) -> Tensor:
    """Mean of half the squared whitened distance minus the log determinant, over the keypoints where it is finite."""

    def whitened(log_l11: Tensor, l21: Tensor, log_l22: Tensor) -> Tensor:
        first = log_l11.exp() * away[..., 0] + l21 * away[..., 1]
        return first**2 + (log_l22.exp() * away[..., 1]) ** 2

    with torch.no_grad():
        good = near & torch.isfinite(factor).all(-1) & torch.isfinite(whitened(*factor.unbind(-1)))
    # Replaced before the operations: their gradient at infinity would be no number, even masked afterwards.
    safe = torch.where(good.unsqueeze(-1), factor, 0.0).unbind(-1)
    each = 0.5 * whitened(*safe) / area.unsqueeze(-1) - (safe[0] + safe[2])
    count = (good if labelled is None else labelled).sum(-1).clamp(min=1)
    return torch.where(good, each, 0.0).sum(-1) / count


def slots_of(labels: Tensor, schema: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Slots (..., widest) of each label's keypoints among the predicted ones, and which of them exist."""
    widest = max(schema)
    counts = torch.tensor(schema, device=labels.device)
    number = torch.arange(widest, device=labels.device)
    inside = labels.clamp(max=len(schema) - 1)
    exists = (number < counts[inside].unsqueeze(-1)) & (labels < len(schema)).unsqueeze(-1)
    return inside.unsqueeze(-1) * widest + number, exists


@dataclass(frozen=True)
class KeypointTerms:
    """Matching costs and losses of keypoints.

    Args:
        schema: number of keypoints of each class; predictions have max(schema) slots per class, class by class.
        l1, findable, visible, nll: weights of the matching costs.
    """

    schema: tuple[int, ...]
    l1: float = 1.0
    findable: float = 1.0
    visible: float = 1.0
    nll: float = 1.0

    def costs(
        self, layers: Sequence[Mapping], labels: Sequence[Tensor], boxes: Sequence[Tensor], keypoints: Sequence[Tensor]
    ) -> Callable[[int, int], Iterator[Tensor]]:
        """A function that gives the weighted costs (Q, T) of a layer and image; the others are per image (T, ...)."""

        def cost(layer: int, image: int) -> Iterator[Tensor]:
            slots, exists = slots_of(labels[image], self.schema)
            predicted = layers[layer]["pred_keypoints"][image].float()
            area = boxes[image][:, 2] * boxes[image][:, 3]
            wanted = _padded(keypoints[image], slots.shape[1])
            # Every pair has all channels of all keypoints in memory, so a crowd of objects comes part by part.
            step = max(1, CHUNK_VALUES // (len(predicted) * slots.shape[1] * predicted.shape[-1]))
            parts = [
                keypoint_terms(predicted[:, slots[part]], wanted[part], area[part], exists[part], by_labelled=True)
                for part in (slice(start, start + step) for start in range(0, len(slots), step))
            ]
            weights = (self.l1, self.findable, self.visible, self.nll)
            for weight, terms in zip(weights, zip(*parts, strict=True), strict=True):
                yield weight * torch.cat(terms, dim=1)

        return cost

    def losses(
        self, layer: Mapping, image: Tensor, query: Tensor, labels: Tensor, boxes: Tensor, keypoints: Tensor
    ) -> dict[str, Tensor]:
        """Sums over the matched pairs (M,) of a layer with their labels, boxes (M, 4) and keypoints (M, K, 3)."""
        slots, exists = slots_of(labels, self.schema)
        pairs = torch.arange(len(labels), device=labels.device).unsqueeze(1)
        predicted = layer["pred_keypoints"][image, query].float()[pairs, slots]
        wanted = _padded(keypoints, slots.shape[1])
        found = keypoint_terms(predicted, wanted, boxes[:, 2] * boxes[:, 3], exists)
        known = 1.0
        if len(labels) and int(labels.max()) >= len(self.schema):
            warnings.warn(
                f"label {int(labels.max())} has no entry in the keypoint schema {list(self.schema)}; "
                "the keypoint losses of such batches are 0",
                RuntimeWarning,
            )
            known = 0.0
        return {f"loss_keypoints_{name}": known * term.sum() for name, term in found._asdict().items()}


def _padded(keypoints: Tensor, width: int) -> Tensor:
    """Keypoints (T, K, 3) filled up, or cut, to `width` of them."""
    return F.pad(keypoints.float(), (0, 0, 0, width - keypoints.shape[1]))
