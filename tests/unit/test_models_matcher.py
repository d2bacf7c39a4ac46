"""Assignments against a naive loop, alone and in a batch, in one piece and in chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from rfdetr.models import matcher
from rfdetr.models.criterion import Criterion, loss_weights
from rfdetr.models.matcher import MatchCosts, Targets, match

COUNTS = [3, 0, 7]


def drawn(layers: int = 2, queries: int = 12, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(layers, len(COUNTS), queries, classes, generator=random)
    boxes = torch.rand(layers, len(COUNTS), queries, 4, generator=random) * 0.4 + 0.1
    labels = torch.randint(0, classes, (sum(COUNTS),), generator=random)
    target_boxes = torch.rand(sum(COUNTS), 4, generator=random) * 0.4 + 0.1
    return logits, boxes, Targets(labels, target_boxes, COUNTS)


def naive_cost(logits: torch.Tensor, box: torch.Tensor, label: int, target: torch.Tensor) -> float:
    """One query and one target, written out."""
    p = float(torch.sigmoid(logits[label]))
    cls = 0.25 * (1 - p) ** 2 * -np.log(p) - 0.75 * p**2 * -np.log(1 - p)
    a, b = (
        [float(v) for v in (c[0] - c[2] / 2, c[1] - c[3] / 2, c[0] + c[2] / 2, c[1] + c[3] / 2)] for c in (box, target)
    )
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    giou = inter / union - (hull - union) / hull
    return 5 * float((box - target).abs().sum()) + 2 * cls - 2 * giou


@pytest.mark.parametrize("groups", [1, 3])
def test_matches_equal_a_naive_loop(groups: int) -> None:
    logits, boxes, targets = drawn()
    found = match(logits, boxes, targets, groups, MatchCosts())
    size = logits.shape[2] // groups
    for layer in range(len(logits)):
        expected = []
        for image, (count, start) in enumerate(zip(COUNTS, np.cumsum([0, *COUNTS[:-1]]), strict=True)):
            for group in range(groups):
                cost = np.array(
                    [
                        [
                            naive_cost(
                                logits[layer, image, q], boxes[layer, image, q],
                                int(targets.labels[start + t]), targets.boxes[start + t],
                            )
                            for t in range(count)
                        ]
                        for q in range(group * size, (group + 1) * size)
                    ]
                ).reshape(size, count)  # fmt: skip
                pairs = zip(*linear_sum_assignment(cost), strict=True)
                expected += [(image, group * size + q, start + t) for q, t in pairs]
        got = list(zip(*(part[layer].tolist() for part in found[:3]), strict=True))
        assert got == expected
    images, queries = logits.shape[1:3]
    rows = (torch.arange(len(logits))[:, None] * images + found.image) * queries + found.query
    assert torch.equal(found.row, rows.flatten())


def test_an_image_is_matched_the_same_alone_and_in_a_batch() -> None:
    logits, boxes, targets = drawn()
    whole = match(logits, boxes, targets, 3, MatchCosts())
    alone = Targets(targets.labels[3:], targets.boxes[3:], [7])
    single = match(logits[:, 2:], boxes[:, 2:], alone, 3, MatchCosts())
    mine = whole.image == 2
    assert torch.equal(whole.query[mine], single.query.flatten())
    assert torch.equal(whole.target[mine] - 3, single.target.flatten())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, boxes, targets = drawn()
    whole = match(logits, boxes, targets, 3, MatchCosts())
    monkeypatch.setattr(matcher, "CHUNK_ENTRIES", 1)
    assert all(torch.equal(a, b) for a, b in zip(whole, match(logits, boxes, targets, 3, MatchCosts()), strict=True))


def test_queries_that_do_not_split_into_groups_are_refused() -> None:
    logits, boxes, targets = drawn()
    with pytest.raises(ValueError, match="12 queries cannot be split into 5 groups"):
        match(logits, boxes, targets, 5, MatchCosts())


@pytest.mark.parametrize("objects", [0, 4])
def test_every_prediction_receives_a_gradient(objects: int) -> None:
    # A batch without objects must not leave a head out, or data-parallel training would wait for it for ever.
    outputs = {
        "pred_logits": torch.randn(2, 6, 5, requires_grad=True),
        "pred_boxes": torch.rand(2, 6, 4, requires_grad=True),
    }
    random = torch.Generator().manual_seed(0)
    targets = [
        {"labels": torch.randint(0, 5, (objects,), generator=random), "boxes": torch.rand(objects, 4, generator=random)}
        for _ in range(2)
    ]
    criterion = Criterion(loss_weights(1), groups=2).train()
    criterion.weighted_total(criterion(outputs, targets)).backward()
    assert all(outputs[name].grad is not None and outputs[name].grad.isfinite().all() for name in outputs)
