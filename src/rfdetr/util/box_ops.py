"""Boxes as older scripts compare them; nothing in this package uses it."""

from __future__ import annotations

import torch
from torch import Tensor

from rfdetr.models.boxes import iou_and_giou, to_cxcywh, to_xyxy

box_cxcywh_to_xyxy = to_xyxy
box_xyxy_to_cxcywh = to_cxcywh

__all__ = ["box_cxcywh_to_xyxy", "box_iou", "box_xyxy_to_cxcywh", "generalized_box_iou", "masks_to_boxes"]


def box_iou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Overlap and union of all pairs: xyxy boxes (N, 4) and (M, 4) -> (N, M) each."""
    iou, _ = _all_pairs(boxes1, boxes2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (boxes1, boxes2)]
    corners = torch.maximum(boxes1[:, None, :2], boxes2[:, :2]), torch.minimum(boxes1[:, None, 2:], boxes2[:, 2:])
    inter = (corners[1] - corners[0]).clamp(min=0).prod(-1)
    return iou, areas[0][:, None] + areas[1] - inter


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised overlap (arXiv 1902.09630) of all pairs of xyxy boxes (N, 4) and (M, 4) -> (N, M)."""
    return _all_pairs(boxes1, boxes2)[1]


def _all_pairs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    return iou_and_giou(to_cxcywh(boxes1).unsqueeze(1), to_cxcywh(boxes2).unsqueeze(0))


def masks_to_boxes(masks: Tensor) -> Tensor:
    """The xyxy box of the set pixels of each mask, (N, H, W) -> (N, 4) float; zeros of an empty one."""
    found = []
    for mask in masks:
        y, x = torch.nonzero(mask, as_tuple=True)
        empty = not len(x)
        found.append([0.0] * 4 if empty else [float(v) for v in (x.min(), y.min(), x.max(), y.max())])
    return torch.tensor(found, device=masks.device).view(-1, 4)
