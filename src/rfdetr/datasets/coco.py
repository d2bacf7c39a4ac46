"""COCO JSON to an AnnotationSet: pictures and objects of one file, checked once."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.datasets.annotations import (
    AnnotationSet,
    Categories,
    Repair,
    agree_categories,
    has_extent,
    is_inside,
    pack_names,
    picture_size,
    require_pictures,
    row_offsets,
)
from rfdetr.datasets.categories import as_keys, category_entries, read_categories, where
from rfdetr.datasets.coco_tasks import Segmentations, read_keypoints
from rfdetr.datasets.keypoints import KeypointSchema, Wanted, check_names, coco_schema


def read_coco(
    annotation_file: Path,
    image_root: Path,
    categories: Categories | None = None,
    raw_ids: bool = False,
    *,
    data_root: Path | None = None,
    masks: bool = False,
    keypoints: bool = False,
    schema: Wanted = None,
) -> AnnotationSet:
    """Read one COCO file; pictures come sorted by id.

    Args:
        image_root: folder the `file_name` entries are relative to.
        categories: mapping of the train split, for valid and test. None: made from this file.
        raw_ids: labels are the category ids as written, instead of 0..N-1; not with keypoints.
        data_root: folder no `file_name` may leave; None: `image_root`.
        masks, keypoints, schema: see `layout.read_split`.
    """
    segmentations = Segmentations(annotation_file)
    document = _load(annotation_file, segmentations.collect if masks else _without_outline)
    image_ids, names, lookup = _read_images(document, annotation_file, image_root, data_root or image_root)
    annotations, image_index, repairs = _known_annotations(document, lookup, annotation_file)
    own = read_categories(document, annotation_file, raw_ids and not keypoints)
    own, points = _with_keypoints(own, document, categories, schema, annotation_file) if keypoints else (own, None)
    categories, category_repairs = agree_categories(categories, own, annotation_file)
    boxes_xyxy = _read_boxes(annotations, annotation_file)
    labels = _read_labels(annotations, categories, annotation_file)
    crowd = np.array([annotation.get("iscrowd") in (1, "1") for annotation in annotations], bool)

    outside = _outside(boxes_xyxy, image_index, document["images"], image_root, names)
    repairs += category_repairs + _box_repairs(annotations, boxes_xyxy, outside, crowd)

    image_order = np.argsort(image_ids, kind="stable")
    rank = np.argsort(image_order, kind="stable")
    rows = np.argsort(rank[image_index], kind="stable")
    name_bytes, name_offsets = pack_names([names[i] for i in image_order])
    read = AnnotationSet(
        root=image_root,
        source=annotation_file,
        categories=categories,
        name_bytes=name_bytes,
        name_offsets=name_offsets,
        image_ids=image_ids[image_order],
        offsets=row_offsets(rank[image_index], len(names)),
        boxes_xyxy=boxes_xyxy[rows],
        labels=labels[rows],
        areas=_read_areas(annotations, annotation_file)[rows],
        crowd=crowd[rows],
        annotation_ids=_annotation_ids(annotations)[rows],
        normalized=np.zeros(len(names), bool),
        repairs=tuple(repairs),
    )
    if points is not None:
        places = read_keypoints(annotations, labels, points, annotation_file)
        return replace(read, keypoints=places[rows], schema=points)
    if masks:
        outlines, found = segmentations.outlines(annotations, image_index, [image_root / name for name in names], crowd)
        return replace(read, outlines=outlines.take(rows), repairs=(*read.repairs, *found))
    return read


def _with_keypoints(
    own: Categories, document: dict[str, Any], trained: Categories | None, schema: Wanted, file: Path
) -> tuple[Categories, KeypointSchema]:
    """The schema of the train split where it is given, or that of the document and the labels that follow from it."""
    entries = category_entries(document, own)
    if trained is not None and isinstance(schema, KeypointSchema):
        check_names(entries, trained.labels_of(np.array(own.ids)).tolist(), schema, file)
        return own, schema
    found, slots = coco_schema(entries, schema, file)
    return replace(own, slots=slots), found


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines take most of the memory, and boxes do not need them."""
    entry.pop("segmentation", None)
    return entry


def _load(file: Path, object_hook: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """The parsed file; ValueError if it is none of COCO's."""
    try:
        with _paused_garbage_collection():
            document = json.loads(file.read_bytes().decode("utf-8-sig"), object_hook=object_hook)
    except FileNotFoundError:
        raise FileNotFoundError(f"annotation file {file} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON in UTF-8: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(
            f"{file}: the top level is a {type(document).__name__}; a COCO file is an object with "
            "'images', 'annotations' and 'categories'"
        )
    for key in ("images", "annotations", "categories"):
        _check_list(document.get(key), key, file)
    return document


@contextmanager
def _paused_garbage_collection() -> Generator[None, None, None]:
    # Parsing makes millions of objects and no garbage; looking for some takes 40 % of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_list(entries: Any, key: str, file: Path) -> None:
    if entries is None:
        return
    if not isinstance(entries, list):
        raise ValueError(f"{file}: '{key}' is a {type(entries).__name__}; it has to be a list of objects")
    if not set(map(type, entries)) <= {dict}:
        position = next(i for i, entry in enumerate(entries) if not isinstance(entry, dict))
        raise ValueError(f"{file}: entry {position} of '{key}' is {entries[position]!r}; it has to be an object")


def _read_images(
    document: dict[str, Any], file: Path, image_root: Path, data_root: Path
) -> tuple[np.ndarray, list[str], dict[Any, int]]:
    """Ids (N,) int64 and names in file order, and the position of each id as annotations spell it."""
    images = document.get("images")
    if not images:
        raise ValueError(f"{file}: 'images' is missing or empty; a split needs at least one picture")
    keys = as_keys([image.get("id") for image in images])
    lookup = {key: position for position, key in enumerate(keys)}
    if None in lookup:
        raise ValueError(
            f"{file}: entry {lookup[None]} of 'images' has no usable 'id'; it has to be a number or a text"
        )
    if len(lookup) < len(keys):
        twice, count = Counter(keys).most_common(1)[0]
        raise ValueError(f"{file}: {count} entries of 'images' have the id {twice!r}; ids have to be unique")
    names = [image.get("file_name") for image in images]
    for key, name in zip(keys, names, strict=True):
        if not isinstance(name, str) or not name:
            raise ValueError(f"{file}: image id {key} has file_name {name!r}; it has to name the picture file")
    _check_inside(names, image_root, data_root, file)
    require_pictures(image_root, names, file)
    # Ids that are texts have no number of their own.
    are_numbers = all(type(key) is int and abs(key) < 2**63 for key in keys)
    return np.array(keys if are_numbers else range(len(keys)), np.int64), names, lookup


def _check_inside(names: list[str], image_root: Path, data_root: Path, file: Path) -> None:
    for name in names:
        may_leave = ".." in name or name[0] in "/\\" or name[1:2] == ":"
        if may_leave and not is_inside(image_root / name, data_root):
            raise ValueError(
                f"{file}: file_name '{name}' leads out of the data set folder {data_root}; move the file in"
            )


def _known_annotations(
    document: dict[str, Any], lookup: dict[Any, int], file: Path
) -> tuple[list[dict[str, Any]], np.ndarray, list[Repair]]:
    """Annotations whose picture exists and the position of that picture (A,), in file order."""
    annotations = document.get("annotations")
    if annotations is None:
        repair = Repair("no 'annotations' list, all pictures are background", len(lookup), file.name)
        return [], np.zeros(0, np.int64), [repair]
    keys = as_keys([annotation.get("image_id") for annotation in annotations])
    image_index = np.array([lookup.get(key, -1) for key in keys], np.int64)
    unknown = np.flatnonzero(image_index < 0)
    if not len(unknown):
        return annotations, image_index, []
    repair = Repair("annotations of unknown images, ignored", len(unknown), where(annotations[unknown[0]]))
    known = np.flatnonzero(image_index >= 0)
    return [annotations[i] for i in known], image_index[known], [repair]


def _read_boxes(annotations: list[dict[str, Any]], file: Path) -> np.ndarray:
    """(A, 4) float64 xyxy pixels, as written."""
    try:
        boxes = [annotation["bbox"] for annotation in annotations]
        if not (set(map(type, boxes)) <= {list} and set(map(len, boxes)) <= {4}):
            raise ValueError
        flat = np.fromiter(chain.from_iterable(boxes), np.float64, count=4 * len(boxes))
    except (KeyError, TypeError, ValueError):
        raise ValueError(_first_bad_box(annotations, file)) from None
    boxes_xyxy = flat.reshape(-1, 4)
    if not np.isfinite(boxes_xyxy).all():
        raise ValueError(_first_bad_box(annotations, file))
    boxes_xyxy[:, 2:] += boxes_xyxy[:, :2]
    return boxes_xyxy


def _first_bad_box(annotations: list[dict[str, Any]], file: Path) -> str:
    for annotation in annotations:
        try:
            x, y, width, height = map(float, annotation["bbox"])
            if np.isfinite([x, y, width, height]).all():
                continue
        except (KeyError, TypeError, ValueError):
            pass
        break
    given = repr(annotation.get("bbox"))
    return f"{file}: {where(annotation)} has bbox {given}; it has to be four finite numbers x, y, width, height"


def _read_labels(annotations: list[dict[str, Any]], categories: Categories, file: Path) -> np.ndarray:
    """(A,) int64."""
    keys = as_keys([annotation.get("category_id") for annotation in annotations])
    no_class = min(categories.ids) - 1
    labels = categories.labels_of(np.array([key if isinstance(key, int) else no_class for key in keys], np.int64))
    unknown = np.flatnonzero(labels < 0)
    if len(unknown):
        annotation = annotations[unknown[0]]
        raise ValueError(
            f"{file}: {where(annotation)} has category_id {annotation.get('category_id')!r} ({len(unknown)} such "
            f"annotations), which is not a class of this data set; its classes are {_preview(categories)}"
        )
    return labels


def _preview(categories: Categories) -> str:
    shown = [f"{i} '{name}'" for i, name in zip(categories.ids[:10], categories.names[:10], strict=True)]
    return ", ".join(shown) + ", ..." * (len(categories.ids) > 10)


def _read_areas(annotations: list[dict[str, Any]], file: Path) -> np.ndarray:
    """(A,) float64 square pixels; NaN where there is none or where it cannot be one."""
    values = [annotation.get("area") for annotation in annotations]
    try:
        areas = np.array(values, np.float64)
    except (TypeError, ValueError):
        bad = next(
            annotation for annotation in annotations if not isinstance(annotation.get("area"), int | float | None)
        )
        raise ValueError(f"{file}: {where(bad)} has area {bad['area']!r}; it has to be a number") from None
    areas[~(np.isfinite(areas) & (areas >= 0))] = np.nan
    return areas


def _annotation_ids(annotations: list[dict[str, Any]]) -> np.ndarray:
    """(A,) int64; counted from 1 where the file has texts, gaps or numbers that do not fit."""
    ids = as_keys([annotation.get("id") for annotation in annotations])
    if all(type(key) is int and abs(key) < 2**63 for key in ids):
        return np.array(ids, np.int64)
    return np.arange(1, len(ids) + 1)


def _outside(
    boxes_xyxy: np.ndarray, image_index: np.ndarray, images: list[dict[str, Any]], image_root: Path, names: list[str]
) -> np.ndarray:
    """Whether each box lies fully outside its picture, (A,) bool.

    The sizes in the file only raise the suspicion; the picture itself decides, and only suspects are opened.
    """
    widths = np.array([_length(image.get("width")) for image in images], np.float64)
    heights = np.array([_length(image.get("height")) for image in images], np.float64)
    x0, y0, x1, y1 = boxes_xyxy.T
    outside = (x1 <= 0) | (y1 <= 0)
    suspect = ~outside & ((x0 >= widths[image_index]) | (y0 >= heights[image_index]))
    for index in np.unique(image_index[suspect]):
        # A damaged picture is reported when it is decoded.
        heights[index], widths[index] = picture_size(image_root / names[index]) or (np.inf, np.inf)
    return outside | (x0 >= widths[image_index]) | (y0 >= heights[image_index])


def _length(value: Any) -> float:
    """A length that is not given is 0, which makes every box a suspect."""
    return value if type(value) in (int, float) else 0


def _box_repairs(
    annotations: list[dict[str, Any]], boxes_xyxy: np.ndarray, outside: np.ndarray, crowd: np.ndarray
) -> list[Repair]:
    empty = ~has_extent(boxes_xyxy) & ~crowd
    found = []
    for kind, rows in (
        ("boxes without width or height, left out", np.flatnonzero(empty)),
        ("boxes fully outside the picture, left out", np.flatnonzero(outside & ~empty & ~crowd)),
    ):
        if len(rows):
            found.append(Repair(kind, len(rows), where(annotations[rows[0]])))
    return found
