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
    centre, size = reference_cxcywh.split(2, -1)
    shift, growth = delta.split(2, -1)
    return torch.cat((shift * size + centre, growth.exp() * size), dim=-1)


def _planes(boxes_cxcywh: Tensor) -> Tensor:
    """Low corners (2, ...) and high corners (2, ...) of (..., 4) boxes, one plane per coordinate: (4, ...)."""
    centre, size = boxes_cxcywh.movedim(-1, 0).split(2)
    half = size.clamp(min=0) * 0.5
    return torch.cat((centre - half, centre + half))


def iou_and_giou(a_cxcywh: Tensor, b_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union and its generalised form (arXiv 1902.09630) of broadcastable (..., 4) boxes.

    Works on coordinate planes: broadcasting (Q, 1, 4) against (1, T, 4) allocates little more than a few (Q, T).
    """
    if a_cxcywh.shape == b_cxcywh.shape:
        a, b = _planes(torch.stack((a_cxcywh, b_cxcywh))).unbind(1)
    else:
        a, b = _planes(a_cxcywh), _planes(b_cxcywh)
    area_a, area_b = _area(a[:2], a[2:]), _area(b[:2], b[2:])
    (lowest, inner_high), (inner_low, highest) = (of(a, b).split(2) for of in (torch.minimum, torch.maximum))
    inter = _area(inner_low, inner_high, shortest=0.0)
    union = area_a + area_b - inter
    iou = inter / union.clamp(min=SMALLEST_AREA)
    hull = _area(lowest, highest)
    return iou, iou - (hull - union) / hull.clamp(min=SMALLEST_AREA)


def _area(low: Tensor, high: Tensor, *, shortest: float | None = None) -> Tensor:
    """Area between corners (2, ...), whose sides have at least some length."""
    sides = high - low
    width, height = (sides if shortest is None else sides.clamp(min=shortest)).unbind()
    return width * height
