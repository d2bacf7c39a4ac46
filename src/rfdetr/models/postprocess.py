"""Raw outputs to detections: scores, labels and boxes in pixels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rfdetr.models.boxes import to_xyxy

# Bits kept free below a score to order equal ones: room for a million query-class pairs.
_INDEX_BITS = 20


def best_pairs(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest probabilities of (B, Q, C) logits: scores (B, k), and index query * C + class (B, k).

    Equal scores, also those of saturated logits, are ordered by index, as a stable sort would.
    """
    scores = logits.float().sigmoid().flatten(1)
    index = torch.arange(scores.shape[1], device=scores.device)
    # The bits of a float that is not negative order like the float, so score and index fit into one sortable number.
    key = (scores.view(torch.int32).long() << _INDEX_BITS) + (2**_INDEX_BITS - 1 - index)
    best = key.topk(min(count, scores.shape[1]), dim=1).values
    chosen = 2**_INDEX_BITS - 1 - (best & (2**_INDEX_BITS - 1))
    return scores.gather(1, chosen), chosen


def scale_boxes(boxes_cxcywh: Tensor, target_sizes: Tensor) -> Tensor:
    """Relative boxes (B, K, 4) to corner pixels inside images of size (B, 2), given as (height, width)."""
    height, width = target_sizes.to(boxes_cxcywh.device).float().unbind(1)
    limit = torch.stack((width, height, width, height), dim=1).unsqueeze(1)
    boxes_px = to_xyxy(boxes_cxcywh.float()) * limit
    return torch.minimum(boxes_px.clamp(min=0), limit)


class PostProcess(nn.Module):
    """Keep the best query-class pairs of each image; one query may give several.

    Args:
        num_select: pairs kept per image.
    """

    def __init__(self, num_select: int = 300) -> None:
        super().__init__()
        self.num_select = num_select

    @torch.no_grad()
    def forward(self, outputs: Mapping[str, Tensor], target_sizes: Tensor) -> list[dict[str, Tensor]]:
        """Per image `scores` (K,), `labels` (K,) int64 and `boxes` (K, 4) xyxy in pixels, best first.

        Args:
            outputs: `pred_logits` (B, Q, C) and `pred_boxes` (B, Q, 4) relative cxcywh.
            target_sizes: (B, 2) height and width of each image.
        """
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        scores, chosen = best_pairs(logits, self.num_select)
        query = torch.div(chosen, logits.shape[2], rounding_mode="floor")
        boxes_px = scale_boxes(boxes.gather(1, query.unsqueeze(-1).expand(-1, -1, 4)), target_sizes)
        labels = chosen % logits.shape[2]
        return [
            {"scores": s, "labels": label, "boxes": b} for s, label, b in zip(scores, labels, boxes_px, strict=True)
        ]
