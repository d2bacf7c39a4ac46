"""COCO JSON to an AnnotationSet: pictures and objects of one file, checked once."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.datasets.annotations import (
    AnnotationSet,
    Categories,
    Repair,
    Shards,
    agree_categories,
    exists,
    has_extent,
    is_inside,
    may_leave,
    missing_pictures,
    pack_names,
    picture_size,
    row_offsets,
)
from rfdetr.datasets.categories import category_entries, read_categories
from rfdetr.datasets.coco_columns import Columns, Ids
from rfdetr.datasets.coco_tasks import Sizes
from rfdetr.datasets.faults import Faults
from rfdetr.datasets.json_stream import read_object
from rfdetr.datasets.keypoints import KeypointSchema, Wanted, check_names, coco_schema

FARTHEST_PX = 1e9  # beyond this, positions of pixels are not exact any more


def read_coco(
    annotation_file: Path,
    image_root: Path | Sequence[Path],
    categories: Categories | None = None,
    raw_ids: bool = False,
    *,
    data_root: Path | None = None,
    masks: bool = False,
    keypoints: bool = False,
    schema: Wanted = None,
    lenient: bool = False,
) -> AnnotationSet:
    """Read one COCO file; pictures come sorted by id.

    Args:
        image_root: folder the `file_name` entries are relative to; of several the first that has the pictures.
        categories: mapping of the train split, for valid and test. None: made from this file.
        raw_ids: labels are the category ids as written, instead of 0..N-1; not with keypoints.
        data_root: folder no `file_name` may leave; None: that of the pictures.
        masks, keypoints, schema, lenient: see `layout.read_split`.
    """
    columns = Columns(annotation_file, masks, keypoints)
    document = read_object(annotation_file, {"images": columns.add_picture, "annotations": columns.add_object})
    folders = [image_root] if isinstance(image_root, Path) else image_root
    columns.names = [_with_slashes(name, folders) for name in columns.names]
    root = _root_of(folders, columns.names)
    faults = Faults(annotation_file, lenient)
    there = _check_pictures(columns, document.get("images"), root, data_root or root, faults)
    return build(columns, document, root, there, categories, faults, raw_ids=raw_ids, schema=schema)


def build(
    columns: Columns,
    document: dict[str, Any],
    root: Path,
    there: np.ndarray,
    categories: Categories | None,
    faults: Faults,
    *,
    raw_ids: bool = False,
    schema: Wanted = None,
    shards: Shards | None = None,
) -> AnnotationSet:
    """The AnnotationSet of collected entries.

    Args:
        document: the other members of the file.
        root: folder the picture names are relative to; there: (N,) bool, which pictures exist.
        shards: where the N pictures lie.
    """
    file, keypoints = columns.file, columns.keypoints is not None
    image_index, repairs = _picture_of_each(columns, document.get("annotations"), file)

    entries, used = document.get("categories"), set(np.unique(columns.categories.whole()).tolist())
    own = read_categories(entries, used, file, raw_ids and not keypoints)
    own, points = _with_keypoints(own, entries, categories, schema, file) if keypoints else (own, None)
    categories, found = agree_categories(categories, own, file, used)
    labels = _labels(columns.categories, categories)
    boxes_xyxy = np.array(columns.boxes).reshape(-1, 4)
    with np.errstate(invalid="ignore", over="ignore"):  # no object with an infinite box is left below
        boxes_xyxy[:, 2:] += boxes_xyxy[:, :2]
    rows = _sound(columns, categories, labels, np.flatnonzero((image_index >= 0) & there[image_index]), faults)

    def size_of(image: int) -> tuple[int, int] | None:
        return picture_size(io.BytesIO(shards.read(image)) if shards is not None else root / columns.names[image])

    sizes = functools.cache(size_of)
    outlines, places = None, None
    if columns.outlines is not None:
        outlines, usable = columns.outlines.outlines(rows, image_index, sizes, columns.where, faults)
        rows = rows[usable]
    elif columns.keypoints is not None and points is not None:
        places, usable = columns.keypoints.places(rows, labels[rows], points, columns.where, faults)
        rows, places = rows[usable], places[usable]
    crowd = np.array(columns.crowd, bool)
    repairs += found + _box_repairs(columns, rows, boxes_xyxy[rows], image_index[rows], crowd[rows], sizes)
    if columns.outlines is not None:
        repairs += columns.outlines.repairs(rows, crowd[rows], columns.where)

    pictures, order, offsets = _in_order(_picture_ids(columns), there, image_index[rows])
    rows = rows[order]
    name_bytes, name_offsets = pack_names([columns.names[i] for i in pictures])
    return AnnotationSet(
        root=root,
        source=file,
        categories=categories,
        name_bytes=name_bytes,
        name_offsets=name_offsets,
        image_ids=_picture_ids(columns)[pictures],
        offsets=offsets,
        boxes_xyxy=boxes_xyxy[rows],
        labels=labels[rows],
        areas=_areas(columns)[rows],
        crowd=crowd[rows],
        annotation_ids=_object_ids(columns)[rows],
        normalized=np.zeros(len(pictures), bool),
        outlines=None if outlines is None else outlines.take(rows),
        keypoints=None if places is None else places[order],
        schema=points,
        written_sizes=np.array(columns.lengths).reshape(-1, 2)[pictures, ::-1],
        shards=None if shards is None else shards.take(pictures),
        repairs=(*faults.repairs, *repairs),
    )


def _in_order(ids: np.ndarray, there: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pictures that are there by their ids, the order of the objects of pictures `image_index`, their offsets."""
    pictures = np.flatnonzero(there)[np.argsort(ids[there], kind="stable")]
    rank = np.full(len(there), -1)
    rank[pictures] = np.arange(len(pictures))
    order = np.argsort(rank[image_index], kind="stable")
    return pictures, order, row_offsets(rank[image_index[order]], len(pictures))


def _with_keypoints(
    own: Categories, entries: Any, trained: Categories | None, schema: Wanted, file: Path
) -> tuple[Categories, KeypointSchema]:
    """The schema of the train split where it is given, or that of the document and the labels that follow from it."""
    entries = category_entries(entries, own)
    if trained is not None and isinstance(schema, KeypointSchema):
        check_names(entries, trained.labels_of(np.array(own.ids)).tolist(), schema, file)
        return own, schema
    found, slots = coco_schema(entries, schema, file)
    return replace(own, slots=slots), found


def _with_slashes(name: Any, folders: Sequence[Path]) -> Any:
    """A name as Windows writes it with its folders as they are here, unless there is a file of that very name."""
    if not isinstance(name, str) or "\\" not in name or any(exists(folder / name) for folder in folders):
        return name
    return name.replace("\\", "/")


def _root_of(folders: Sequence[Path], names: list[Any]) -> Path:
    """The folder that has most of some pictures from all over the file, else the first that exists."""
    samples = [name for name in names[:: max(1, len(names) // 20)] if isinstance(name, str) and "\0" not in name]
    hits = [sum(exists(folder / name) for name in samples) for folder in folders]
    if max(hits, default=0):
        return folders[hits.index(max(hits))]
    return folders[0] if len(folders) == 1 else next((folder for folder in folders if folder.is_dir()), folders[0])


def _check_pictures(columns: Columns, given: Any, image_root: Path, data_root: Path, faults: Faults) -> np.ndarray:
    """Which pictures are there, (N,) bool."""
    file, ids = columns.file, columns.picture_ids
    if given is not None and type(given) is not int:
        raise ValueError(f"{file}: 'images' is a {type(given).__name__}; it has to be a list of objects")
    if not given:
        raise ValueError(f"{file}: 'images' is missing or empty; a split needs at least one picture")
    check_ids(columns, "'images'")
    for row, name in enumerate(columns.names):
        if not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(f"{file}: image id {ids.of(row)} has file_name {name!r}; it has to name the picture file")
        if may_leave(name) and not is_inside(image_root / name, data_root):
            raise ValueError(
                f"{file}: file_name '{name}' leads out of the data set folder {data_root} (image id {ids.of(row)}); "
                "move the file in, or put a link to it there"
            )
    missing = np.array(missing_pictures(image_root, columns.names), np.int64)
    faults.found(
        missing,
        "missing pictures",
        lambda row: (
            f"{len(missing)} of {len(ids)} pictures are missing, the first is {image_root / columns.names[row]}; "
            "add the files or remove their entries"
        ),
        FileNotFoundError,
    )
    return np.isin(np.arange(len(ids)), missing, invert=True)


def check_ids(columns: Columns, place: str) -> None:
    """ValueError if a picture has no id, or that of another; `place` says where the pictures are listed."""
    file, ids = columns.file, columns.picture_ids
    bad = next((row for row, key in ids.others.items() if key is None), None)
    if bad is not None:
        raise ValueError(f"{file}: entry {bad} of {place} has no usable 'id'; it has to be a number or a text")
    if twice := ids.twice():
        raise ValueError(f"{file}: {twice[1]} entries of {place} have the id {twice[0]!r}; ids have to be unique")


def _picture_ids(columns: Columns) -> np.ndarray:
    """(N,) int64; positions in the file where some ids are texts, which have no number of their own."""
    numbers = columns.picture_ids.as_numbers()
    return np.arange(len(columns.picture_ids)) if numbers is None else numbers


def _object_ids(columns: Columns) -> np.ndarray:
    """(A,) int64; counted from 1 where the file has texts, gaps or numbers that do not fit."""
    numbers = columns.ids.as_numbers()
    return np.arange(1, len(columns.ids) + 1) if numbers is None else numbers


def _picture_of_each(columns: Columns, given: Any, file: Path) -> tuple[np.ndarray, list[Repair]]:
    """Row of the picture of every object, (A,) int64, -1 where there is no such picture."""
    if given is not None and type(given) is not int:
        raise ValueError(f"{file}: 'annotations' is a {type(given).__name__}; it has to be a list of objects")
    if given is None:
        return np.zeros(0, np.int64), [
            Repair("no 'annotations' list, all pictures are background", len(columns.names), file.name)
        ]
    image_index = columns.picture_ids.rows(columns.pictures)
    unknown = np.flatnonzero(image_index < 0)
    kind = "annotations of unknown images, ignored"
    return image_index, [Repair(kind, len(unknown), columns.where(int(unknown[0])))] if len(unknown) else []


def _labels(ids: Ids, categories: Categories) -> np.ndarray:
    """Label of every object, (A,) int64; -1 where its category is no class."""
    labels = categories.labels_of(np.array(ids.numbers))
    labels[list(ids.others)] = -1
    return labels


def _sound(
    columns: Columns, categories: Categories, labels: np.ndarray, rows: np.ndarray, faults: Faults
) -> np.ndarray:
    """Those of some objects that have a class, a box and an area that can be one."""
    unknown = rows[labels[rows] < 0]

    def no_class(row: int) -> str:
        return (
            f"{columns.where(row)} has category_id {columns.categories.of(row)!r} ({len(unknown)} such "
            f"annotations), which is not a class of this data set; its classes are {_preview(categories)}"
        )

    def no_box(row: int) -> str:
        given = columns.bad_boxes.get(row) or columns.boxes[4 * row : 4 * row + 4].tolist()
        return f"{columns.where(row)} has bbox {given}; it has to be four finite numbers x, y, width, height"

    def no_area(row: int) -> str:
        return f"{columns.where(row)} has area {columns.bad_areas[row]}; it has to be a number"

    boxes = np.asarray(columns.boxes).reshape(-1, 4)[rows]
    bad_boxes = rows[~(np.abs(boxes) < FARTHEST_PX).all(1)]
    bad_areas = rows[np.isin(rows, list(columns.bad_areas))]
    bad = (
        faults.found(unknown, "annotations of unknown categories", no_class),
        faults.found(bad_boxes, "annotations without a usable bbox", no_box),
        faults.found(bad_areas, "annotations whose area is no number", no_area),
    )
    return np.setdiff1d(rows, np.concatenate(bad))


def _preview(categories: Categories) -> str:
    shown = [f"{i} '{name}'" for i, name in zip(categories.ids[:10], categories.names[:10], strict=True)]
    return ", ".join(shown) + ", ..." * (len(categories.ids) > 10)


def _areas(columns: Columns) -> np.ndarray:
    """(A,) float64 square pixels; NaN where there is none or where it cannot be one."""
    areas = np.asarray(columns.areas)
    return np.where((areas >= 0) & (areas < FARTHEST_PX**2), areas, np.nan)


def _box_repairs(
    columns: Columns, rows: np.ndarray, boxes_xyxy: np.ndarray, image_index: np.ndarray, crowd: np.ndarray, sizes: Sizes
) -> list[Repair]:
    empty = ~has_extent(boxes_xyxy) & ~crowd
    outside = _outside(boxes_xyxy, image_index, np.array(columns.lengths).reshape(-1, 2), sizes) & ~empty & ~crowd
    return [
        Repair(kind, int(bad.sum()), columns.where(int(rows[bad.argmax()])))
        for kind, bad in (
            ("boxes without width or height, left out", empty),
            ("boxes fully outside the picture, left out", outside),
        )
        if bad.any()
    ]


def _outside(boxes_xyxy: np.ndarray, image_index: np.ndarray, lengths: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Whether each box lies fully outside its picture, (R,) bool.

    The widths and heights in the file only raise the suspicion; the picture decides, and only suspects are opened.
    """
    outside = (boxes_xyxy[:, 2] <= 0) | (boxes_xyxy[:, 3] <= 0)
    suspect = ~outside & (boxes_xyxy[:, :2] >= lengths[image_index]).any(1)
    for index in np.unique(image_index[suspect]).tolist():
        # A damaged picture is reported when it is decoded.
        lengths[index] = (sizes(index) or (np.inf, np.inf))[::-1]
    return outside | (boxes_xyxy[:, :2] >= lengths[image_index]).any(1)


def __getattr__(name: str) -> object:
    """Names that older scripts import from here."""
    if name != "compute_multi_scale_scales":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rfdetr.datasets import older

    return getattr(older, name)
