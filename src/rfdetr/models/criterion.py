"""Losses of a detector: all layers and query groups in one vectorised pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.backward import negative_loss
from rfdetr.models.boxes import iou_and_giou
from rfdetr.models.keypoints import KeypointTerms
from rfdetr.models.masks import MaskTerms, TargetMasks
from rfdetr.models.matcher import MatchCosts, Matches, Targets, match

ClassLoss = Literal["ia_bce", "focal", "varifocal", "position"]


def gather_targets(targets: Sequence[Mapping[str, Tensor]]) -> Targets:
    """Join the per-image dicts (`labels` (T,), `boxes` (T, 4) relative cxcywh) of a batch."""
    return Targets(
        torch.cat([one["labels"] for one in targets]),
        torch.cat([one["boxes"] for one in targets]).float(),
        [len(one["labels"]) for one in targets],
    )


class _Extra:
    """Masks and keypoints of some layers and their targets: further matching costs, further losses."""

    def __init__(
        self,
        layers: list[Mapping],
        targets: Sequence[Mapping[str, Tensor]],
        masks: MaskTerms | None,
        keypoints: KeypointTerms | None,
    ) -> None:
        self.layers, self.masks, self.keypoints = layers, masks, keypoints
        fields = ("labels", "boxes", "keypoints")
        self.of = {name: [one[name] for one in targets] for name in fields if all(name in one for one in targets)}
        if masks is not None:
            self.target_masks = TargetMasks([one["masks"] for one in targets], [len(one["labels"]) for one in targets])

    def costs(self) -> list[Callable]:
        """What `match` adds to the costs of boxes."""
        costs: list[Callable] = []
        if self.masks is not None:
            costs.append(self.masks.costs(self.layers, self.target_masks))
        if self.keypoints is not None:
            of = self.of
            costs.append(self.keypoints.costs(self.layers, of["labels"], of["boxes"], of["keypoints"]))
        return costs

    def losses(self, pairs: Matches, labels: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Sums (L,) by name over the pairs, whose labels (L, M) and boxes (L, M, 4) are given."""
        found: list[dict[str, Tensor]] = []
        for number, layer in enumerate(self.layers):
            image, query, target = pairs.image[number], pairs.query[number], pairs.target[number]
            losses: dict[str, Tensor] = {}
            if self.masks is not None:
                losses |= self.masks.losses(layer, image, query, target, self.target_masks)
            if self.keypoints is not None:
                points = torch.cat(self.of["keypoints"])[target]
                losses |= self.keypoints.losses(layer, image, query, labels[number], boxes[number], points)
            found.append(losses)
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}


class Criterion(nn.Module):
    """Class, box and overlap losses of every output layer.

    Args:
        weight_dict: weight per loss name; the total is the weighted sum over these names.
        groups: query groups in training; evaluation always uses one.
        class_loss: "ia_bce" (the default of RF-DETR), "focal", "varifocal" or "position".
        sum_group_losses: normalise by the targets alone instead of targets times groups.
        masks, keypoints: what a model that predicts them adds.
    """

    def __init__(
        self,
        weight_dict: dict[str, float],
        groups: int = 13,
        class_loss: ClassLoss = "ia_bce",
        alpha: float = 0.25,
        sum_group_losses: bool = False,
        masks: MaskTerms | None = None,
        keypoints: KeypointTerms | None = None,
    ) -> None:
        super().__init__()
        self.masks, self.keypoints = masks, keypoints
        self.weight_dict, self.groups, self.class_loss = weight_dict, groups, class_loss
        self.alpha, self.sum_group_losses = alpha, sum_group_losses
        self.costs = MatchCosts(alpha=alpha)

    def forward(
        self, outputs: Mapping, targets: Sequence[Mapping[str, Tensor]], num_boxes: float | Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses and diagnostics by name; suffix `_i` for earlier layers, `_enc` for the start boxes.

        Args:
            outputs: what the detector returned.
            targets: per image `labels` (T,) and `boxes` (T, 4) relative cxcywh; for models that predict them also
                `masks` (`TargetMasks`) and `keypoints` (T, K, 3) as relative x, y and visibility.
            num_boxes: normaliser; None counts the targets of this batch (`normaliser`).
        """
        joined = gather_targets(targets)
        groups = self.groups if self.training else 1
        if num_boxes is None:
            num_boxes = self.normaliser(sum(joined.counts))
        layers = [("", outputs)]
        layers += [(f"_{i}", one) for i, one in enumerate(outputs.get("aux_outputs", ()))]
        if "enc_outputs" in outputs:
            layers.append(("_enc", outputs["enc_outputs"]))
        # The encoder proposes fewer boxes than there are queries when its grid is small.
        by_count: dict[int, list] = {}
        for layer in layers:
            by_count.setdefault(layer[1]["pred_logits"].shape[1], []).append(layer)
        losses: dict[str, Tensor] = {}
        for same in by_count.values():
            logits = torch.stack([one["pred_logits"] for _, one in same]).float()
            boxes = torch.stack([one["pred_boxes"] for _, one in same]).float()
            extra = _Extra([one for _, one in same], targets, self.masks, self.keypoints)
            values = self._stacked(logits, boxes, joined, groups, num_boxes, extra)
            for (suffix, _), found in zip(same, values, strict=True):
                losses.update({name + suffix: value for name, value in found.items()})
        return {name: value for name, value in losses.items() if not name.startswith("class_error_")}

    def normaliser(self, num_targets: float, processes: int = 1) -> float:
        """What every loss is divided by: targets times groups per process, at least 1."""
        groups = self.groups if self.training and not self.sum_group_losses else 1
        return max(1.0, num_targets * groups / processes)

    def weighted_total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Sum of weight * loss over the names that have a weight."""
        names = [name for name in losses if name in self.weight_dict]
        weights = torch.tensor([self.weight_dict[name] for name in names], device=losses[names[0]].device)
        return torch.stack([losses[name] for name in names]).dot(weights)

    def _stacked(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Targets,
        groups: int,
        num_boxes: float | Tensor,
        extra: _Extra,
    ) -> list[dict[str, Tensor]]:
        """Losses by name of each layer, for logits (L, B, Q, C) and boxes (L, B, Q, 4)."""
        pairs = match(logits, boxes, targets, groups, self.costs, extra.costs())
        labels, wanted = targets.labels[pairs.target], targets.boxes[pairs.target]
        rows = logits.flatten(0, 2).index_select(0, pairs.row).view(*labels.shape, logits.shape[-1])
        predicted = boxes.flatten(0, 2).index_select(0, pairs.row).view(wanted.shape)
        overlap, giou = iou_and_giou(predicted, wanted)
        losses = {
            "loss_ce": self._class_loss(logits, rows, labels, overlap.detach(), pairs.image),
            "loss_bbox": torch.linalg.vector_norm(predicted - wanted, 1, (-1, -2)),
            "loss_giou": (1 - giou).sum(-1),
            **extra.losses(pairs, labels, wanted),
        }
        values = torch.stack(tuple(losses.values())) / num_boxes
        with torch.no_grad():
            found = (logits.amax(-1) > 0).sum(-1, dtype=torch.float32)
            counts = torch.tensor(targets.counts, dtype=torch.float32, device=logits.device)
            away = (found - counts).abs().mean(-1)
            wrong = (rows.argmax(-1) != labels).mean(-1, dtype=torch.float32) if labels.numel() else away * 0 + 1
        # Taken apart at once, so that their gradients come back in one piece.
        names = (*losses, "cardinality_error", "class_error")
        each = (*values.flatten().unbind(), *away, *(100 * wrong))
        layers = len(logits)
        return [dict(zip(names, each[position::layers], strict=True)) for position in range(layers)]

    def _class_loss(self, logits: Tensor, rows: Tensor, labels: Tensor, overlap: Tensor, image: Tensor) -> Tensor:
        """Sum over all entries per layer: every entry as a negative, then the matched ones put right.

        A negative costs sigmoid(x)^2 * softplus(x), with its gradient; the usual form with log-sigmoid cancels badly.

        Args:
            logits: of all queries, (L, B, Q, C).
            rows: of the matched ones, (L, M, C), with their labels, overlaps and images (L, M).
        """
        negative_weight = 1.0 if self.class_loss == "ia_bce" else 1 - self.alpha
        everything = negative_loss(logits)
        x = rows.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        p = x.sigmoid()
        as_negative = p.square() * F.softplus(x)
        if negative_weight != 1:
            everything, as_negative = negative_weight * everything, negative_weight * as_negative
        positive = self._positive(x, p, overlap, as_negative, image, logits.shape[1])
        return everything + (positive - as_negative).sum(-1)

    def _positive(
        self, x: Tensor, p: Tensor, overlap: Tensor, as_negative: Tensor, image: Tensor, batch: int
    ) -> Tensor:
        """Loss (L, M) of the matched entries with logit x, probability p and box overlap."""
        if self.class_loss == "ia_bce":
            goal = (p.detach() ** self.alpha * overlap ** (1 - self.alpha)).clamp(min=0.01)
            return F.binary_cross_entropy_with_logits(x, goal, reduction="none")
        if self.class_loss == "focal":
            return self.alpha * (1 - p).square() * F.softplus(-x)
        if self.class_loss == "varifocal":
            return torch.where(overlap > 0, overlap * (F.softplus(x) - overlap * x), as_negative)
        highest = overlap.new_zeros(len(overlap), batch).scatter_reduce(1, image, overlap, "amax")
        goal = overlap / (highest.gather(1, image) + 1e-8)
        return torch.where(goal > 0, self.alpha * (goal - p).square() * (F.softplus(x) - goal * x), as_negative)


def loss_weights(
    dec_layers: int, cls: float = 1.0, bbox: float = 5.0, giou: float = 2.0, **others: float
) -> dict[str, float]:
    """Weight of every loss name: the same for the last layer, the earlier ones and the start boxes.

    Args:
        others: weights of further losses by name, such as `loss_mask_ce`.
    """
    suffixes = ["", *(f"_{i}" for i in range(dec_layers - 1)), "_enc"]
    named = {"loss_ce": cls, "loss_bbox": bbox, "loss_giou": giou, **others}
    return {name + suffix: weight for suffix in suffixes for name, weight in named.items()}
