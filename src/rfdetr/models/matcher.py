"""Assign targets to queries at least cost, for all layers, images and query groups in one pass (arXiv 2005.12872)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rfdetr.models.boxes import iou_and_giou

if TYPE_CHECKING:
    import numpy as np

# Cost entries computed at once: bounds the memory of crowded images, whatever the batch.
CHUNK_ENTRIES = 2_000_000


class Targets(NamedTuple):
    """The objects of a batch one image after the other: labels (T,), boxes (T, 4) cxcywh, objects per image."""

    labels: Tensor
    boxes: Tensor
    counts: list[int]


class Matches(NamedTuple):
    """Matched pairs, the same number M in every layer: image, query and target index, each (L, M) int64.

    `row` (L * M,) is the place of the query among those of all layers and images.
    """

    image: Tensor
    query: Tensor
    target: Tensor
    row: Tensor


@dataclass(frozen=True)
class MatchCosts:
    """Weights of the three terms, and the focal weight of the class term."""

    bbox: float = 5.0
    cls: float = 2.0
    giou: float = 2.0
    alpha: float = 0.25


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    groups: int,
    costs: MatchCosts,
    more: Sequence[Callable[[int, int], Iterator[Tensor]]] = (),
) -> Matches:
    """Best assignment of each image's targets to each group's queries.

    Pairs come image by image, within an image group by group, within a group by ascending query.

    Args:
        logits: (L, B, G*q, C) class logits.
        boxes: (L, B, G*q, 4) relative cxcywh.
        more: give further costs (G*q, T) of a layer and an image, which are added one after the other.

    Raises:
        ValueError: the number of queries is not divisible by `groups`.
    """
    layers, _, queries, _ = logits.shape
    if queries % groups:
        raise ValueError(f"{queries} queries cannot be split into {groups} groups")
    pairs = _solve(logits.flatten(0, 1).float(), boxes.flatten(0, 1).float(), targets, groups, costs, more)
    found = torch.from_numpy(pairs).to(logits.device)
    image, query, target = found[:, 1:].view(layers, len(pairs) // layers, 3).unbind(-1)
    return Matches(image, query, target, found[:, 0])


def _solve(
    logits: Tensor, boxes: Tensor, targets: Targets, groups: int, costs: MatchCosts, more: Sequence[Callable]
) -> np.ndarray:
    """Rows (row, image, query, target) of all layers one after the other, as `Matches` names them.

    Inputs have layers and images in one axis.
    """
    import numpy as np

    widest = max(targets.counts, default=0)
    found, batch = [np.zeros((0, 4), np.int64)], len(targets.counts)
    if not widest:
        return found[0]
    starts = np.cumsum([0, *targets.counts])
    # Of each layer and image its objects, filled up with the first one; the costs of those are never read.
    place = np.arange(widest)
    index = np.where(place < np.diff(starts)[:, None], starts[:-1, None] + place, 0)
    index = torch.from_numpy(np.tile(index, (len(logits) // batch, 1))).to(logits.device)
    labels, target_boxes = targets.labels[index], targets.boxes[index]
    step = max(1, CHUNK_ENTRIES // (logits.shape[1] * widest))
    for begin in range(0, len(logits), step):
        part = slice(begin, begin + step)
        # One crowded image alone may be more than a chunk.
        pieces = zip(*(x[part].split(max(1, CHUNK_ENTRIES // widest), 1) for x in (logits, boxes)), strict=True)
        blocks = [pair_costs(x, box, labels[part], target_boxes[part], costs) for x, box in pieces]
        cost = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
        _add(cost, more, begin, targets.counts)
        cost = cost.cpu().numpy()
        for position, one in enumerate(cost, begin):
            index = position % batch
            query, target = assign(one[:, : targets.counts[index]], groups)
            row = position * logits.shape[1] + query
            found.append(np.stack((row, np.full_like(query, index), query, target + starts[index]), axis=1))
    return np.concatenate(found)


def _add(cost: Tensor, more: Sequence[Callable], first: int, counts: list[int]) -> None:
    """Add further costs in place to those (n, Q, T) of the layers and images from number `first` on."""
    for function in more:
        for one, position in zip(cost, range(first, first + len(cost)), strict=True):
            layer, image = divmod(position, len(counts))
            if counts[image]:
                for term in function(layer, image):
                    one[:, : counts[image]] += term


def pair_costs(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor, costs: MatchCosts) -> Tensor:
    """Cost of every query for every target, (n, Q, C), (n, Q, 4), (n, T), (n, T, 4) -> (n, Q, T).

    The terms are added in a fixed order: another one would move near ties.
    """
    x = logits.gather(2, labels.unsqueeze(1).expand(-1, logits.shape[1], -1))
    p = x.sigmoid()
    # The weight is multiplied in first, which is exact for the usual one, 2.
    found, missed = costs.cls * costs.alpha, costs.cls * (1 - costs.alpha)
    cls = -found * (1 - p) ** 2 * F.logsigmoid(x) - missed * p**2 * F.softplus(x)
    l1 = torch.cdist(boxes, target_boxes, p=1)
    _, giou = iou_and_giou(boxes.unsqueeze(2), target_boxes.unsqueeze(1))
    return costs.bbox * l1 + cls - costs.giou * giou


def assign(cost: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Cheapest pairs of one image, per group: cost (G*q, T) -> query and target indices, (G * min(q, T),) each."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    cost = _finite(cost)
    size = len(cost) // groups
    queries, targets = [], []
    for group in range(groups):
        query, target = linear_sum_assignment(cost[group * size : (group + 1) * size])
        queries.append(query + group * size)
        targets.append(target)
    return np.concatenate(queries), np.concatenate(targets)


def _finite(cost: np.ndarray) -> np.ndarray:
    """Replace entries that are not finite by one larger than all others, so that they are used only when forced."""
    import numpy as np

    good = np.isfinite(cost)
    if good.all():
        return cost
    warnings.warn("The network's outputs or the targets are not finite; such pairs are matched last.", RuntimeWarning)
    limit = float(np.finfo(np.float32).max)
    known = cost[good].astype(np.float64)
    worst = min(known.max() + np.abs(known).max() + 1, limit) if known.size else limit
    return np.where(good, cost, np.float32(worst))
