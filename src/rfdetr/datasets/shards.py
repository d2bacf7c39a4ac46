"""Data sets packed into tar files: `<split>-index.json` beside `<split>-000000.tar`, ... (the WebDataset layout).

A tar file holds for each picture `<key>.jpg` (or another picture format) and `<key>.json` with its `image_id`, `width`,
`height`, `file_name` and its COCO `annotations`. Nothing is unpacked: pictures are read from their place in the file.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.datasets.annotations import AnnotationSet, Categories, Shards, may_leave
from rfdetr.datasets.coco import build, check_ids
from rfdetr.datasets.coco_columns import Columns
from rfdetr.datasets.faults import Faults
from rfdetr.datasets.keypoints import Wanted

INDEX_ENDING = "-index.json"


def read_shards(
    index_file: Path,
    categories: Categories | None = None,
    *,
    masks: bool = False,
    keypoints: bool = False,
    schema: Wanted = None,
    lenient: bool = False,
) -> AnnotationSet:
    """Read the split that an index describes; for the arguments see `layout.read_split`.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a shard is damaged, or holds another number of pictures than the index says.
    """
    document = _read_index(index_file)
    columns = Columns(index_file, masks, keypoints)
    files = tuple(index_file.parent / name for name in document["shards"])
    number, start, length = [], [], []
    for shard, file in enumerate(files):
        for key, picture, sample in _samples(file):
            row = len(number)
            objects = sample.get("annotations") or []
            image_id = sample.get("image_id", row)
            name = sample.get("file_name")
            name = name if isinstance(name, str) and name else key
            if may_leave(name) or "\0" in name:
                raise ValueError(
                    f"{file}: image id {image_id!r} has the name {name!r}, which leads out of a folder; rename it"
                )
            columns.add_picture(row, {**sample, "id": image_id, "file_name": f"{file.name}/{name}"})
            for position, entry in enumerate(objects, start=len(columns.ids)):
                columns.add_object(position, {**entry, "image_id": image_id} if type(entry) is dict else entry)
            number.append(shard)
            start.append(picture.offset_data)
            length.append(picture.size)
    check_ids(columns, "the shards")
    wanted = document.get("num_samples", len(number))
    if len(number) != wanted or not number:
        raise ValueError(f"{index_file}: its shards hold {len(number)} pictures, not {wanted}; pack the split again")
    shards = Shards(files, *(np.array(column, np.int64) for column in (number, start, length)))
    counted = {"annotations": len(columns.ids), "categories": document.get("categories")}
    there, faults = np.ones(len(number), bool), Faults(index_file, lenient)
    return build(columns, counted, index_file.parent, there, categories, faults, schema=schema, shards=shards)


def _read_index(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON in UTF-8: {error}") from None
    names = document.get("shards") if isinstance(document, dict) else None
    plain = isinstance(names, list) and all(isinstance(name, str) and Path(name).name == name for name in names)
    if not plain or not all(Path(name).suffix for name in names):  # ".." is a name too
        raise ValueError(f"{file}: 'shards' is {names!r}; it has to list the tar files that lie beside the index")
    return document


def _samples(file: Path) -> Iterator[tuple[str, tarfile.TarInfo, dict[str, Any]]]:
    """Name, picture and description of every sample of a shard; only headers and descriptions are read."""
    try:
        size = file.stat().st_size
        with tarfile.open(file, "r:") as tar:  # not compressed: pictures are read from their place
            held: dict[str, tarfile.TarInfo] = {}
            for member in tar:
                key, _, suffix = member.name.rpartition(".")
                if not member.isfile():  # links, folders and devices are no pictures
                    continue
                if member.offset_data + member.size > size:
                    raise ValueError(f"{member.name} is said to have {member.size} bytes, more than the file")
                other = held.pop(key, None)
                if other is None:
                    held[key] = member
                    continue
                described, picture = (member, other) if suffix == "json" else (other, member)
                content = tar.extractfile(described)
                sample = json.loads(content.read() if content else b"null")
                if not isinstance(sample, dict) or not isinstance(sample.get("annotations"), list | None):
                    raise ValueError(f"{described.name} holds no object, or one whose annotations are no list")
                yield picture.name, picture, sample
            if held:
                raise ValueError(f"{next(iter(held.values())).name} has no partner; pictures and .json come in pairs")
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: the shard does not exist") from None
    except (tarfile.TarError, EOFError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"{file} is damaged or no tar file of pictures: {error}") from None
