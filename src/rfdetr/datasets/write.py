"""AnnotationSets to COCO or YOLO folders, without what readers would have to mend."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.datasets import rle
from rfdetr.datasets.annotations import AnnotationSet, Repair, clamp_boxes, has_extent
from rfdetr.datasets.check import class_index, relative_name, usable_boxes
from rfdetr.datasets.keypoints import KeypointSchema, pairs_by_name
from rfdetr.datasets.layout import ROBOFLOW_FILE
from rfdetr.datasets.outlines import Outlines
from rfdetr.datasets.yolo import PICTURE_SUFFIXES

YOLO_ENTRIES = {"train": "train", "valid": "val", "test": "test"}
DIGITS = 9
"""Decimals of fractions: a ten-thousandth of a pixel in a picture of 100,000."""


def write_coco(splits: Mapping[str, AnnotationSet], folder: Path) -> list[Repair]:
    """Write `<split>/_annotations.coco.json` for every split, with its pictures beside it.

    Pictures are hard links where that is possible. Left out are pictures that cannot be read, and boxes without extent
    or outside of their picture. The splits share their classes.

    Returns:
        What could not be written as it was.

    Raises:
        FileExistsError: the folder holds something.
    """
    _require_empty(folder)
    lost = Lost()
    categories = coco_categories(next(iter(splits.values())), lost)
    for split, written in splits.items():
        pictures = Pictures(written, in_yolo=False)
        if pictures.indices:
            pictures.place(folder / split)
            document = {**coco_document(split, written, pictures, lost), "categories": categories}
            (folder / split / ROBOFLOW_FILE).write_text(json.dumps(document), encoding="utf-8")
    return lost.repairs()


def write_yolo(splits: Mapping[str, AnnotationSet], folder: Path) -> list[Repair]:
    """Write `data.yaml` and `<split>/images` and `<split>/labels` for every split; for the rest see `write_coco`.

    Boxes and polygons are cut to their pictures. Readers take the box around a polygon as the box of its object.
    """
    import yaml

    _require_empty(folder)
    lost = Lost()
    first = next(iter(splits.values()))
    settings: dict[str, Any] = {}
    for split, written in splits.items():
        pictures = Pictures(written, in_yolo=True)
        if pictures.indices:
            pictures.place(folder / split / "images")
            _write_labels(split, written, pictures, folder / split / "labels", lost)
            settings[YOLO_ENTRIES[split]] = f"{split}/images"
    names = _unique_classes(first)
    settings |= {"nc": len(names), "names": names, **_yolo_keypoints(first, lost)}
    (folder / "data.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return lost.repairs()


class Lost:
    """Counts what a format cannot hold, by kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, kind: str, example: str) -> None:
        self._counts[kind] += 1
        self._examples.setdefault(kind, example)

    def repairs(self) -> list[Repair]:
        return [Repair(kind, count, self._examples[kind]) for kind, count in self._counts.items()]


@dataclass
class Pictures:
    """The readable pictures of a split and the names they get."""

    annotations: AnnotationSet
    in_yolo: bool

    @cached_property
    def indices(self) -> list[int]:
        return np.flatnonzero(self.annotations.sizes.all(axis=1)).tolist()

    @cached_property
    def names(self) -> dict[int, str]:
        # Some file systems do not tell upper from lower case, and the label file of a.jpg is that of a.png.
        key = (lambda name: _stem(name).casefold()) if self.in_yolo else str.casefold
        names = _without_repeats(map(self._safe_name, self.indices), _renamed, key)
        return dict(zip(self.indices, names, strict=True))

    def _safe_name(self, index: int) -> str:
        """The relative name; the bare one where the picture is not in the folder of the data set."""
        path, shards = Path(os.path.normpath(relative_name(self.annotations, index))), self.annotations.shards
        if shards is not None and shards.number[index] >= 0 and path.parts[0].endswith(".tar"):
            path = path.relative_to(path.parts[0])
        name = path.name if path.is_absolute() or path.parts[0] == ".." else path.as_posix()
        if self.in_yolo or self.annotations.normalized[index]:
            # Labels are looked for where the last folder "images" is, so there must be no second one.
            name = f"/{name}".rpartition("/images/")[2].lstrip("/")
        # YOLO finds pictures by their suffix and decodes them by their content.
        return f"{name}.png" if self.in_yolo and not name.lower().endswith(PICTURE_SUFFIXES) else name

    def place(self, folder: Path) -> None:
        """Link, copy or write all pictures."""
        for index, name in self.names.items():
            source, target = self.annotations.path(index), folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not source.is_file():  # in a shard
                target.write_bytes(self.annotations.read(index))
                continue
            try:
                os.link(source.resolve(), target)
            except OSError:
                shutil.copyfile(source, target)


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds something already, and nothing is overwritten; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)


def _without_repeats(
    names: Iterable[str], renamed: Callable[[str, int], str], key: Callable[[str], str] = str
) -> list[str]:
    """The names; those whose key was there before are renamed with a number."""
    taken: set[str] = set()
    unique = []
    for name in names:
        number, candidate = 1, name
        while key(candidate) in taken:
            number += 1
            candidate = renamed(name, number)
        taken.add(key(candidate))
        unique.append(candidate)
    return unique


def _renamed(path: str, number: int) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{number}_{name}"


def _unique_classes(annotations: AnnotationSet) -> list[str]:
    return _without_repeats(annotations.class_names, lambda name, number: f"{name}_{number}")


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _ids(given: np.ndarray) -> list[int]:
    """The ids if they are unique, as they are not always in merged data, else 1, 2, 3, ..."""
    return given.tolist() if len(np.unique(given)) == len(given) else list(range(1, len(given) + 1))


def coco_categories(annotations: AnnotationSet, lost: Lost) -> list[dict[str, Any]]:
    """The `categories` of a COCO file."""
    names = _unique_classes(annotations)
    entries = [
        {"id": category_id, "name": name, "supercategory": "none"}
        for category_id, name in zip(annotations.category_ids, names, strict=True)
    ]
    schema = annotations.schema
    if schema is None:
        return entries
    shapes = zip(schema.names, schema.skeleton or ((),) * len(schema.names), strict=True)
    by_label = dict(zip(np.flatnonzero(schema.counts).tolist(), shapes, strict=True))
    for entry, label in zip(entries, annotations.categories.labels, strict=True):
        own, lines = by_label.get(label, ((), ()))
        if own:
            entry |= {"keypoints": list(own), "skeleton": [[first + 1, second + 1] for first, second in lines]}
    if schema.flip_pairs is not None and any(pairs_by_name(own) != schema.flip_pairs for own in schema.names):
        kind = "keypoints that change places in a mirrored picture, which COCO cannot say; give keypoint_flip_pairs"
        lost.add(kind, str(list(schema.flip_pairs)))
    return entries


def coco_document(split: str, annotations: AnnotationSet, pictures: Pictures, lost: Lost) -> dict[str, Any]:
    """The `images` and `annotations` of a COCO file."""
    image_ids, sizes = _ids(annotations.image_ids), annotations.sizes.tolist()
    images = [
        {"id": image_ids[i], "file_name": name, "height": sizes[i][0], "width": sizes[i][1]}
        for i, name in pictures.names.items()
    ]
    entries = _coco_annotations(annotations, image_ids)
    if annotations.outlines is not None:
        _add_segmentations(split, annotations, entries, lost)
    if annotations.keypoints is not None and annotations.schema is not None:
        _add_keypoints(annotations, annotations.keypoints, annotations.schema, entries)
    return {"images": images, "annotations": list(entries.values())}


def _coco_annotations(annotations: AnnotationSet, image_ids: list[int]) -> dict[int, dict[str, Any]]:
    """What is written for each row that is kept."""
    index = annotations.image_index
    clamped, usable = usable_boxes(annotations)
    boxes_xywh = annotations.all_boxes_xyxy_px()
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    # A reader adds the two again, which may round to the border.
    usable &= (boxes_xywh[:, :2] + boxes_xywh[:, 2:] > 0).all(axis=1)
    keep = usable | (annotations.crowd & annotations.sizes[index].all(axis=1))
    box_areas = (clamped[:, 2:] - clamped[:, :2]).prod(axis=1)
    columns = {
        "id": _ids(annotations.annotation_ids),
        "image_id": np.array(image_ids)[index].tolist(),
        "category_id": np.array(annotations.category_ids)[class_index(annotations)].tolist(),
        "bbox": boxes_xywh.tolist(),
        "area": np.where(np.isnan(annotations.areas), box_areas, annotations.areas).tolist(),
        "iscrowd": annotations.crowd.astype(int).tolist(),
    }
    return {row: {key: values[row] for key, values in columns.items()} for row in np.flatnonzero(keep).tolist()}


def _add_segmentations(split: str, annotations: AnnotationSet, entries: dict[int, dict[str, Any]], lost: Lost) -> None:
    """Polygons or runs; the box where there is neither, as a YOLO reader takes it."""
    outlines = annotations.outlines
    assert outlines is not None
    index, exist = annotations.image_index, outlines.exist
    for row, entry in entries.items():
        height, width = annotations.sizes[index[row]].tolist()
        runs = outlines.runs[outlines.row_runs[row] : outlines.row_runs[row + 1]]
        if len(runs):
            entry["segmentation"] = {"size": [height, width], "counts": rle.to_text(runs)}
        elif exist[row]:
            scale = (width, height) if outlines.normalized[row] else 1
            entry["segmentation"] = [(ring * scale).ravel().tolist() for ring in _rings(outlines, row)]
        elif not entry["iscrowd"]:
            x, y, w, h = entry["bbox"]
            entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            where = f"annotation {entry['id']} of {split}/{relative_name(annotations, index[row])}"
            lost.add("objects without outline, whose box is written as one", where)


def _rings(outlines: Outlines, row: int) -> list[np.ndarray]:
    """The polygons of a row, each (n, 2)."""
    ends = outlines.rings[outlines.row_rings[row] : outlines.row_rings[row + 1] + 1].tolist()
    return [outlines.points[start:end] for start, end in pairwise(ends)]


def _add_keypoints(
    annotations: AnnotationSet, keypoints: np.ndarray, schema: KeypointSchema, entries: dict[int, dict[str, Any]]
) -> None:
    index, labels = annotations.image_index, annotations.labels.tolist()
    scale = np.where(annotations.normalized[:, None], annotations.sizes[:, ::-1], 1)[index]
    places = keypoints.copy()
    places[..., :2] *= scale[:, None]
    for row, entry in entries.items():
        if count := schema.counts[labels[row]]:
            entry["keypoints"] = places[row, :count].ravel().tolist()
            entry["num_keypoints"] = int((places[row, :count, 2] > 0).sum())


def _yolo_keypoints(annotations: AnnotationSet, lost: Lost) -> dict[str, Any]:
    """The entries of data.yaml that tell what the keypoints are; YOLO has equally many for all classes."""
    schema = annotations.schema
    if schema is None:
        return {}
    count, by_label = max(schema.counts), dict(zip(np.flatnonzero(schema.counts).tolist(), schema.names, strict=True))
    names = [by_label.get(label, ()) for label in annotations.categories.labels]
    for name, own in zip(annotations.class_names, names, strict=True):
        if len(own) < count:
            lost.add("classes with fewer keypoints than others, filled up with ones never seen", name)
    if any(schema.skeleton):
        lost.add("lines between keypoints, which YOLO does not have", annotations.source.name)
    filled = {i: [*own, *map(str, range(len(own), count))] for i, own in enumerate(names)}
    settings = {"kpt_shape": [count, 3], "kpt_names": filled}
    if schema.flip_pairs is None:
        return settings
    order = np.arange(count)
    order[list(schema.flip_pairs)] = np.reshape(schema.flip_pairs, (-1, 2))[:, ::-1].ravel()
    return settings | {"flip_idx": order.tolist()}


def _write_labels(split: str, annotations: AnnotationSet, pictures: Pictures, folder: Path, lost: Lost) -> None:
    """A label file for every picture, empty for background."""
    index = annotations.image_index
    clamped, usable = usable_boxes(annotations)
    scale = annotations.sizes[index][:, ::-1].clip(min=1)
    x0, y0, x1, y1 = (clamped / np.tile(scale, 2)).T
    boxes_cxcywh = np.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), axis=1).round(DIGITS)
    middle, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
    # What rounding has made empty would be mended by the next reader.
    usable &= has_extent(clamp_boxes(np.hstack((middle - half, middle + half)), 1, 1))
    shapes = [row.tolist() for row in boxes_cxcywh]
    points = _yolo_places(annotations, scale)
    classes, lines = class_index(annotations).tolist(), {i: [] for i in pictures.indices}
    for row in np.flatnonzero(usable).tolist():
        where = f"{split}/{relative_name(annotations, index[row])}"
        if annotations.crowd[row]:
            lost.add("crowd regions, which YOLO does not have", where)
            continue
        shape = _yolo_polygon(annotations.outlines, row, scale[row], where, lost) or shapes[row]
        numbers = [*shape, *(points[row].ravel().tolist() if points is not None else ())]
        lines[index[row]].append(" ".join((str(classes[row]), *(f"{number:.{DIGITS}g}" for number in numbers))))
    for i, name in pictures.names.items():
        file = folder / f"{_stem(name)}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines[i]), encoding="utf-8")


def _yolo_places(annotations: AnnotationSet, scale: np.ndarray) -> np.ndarray | None:
    """The keypoints of all rows with x and y as fractions, (A, K, 3)."""
    if annotations.keypoints is None:
        return None
    places = annotations.keypoints.copy()
    places[..., :2] /= np.where(annotations.normalized[annotations.image_index, None], 1, scale)[:, None]
    places[..., :2] = places[..., :2].clip(0, 1).round(DIGITS)
    return places


def _yolo_polygon(outlines: Outlines | None, row: int, scale: np.ndarray, where: str, lost: Lost) -> list[float] | None:
    """The polygons of a row as one, as fractions x1, y1, x2, y2, ...; None if there are none."""
    if outlines is None:
        return None
    rings = [ring / (1 if outlines.normalized[row] else scale) for ring in _rings(outlines, row)]
    if (
        len(rings) == 1
        and len(rings[0]) == 4
        and all(np.isin(side, (side.min(), side.max())).all() for side in rings[0].T)
    ):
        return None  # a box, which is what it was read from
    rings = [ring.clip(0, 1).round(DIGITS) for ring in rings]
    rings = [ring for ring in rings if np.ptp(ring, axis=0).all()]
    if not rings:
        lost.add("objects without polygon, of which YOLO gets the box", where)
        return None
    if len(rings) > 1:
        lost.add("outlines of several polygons, which YOLO gets joined by lines", where)
        # There and back on the same lines, which enclose nothing.
        starts = [ring[:1] for ring in rings]
        closed = [part for both in zip(rings, starts, strict=True) for part in both]
        rings = [np.concatenate((*closed, *starts[-2:0:-1]))]
    return rings[0].ravel().tolist()
