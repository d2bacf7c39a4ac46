"""Box formats and overlaps. Boxes are (cx, cy, w, h) or (x0, y0, x1, y1), relative to the image unless `_px`."""

from __future__ import annotations

import torch
from torch import Tensor

# Overlaps divide by at least this, so that boxes without area give 0 and identical ones exactly 1.
SMALLEST_AREA = 1e-7


def to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Corners of (..., 4) centre boxes; negative sizes count as 0."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:].clamp(min=0) * 0.5
    return torch.cat((centre - half, centre + half), dim=-1)


def to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Centre boxes of (..., 4) corner boxes."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat(((low + high) * 0.5, high - low), dim=-1)


def refine(delta: Tensor, reference_cxcywh: Tensor) -> Tensor:
    """Move a reference box by a predicted delta: centre scaled by its size, size by an exponential (LW-DETR)."""
    size = reference_cxcywh[..., 2:]
    return torch.cat((delta[..., :2] * size + reference_cxcywh[..., :2], delta[..., 2:].exp() * size), dim=-1)


def iou_and_giou(a_cxcywh: Tensor, b_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union and its generalised form (arXiv 1902.09630) of broadcastable (..., 4) boxes.

    Works on coordinate planes: broadcasting (Q, 1, 4) against (1, T, 4) allocates nothing larger than (Q, T).
    """
    ax0, ay0, ax1, ay1 = to_xyxy(a_cxcywh).unbind(-1)
    bx0, by0, bx1, by1 = to_xyxy(b_cxcywh).unbind(-1)
    area_a, area_b = (ax1 - ax0) * (ay1 - ay0), (bx1 - bx0) * (by1 - by0)
    inter = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp(min=0)
    inter = inter * (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp(min=0)
    union = area_a + area_b - inter
    iou = inter / union.clamp(min=SMALLEST_AREA)
    hull = (torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)).clamp(min=0)
    hull = hull * (torch.maximum(ay1, by1) - torch.minimum(ay0, by0)).clamp(min=0)
    return iou, iou - (hull - union) / hull.clamp(min=SMALLEST_AREA)
