"""Which detection takes which object: greedily, by falling score, everything known of their overlaps beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# What `match_greedily` reports of a detection.
UNMATCHED, MATCHED_IGNORED, MATCHED = 0, 1, 2


@dataclass(frozen=True)
class Detections:
    """D detections ordered by picture, class and falling score, and their P pairs with an object.

    A pair is a detection and an object of its picture that overlap by at least the lowest IoU threshold, of its class
    unless it was asked for those of other classes.

    Args:
        score, label, area: (D,).
        group: (D,), number of the (picture, class) the detection belongs to; rank: (D,), its place there from 0.
        pair_detection, pair_truth: (P,), row of the detection and of the object in `GroundTruth`.
        iou: (P,), for crowd regions intersection over area of the detection; plain_iou: (P,), over union throughout.
    """

    score: np.ndarray
    label: np.ndarray
    area: np.ndarray
    group: np.ndarray
    rank: np.ndarray
    pair_detection: np.ndarray
    pair_truth: np.ndarray
    iou: np.ndarray
    plain_iou: np.ndarray


def match_greedily(
    detections: Detections,
    pair_order: np.ndarray,
    iou_thresholds: np.ndarray,
    reusable: np.ndarray,
    ignored: np.ndarray,
    owner: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Give each detection the free object it prefers: the n-th detections of all groups at once, n rising.

    Args:
        pair_order: pairs to consider, by detection and then rising preference; objects that count come first anyway.
        iou_thresholds: (T,); reusable: (A,) bool, objects that several detections may take.
        ignored: (A, R) bool, objects that do not count in each of R area ranges.
        owner: (A, T, R) int, takes the row of the detection that each object was given to.

    Returns:
        Rows of the detections that have pairs (C,), ascending, and what became of them (C, T, R) int8.
    """
    iou, truth = detections.iou[pair_order], detections.pair_truth[pair_order]
    rows, candidate = np.unique(detections.pair_detection[pair_order], return_inverse=True)
    _, group_first, group_of = np.unique(detections.group[rows], return_index=True, return_inverse=True)
    turn = (np.arange(len(rows)) - group_first[group_of])[candidate]
    by_turn = np.argsort(turn, kind="stable")
    bounds = np.searchsorted(turn[by_turn], np.arange(turn.max(initial=-1) + 2))

    outcome = np.zeros((len(rows), len(iou_thresholds), ignored.shape[1]), dtype=np.int8)
    taken = np.zeros((len(ignored), len(iou_thresholds), ignored.shape[1]), dtype=bool)
    for start, stop in pairwise(bounds):
        pairs = by_turn[start:stop]
        objects, players = truth[pairs], candidate[pairs]
        first = np.flatnonzero(np.diff(players, prepend=-1))
        open_ = (iou[pairs, None] >= iou_thresholds)[:, :, None] & ~taken[objects]
        # A later place in the order wins, and any object that counts wins over all that do not.
        place = np.arange(len(pairs))[:, None] + len(pairs) * ~ignored[objects]
        best = np.maximum.reduceat(np.where(open_, place[:, None, :], -1), first, axis=0)
        outcome[players[first]] = (best >= 0).astype(np.int8) + (best >= len(pairs))
        winner, threshold, area = np.nonzero(best >= 0)
        won = objects[best[winner, threshold, area] % len(pairs)]
        taken[won, threshold, area] = ~reusable[won]
        if owner is not None:
            owner[won, threshold, area] = rows[players[first[winner]]]
    return rows, outcome


def take_objects(found: Detections, pairs: np.ndarray, num_objects: int, iou_threshold: float) -> np.ndarray:
    """Row of the detection that takes each object at one IoU threshold, -1 where none does, (num_objects,).

    Detections of a group come in turn, each takes the free object of its `pairs` with the highest overlap.
    """
    detection, overlap, truth = found.pair_detection[pairs], found.iou[pairs], found.pair_truth[pairs]
    preference = pairs[np.lexsort((-truth, overlap, detection))]
    never, owner = np.zeros((num_objects, 1), dtype=bool), np.full((num_objects, 1, 1), -1)
    match_greedily(found, preference, np.array([iou_threshold]), reusable=never[:, 0], ignored=never, owner=owner)
    return owner[:, 0, 0]
