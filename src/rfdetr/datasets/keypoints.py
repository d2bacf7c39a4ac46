"""Which keypoints the classes of a data set have, by COCO categories or by a YOLO description."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

MOST_KEYPOINTS = 10_000  # a wrong digit in a description must not fill the memory


@dataclass(frozen=True)
class KeypointSchema:
    """The keypoints of every class of a data set."""

    counts: tuple[int, ...]
    """Number of keypoints by label; 0 for a class without."""
    names: tuple[tuple[str, ...], ...]
    """Names of the keypoints of each class that has some, by ascending label."""
    flip_pairs: tuple[int, ...] | None = None
    """[a, b, c, d, ...]: in a mirrored picture a and b change places, c and d; () where none do, None if unknown."""
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
    names = _names(entries, file)
    if not any(names):
        raise ValueError(
            f"{file}: no category has 'keypoints', the list of their names; a keypoint model needs data with keypoints"
        )
    with_points = [entry for entry, own in zip(entries, names, strict=True) if own]
    labels, counts = assign_labels([len(own) for own in names], wanted, file)
    names = tuple(own for own in names if own)
    skeletons = tuple(_skeleton(entry, len(own), file) for entry, own in zip(with_points, names, strict=True))
    return KeypointSchema(counts, names, _common([pairs_by_name(own) for own in names], file), skeletons), labels


def check_names(entries: Sequence[dict[str, Any]], labels: Sequence[int], schema: KeypointSchema, file: Path) -> None:
    """ValueError if categories list other keypoints than the schema has for their labels; -1 is any."""
    with_points = [label for label, count in enumerate(schema.counts) if count]
    trained = dict(zip(with_points, schema.names, strict=True))
    for entry, label, own in zip(entries, labels, _names(entries, file), strict=True):
        there = trained.get(label, ())
        if own and label >= 0 and own != there:
            raise ValueError(
                f"{file}: category {entry['id']} has the keypoints {list(own)}, but in the train split {list(there)}; "
                "give all splits the same in the same order"
            )


def _names(entries: Sequence[dict[str, Any]], file: Path) -> list[tuple[str, ...]]:
    return [tuple(map(str, _list(entry, "keypoints", file))) for entry in entries]


def _list(entry: dict[str, Any], key: str, file: Path) -> list[Any]:
    given = entry.get(key)
    if not isinstance(given, list | None):
        raise ValueError(f"{file}: category {entry['id']} has {key} {given!r}; it has to be a list, or left out")
    return given or []


def _skeleton(entry: dict[str, Any], count: int, file: Path) -> tuple[tuple[int, int], ...]:
    lines = _list(entry, "skeleton", file)
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
    by_class = _names_by_class(settings.get("kpt_names"), count, file)
    by_class = by_class * num_classes if len(by_class) == 1 else by_class
    if len(by_class) != num_classes:
        raise ValueError(f"{file}: kpt_names has {len(by_class)} entries for {num_classes} classes; give one per class")
    swaps = settings.get("flip_idx")
    pairs = _common([pairs_by_name(own) for own in by_class], file) if swaps is None else _swaps(swaps, count, file)
    labels, counts = assign_labels([count] * num_classes, wanted, file)
    return KeypointSchema(counts, tuple(by_class), pairs, ((),) * num_classes), labels


def _names_by_class(given: Any, count: int, file: Path) -> list[tuple[str, ...]]:
    """The names for all classes alike, or for each one; numbers where none are given."""
    if given in (None, [], {}):
        return [tuple(map(str, range(count)))]
    names = in_order(given) or []
    names = names if set(map(type, names)) == {list} else [names]
    if any(len(own) != count or set(map(type, own)) != {str} for own in names):
        raise ValueError(
            f"{file}: kpt_names is {given!r}; it has to be a list of {count} names, as kpt_shape says, or a list of "
            "such lists, one for each class; a mapping from 0, 1, 2, ... without gaps may stand for a list"
        )
    return list(map(tuple, names))


def in_order(given: Any) -> list[Any] | None:
    """A list as it is, a mapping from 0, 1, 2, ... without gaps as a list; None for anything else."""
    if not isinstance(given, dict):
        return given if isinstance(given, list) else None
    by_number = {str(key): value for key, value in given.items()}
    numbers = [str(number) for number in range(len(given))]
    return [by_number[number] for number in numbers] if set(by_number) == set(numbers) else None


def keypoint_shape(settings: dict[str, Any], file: Path) -> tuple[int, int]:
    """Number of keypoints, and of numbers for each, of a YOLO description."""
    shape = settings.get("kpt_shape")
    if shape is None:
        raise ValueError(f"{file}: there is no kpt_shape; a keypoint model needs data with keypoints")
    whole = isinstance(shape, list) and list(map(type, shape)) == [int, int]
    if not whole or not 0 < shape[0] <= MOST_KEYPOINTS or shape[1] not in (2, 3):
        raise ValueError(
            f"{file}: kpt_shape is {shape!r}; it has to be [number of keypoints, 2 or 3], with up to {MOST_KEYPOINTS}"
        )
    return shape[0], shape[1]


def _swaps(order: Any, count: int, file: Path) -> tuple[int, ...] | None:
    if order == []:
        return None
    whole = list(range(count))
    numbers = isinstance(order, list) and set(map(type, order)) == {int}
    if not numbers or sorted(order) != whole or [order[i] for i in order] != whole:
        raise ValueError(
            f"{file}: flip_idx is {order!r}; it has to name each of the keypoints 0 to {count - 1} once, two by two"
        )
    return tuple(chain.from_iterable((i, other) for i, other in enumerate(order) if i < other))


def pairs_by_name(names: Sequence[str]) -> tuple[int, ...] | None:
    """Flat pairs of the keypoints whose names differ only by left and right, in any case and with any separators.

    None where there are none: names that tell no sides do not say that nothing changes places.
    """
    plain = [re.sub(r"[\W_]", "", name).lower() for name in names]
    single = [name for name in plain if plain.count(name) == 1]
    partners = [(name, name.replace("left", "right")) for name in single if "left" in name]
    found = sorted(sorted(map(plain.index, both)) for both in partners if both[1] in single)
    return tuple(chain.from_iterable(found)) or None


def _common(pairs: list[tuple[int, ...] | None], file: Path) -> tuple[int, ...] | None:
    """The pairs if all classes have the same, otherwise None."""
    if len(set(pairs)) == 1:
        return pairs[0]
    warnings.warn(
        f"{file}: the classes differ in which keypoints change places in a mirrored picture, so that none are taken as "
        "known; give keypoint_flip_pairs",
        stacklevel=2,
    )
    return None


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
