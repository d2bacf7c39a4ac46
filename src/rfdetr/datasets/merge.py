"""Several splits joined into one: classes that have the same name are the same."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rfdetr.datasets.annotations import AnnotationSet, Categories, Shards, pack_names
from rfdetr.datasets.keypoints import KeypointSchema
from rfdetr.datasets.outlines import Outlines


def merge(sets: Sequence[AnnotationSet], onto: AnnotationSet | None = None) -> AnnotationSet:
    """Join splits; pictures and objects are numbered anew, in the given order.

    Args:
        onto: the train split, whose labels count. None: all classes, in the order in which they come up.

    Raises:
        ValueError: a class that `onto` does not know has objects, a name stands for two classes, or classes of one name
            have different keypoints.
    """
    names = _all_names(sets) if onto is None else onto.categories.names
    labels = tuple(range(len(names))) if onto is None else onto.categories.labels
    label_of = dict(zip(names, labels, strict=True))
    root = Path(os.path.commonpath([one.root.absolute() for one in sets]))
    paths = [one.path(i) for one in sets for i in range(len(one))]
    name_bytes, name_offsets = pack_names([Path(os.path.relpath(path, root)).as_posix() for path in paths])
    counts = np.concatenate([np.diff(one.offsets) for one in sets])
    schema = _common_schema(sets if onto is None else [onto, *sets], label_of)
    schema = schema if onto is None else onto.schema
    return AnnotationSet(
        root=root,
        source=Path(" + ".join(str(one.source) for one in sets)),
        categories=Categories(tuple(range(len(names))), names, slots=labels),
        name_bytes=name_bytes,
        name_offsets=name_offsets,
        image_ids=np.arange(len(paths)),
        offsets=np.append(0, np.cumsum(counts)),
        boxes_xyxy=np.concatenate([one.boxes_xyxy for one in sets]),
        labels=np.concatenate([_relabelled(one, label_of) for one in sets]),
        areas=np.concatenate([one.areas for one in sets]),
        crowd=np.concatenate([one.crowd for one in sets]),
        annotation_ids=np.arange(1, counts.sum() + 1),
        normalized=np.concatenate([one.normalized for one in sets]),
        outlines=join_outlines([one.outlines for one in sets if one.outlines is not None]),
        keypoints=_join_keypoints([one.keypoints for one in sets if one.keypoints is not None], schema),
        schema=schema,
        written_sizes=np.concatenate([_written_sizes(one) for one in sets]),
        shards=_join_shards(sets),
        repairs=tuple(repair for one in sets for repair in one.repairs),
    )


def with_labels(annotations: AnnotationSet, labels: Sequence[int]) -> AnnotationSet:
    """The same objects with other labels for the classes, given in the order of the class names; -1 is none."""
    table = np.full(max(annotations.categories.labels) + 1, -1)
    table[list(annotations.categories.labels)] = labels
    categories = replace(annotations.categories, raw_ids=False, slots=tuple(labels))
    return replace(annotations, categories=categories, labels=table[annotations.labels])


def _all_names(sets: Sequence[AnnotationSet]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for one in sets for name in one.class_names))


def _relabelled(one: AnnotationSet, label_of: dict[str, int]) -> np.ndarray:
    """Labels (A,) by the names of the classes."""
    name, count = Counter(one.class_names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{one.source}: '{name}' is the name of {count} classes, so it cannot be joined by name")
    labels = with_labels(one, [label_of.get(name, -1) for name in one.class_names]).labels
    if (labels < 0).any():
        unknown = [name for name in one.class_names if name not in label_of]
        raise ValueError(
            f"{one.source}: {np.count_nonzero(labels < 0)} objects are of classes that the train split does not have: "
            f"{', '.join(unknown)}; its classes are {', '.join(label_of)}"
        )
    return labels


def _common_schema(sets: Sequence[AnnotationSet], label_of: dict[str, int]) -> KeypointSchema | None:
    """The keypoints by the new labels."""
    if any(one.schema is None for one in sets):
        return None
    found: dict[int, tuple] = {}
    for one in sets:
        # A class that is in none of its objects may be unknown to the train split.
        for name, shape in ((name, shape) for name, shape in _shapes(one).items() if name in label_of):
            first = found.setdefault(label_of[name], shape)
            if first[0] != shape[0]:
                raise ValueError(
                    f"{one.source}: '{name}' has the keypoints {list(shape[0])}, but in another data set "
                    f"{list(first[0])}; data sets are joined by name, so these have to be the same"
                )
            found[label_of[name]] = (first[0], first[1] or shape[1])  # only some formats know the lines
    pairs = {one.schema.flip_pairs for one in sets if one.schema is not None}
    by_label = dict(sorted(found.items()))
    return KeypointSchema(
        counts=tuple(len(by_label[label][0]) if label in by_label else 0 for label in range(len(label_of))),
        names=tuple(names for names, _ in by_label.values()),
        flip_pairs=next(iter(pairs)) if len(pairs) == 1 else None,
        skeleton=tuple(lines for _, lines in by_label.values()),
    )


def _shapes(one: AnnotationSet) -> dict[str, tuple]:
    """Names and lines of the keypoints of every class that has some, by its name."""
    assert one.schema is not None
    name_of = dict(zip(one.categories.labels, one.class_names, strict=True))
    with_points = [label for label, count in enumerate(one.schema.counts) if count]
    lines = one.schema.skeleton or ((),) * len(with_points)
    shapes = zip(with_points, one.schema.names, lines, strict=True)
    return {name_of[label]: (names, own) for label, names, own in shapes}


def _written_sizes(one: AnnotationSet) -> np.ndarray:
    return np.zeros((len(one), 2)) if one.written_sizes is None else one.written_sizes


def join_outlines(parts: Sequence[Outlines]) -> Outlines | None:
    """The rows of all, one after the other."""
    if not parts:
        return None
    return Outlines(
        np.concatenate([part.points for part in parts]),
        _join_offsets([part.rings for part in parts]),
        _join_offsets([part.row_rings for part in parts]),
        np.concatenate([part.runs for part in parts]),
        _join_offsets([part.row_runs for part in parts]),
        np.concatenate([part.normalized for part in parts]),
    )


def _join_offsets(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.append(0, np.cumsum(np.concatenate([np.diff(part) for part in parts])))


def _join_keypoints(parts: Sequence[np.ndarray], schema: KeypointSchema | None) -> np.ndarray | None:
    if not parts or schema is None:
        return None
    widest = max(schema.counts)  # more has only a class without objects that the train split does not have
    cut = [part[:, :widest] for part in parts]
    return np.concatenate([np.pad(part, ((0, 0), (0, widest - part.shape[1]), (0, 0))) for part in cut])


def _join_shards(sets: Sequence[AnnotationSet]) -> Shards | None:
    if all(one.shards is None for one in sets):
        return None
    files: tuple[Path, ...] = ()
    columns = []
    for one in sets:
        own = one.shards or Shards((), np.full(len(one), -1), *np.zeros((2, len(one)), np.int64))
        columns.append((np.where(own.number < 0, -1, own.number + len(files)), own.start, own.length))
        files += own.files
    return Shards(files, *(np.concatenate(column) for column in zip(*columns, strict=True)))
