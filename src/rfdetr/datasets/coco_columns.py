"""The pictures and objects of a COCO file as columns, taken entry by entry."""

from __future__ import annotations

from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.datasets.categories import LARGEST, as_key
from rfdetr.datasets.coco_tasks import Keypoints, Segmentations

NOWHERE = [float("nan")] * 4


class Ids:
    """A column of ids: whole numbers as they are, anything else aside, by its row."""

    def __init__(self) -> None:
        self.numbers, self.others = array("q"), dict[int, Any]()
        self._unusable = dict[int, Any]()

    def append(self, value: Any) -> None:
        key = value if type(value) is int else as_key(value)
        if type(key) is int and -LARGEST <= key < LARGEST:
            self.numbers.append(key)
        else:
            self.others[len(self.numbers)] = key
            if key is None:
                self._unusable[len(self.numbers)] = value
            self.numbers.append(0)

    def __len__(self) -> int:
        return len(self.numbers)

    def of(self, row: int) -> Any:
        """The id of a row, for errors as it is written where it cannot be one."""
        return self._unusable.get(row, self.others[row]) if row in self.others else self.numbers[row]

    def rows(self, ids: Ids) -> np.ndarray:
        """The row in this column of each of other ids, (A,) int64; -1 for those that are not here."""
        there = np.asarray(self.numbers)
        kept = np.setdiff1d(np.arange(len(there)), np.fromiter(self.others, np.int64))
        order = kept[np.argsort(there[kept], kind="stable")]
        asked = np.asarray(ids.numbers)
        found = np.full(len(asked), -1)
        if len(order):
            place = order[np.searchsorted(there[order], asked).clip(max=len(order) - 1)]
            found = np.where(there[place] == asked, place, -1)
        by_text = {key: row for row, key in self.others.items()}
        for row, key in ids.others.items():
            found[row] = by_text.get(key, -1) if key is not None else -1
        return found

    def twice(self) -> tuple[Any, int] | None:
        """An id that several rows have, and how many."""
        keys, counts = np.unique(self.whole(), return_counts=True)
        if counts.max(initial=0) > 1:
            return int(keys[counts.argmax()]), int(counts.max())
        texts = Counter(self.others.values()).most_common(1)
        return texts[0] if texts and texts[0][1] > 1 else None

    def whole(self) -> np.ndarray:
        """The ids that are whole numbers, (M,) int64."""
        return np.delete(np.asarray(self.numbers), list(self.others))

    def as_numbers(self) -> np.ndarray | None:
        """The column as int64, None where some id is no number."""
        return None if self.others else np.array(self.numbers)


class Columns:
    """What a COCO file says of its entries.

    Args:
        outlines, keypoints: collect those too.
    """

    def __init__(self, file: Path, outlines: bool = False, keypoints: bool = False) -> None:
        self.file = file
        self.picture_ids, self.names = Ids(), list[Any]()
        self.lengths = array("d")  # width, height of every picture, 0 where they are not given
        self.ids, self.pictures, self.categories = Ids(), Ids(), Ids()
        self.boxes, self.areas, self.crowd = array("d"), array("d"), array("b")
        self.bad_boxes, self.bad_areas = dict[int, str](), dict[int, str]()
        self.outlines = Segmentations(file) if outlines else None
        self.keypoints = Keypoints() if keypoints else None

    def add_picture(self, position: int, entry: Any) -> None:
        self._check(position, entry, "images")
        self.picture_ids.append(entry.get("id"))
        self.names.append(entry.get("file_name"))
        self.lengths.extend(_length(entry.get(key)) for key in ("width", "height"))

    def add_object(self, position: int, entry: Any) -> None:
        self._check(position, entry, "annotations")
        self.ids.append(entry.get("id"))
        self.pictures.append(entry.get("image_id"))
        self.categories.append(entry.get("category_id"))
        self._add_box(position, entry.get("bbox"))
        self._add_area(position, entry.get("area"))
        self.crowd.append(entry.get("iscrowd") in (1, "1"))
        if self.outlines is not None:
            self.outlines.add(entry.get("segmentation"))
        if self.keypoints is not None:
            self.keypoints.add(entry.get("keypoints"))

    def where(self, row: int) -> str:
        """How errors name an object."""
        return f"annotation {self.ids.of(row)} of image {self.pictures.of(row)}"

    def _check(self, position: int, entry: Any, key: str) -> None:
        if type(entry) is not dict:
            raise ValueError(f"{self.file}: entry {position} of '{key}' is {entry!r}; it has to be an object")

    def _add_box(self, row: int, given: Any) -> None:
        try:
            if type(given) is not list or len(given) != 4:
                raise ValueError
            self.boxes.extend(given)
        except (TypeError, ValueError, OverflowError):
            del self.boxes[4 * row :]
            self.boxes.extend(NOWHERE)
            self.bad_boxes[row] = repr(given)

    def _add_area(self, row: int, given: Any) -> None:
        if type(given) in (int, float):
            try:
                self.areas.append(given)
                return
            except OverflowError:
                pass
        elif given is not None:
            self.bad_areas[row] = repr(given)
        self.areas.append(float("nan"))


def _length(value: Any) -> float:
    """A length that is not given is 0, which makes every box a suspect."""
    return value if type(value) in (int, float) and abs(value) < LARGEST else 0
