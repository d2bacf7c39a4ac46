"""Data sets to tar files, for disks and networks that dislike many small files. `shards` says what is in them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.datasets.annotations import AnnotationSet, Repair
from rfdetr.datasets.shards import INDEX_ENDING
from rfdetr.datasets.write import Lost, Pictures, coco_categories, coco_document

SHARD_MB = 500


def pack(annotations: AnnotationSet, folder: Path, split: str, max_mb: float = SHARD_MB) -> list[Repair]:
    """Write a split into tar files of about `max_mb` megabytes and an index; returns what they cannot hold as it was.

    Raises:
        FileExistsError: the folder holds that split already.
        ValueError: a picture cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index_file = folder / f"{split}{INDEX_ENDING}"
    if there := sorted(folder.glob(f"{split}-*")):
        raise FileExistsError(f"{there[0]} exists, and nothing is overwritten; name another folder")
    lost, pictures = Lost(), Pictures(annotations, in_yolo=False)
    if bad := np.flatnonzero(~annotations.sizes.all(axis=1)).tolist():
        raise ValueError(
            f"{annotations.source}: {len(bad)} pictures cannot be read, the first is {annotations.path(bad[0])}; "
            "`rfdetr check DATASET --fix OUT` writes the data set without them"
        )
    document = coco_document(split, annotations, pictures, lost)
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
    for entry in document["annotations"]:
        objects[entry["image_id"]].append(entry)
    writer = _Writer(folder, split, max_mb * 10**6)
    for index, image in zip(pictures.indices, document["images"], strict=True):
        described = {"image_id": image.pop("id"), **image}
        described["annotations"] = objects[described["image_id"]]
        suffix = annotations.path(index).suffix.lower() or ".jpg"
        writer.add(annotations.read(index), suffix, json.dumps(described, ensure_ascii=False).encode())
    writer.close()
    content = {
        "version": 1,
        "split": split,
        "num_samples": len(pictures.indices),
        "shards": list(writer.samples),
        "samples_per_shard": list(writer.samples.values()),
        "categories": coco_categories(annotations, lost),
    }
    # Written last: an index says that its shards are whole.
    index_file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return lost.repairs()


class _Writer:
    """Begins another tar file when one is full."""

    def __init__(self, folder: Path, split: str, max_bytes: float) -> None:
        self.folder, self.split, self.max_bytes = folder, split, max_bytes
        self.samples: dict[str, int] = {}
        self._tar: tarfile.TarFile | None = None
        self._size, self._count = 0, 0

    def add(self, picture: bytes, suffix: str, description: bytes) -> None:
        if self._tar is None or self._size >= self.max_bytes:
            self.close()
            name, self._size = f"{self.split}-{len(self.samples):06d}.tar", 0
            self._tar, self.samples[name] = tarfile.open(self.folder / name, "x"), 0  # noqa: SIM115
        for ending, content in ((suffix, picture), (".json", description)):
            member = tarfile.TarInfo(f"{self._count:08d}{ending}")
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
        self._size, self._count = self._size + len(picture), self._count + 1
        self.samples[next(reversed(self.samples))] += 1

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
