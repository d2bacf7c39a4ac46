"""The label files of a YOLO data set: one object a line."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from rfdetr.datasets.annotations import list_folder
from rfdetr.datasets.outlines import Outlines

LARGEST_FRACTION = 1.5  # objects may reach over the border; anything beyond this was written in pixels


class LabelRows:
    """The objects of label files, one row after the other.

    Args:
        pose_fields: fields of a line with keypoints, if the data set declares some.
        shape: number of keypoints and of numbers for each, if they are wanted.
        lenient: leave out lines that cannot be read, and keep what is wrong with them in `bad_lines`.
    """

    def __init__(
        self, num_classes: int, pose_fields: int | None, shape: tuple[int, int] | None, lenient: bool = False
    ) -> None:
        self.lenient, self.bad_lines = lenient, list[str]()
        self.num_classes, self.pose_fields, self.shape = num_classes, pose_fields, shape
        self.boxes, self.labels = array("d"), array("q")  # xyxy fractions, not clamped
        self.points, self.ring_lengths, self.keypoints = array("d"), array("q"), array("d")

    def read(self, files: list[str]) -> np.ndarray:
        """Read all files that exist; gives the position of the file of every row, (A,) int64."""
        counts = []
        listings: dict[str, set[str]] = {}
        for file in files:
            folder, _, name = file.rpartition("/")
            if folder not in listings:
                listings[folder] = list_folder(Path(folder))
            before = len(self.labels)
            if name in listings[folder]:
                self._read_file(Path(file))
            counts.append(len(self.labels) - before)
        return np.repeat(np.arange(len(files)), counts)

    def outlines(self) -> Outlines:
        """One polygon for every row."""
        ends, each = np.append(0, np.cumsum(self.ring_lengths, dtype=np.int64)), np.arange(len(self.labels) + 1)
        points = np.array(self.points).reshape(-1, 2)
        return Outlines(points, ends, each, np.zeros(0, np.uint32), np.zeros_like(each), np.ones(len(each) - 1, bool))

    def _read_file(self, file: Path) -> None:
        try:
            lines = read_text(file).splitlines()
        except ValueError as error:
            self._refuse(str(error))
            return
        for number, line in enumerate(lines, start=1):
            try:
                if fields := line.split():
                    self._add(fields)
            except ValueError as error:
                self._refuse(f"{file}, line {number}: {error}")

    def _refuse(self, message: str) -> None:
        self.bad_lines.append(message)
        if not self.lenient:
            raise ValueError(message) from None

    def _add(self, fields: list[str]) -> None:
        is_box = len(fields) in (5, self.pose_fields)
        if not is_box and (self.shape or len(fields) < 7 or len(fields) % 2 == 0):
            raise ValueError(f"{len(fields)} fields; {self._allowed()}")
        try:
            numbers = [float(field) for field in fields]
        except ValueError:
            wrong = next(field for field in fields if not _is_number(field))
            raise ValueError(f"{wrong!r} is no number; {self._allowed()}, all of them numbers") from None
        label, coordinates = numbers[0], numbers[1:5] if is_box else numbers[1:]
        if not label.is_integer() or not 0 <= label < self.num_classes:
            raise ValueError(f"class {fields[0]}; classes are whole numbers from 0 to {self.num_classes - 1}")
        if not all(-LARGEST_FRACTION <= value <= LARGEST_FRACTION for value in coordinates):
            raise ValueError(
                f"coordinates {' '.join(fields[1:5])}; they have to be fractions of the picture from 0 to 1, not pixels"
            )
        if is_box:
            x, y, width, height = coordinates
            box = left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
            coordinates = (left, top, right, top, right, bottom, left, bottom)
        else:
            xs, ys = coordinates[::2], coordinates[1::2]
            box = min(xs), min(ys), max(xs), max(ys)
        if self.shape:
            self.keypoints.extend(_keypoints(numbers[5:], self.shape).ravel())
        self.labels.append(int(label))
        self.boxes.extend(box)
        self.points.extend(coordinates)
        self.ring_lengths.append(len(coordinates) // 2)

    def _allowed(self) -> str:
        if self.shape:
            count, each = self.shape
            what = "class cx cy w h, then x y" + " visibility" * (each == 3)
            return (
                f"an object with keypoints has {self.pose_fields} ({what} for each of {count} keypoints), or 5 without"
            )
        return "a box has 5 (class cx cy w h), a polygon has an odd number from 7 on (class x1 y1 x2 y2 ...)"


def _keypoints(numbers: list[float], shape: tuple[int, int]) -> np.ndarray:
    """Keypoints (K, 3) as fractions and visibility; zeros where there is none."""
    given = np.array(numbers or np.zeros(shape)).reshape(shape)
    if shape[1] == 2:
        given = np.column_stack((given, np.where((given >= 0).all(axis=1) & given.any(axis=1), 2, 0)))
    seen = given[:, 2] > 0
    places, visible = given[:, :2], given[:, 2]
    if not (np.isfinite(places).all() and (np.abs(places[seen]) <= LARGEST_FRACTION).all()):
        raise ValueError(
            f"keypoints {places.tolist()}; they have to be fractions of the picture from 0 to 1, not pixels"
        )
    if not np.isin(visible, (0, 1, 2)).all():
        raise ValueError(f"visibilities {visible.tolist()} of the keypoints; they have to be 0, 1 or 2")
    return np.column_stack((places.clip(0, 1), visible)) * seen[:, None]


def read_text(file: Path) -> str:
    """A text in UTF-8; ValueError if it is none."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text in UTF-8: {error}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
