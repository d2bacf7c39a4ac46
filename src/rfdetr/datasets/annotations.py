"""One split's labels as flat arrays, and the small facts every reader shares; knows no file format and no tensors."""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from rfdetr.datasets.geometry import Target
from rfdetr.datasets.keypoints import KeypointSchema
from rfdetr.datasets.masks import MaskStack
from rfdetr.datasets.outlines import Outlines

SPLIT_FOLDERS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
"""Folder names of each split; the first that exists wins."""


@dataclass(frozen=True)
class Repair:
    """A kind of oddity that was mended while reading, how often, and where it came up first."""

    kind: str
    count: int
    example: str
    fatal: bool = False
    """Whether it is an error unless it was asked to leave such things out (`lenient`)."""


@dataclass(frozen=True)
class Categories:
    """The classes of a data set, ascending by their original id.

    A label is the position of the class, or with `raw_ids` the original id itself (the 91-slot head of COCO), or what
    `slots` says (a keypoint model may want its classes with keypoints at certain labels).
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    raw_ids: bool = False
    slots: tuple[int, ...] | None = None

    @property
    def labels(self) -> tuple[int, ...]:
        """The label of each class, in the order of `names`."""
        if self.slots is not None:
            return self.slots
        return self.ids if self.raw_ids else tuple(range(len(self.ids)))

    @property
    def num_classes(self) -> int:
        """Number of classes the head has to know: labels run from 0 to N-1, raw ids from 1 to N."""
        return max(self.ids) if self.raw_ids else max(self.labels) + 1

    def labels_of(self, category_ids: np.ndarray) -> np.ndarray:
        """Label of each original id, (A,) int64 -> (A,) int64; -1 where the id is not a class of this data set."""
        ids = np.asarray(self.ids, np.int64)
        order = np.argsort(ids)
        position = order[np.searchsorted(ids, category_ids, sorter=order).clip(max=len(ids) - 1)]
        return np.where(ids[position] == category_ids, np.asarray(self.labels, np.int64)[position], -1)


@dataclass(frozen=True, eq=False)
class Shards:
    """Where N pictures lie in tar files."""

    files: tuple[Path, ...]
    number: np.ndarray
    """(N,) int64: which of the files; -1 for a picture that is a file of its own."""
    start: np.ndarray
    """(N,) int64: first byte."""
    length: np.ndarray
    """(N,) int64: bytes."""

    def read(self, index: int) -> bytes:
        """One encoded picture."""
        with self.files[self.number[index]].open("rb") as handle:
            handle.seek(int(self.start[index]))
            return handle.read(int(self.length[index]))

    def take(self, rows: np.ndarray) -> Shards:
        """The given pictures in the given order."""
        return Shards(self.files, self.number[rows], self.start[rows], self.length[rows])


@dataclass(frozen=True, eq=False)
class AnnotationSet:
    """The labels of one split: N pictures, A objects, the objects of picture i in rows offsets[i] to offsets[i+1].

    Nothing here is one Python object per picture or object, so loader workers share the memory.
    """

    root: Path
    """Folder the picture names are relative to."""
    source: Path
    """Annotation file (COCO) or description file (YOLO)."""
    categories: Categories
    name_bytes: np.ndarray
    """(bytes,) uint8: all picture names in UTF-8, one after the other."""
    name_offsets: np.ndarray
    """(N+1,) int64 into `name_bytes`."""
    image_ids: np.ndarray
    """(N,) int64."""
    offsets: np.ndarray
    """(N+1,) int64 into the columns below."""
    boxes_xyxy: np.ndarray
    """(A, 4) float64, as written, not clamped; fractions of the picture where `normalized`, else pixels."""
    labels: np.ndarray
    """(A,) int64."""
    areas: np.ndarray
    """(A,) float64 in square pixels; NaN where the file gives none."""
    crowd: np.ndarray
    """(A,) bool: regions that are no training target and are ignored in evaluation."""
    annotation_ids: np.ndarray
    """(A,) int64."""
    normalized: np.ndarray
    """(N,) bool: whether boxes and keypoints of a picture are fractions of it, as YOLO writes them."""
    outlines: Outlines | None = None
    """The mask of each row, where masks were asked for."""
    keypoints: np.ndarray | None = None
    """(A, K, 3) float64 x, y and visibility 0, 1 or 2, where keypoints were asked for; x, y as in `boxes_xyxy`."""
    schema: KeypointSchema | None = None
    """What the keypoints are, where they were asked for."""
    written_sizes: np.ndarray | None = None
    """(N, 2) float64 height and width as the annotation file says, 0 where it does not; the pictures decide."""
    shards: Shards | None = None
    """Where the pictures lie in tar files, unless each is a file of its own."""
    repairs: tuple[Repair, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def class_names(self) -> list[str]:
        return list(self.categories.names)

    @property
    def category_ids(self) -> list[int]:
        """Original id of each class, in the order of `class_names`."""
        return list(self.categories.ids)

    def path(self, index: int) -> Path:
        """Picture file; for one in a shard, the shard and the name in it."""
        start, end = self.name_offsets[index], self.name_offsets[index + 1]
        return self.root / self.name_bytes[start:end].tobytes().decode("utf-8", "surrogatepass")

    def read(self, index: int) -> bytes:
        """The encoded picture; FileNotFoundError names it."""
        if self.shards is not None and self.shards.number[index] >= 0:
            return self.shards.read(index)
        try:
            return self.path(index).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"picture {self.path(index)}: there is no such file") from None

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """(N, 2) int64 height and width by the headers of the pictures, read once; 0 for those that cannot be read."""
        sizes = np.zeros((len(self), 2), np.int64)
        for index in range(len(self)):
            in_shard = self.shards is not None and self.shards.number[index] >= 0
            if size := picture_size(io.BytesIO(self.read(index)) if in_shard else self.path(index)):
                sizes[index] = size
        return sizes

    def rows(self, index: int) -> slice:
        """Rows of one picture in the columns."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    @property
    def image_index(self) -> np.ndarray:
        """Position of the picture of every row, (A,) int64."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def boxes_xyxy_px(self, index: int, height: int, width: int) -> np.ndarray:
        """All boxes of one picture of the given decoded size, crowd regions too, not clamped: (n, 4) float64 pixels."""
        boxes_xyxy = self.boxes_xyxy[self.rows(index)]
        return boxes_xyxy * (width, height, width, height) if self.normalized[index] else boxes_xyxy.copy()

    def all_boxes_xyxy_px(self) -> np.ndarray:
        """The boxes of all pictures, not clamped: (A, 4) float64 pixels."""
        scale = np.where(self.normalized[:, None], self.sizes, 1)[self.image_index]
        return self.boxes_xyxy * scale[:, [1, 0, 1, 0]]

    def keypoints_px(self, index: int, height: int, width: int) -> np.ndarray:
        """Keypoints of all objects of one picture of the given decoded size: (n, K, 3) float64, x and y in pixels."""
        assert self.keypoints is not None
        return self.keypoints[self.rows(index)] * ((width, height, 1) if self.normalized[index] else 1)

    def target(self, index: int, height: int, width: int) -> Target:
        """What training sees of one picture: no crowd regions, boxes clamped to the decoded size, empty ones left out.

        Returns:
            boxes (n, 4) float32 xyxy pixels, labels (n,) int64, area (n,) float32 square pixels, iscrowd (n,) int64,
            image_id (1,) int64, orig_size (2,) int64 as height, width; where they were read, masks as a `MaskStack` of
            n and keypoints (n, K, 3) float32 pixels.
        """
        rows = self.rows(index)
        boxes = clamp_boxes(self.boxes_xyxy_px(index, height, width), height, width).astype(np.float32)
        keep = ~self.crowd[rows] & has_extent(boxes)
        boxes = boxes[keep]
        area = self.areas[rows][keep]
        clamped_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        target: Target = {
            "boxes": boxes,
            "labels": self.labels[rows][keep],
            "area": np.where(np.isnan(area), clamped_area, area).astype(np.float32),
            "iscrowd": np.zeros(len(boxes), np.int64),
            "image_id": self.image_ids[index : index + 1].copy(),
            "orig_size": np.array([height, width], np.int64),
        }
        if self.outlines is not None:
            draw = functools.partial(self.outlines.patch, height=height, width=width)
            target["masks"] = MaskStack(draw, np.flatnonzero(keep) + rows.start, (height, width))
        if self.keypoints is not None:
            target["keypoints"] = self.keypoints_px(index, height, width)[keep].astype(np.float32)
        return target

    def warn_about_repairs(self) -> None:
        """One warning for the whole split, with number and first example of each kind."""
        if self.repairs:
            parts = [f"{repair.kind}: {repair.count} (first: {repair.example})" for repair in self.repairs]
            warnings.warn(f"{self.source}: {'; '.join(parts)}", UserWarning, stacklevel=3)


def clamp_boxes(boxes_xyxy: np.ndarray, height: float, width: float) -> np.ndarray:
    """Boxes cut to 0..width and 0..height, (n, 4) -> (n, 4)."""
    return boxes_xyxy.clip(0, np.array([width, height, width, height], boxes_xyxy.dtype))


def has_extent(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Whether each box has width and height above zero, (n, 4) -> (n,) bool."""
    x0, y0, x1, y1 = boxes_xyxy.T
    return (x1 > x0) & (y1 > y0)


def pack_names(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as one (bytes,) uint8 array and (N+1,) int64 offsets into it."""
    # Linux hands out names that are not UTF-8 as lone surrogates; they have to survive the round trip.
    encoded = [name.encode("utf-8", "surrogatepass") for name in names]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(name) for name in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def row_offsets(row_image_index: np.ndarray, num_images: int) -> np.ndarray:
    """(N+1,) int64 offsets of rows that are sorted by the position of their picture."""
    offsets = np.zeros(num_images + 1, np.int64)
    np.cumsum(np.bincount(row_image_index, minlength=num_images), out=offsets[1:])
    return offsets


def name_repairs(names: tuple[str, ...], source: Path) -> list[Repair]:
    """A repair if several classes carry the same name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not twice:
        return []
    return [Repair("class names that several classes share", len(twice), f"'{twice[0]}' in {source.name}")]


def agree_categories(
    trained: Categories | None, own: Categories, source: Path, used: Collection[int] = ()
) -> tuple[Categories, list[Repair]]:
    """The classes that count for a split: those of the train split where given; ValueError if the two contradict.

    Args:
        used: ids that objects of the split have.
    """
    if trained is None:
        return own, name_repairs(own.names, source)
    if trained.raw_ids != own.raw_ids:
        raise ValueError(f"{source}: raw_ids={own.raw_ids}, but the given categories have raw_ids={trained.raw_ids}")
    trained_name = dict(zip(trained.ids, trained.names, strict=True))
    other = [(i, name) for i, name in zip(own.ids, own.names, strict=True) if trained_name.get(i, name) != name]
    for category_id, name in other:
        if (
            category_id in used
            and name.casefold() != trained_name[category_id].casefold()
            and name not in trained.names
        ):
            raise ValueError(
                f"{source}: category {category_id} is '{name}' and has objects, but in the train split it is "
                f"'{trained_name[category_id]}'; give all splits the same categories"
            )
        if name in trained.names:
            raise ValueError(
                f"{source}: category {category_id} is '{name}', but in the train split it is "
                f"'{trained_name[category_id]}' and '{name}' has another id; give all splits the same categories"
            )
    if not other:
        return trained, []
    example = f"{other[0][0]} is '{other[0][1]}' here and '{trained_name[other[0][0]]}' there"
    return trained, [Repair("categories named otherwise in the train split, whose names count", len(other), example)]


def picture_size(path: Path | BinaryIO) -> tuple[int, int] | None:
    """Height and width in the header; None for a picture that is damaged or too large to be decoded."""
    try:
        with Image.open(path) as image:
            too_large = Image.MAX_IMAGE_PIXELS is not None and image.height * image.width > Image.MAX_IMAGE_PIXELS
            return None if too_large else (image.height, image.width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def may_leave(name: str) -> bool:
    """Whether a name could lead out of the folder it is relative to, on some system; most names cannot."""
    return ".." in name or name[0] in "/\\" or name[1:2] == ":"


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path stays in a folder by its spelling; links are taken by their name, not by where they lead."""
    return Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath(folder.absolute()))


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; unlike `Path.exists`, no where a name is too long for the system."""
    return os.path.exists(path)  # noqa: PTH110


def list_folder(folder: Path) -> set[str]:
    """Names in a folder; empty if there is no such folder."""
    return {entry.name for entry in os.scandir(folder)} if os.path.isdir(folder) else set()  # noqa: PTH112


def missing_pictures(root: Path, names: list[str]) -> list[int]:
    """Positions of the names that are no files below `root`. Each folder is listed once."""
    listings: dict[str, set[str]] = {}
    missing = []
    for position, name in enumerate(names):
        folder, _, base = name.rpartition("/")
        if folder not in listings:
            listings[folder] = list_folder(root / folder)
        # File systems may spell a name differently than they accept it (upper case, composed accents).
        if base not in listings[folder] and not exists(root / name):
            missing.append(position)
    return missing
