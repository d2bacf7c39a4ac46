"""Masks as runs of pixels, as COCO counts them: down the columns, zeros first. Knows no files and no data sets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

HW = tuple[int, int]


class Patch(NamedTuple):
    """The part of a mask that holds all its true pixels: `mask` (h, w) bool lies at row `top`, column `left`."""

    top: int
    left: int
    mask: np.ndarray


EMPTY = Patch(0, 0, np.zeros((0, 0), bool))


def encode(mask: np.ndarray) -> np.ndarray:
    """Runs (R,) uint32 of a mask (H, W) bool."""
    flat = mask.T.ravel()
    return _between(np.flatnonzero(np.diff(flat, prepend=False)), flat.size)


def decode(counts: np.ndarray, hw: HW) -> np.ndarray:
    """Mask (H, W) bool of runs (R,); ValueError if they do not fill the size."""
    check_size(counts, hw)
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(hw[::-1]).T


def cut_out(counts: np.ndarray, hw: HW) -> Patch:
    """What `decode` gives, without the rows and columns around the true pixels."""
    check_size(counts, hw)
    ends = np.cumsum(counts, dtype=np.int64)
    starts, ends = ends[:-1:2], ends[1::2]
    starts, ends = starts[starts < ends], ends[starts < ends]
    if not len(starts):
        return EMPTY
    (first, top), (last, bottom) = np.divmod(starts, hw[0]), np.divmod(ends - 1, hw[0])
    left, width = int(first[0]), int(last[-1] - first[0]) + 1
    if (first == last).all():
        top_row, height = int(top.min()), int(bottom.max() - top.min()) + 1
    else:
        top_row, height = 0, hw[0]  # a run that goes on in the next column touches the first and the last row
    # The same runs in the smaller picture.
    starts, ends = (first - left) * height + top - top_row, (last - left) * height + bottom - top_row + 1
    runs = np.diff(np.stack((starts, ends), axis=1).ravel(), prepend=0, append=width * height)
    return Patch(top_row, left, decode(runs, (height, width)))


def check_size(counts: np.ndarray, hw: HW) -> None:
    """ValueError if the runs (R,) do not fill a picture of this size."""
    if (total := int(np.sum(counts, dtype=np.int64))) != hw[0] * hw[1]:
        raise ValueError(
            f"the runs cover {total} pixels; a mask of {hw[0]} x {hw[1]} (height x width) has {hw[0] * hw[1]}"
        )


def to_text(counts: np.ndarray) -> str:
    """COCO's compressed form of runs (R,): the change against the run before the last, five bits a character."""
    values = np.array(counts, np.int64)
    values[3:] -= np.array(counts, np.int64)[1:-2]
    shifted = values[:, None] >> np.arange(0, 40, 5)
    bits, rest = shifted[:, :-1] & 31, shifted[:, 1:]
    more = rest != np.where(bits & 16, -1, 0)
    # A character is written as long as the one before it announces it.
    written = np.concatenate((np.ones((len(values), 1), bool), np.logical_and.accumulate(more, axis=1)[:, :-1]), axis=1)
    return (bits + 32 * more + 48)[written].astype(np.uint8).tobytes().decode("ascii")


def from_text(text: str) -> np.ndarray:
    """Runs (R,) uint32 of COCO's compressed form; ValueError if it is none."""
    codes = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes < 32)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or ends[-1:] != len(codes) - 1:
        raise ValueError(f"{text[:40]!r} is not a compressed mask; it has characters from '0' to 'o' and no cut end")
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > 7:
        raise ValueError(
            f"{text[:40]!r} is not a compressed mask; one of its runs is written with {lengths.max()} characters"
        )
    starts = ends - lengths + 1
    place = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << place, starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    if values.min() < 0 or values.max() >= 2**32:
        raise ValueError(f"{text[:40]!r} is not a compressed mask; one of its runs has {values.min()} pixels")
    return values.astype(np.uint32)


def polygon(points: np.ndarray, hw: HW) -> np.ndarray:
    """Runs (R,) uint32 of a polygon (n, 2) of x, y in pixels: what pycocotools' `frPyObjects` fills.

    The outline is walked in steps of a fifth of a pixel; where it passes the middle of a column, the filling changes.
    """
    height, width = hw
    corners = (5 * points + 0.5).astype(np.int64)  # cut towards zero
    following = np.roll(corners, -1, axis=0)
    size = np.abs(following - corners)
    flat = size[:, 0] >= size[:, 1]  # steps go along the longer axis, upwards
    steps = size.max(axis=1)
    backwards = np.where(flat, corners[:, 0] > following[:, 0], corners[:, 1] > following[:, 1])
    start, end = np.where(backwards[:, None], (following, corners), (corners, following))
    slope = np.where(flat, *(end - start).T[::-1]) / np.maximum(steps, 1)

    edge = np.repeat(np.arange(len(points)), steps)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(steps) - steps, steps)
    x, y, flat, slope = *start[edge].T, flat[edge], slope[edge]
    # Both ends of every step, on the longer axis and on the other.
    along = np.where(flat, x, y) + step + np.array([[0], [1]])
    across = (np.where(flat, y, x) + slope * (step + np.array([[0], [1]])) + 0.5).astype(np.int64)
    x, y = np.where(flat, along, across), np.where(flat, across, along)
    column = x.min(axis=0) - 2
    passes = (x[0] != x[1]) & (column % 5 == 0) & (column >= 0) & (column < 5 * width)
    row = np.ceil((y.min(axis=0)[passes] + 0.5) / 5 - 0.5).clip(0, height).astype(np.int64)
    positions, times = np.unique(column[passes] // 5 * height + row, return_counts=True)
    return _between(positions[(times % 2 == 1) & (positions < height * width)], height * width)


def _between(positions: np.ndarray, length: int) -> np.ndarray:
    """Runs between ascending positions of change, which are below the length."""
    return np.diff(positions, prepend=0, append=length).astype(np.uint32)
