"""Raw outputs of an exported file to detections: what `rfdetr.models.postprocess` does, in NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# One picture's detections, best first: `scores` (K,), `labels` (K,), `boxes` (K, 4) xyxy in pixels; also `mask_logits`
# (K, h, w), or `keypoints` (K, P, 3) and `keypoint_precision_cholesky` (K, P, 3).
Found = dict[str, np.ndarray]
# Bits kept free below a score to order equal ones: room for a million query-class pairs.
_INDEX_BITS = 20
# Keeps logarithms finite.
_SMALLEST = np.float32(1e-12)


def decode(
    outputs: Mapping[str, np.ndarray],
    sizes: Sequence[tuple[int, int]],
    num_select: int,
    threshold: float = -np.inf,
    schema: Sequence[int] = (),
    trace_alpha: float = 0.2,
) -> list[Found]:
    """The best query-class pairs of each picture; one query may give several.

    Args:
        outputs: `labels` (B, Q, C) logits, `dets` (B, Q, 4) relative cxcywh, and maybe `masks` (B, Q, h, w) logits, or
            `keypoints` (B, Q, slots, 8).
        sizes: height and width of each picture.
        num_select: pairs kept per picture.
        threshold: leave out what does not score above it; of keypoint models nothing, since keypoints change the score.
        schema: number of keypoints of each class.
        trace_alpha: how much uncertain keypoints lower the score; 0 leaves it alone.
    """
    results = []
    for i, hw in enumerate(sizes):
        one = {name: value[i].astype(np.float32, copy=False) for name, value in outputs.items()}
        scores, chosen = best_pairs(one["labels"], num_select, -np.inf if "keypoints" in one else threshold)
        queries, labels = np.divmod(chosen, one["labels"].shape[1])
        boxes = _scale(one["dets"][queries], hw)
        found = {"scores": scores, "labels": labels, "boxes": boxes}
        if "masks" in one:
            found["mask_logits"] = one["masks"][queries]
        if "keypoints" in one:
            found |= _keypoints(one["keypoints"][queries], scores, labels, hw, schema, trace_alpha)
        results.append(found)
    return results


def best_pairs(logits: np.ndarray, count: int, threshold: float = -np.inf) -> tuple[np.ndarray, np.ndarray]:
    """The `count` highest probabilities of (Q, C) logits above a threshold, and their index query * C + class.

    Equal probabilities are ordered by index, as a stable sort would.
    """
    with np.errstate(over="ignore"):
        scores = (1 / (1 + np.exp(-logits))).ravel()
    index = np.flatnonzero(~(scores <= np.float32(threshold)))
    # The bits of a float that is not negative order like the float, so score and index fit into one sortable number.
    key = (scores[index].view(np.int32).astype(np.int64) << _INDEX_BITS) + (2**_INDEX_BITS - 1 - index)
    if len(key) > count:
        key = np.partition(key, len(key) - count)[-count:]
    key = np.sort(key)[::-1]
    chosen = 2**_INDEX_BITS - 1 - (key & (2**_INDEX_BITS - 1))
    return scores[chosen], chosen


def _scale(boxes_cxcywh: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Relative boxes (K, 4) to corner pixels inside a picture."""
    centre, half = boxes_cxcywh[:, :2], np.maximum(boxes_cxcywh[:, 2:], 0) * np.float32(0.5)
    limit = np.array([hw[1], hw[0]] * 2, np.float32)
    return (np.concatenate((centre - half, centre + half), axis=1) * limit).clip(0, limit)


def _keypoints(
    raw: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    hw: tuple[int, int],
    schema: Sequence[int],
    trace_alpha: float,
) -> Found:
    """Keypoints (K, slots, 8) of the chosen queries: those of their labels, their precision and the new scores."""
    widest = max(schema)
    counts = np.zeros(max(len(schema), int(labels.max(initial=0)) + 1), np.int64)
    counts[: len(schema)] = schema
    place = np.arange(widest)
    exists = place < counts[labels][:, None]
    slots = np.where(labels[:, None] < len(schema), labels[:, None] * widest + place, 0)
    raw = np.take_along_axis(raw, slots[..., None], axis=1)
    presence = _sigmoid(raw[..., 2:3])
    points = np.concatenate((raw[..., :2] * np.array([hw[1], hw[0]], np.float32), presence), axis=-1)
    if trace_alpha > 0:
        with np.errstate(all="ignore"):
            logit = np.log(scores) - np.float32(trace_alpha) * _log_spread(raw, presence[..., 0], exists)
        fused = np.minimum(_sigmoid(logit), np.float32(1 - 2**-24))
        scores = np.where(labels < len(schema), fused, scores)
    exists = exists[..., None]
    precision = np.where(exists, raw[..., 4:7], np.float32(np.nan))
    return {
        "scores": scores,
        "keypoints": np.where(exists, points, np.float32(0)),
        "keypoint_precision_cholesky": precision,
    }


def _log_spread(raw: np.ndarray, presence: np.ndarray, exists: np.ndarray) -> np.ndarray:
    """Logarithm of the mean trace of the covariance of keypoints (K, P, 8), weighted by their presence: (K,)."""
    log_l11, l21, log_l22 = (raw[..., i] for i in (4, 5, 6))
    cross = 2 * np.log(np.maximum(np.abs(l21), _SMALLEST)) - 2 * log_l11 - 2 * log_l22
    trace = _logsumexp(np.stack((-2 * log_l11, -2 * log_l22, cross), axis=-1))
    weight = np.where(exists, np.log(np.maximum(presence, _SMALLEST)), np.float32(-np.inf))
    return np.where(exists.any(-1), _logsumexp(trace + weight) - _logsumexp(weight), np.float32(0))


def _logsumexp(values: np.ndarray) -> np.ndarray:
    highest = values.max(-1)
    safe = np.where(np.isfinite(highest), highest, 0)
    return safe + np.log(np.exp(values - safe[..., None]).sum(-1))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-values))


def pixel_covariance(precision_cholesky: np.ndarray, height: int, width: int) -> np.ndarray:
    """Factors (..., 3) of relative precisions as log l11, l21, log l22 to covariances (..., 2, 2) in pixels, float32.

    What is not finite becomes NaN as a whole.
    """
    log_l11, l21, log_l22 = (precision_cholesky[..., i].astype(np.float64) for i in range(3))
    with np.errstate(all="ignore"):
        l11, l22 = np.exp(log_l11), np.exp(log_l22)
        scale = (l11 * l22) ** -2
        cross = -width * height * scale * l11 * l21
        rows = (width**2 * scale * (l21**2 + l22**2), cross, cross, height**2 * scale * l11**2)
        found = np.stack(rows, axis=-1).astype(np.float32)
    good = np.isfinite(found).all(-1, keepdims=True) & np.isfinite(precision_cholesky).all(-1, keepdims=True)
    return np.where(good, found, np.float32(np.nan)).reshape(*found.shape[:-1], 2, 2)
