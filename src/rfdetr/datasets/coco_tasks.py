"""What masks and keypoints need from a COCO file."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.datasets import rle
from rfdetr.datasets.annotations import Repair
from rfdetr.datasets.faults import Faults
from rfdetr.datasets.keypoints import KeypointSchema
from rfdetr.datasets.outlines import Outlines

# Height and width of a picture by its number, None if it is damaged.
Sizes = Callable[[int], tuple[int, int] | None]

FARTHEST_PX = 1e5  # a polygon is walked step by step: nonsense must not take for ever
FARTHEST_POINT_PX = 1e9  # as for boxes
OUTLINE = (
    "it has to be polygons [[x1, y1, x2, y2, x3, y3, ...], ...] in pixels, or the runs of a mask as large as the "
    'picture, {"size": [height, width], "counts": ...}'
)


class Segmentations:
    """Collects the `segmentation` of every object of a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.numbers, self.ring_lengths, self.row_rings = array("d"), array("q"), array("q", [0])
        self.runs, self.row_runs, self.sizes = array("I"), array("q", [0]), array("q")
        self.unreadable: dict[int, str] = {}

    def add(self, given: Any) -> None:
        """Take the outline of the next object; what cannot be read is kept as a reason."""
        numbers, runs = len(self.numbers), len(self.runs)
        try:
            if type(given) is dict and given:
                self._add_runs(given["size"], given["counts"])
            else:
                self._add_rings((given if type(given[0]) is list else [given]) if given else [])
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            self.unreadable[len(self.row_rings) - 1] = str(error)
            del self.numbers[numbers:], self.ring_lengths[self.row_rings[-1] :], self.runs[runs:]
            del self.sizes[2 * (len(self.row_rings) - 1) :]
            self.sizes.extend((0, 0))
        self.row_rings.append(len(self.ring_lengths))
        self.row_runs.append(len(self.runs))

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

    def outlines(
        self, rows: np.ndarray, image_index: np.ndarray, sizes: Sizes, where: Callable[[int], str], faults: Faults
    ) -> tuple[Outlines, np.ndarray]:
        """The outlines of all objects of the file, and which of `rows` have one that can be used or none, (R,) bool.

        Args:
            rows: the objects that matter.
            image_index: (A,) int64 number of the picture of each object.
            sizes: gives height and width of a picture by its number, None if it is damaged.
            where: names an object.
        """
        lengths, row_rings = np.asarray(self.ring_lengths), np.asarray(self.row_rings)
        ring_row = np.repeat(np.arange(len(row_rings) - 1), np.diff(row_rings))
        numbers = np.asarray(self.numbers)
        nowhere = np.flatnonzero(~((numbers >= -FARTHEST_PX) & (numbers <= FARTHEST_PX)))
        nonsense = ring_row[np.searchsorted(np.cumsum(lengths), nowhere, side="right")]
        usable = np.ones(len(rows), bool)
        for what, bad in (
            ("that cannot be read", np.fromiter(self.unreadable, np.int64)),
            ("with an odd count of numbers", ring_row[lengths % 2 == 1]),
            ("with numbers that are no positions", nonsense),
        ):
            usable &= ~self._refuse(rows, np.isin(rows, bad), lambda row, what=what: what, where, faults)
        misfit = self._misfits(rows, image_index, sizes)
        usable &= ~self._refuse(rows, np.isin(rows, list(misfit)), misfit.__getitem__, where, faults)
        return self._all(lengths, row_rings, numbers), usable

    def _refuse(
        self, rows: np.ndarray, bad: np.ndarray, what: Callable[[int], str], where: Callable[[int], str], faults: Faults
    ) -> np.ndarray:
        def message(row: int) -> str:
            reason = f" ({self.unreadable[row]})" if row in self.unreadable else ""
            return f"{where(row)} has a segmentation {what(row)}{reason}; {OUTLINE}"

        faults.found(rows[bad], "objects with a segmentation that cannot be used", message)
        return bad

    def _all(self, lengths: np.ndarray, row_rings: np.ndarray, numbers: np.ndarray) -> Outlines:
        """Every object's outline, without polygons that are no area."""
        long = (lengths >= 6) & (lengths % 2 == 0)
        kept = np.append(0, np.cumsum(long))
        rings = np.append(0, np.cumsum(lengths[long] // 2))
        points = (numbers if long.all() else numbers[np.repeat(long, lengths)]).reshape(-1, 2)
        pixels = np.zeros(len(row_rings) - 1, bool)
        return Outlines(points, rings, kept[row_rings], np.asarray(self.runs), np.asarray(self.row_runs), pixels)

    def repairs(self, rows: np.ndarray, crowd: np.ndarray, where: Callable[[int], str]) -> list[Repair]:
        """What is odd about the outlines of some objects; crowd regions, (R,) bool, may be without."""
        lengths, row_rings = np.asarray(self.ring_lengths), np.asarray(self.row_rings)
        ring_row = np.repeat(np.arange(len(row_rings) - 1), np.diff(row_rings))
        short = np.isin(rows, ring_row[(lengths < 6) & (lengths > 0)])
        drawn = np.isin(rows, ring_row[lengths >= 6]) | (np.diff(np.asarray(self.row_runs))[rows] > 0)
        return [
            Repair(kind, len(found), where(int(found[0])))
            for kind, found in (
                ("objects with polygons of less than 3 points, which are ignored", rows[short]),
                ("objects without segmentation, whose masks are empty", rows[~drawn & ~crowd & ~short]),
            )
            if len(found)
        ]

    def _misfits(self, rows: np.ndarray, image_index: np.ndarray, sizes: Sizes) -> dict[int, str]:
        """Objects with the runs of another picture size, and what is wrong with each."""
        written = np.asarray(self.sizes).reshape(-1, 2)
        found = {}
        for row in rows[written[rows].any(axis=1)].tolist():
            there = sizes(int(image_index[row]))
            if there is not None and there != (own := tuple(written[row].tolist())):
                found[row] = f"of {own[0]} x {own[1]} (height x width), but its picture has {there[0]} x {there[1]}"
        return found


class Keypoints:
    """Collects the `keypoints` of every object of a file."""

    def __init__(self) -> None:
        self.numbers, self.ends = array("d"), array("q", [0])
        self.unreadable: dict[int, str] = {}

    def add(self, given: Any) -> None:
        """Take the keypoints of the next object; what is no flat list of numbers is kept as a text."""
        try:
            self.numbers.extend(given or ())
        except (TypeError, OverflowError):
            del self.numbers[self.ends[-1] :]
            self.unreadable[len(self.ends) - 1] = repr(given)
        self.ends.append(len(self.numbers))

    def places(
        self, rows: np.ndarray, labels: np.ndarray, schema: KeypointSchema, where: Callable[[int], str], faults: Faults
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (R, K, 3) float64 of some objects: x, y in pixels, visibility 0, 1 or 2; zeros where there is none.

        Args:
            labels: (R,).

        Returns:
            The keypoints, and which of the rows can be used, (R,) bool.
        """
        ends, numbers = np.asarray(self.ends), np.asarray(self.numbers)
        keypoints, usable = np.zeros((len(rows), max(schema.counts), 3)), np.ones(len(rows), bool)
        for label in np.flatnonzero(schema.counts):
            count = schema.counts[label]
            own = np.flatnonzero(labels == label)
            lengths = np.diff(ends)[rows[own]]
            written = own[lengths == 3 * count]
            points = numbers[ends[rows[written], None] + np.arange(3 * count)].reshape(-1, count, 3)
            sound = (np.abs(points) < FARTHEST_POINT_PX).all((1, 2)) & np.isin(points[..., 2], (0, 1, 2)).all(1)
            keypoints[written[sound], :count] = points[sound] * (points[sound, :, 2:] > 0)
            empty = own[(lengths == 0) & ~np.isin(rows[own], list(self.unreadable))]
            usable[np.setdiff1d(own, np.concatenate((written[sound], empty)))] = False

        def message(row: int) -> str:
            count = schema.counts[labels[np.flatnonzero(rows == row)[0]]]
            given = self.unreadable.get(row) or numbers[ends[row] : ends[row + 1]].tolist()
            return (
                f"{where(row)} has keypoints {given}; its class needs {3 * count} "
                f"numbers in one flat list, {count} times x, y and visibility 0, 1 or 2"
            )

        faults.found(rows[~usable], "objects with keypoints that cannot be used", message)
        return keypoints, usable
