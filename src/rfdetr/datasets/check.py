"""What is wrong with a data set, or worth knowing, before a model is trained on it. Reads pictures, no label files."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from rfdetr.datasets.annotations import AnnotationSet, has_extent
from rfdetr.datasets.check_report import SIDE_LIMITS_PX, Finding, Report, SplitCounts
from rfdetr.datasets.decode import decode_bytes

NUM_EXAMPLES = 5
MAX_UNREADABLE = 0.01
"""Share of pictures above which it is no use to leave them out."""
REACH_PX = 1.0
FEW_OBJECTS = 10
SMALL_PX = 10.0
"""Side below which objects are hard to find."""
SMALL_SHARE = 0.2
MAX_ENLARGEMENT = 3.0


def check(
    splits: Mapping[str, AnnotationSet],
    *,
    resolution: int | None = None,
    block: int = 32,
    num_queries: int | None = None,
    contents: bool = True,
    decode: bool = False,
) -> Report:
    """Look through all splits of a data set, which share their classes; the first one is what is trained on.

    Args:
        resolution: side of the network's input; None: the sizes of objects are not judged.
        block: what a resolution has to be a multiple of.
        num_queries: the most objects that the model can find in a picture; None: not judged.
        contents: look for pictures with the same content, for which those with equally many bytes are read.
        decode: decode every picture, which finds damage behind the header.
    """
    parts = [_Part(name, annotations, resolution, decode) for name, annotations in splits.items()]
    findings = [finding for part in parts for finding in _part_findings(part, num_queries)]
    findings += _class_findings(parts)
    if contents:
        findings += _same_pictures(parts)
    if resolution is not None:
        findings += _small_objects(parts[0], resolution, block)
    counts = {part.name: part.counts() for part in parts}
    return Report(tuple(parts[0].annotations.class_names), counts, tuple(findings), resolution)


def usable_boxes(annotations: AnnotationSet) -> tuple[np.ndarray, np.ndarray]:
    """All boxes cut to their pictures, (A, 4) float64 xyxy pixels, and which of them leave something, (A,) bool.

    Nothing is left in pictures that cannot be read.
    """
    limits = annotations.sizes[annotations.image_index]
    boxes_xyxy = annotations.all_boxes_xyxy_px().clip(0, limits[:, [1, 0, 1, 0]])
    return boxes_xyxy, has_extent(boxes_xyxy)


def class_index(annotations: AnnotationSet) -> np.ndarray:
    """Position of the class of every row in `class_names`, (A,) int64."""
    labels = np.array(annotations.categories.labels)
    order = np.argsort(labels)
    return order[np.searchsorted(labels, annotations.labels, sorter=order)]


def relative_name(annotations: AnnotationSet, index: int) -> str:
    """Name of a picture as the data set gives it."""
    return str(annotations.path(index)).removeprefix(f"{annotations.root}{os.sep}")


class _Part:
    """One split and what several checks ask about it; `kept` are the objects that a model learns from."""

    def __init__(self, name: str, annotations: AnnotationSet, resolution: int | None, decode: bool) -> None:
        self.name, self.annotations = name, annotations
        self.readable = annotations.sizes.min(axis=1) > 0
        self.damaged = np.array(
            [not ok or (decode and self._is_damaged(i)) for i, ok in enumerate(self.readable)], bool
        )
        self.boxes_xyxy, usable = usable_boxes(annotations)
        self.kept = usable & ~annotations.crowd
        self.image_index = annotations.image_index
        self.per_picture = np.bincount(self.image_index[self.kept], minlength=len(annotations))
        self.per_class = np.bincount(class_index(annotations)[self.kept], minlength=len(annotations.class_names))
        self.sides_px = None if resolution is None else self._sides(resolution)

    def _is_damaged(self, index: int) -> bool:
        try:
            decode_bytes(self.annotations.read(index), "")
        except (OSError, ValueError):
            return True
        return False

    def _sides(self, resolution: int) -> np.ndarray:
        """Square root of the area of each kept object in the network's input."""
        hw = self.annotations.sizes[self.image_index[self.kept]]
        x0, y0, x1, y1 = self.boxes_xyxy[self.kept].T
        return resolution * np.sqrt((x1 - x0) * (y1 - y0) / hw.prod(axis=1))

    def counts(self) -> SplitCounts:
        crowd = np.bincount(self.image_index[self.annotations.crowd], minlength=len(self.annotations))
        each = self.per_picture if len(self.per_picture) else np.zeros(1, np.int64)
        sides = None
        if self.sides_px is not None:
            bins = np.bincount(np.searchsorted(SIDE_LIMITS_PX, self.sides_px, side="right"), minlength=5)
            sides = tuple((bins / max(bins.sum(), 1)).tolist())
        return SplitCounts(
            pictures=len(self.annotations),
            background=int((self.readable & (self.per_picture + crowd == 0)).sum()),
            objects=int(self.kept.sum()),
            crowd=int(self.annotations.crowd.sum()),
            per_class=tuple(self.per_class.tolist()),
            mean_objects=float(each.mean()),
            median_objects=float(np.median(each)),
            max_objects=int(each.max()),
            side_shares=sides,
        )

    def found(self, severity: str, kind: str, pictures: np.ndarray, advice: str) -> Iterator[Finding]:
        """A finding about pictures, if there are some."""
        if len(pictures):
            names = tuple(relative_name(self.annotations, i) for i in pictures[:NUM_EXAMPLES])
            yield Finding(severity, self.name, kind, len(pictures), names, advice)

    def found_rows(self, severity: str, kind: str, rows: np.ndarray, advice: str) -> Iterator[Finding]:
        """A finding about objects, if there are some."""
        if len(rows):
            names = tuple(self._row_name(row) for row in rows[:NUM_EXAMPLES])
            yield Finding(severity, self.name, kind, len(rows), names, advice)

    def _row_name(self, row: int) -> str:
        index = self.image_index[row]
        name = relative_name(self.annotations, index)
        if self.annotations.normalized[index]:  # YOLO counts no annotations
            return f"object {row - self.annotations.offsets[index] + 1} of {name}"
        return f"annotation {self.annotations.annotation_ids[row]} of {name}"


def _part_findings(part: _Part, num_queries: int | None) -> Iterator[Finding]:
    for repair in part.annotations.repairs:
        severity = "fatal" if repair.fatal else "repair"
        yield Finding(severity, part.name, repair.kind, repair.count, (repair.example,))
    unreadable = np.flatnonzero(part.damaged)
    yield from part.found(
        "fatal" if len(unreadable) > MAX_UNREADABLE * len(part.readable) else "warning",
        "pictures that cannot be read",
        unreadable,
        f"replace or remove them: training leaves them out, but stops if they are more than {MAX_UNREADABLE:.0%}",
    )
    yield from part.found(
        "warning",
        "pictures of another size than the annotation file says",
        _resized_pictures(part),
        "the pictures count, not the file: if they were resized or turned after labelling, their boxes are wrong",
    )
    yield from part.found_rows(
        "warning",
        f"boxes that reach more than {REACH_PX:g} px out of their picture",
        _reaching_rows(part),
        "they are cut at the border, or left out where nothing remains; if they are many, the pictures may have been "
        "resized or turned after labelling",
    )
    yield from part.found_rows(
        "warning",
        "objects labelled twice: same class, same box",
        _repeated_rows(part),
        "remove one of each: the model learns to report such objects twice",
    )
    if num_queries is not None:
        yield from _crowded_pictures(part, num_queries)


def _resized_pictures(part: _Part) -> np.ndarray:
    written = part.annotations.written_sizes
    if written is None:
        return np.zeros(0, np.int64)
    return np.flatnonzero(part.readable & written.all(axis=1) & (written != part.annotations.sizes).any(axis=1))


def _reaching_rows(part: _Part) -> np.ndarray:
    annotations = part.annotations
    reach = np.abs(annotations.all_boxes_xyxy_px() - part.boxes_xyxy).max(axis=1, initial=0)
    x0, y0, x1, y1 = annotations.boxes_xyxy.T
    # What is empty as it is written is a repair already.
    real = part.readable[part.image_index] & ~annotations.crowd & (x1 > x0) & (y1 > y0)
    return np.flatnonzero(real & (reach > REACH_PX))


def _repeated_rows(part: _Part) -> np.ndarray:
    """Rows that equal an earlier one of their picture to a thousandth of a pixel."""
    rows = np.flatnonzero(part.kept)
    boxes = np.round(part.boxes_xyxy[rows] * 1000).astype(np.int64)
    columns = np.column_stack((boxes, part.annotations.labels[rows], part.image_index[rows]))
    order = np.lexsort(columns.T)  # stable, so that the first of equal rows comes first
    same = (np.diff(columns[order], axis=0) == 0).all(axis=1)
    return np.sort(rows[order[1:][same]])


def _crowded_pictures(part: _Part, num_queries: int) -> Iterator[Finding]:
    above = np.flatnonzero(part.per_picture > num_queries)
    lost = (part.per_picture[above] - num_queries).sum() / max(part.per_picture.sum(), 1)
    most = part.per_picture.max(initial=0)
    yield from part.found(
        "warning",
        f"pictures with more than {num_queries} objects",
        above[np.argsort(-part.per_picture[above], kind="stable")],
        f"{lost:.2%} of the objects cannot be found with num_queries={num_queries}; give num_queries={most} or more, "
        "or cut the pictures into tiles",
    )


def _class_findings(parts: list[_Part]) -> Iterator[Finding]:
    names = parts[0].annotations.class_names
    train, *others = parts
    everywhere = np.sum([part.per_class for part in parts], axis=0)

    def found(severity: str, split: str, kind: str, which: np.ndarray, advice: str) -> Iterator[Finding]:
        if which.any():
            first = tuple(names[i] for i in np.flatnonzero(which)[:NUM_EXAMPLES])
            yield Finding(severity, split, kind, int(which.sum()), first, advice)

    yield from found(
        "warning",
        "",
        "classes without any object",
        everywhere == 0,
        "remove them from the categories, or label their objects",
    )
    for part in others:
        yield from found(
            "warning",
            part.name,
            f"classes with objects here, but none in {train.name}",
            (part.per_class > 0) & (train.per_class == 0),
            "they cannot be learnt, and every one of their objects counts as missed: divide the pictures anew",
        )
        yield from found(
            "warning",
            part.name,
            f"classes of {train.name} without an object here",
            (part.per_class == 0) & (train.per_class > 0),
            "nothing is known about how well they are found: divide the pictures anew",
        )
    yield from found(
        "advice",
        train.name,
        f"classes with fewer than {FEW_OBJECTS} objects",
        (train.per_class > 0) & (train.per_class < FEW_OBJECTS),
        "label more of them, or join classes",
    )


def _same_pictures(parts: list[_Part]) -> Iterator[Finding]:
    contents = _content_numbers(parts)
    for part, numbers in zip(parts, contents, strict=True):
        _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        again = np.flatnonzero(first[inverse] != np.arange(len(numbers)))
        advice = "remove one of each, with its labels"
        yield from _pairs(part, again, part, first[inverse][again], "pictures that are there twice", advice)
    for (one, ones), (two, twos) in combinations(zip(parts, contents, strict=True), 2):
        unique, first = np.unique(ones, return_index=True)
        shared = np.flatnonzero(np.isin(twos, unique))
        partners = first[np.searchsorted(unique, twos[shared])]
        advice = f"remove them from one of the two: results on {two.name} look better than they are"
        yield from _pairs(two, shared, one, partners, f"pictures that are in {one.name} too", advice)


def _pairs(
    part: _Part, pictures: np.ndarray, other: _Part, partners: np.ndarray, kind: str, advice: str
) -> Iterator[Finding]:
    for finding in part.found("warning", kind, pictures, advice):
        same = [relative_name(other.annotations, i) for i in partners[:NUM_EXAMPLES]]
        names = tuple(f"{name} = {partner}" for name, partner in zip(finding.examples, same, strict=True))
        yield Finding("warning", part.name, kind, finding.count, names, advice)


def _content_numbers(parts: list[_Part]) -> list[np.ndarray]:
    """A number for every picture of every split, the same for the same content."""
    pictures = [(part.annotations, index) for part in parts for index in range(len(part.annotations))]
    sizes = np.concatenate([part.annotations.sizes for part in parts])
    readable = sizes.min(axis=1) > 0
    lengths = [_num_bytes(*picture) if ok else 0 for picture, ok in zip(pictures, readable, strict=True)]
    traits = np.column_stack((sizes, lengths))
    _, group, count = np.unique(traits, axis=0, return_inverse=True, return_counts=True)
    numbers = np.arange(len(pictures))
    first: dict[bytes, int] = {}
    for number in np.flatnonzero(readable & (count[group.ravel()] > 1)).tolist():
        annotations, index = pictures[number]
        digest = hashlib.blake2b(annotations.read(index), digest_size=16).digest()
        numbers[number] = first.setdefault(digest, number)
    return np.split(numbers, np.cumsum([len(part.annotations) for part in parts])[:-1])


def _num_bytes(annotations: AnnotationSet, index: int) -> int:
    shards = annotations.shards
    if shards is not None and shards.number[index] >= 0:
        return int(shards.length[index])
    return annotations.path(index).stat().st_size


def _small_objects(part: _Part, resolution: int, block: int) -> Iterator[Finding]:
    sides = part.sides_px
    assert sides is not None
    small = sides < SMALL_PX
    if not len(sides) or small.mean() <= SMALL_SHARE:
        return
    factor = SMALL_PX / float(np.median(sides[small]))
    larger = block * (math.floor(resolution * factor / block) + 1)
    if larger <= MAX_ENLARGEMENT * resolution:
        advice = f"give resolution={larger}, where half of them are above {SMALL_PX:g} px"
    else:
        parts = math.floor(factor) + 1
        advice = f"cut the pictures into {parts} x {parts} tiles, where half of them are above {SMALL_PX:g} px"
    kind = f"objects below {SMALL_PX:g} px at resolution {resolution}, {small.mean():.0%} of all"
    rows = np.flatnonzero(part.kept)[small]
    yield from part.found_rows("advice", kind, rows[np.argsort(sides[small], kind="stable")], advice)
