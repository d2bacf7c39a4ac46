"""Whether a written file finds what the model finds: both predict on the same pictures, and what is found is paired."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from rfdetr.datasets.synthetic import SHAPES, draw_picture
from rfdetr.export.files import Runtime
from rfdetr.export.graph import BackboneGraph
from rfdetr.inference.decode import Found
from rfdetr.inference.images import load_images
from rfdetr.inference.network import NetworkRunner
from rfdetr.inference.predictor import Runner
from rfdetr.inference.results import select
from rfdetr.log import logger
from rfdetr.main import Model

HW = tuple[int, int]


@dataclass(frozen=True)
class Tolerance:
    """What a file may differ by.

    Args:
        box: of boxes and keypoints, as a part of the picture's longer side.
        score: of scores.
        mask: share of the pixels of two masks that only one of them has.
        share: of the detections that must have a partner so near; nearly equal start boxes may change places in any
            arithmetic.
    """

    box: float
    score: float
    mask: float
    share: float


TOLERANCES = {"float32": Tolerance(2e-5, 1e-4, 0.02, 0.99), "float16": Tolerance(0.02, 0.05, 0.2, 0.9)}
# Features leave a layer norm, so that they are about 1.
FEATURE_TOLERANCE = 1e-3
# Of a picture as many detections are compared; more are noise in any but the most crowded.
COMPARED = 100


@dataclass(frozen=True)
class Parity:
    """How near the detections of a file are to those of the model.

    Args:
        pictures, detections: that were compared.
        matched: share of the detections that have a partner within the tolerance.
        max_box_px, max_score, max_mask: largest differences among those; see `Tolerance`, but boxes in pixels.
    """

    pictures: int
    detections: int
    matched: float
    max_box_px: float
    max_score: float
    max_mask: float


def sample_pictures(count: int = 8) -> list[np.ndarray]:
    """Drawn pictures of different sizes."""
    sizes = [(480, 640), (384, 384), (640, 480), (720, 1280)]
    rng = np.random.default_rng(0)
    return [np.asarray(draw_picture(rng, sizes[i % len(sizes)], 6, SHAPES)[0]) for i in range(count)]


def chosen_pictures(source: Any, most: int) -> list[np.ndarray]:
    """Pictures that the user names for the comparison, or drawn ones.

    Raises:
        ValueError, TypeError, OSError: there is none, or one that cannot be read.
    """
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"max_images={most!r} must be a positive whole number")
    if source is None:
        return sample_pictures()
    pictures, _ = load_images(source)
    found = list(itertools.islice(pictures, most))
    if not found:
        raise ValueError("calibration_data holds no picture; leave it out to compare on drawn ones")
    return found


def check(model: Model, exported: Runner, pictures: list[np.ndarray], hw: HW, precision: str, path: Path) -> Parity:
    """Compare what a file and the model it was made of find.

    Raises:
        RuntimeError: they find something else.
    """
    tolerance, reports = TOLERANCES[precision], model.config.num_select
    wanted = _alone(_computed(model), pictures, hw)
    parity = _measure(wanted, exported, pictures, hw, tolerance, reports)
    missing = 1 - parity.matched
    if missing <= 1 - tolerance.share:
        return parity
    # Poor weights choose between start boxes that differ by less than rounding does: how much the model itself differs
    # when it is computed a little otherwise is no fault of the file.
    otherwise = _computed(model, torch.float64) if precision == "float32" else _computed(model, halved=True)
    own = compare(wanted, _alone(otherwise, pictures, hw), pictures, tolerance, reports)
    if missing <= 3 * (1 - own.matched) and parity.matched >= own.matched / 2:
        logger.info(
            "these weights are so undecided that %.0f %% of the model's own detections hang on rounding",
            100 * (1 - own.matched),
        )
        return parity
    raise RuntimeError(
        f"{path} was not written: it finds something else than the model. Of {parity.detections} detections in "
        f"{parity.pictures} pictures {parity.matched:.1%} agree within {tolerance.box:g} of the picture's side and "
        f"{tolerance.score:g} in their score; {tolerance.share:.0%} have to. allow_drift=True writes it all the same"
    )


def measure(model: Model, exported: Runner, pictures: list[np.ndarray], hw: HW, precision: str) -> Parity:
    """How near a file is to the model it was made of, however far that is."""
    wanted = _alone(_computed(model), pictures, hw)
    return _measure(wanted, exported, pictures, hw, TOLERANCES[precision], model.config.num_select)


def _measure(
    wanted: list[Found], exported: Runner, pictures: list[np.ndarray], hw: HW, tolerance: Tolerance, reports: int
) -> Parity:
    found: list[Found] = []
    # Alone and in batches: a file for any number of pictures must not know the one it was traced with.
    for size in (1, 3, len(pictures)):
        if part := pictures[len(found) : len(found) + size]:
            found += exported.detect(part, hw, -1.0)
    return compare(wanted, found, pictures, tolerance, reports, exported.labels.hidden)


def _alone(runner: Runner, pictures: list[np.ndarray], hw: HW) -> list[Found]:
    return [runner.detect([picture], hw, -1.0)[0] for picture in pictures]


def _computed(model: Model, kind: torch.dtype = torch.float32, *, halved: bool = False) -> Runner:
    """A copy of the model's network on the CPU in a precision, wherever it is and whatever `inference` made of it.

    Args:
        halved: with weights that were rounded to half precision.
    """
    network = copy.deepcopy(model.ready()).cpu().eval()
    network = network.half().to(kind) if halved else network.to(kind)

    def run(images: torch.Tensor, **_: bool) -> dict[str, torch.Tensor]:
        outputs = network(images.to(kind), last_only=True, whole_masks=True)
        return {name: value.float() for name, value in outputs.items()}

    other = copy.copy(model)
    other.device = torch.device("cpu")
    other.for_prediction = lambda: run  # pyrefly: ignore[bad-assignment]
    return NetworkRunner(other)


def compare(
    wanted: Sequence[Found],
    found: Sequence[Found],
    pictures: Sequence[np.ndarray],
    tolerance: Tolerance,
    reports: int,
    hidden: Sequence[int] = (),
) -> Parity:
    """Pair the detections of two models in the same pictures, as sets: those of equal scores have no order.

    Args:
        reports: the most detections of a picture.
        hidden: labels that are no class.
    """
    total = near = 0
    box = score = mask = 0.0
    for one, other, picture in zip(wanted, found, pictures, strict=True):
        side = max(picture.shape[:2])
        lowest = [_lowest(each, reports) + tolerance.score for each in (one, other)]
        one, other = select(one, -1.0, hidden), select(other, -1.0, hidden)
        for first, second, last in ((one, other, lowest[1]), (other, one, lowest[0])):
            rows = np.flatnonzero(first["scores"] > last)[:COMPARED]
            boxes, scores, masks = _differences(first, rows, second, side, tolerance)
            good = (boxes <= tolerance.box * side) & (scores <= tolerance.score) & (masks <= tolerance.mask)
            total, near = total + len(good), near + int(good.sum())
            box, score = max(box, boxes[good].max(initial=0)), max(score, scores[good].max(initial=0))
            mask = max(mask, masks[good].max(initial=0))
    share = near / total if total else 1.0
    return Parity(len(pictures), total // 2, round(share, 6), *(round(float(one), 8) for one in (box, score, mask)))


def _lowest(found: Found, reports: int) -> float:
    """The score that a detection needs to be certainly among those of a picture, which are the best of many.

    Which ones are the last of so many is chance; it excuses nothing where there are fewer, or scores that are none.
    """
    scores = found["scores"]
    return float(scores.min()) if len(scores) >= reports and np.isfinite(scores).all() else -np.inf


def _differences(first: Found, rows: np.ndarray, second: Found, side: int, tolerance: Tolerance) -> np.ndarray:
    """Differences of places in pixels, of scores and of masks between rows of a set and their partners, (3, N).

    Who has no partner differs infinitely.
    """
    away = np.full((3, len(rows)), np.inf)
    boxes = np.abs(first["boxes"][rows, None] - second["boxes"][None]).max(-1)
    gaps = np.abs(first["scores"][rows, None] - second["scores"][None])
    cost = np.where(
        first["labels"][rows, None] == second["labels"][None],
        boxes / (tolerance.box * side) + gaps / tolerance.score,
        np.inf,
    )
    ours, theirs = linear_sum_assignment(np.nan_to_num(cost, nan=1e9, posinf=1e9).clip(max=1e9))
    paired = cost[ours, theirs] < 1e9
    ours, theirs = ours[paired], theirs[paired]
    away[0, ours] = boxes[ours, theirs]
    away[1, ours] = gaps[ours, theirs]
    away[2, ours] = 0
    if "keypoints" in first:
        points = np.abs(first["keypoints"][rows[ours], :, :2] - second["keypoints"][theirs, :, :2]).max((1, 2))
        away[0, ours] = np.maximum(away[0, ours], points)
    if "mask_logits" in first:
        one, other = first["mask_logits"][rows[ours]] > 0, second["mask_logits"][theirs] > 0
        away[2, ours] = (one ^ other).sum((1, 2)) / np.maximum((one | other).sum((1, 2)), 1)
    return away


def check_features(graph: BackboneGraph, runtime: Runtime, path: Path) -> dict[str, float]:
    """Compare the features that a file of encoder and projector gives with the network's.

    Raises:
        RuntimeError: they differ.
    """
    images = graph.example(runtime.shape[0] or 3)
    found = runtime.run(images.numpy())
    with torch.no_grad():
        wanted = dict(zip(graph.names, graph(images), strict=True))
    away = max(float((value - torch.from_numpy(found[name])).abs().max()) for name, value in wanted.items())
    if not away <= FEATURE_TOLERANCE:
        raise RuntimeError(f"{path} was not written: its features differ from the network's by {away:.2g}")
    return {"max_feature": away}
