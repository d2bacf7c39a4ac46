"""Where the splits of a run come from: one data set, several that are joined, or paths of single splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.keypoints import KeypointSchema, Wanted
from rfdetr.datasets.layout import Place, find_given, find_split, read_place, read_split
from rfdetr.datasets.merge import merge
from rfdetr.log import logger


@dataclass(frozen=True)
class DataSource:
    """The data of a run.

    Args:
        roots: data sets; several are joined by the names of their classes.
        given: paths that make a split instead of those in `roots`, see `layout.find_given`.
        dataset_file: see `layout.read_split`.
        masks, keypoints: what is read beside the boxes.
    """

    roots: Sequence[Path]
    given: Mapping[str, Sequence[Path]]
    dataset_file: str = "roboflow"
    masks: bool = False
    keypoints: bool = False

    def __str__(self) -> str:
        paths = [*self.roots, *(path for paths in self.given.values() for path in paths)]
        return ", ".join(map(str, paths))

    def has(self, split: str) -> bool:
        """Whether there is such a split ("train", "valid" or "test")."""
        return bool(self.given.get(split)) or any(self._find(root, split) for root in self.roots)

    def read(
        self, split: str, train: AnnotationSet | None = None, schema: Wanted = None, lenient: bool = False
    ) -> AnnotationSet:
        """Read a split.

        Args:
            train: the train split, whose labels and keypoints count.
            schema: see `layout.read_split`; without `train`.
            lenient: see `layout.read_split`.

        Raises:
            FileNotFoundError, ValueError: see `layout.read_split` and `merge`.
        """
        if train is not None and train.schema is not None:
            schema = train.schema
        asked: dict[str, Any] = {"masks": self.masks, "keypoints": self.keypoints, "lenient": lenient}
        if len(self.roots) == 1 and not any(self.given.values()):
            categories = train.categories if train else None
            return read_split(self.roots[0], split, self.dataset_file, categories, schema=schema, **asked)
        # Ids of different files say nothing about each other, so that their classes meet by name.
        places = self._places(split)
        if self.dataset_file in ("coco", "o365"):
            if len(places) > 1:
                raise ValueError(
                    f"dataset_file={self.dataset_file!r} takes the category ids as labels, but data sets are joined by "
                    'name; leave it out, or give dataset_file="roboflow"'
                )
            places = [replace(place, raw_ids=place.format == "coco") for place in places]
        wanted = None if isinstance(schema, KeypointSchema) else schema
        parts = [read_place(place, split, schema=wanted if len(places) == 1 else None, **asked) for place in places]
        joined = parts[0] if len(parts) == 1 and train is None else merge(parts, train)
        if wanted and len(places) > 1 and joined.schema is not None:
            _check_counts(joined.schema.counts, wanted, self)
        return joined

    def _places(self, split: str) -> list[Place]:
        around = self.roots[0] if self.roots else None
        if paths := self.given.get(split):
            return [find_given(path, split, around, self.keypoints) for path in paths]
        places = [(root, self._find(root, split)) for root in self.roots]
        missing = [root for root, place in places if place is None]
        if len(missing) == len(places) or (missing and split == "train"):
            raise FileNotFoundError(f"there is no {split} split in {', '.join(map(str, missing)) or 'nothing'}")
        if missing:
            logger.info("%s: no %s split, so that of the others counts", ", ".join(map(str, missing)), split)
        return [place for _, place in places if place is not None]

    def _find(self, root: Path, split: str) -> Place | None:
        return find_split(root, split, self.dataset_file, self.keypoints)


def _check_counts(counts: Sequence[int], wanted: Sequence[int], source: DataSource) -> None:
    """ValueError if joined data sets have other keypoints by label than are wanted; zeros at the end say nothing."""
    length = max(len(counts), len(wanted))
    if any(np.subtract(*(np.pad(one, (0, length - len(one))) for one in (counts, wanted)))):
        raise ValueError(
            f"num_keypoints_per_class={list(wanted)}, but the classes of {source} have {list(counts)} keypoints; "
            "leave the option out to take those"
        )
