"""A whole data set looked through, whatever is wrong with it, and written again without that."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rfdetr.datasets.annotations import SPLIT_FOLDERS, AnnotationSet, Repair
from rfdetr.datasets.check import Finding, Report, check
from rfdetr.datasets.source import DataSource
from rfdetr.datasets.write import write_coco, write_yolo


@dataclass(frozen=True)
class Examined:
    """What was read of a data set, and what is odd about it."""

    splits: Mapping[str, AnnotationSet]
    report: Report

    def write(self, folder: Path, as_yolo: bool) -> list[Repair]:
        """Write what was read, without what had to be left out, into an empty folder; returns what it cannot hold."""
        if "train" not in self.splits:
            raise ValueError("there is no train split that can be read, so nothing can be written")
        return (write_yolo if as_yolo else write_coco)(self.splits, folder)


def examine(
    source: DataSource,
    *,
    resolution: int | None = None,
    block: int = 32,
    num_queries: int | None = None,
    contents: bool = True,
    decode: bool = False,
) -> Examined:
    """Read all splits, leaving out what is wrong, and check them; for the arguments see `check`.

    Raises:
        FileNotFoundError: there is no such data set.
    """
    splits: dict[str, AnnotationSet] = {}
    broken: list[Finding] = []
    for split in SPLIT_FOLDERS:
        if not source.has(split):
            if split == "train":
                broken.append(
                    Finding("fatal", split, "there is no such split", 1, (str(source),), "nothing to train on")
                )
            continue
        try:
            splits[split] = source.read(split, splits.get("train"), lenient=True)
        except (ValueError, OSError) as error:
            broken.append(Finding("fatal", split, "it cannot be read", 1, (str(error),)))
    if not splits:
        return Examined(splits, Report((), {}, tuple(broken), None))
    report = check(
        splits, resolution=resolution, block=block, num_queries=num_queries, contents=contents, decode=decode
    )
    return Examined(splits, replace(report, findings=(*broken, *report.findings)))


def richest(source: DataSource) -> DataSource:
    """The same source, read with keypoints if the data has them, else with outlines if it has some."""
    for one in (replace(source, keypoints=True), replace(source, masks=True)):
        try:
            one.read("train", lenient=True)
        except (ValueError, OSError):
            continue
        return one
    return source


def with_outlines(splits: Mapping[str, AnnotationSet], source: DataSource) -> dict[str, AnnotationSet]:
    """Splits of a COCO data set that were read with keypoints, with the outlines of their objects where there are some.

    No model needs both, but a data set that is written again should keep both.
    """
    both = dict(splits)
    for split, own in splits.items():
        if own.keypoints is not None and not own.normalized.any():  # a YOLO line has one of them
            with contextlib.suppress(ValueError, OSError):
                other = replace(source, masks=True, keypoints=False).read(split, lenient=True)
                there = other.outlines is not None and other.outlines.exist.any()
                if there and np.array_equal(other.annotation_ids, own.annotation_ids):
                    both[split] = replace(own, outlines=other.outlines)
    return both
