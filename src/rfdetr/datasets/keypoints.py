"""Which keypoints the classes of a data set have, by COCO categories or by a YOLO description."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class KeypointSchema:
    """The keypoints of every class of a data set."""

    counts: tuple[int, ...]
    """Number of keypoints by label; 0 for a class without."""
    names: tuple[tuple[str, ...], ...]
    """Names of the keypoints of each class that has some, by ascending label."""
    flip_pairs: tuple[int, ...] = ()
    """[a, b, c, d, ...]: in a mirrored picture a and b change places, c and d; () where nothing is known."""
    skeleton: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Lines between keypoints, counted from 0, of each class that has some."""


Wanted = KeypointSchema | Sequence[int] | None
"""A schema that a data set has to fit, its counts alone, or any."""


def coco_schema(
    entries: Sequence[dict[str, Any]], wanted: Wanted, file: Path
) -> tuple[KeypointSchema, tuple[int, ...]]:
    """Keypoints and label of every category, given in order.

    Args:
        wanted: number of keypoints by label; None: labels are positions.

    Raises:
        ValueError: there are no keypoints, or others than wanted.
    """
    names = [tuple(map(str, entry.get("keypoints") or ())) for entry in entries]
    if not any(names):
        raise ValueError(
            f"{file}: no category has 'keypoints', the list of their names; a keypoint model needs data with keypoints"
        )
    with_points = [entry for entry, own in zip(entries, names, strict=True) if own]
    labels, counts = assign_labels([len(own) for own in names], wanted, file)
    names = tuple(own for own in names if own)
    skeletons = tuple(_skeleton(entry, len(own), file) for entry, own in zip(with_points, names, strict=True))
    return KeypointSchema(counts, names, _common([pairs_by_name(own) for own in names], file), skeletons), labels


def _skeleton(entry: dict[str, Any], count: int, file: Path) -> tuple[tuple[int, int], ...]:
    lines = entry.get("skeleton") or []
    numbers = range(1, count + 1)
    if all(isinstance(line, list) and len(line) == 2 and all(end in numbers for end in line) for line in lines):
        return tuple((first - 1, second - 1) for first, second in lines)
    what = f"skeleton {lines} of category {entry['id']} does not pair the keypoint numbers 1 to {count}"
    warnings.warn(f"{file}: {what}; no lines are drawn", stacklevel=2)
    return ()


def yolo_schema(
    settings: dict[str, Any], num_classes: int, wanted: Wanted, file: Path
) -> tuple[KeypointSchema, tuple[int, ...]]:
    """The same for a YOLO description, where all classes have the keypoints of `kpt_shape`."""
    count = keypoint_shape(settings, file)[0]
    names = settings.get("kpt_names")
    by_class = list(names.values()) if isinstance(names, dict) else [names] if names else []
    if any(not isinstance(own, list) or len(own) != count for own in by_class):
        raise ValueError(f"{file}: kpt_names is {names!r}; it has to give {count} names, as kpt_shape says")
    by_class = [tuple(map(str, own)) for own in by_class] or [tuple(map(str, range(count)))]
    by_class = by_class * num_classes if len(by_class) == 1 else by_class
    if len(by_class) != num_classes:
        raise ValueError(f"{file}: kpt_names has {len(by_class)} entries for {num_classes} classes; give one per class")
    swaps = settings.get("flip_idx")
    pairs = _common([pairs_by_name(own) for own in by_class], file) if swaps is None else _swaps(swaps, count, file)
    labels, counts = assign_labels([count] * num_classes, wanted, file)
    return KeypointSchema(counts, tuple(by_class), pairs, ((),) * num_classes), labels


def keypoint_shape(settings: dict[str, Any], file: Path) -> tuple[int, int]:
    """Number of keypoints, and of numbers for each, of a YOLO description."""
    shape = settings.get("kpt_shape")
    if shape is None:
        raise ValueError(f"{file}: there is no kpt_shape; a keypoint model needs data with keypoints")
    if not isinstance(shape, list) or list(map(type, shape)) != [int, int] or shape[0] < 1 or shape[1] not in (2, 3):
        raise ValueError(f"{file}: kpt_shape is {shape!r}; it has to be [number of keypoints, 2 or 3]")
    return shape[0], shape[1]


def _swaps(order: Any, count: int, file: Path) -> tuple[int, ...]:
    whole = list(range(count))
    numbers = isinstance(order, list) and set(map(type, order)) == {int}
    if not numbers or sorted(order) != whole or [order[i] for i in order] != whole:
        raise ValueError(
            f"{file}: flip_idx is {order!r}; it has to name each of the keypoints 0 to {count - 1} once, two by two"
        )
    return tuple(chain.from_iterable((i, other) for i, other in enumerate(order) if i < other))


def pairs_by_name(names: Sequence[str]) -> tuple[int, ...]:
    """Flat pairs of the keypoints whose names differ only by left and right, in any case and with any separators."""
    plain = [re.sub(r"[\W_]", "", name).lower() for name in names]
    single = [name for name in plain if plain.count(name) == 1]
    partners = [(name, name.replace("left", "right")) for name in single if "left" in name]
    found = sorted(sorted(map(plain.index, both)) for both in partners if both[1] in single)
    return tuple(chain.from_iterable(found))


def _common(pairs: list[tuple[int, ...]], file: Path) -> tuple[int, ...]:
    """The pairs if all classes have the same, otherwise none."""
    if len(set(pairs)) == 1:
        return pairs[0]
    warnings.warn(
        f"{file}: the classes differ in which keypoints change places in a mirrored picture, so that none are taken as "
        "known; give keypoint_flip_pairs",
        stacklevel=2,
    )
    return ()


def assign_labels(counts: Sequence[int], wanted: Wanted, file: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Label of each class by its number of keypoints, and that number by label.

    Classes with keypoints take the labels that are wanted to have some, in order, the others the labels left.
    """
    if wanted is None:
        return tuple(range(len(counts))), tuple(counts)
    wanted = wanted.counts if isinstance(wanted, KeypointSchema) else wanted
    if [count for count in wanted if count] != [count for count in counts if count]:
        raise ValueError(
            f"{file}: its classes have {list(counts)} keypoints, which does not fit "
            f"num_keypoints_per_class={list(wanted)}; a model takes those of the data set in train() where the option "
            "is left out"
        )
    slots = [label for label, count in enumerate(wanted) if count]
    free = (label for label in range(len(wanted) + len(counts)) if label not in slots)
    taken = iter(slots)
    labels = tuple(next(taken if count else free) for count in counts)
    by_label = dict(zip(labels, counts, strict=True))
    return labels, tuple(by_label.get(label, 0) for label in range(max(labels) + 1))
