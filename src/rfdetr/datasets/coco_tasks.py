"""What masks and keypoints need from a COCO file."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.datasets import rle
from rfdetr.datasets.annotations import Repair, picture_size
from rfdetr.datasets.categories import where
from rfdetr.datasets.keypoints import KeypointSchema
from rfdetr.datasets.outlines import Outlines

FARTHEST_PX = 1e5  # a polygon is walked step by step: nonsense must not take for ever
OUTLINE = (
    "it has to be polygons [[x1, y1, x2, y2, x3, y3, ...], ...] in pixels, or the runs of a mask as large as the "
    'picture, {"size": [height, width], "counts": ...}'
)


class Segmentations:
    """Collects the `segmentation` of every object of a file, and leaves the number of its row in its place."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.numbers, self.ring_lengths, self.row_rings = array("d"), array("q"), array("q", [0])
        self.runs, self.row_runs, self.sizes = array("I"), array("q", [0]), array("q")

    def collect(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Take the outline out of an annotation of the file; for `json.loads` as `object_hook`."""
        # Of all objects of a COCO file, only annotations have an image_id.
        given = entry.pop("segmentation", None) if "image_id" in entry else None
        if not given:
            return entry
        try:
            if type(given) is dict:
                self._add_runs(given["size"], given["counts"])
            else:
                self._add_rings(given if type(given[0]) is list else [given])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._refusal(entry, f"that cannot be read ({error})") from None
        self.row_rings.append(len(self.ring_lengths))
        self.row_runs.append(len(self.runs))
        entry["segmentation"] = len(self.row_rings) - 2
        return entry

    def _add_rings(self, rings: list[list[float]]) -> None:
        for ring in rings:
            self.numbers.extend(ring)
            self.ring_lengths.append(len(ring))
        self.sizes.extend((0, 0))

    def _add_runs(self, size: list[int], counts: str | list[int]) -> None:
        runs = rle.from_text(counts) if isinstance(counts, str) else np.array(array("I", counts))
        height, width = size
        rle.check_size(runs, (height, width))
        self.runs.frombytes(runs.tobytes())
        self.sizes.extend((height, width))

    def _refusal(self, annotation: dict[str, Any], what: str) -> ValueError:
        return ValueError(f"{self.file}: {where(annotation)} has a segmentation {what}; {OUTLINE}")

    def outlines(
        self, annotations: list[dict[str, Any]], image_index: np.ndarray, pictures: list[Path], crowd: np.ndarray
    ) -> tuple[Outlines, list[Repair]]:
        """The outlines of some objects of the file, in their order.

        Args:
            image_index: (A,) int64 position of the picture of each object in `pictures`.
            crowd: (A,) bool: objects that may be without.
        """
        rows = np.array([annotation.get("segmentation", -1) for annotation in annotations], np.int64)
        lengths, row_rings = np.asarray(self.ring_lengths), np.asarray(self.row_rings)
        ring_row = np.repeat(np.arange(len(row_rings) - 1), np.diff(row_rings))
        numbers = np.asarray(self.numbers)
        nonsense = np.repeat(ring_row, lengths)[~(np.abs(numbers) <= FARTHEST_PX)]
        for what, bad in (
            ("with an odd count of numbers", ring_row[lengths % 2 == 1]),
            ("with numbers that are no positions", nonsense),
        ):
            if len(found := np.flatnonzero(np.isin(rows, bad))):
                raise self._refusal(annotations[found[0]], what)
        self._check_sizes(annotations, rows, image_index, pictures)

        long = lengths >= 6
        kept = np.append(0, np.cumsum(long))
        rings = np.append(0, np.cumsum(lengths[long] // 2))
        points = numbers[np.repeat(long, lengths)].reshape(-1, 2)
        pixels = np.zeros(len(row_rings) - 1, bool)
        every = Outlines(points, rings, kept[row_rings], np.asarray(self.runs), np.asarray(self.row_runs), pixels)
        outlines = every.take(rows)
        short = np.isin(rows, ring_row[~long & (lengths > 0)])
        bare = ~outlines.exist & ~crowd & ~short
        return outlines, [
            Repair(kind, len(found), where(annotations[found[0]]))
            for kind, found in (
                ("objects with polygons of less than 3 points, which are ignored", np.flatnonzero(short)),
                ("objects without segmentation, whose masks are empty", np.flatnonzero(bare)),
            )
            if len(found)
        ]

    def _check_sizes(
        self, annotations: list[dict[str, Any]], rows: np.ndarray, image_index: np.ndarray, pictures: list[Path]
    ) -> None:
        """ValueError if the runs of an object are those of another picture size."""
        sizes = np.append(self.sizes, (0, 0)).reshape(-1, 2)[rows]
        real: dict[int, tuple[int, int] | None] = {}
        for position in np.flatnonzero(sizes.any(axis=1)):
            index = int(image_index[position])
            if index not in real:
                real[index] = picture_size(pictures[index])
            height, width = sizes[position].tolist()
            there = real[index]
            if there is not None and (height, width) != there:
                what = f"of {height} x {width} (height x width), but its picture has {there[0]} x {there[1]}"
                raise self._refusal(annotations[position], what)


def read_keypoints(
    annotations: list[dict[str, Any]], labels: np.ndarray, schema: KeypointSchema, file: Path
) -> np.ndarray:
    """Keypoints (A, K, 3) float64 of some objects: x, y in pixels, visibility 0, 1 or 2; zeros where there is none."""
    keypoints = np.zeros((len(annotations), max(schema.counts), 3))
    for label in np.flatnonzero(schema.counts):
        count, rows = schema.counts[label], np.flatnonzero(labels == label)
        lists = [annotations[row].get("keypoints") or [0] * (3 * count) for row in rows]
        points = _points(lists, count)
        if points is None:
            bad = next(i for i, values in enumerate(lists) if _points([values], count) is None)
            raise ValueError(
                f"{file}: {where(annotations[rows[bad]])} has keypoints {lists[bad]!r}; its class needs {3 * count} "
                f"numbers in one flat list, {count} times x, y and visibility 0, 1 or 2"
            )
        keypoints[rows, :count] = points * (points[..., 2:] > 0)
    return keypoints


def _points(lists: list[Any], count: int) -> np.ndarray | None:
    """Flat lists of numbers as (n, count, 3), None where one of them cannot be keypoints."""
    try:
        points = np.array(lists, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if lists and points.shape != (len(lists), 3 * count):
        return None
    points = points.reshape(len(lists), count, 3)
    return points if np.isfinite(points).all() and np.isin(points[..., 2], (0, 1, 2)).all() else None
