"""`rfdetr check` and `rfdetr pack`: data sets before training."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rfdetr.commands.parser import add_config, add_data
from rfdetr.commands.values import add_number, add_switch
from rfdetr.variants import TASKS


def add_check(parser: argparse.ArgumentParser) -> None:
    """Add the options of `check`."""
    parser.description = "Exit code 1: training would not start."
    add_data(parser)
    parser.add_argument(
        "--task", choices=TASKS, help="what the data is for (default: boxes are checked; --fix writes all there is)"
    )
    add_number(parser, "resolution", "side of the network input", default=384)
    add_number(parser, "num-queries", "objects a model can find", default=300)
    add_switch(parser, "decode", "decode every picture, which finds damaged ones")
    add_switch(parser, "contents", "look for equal pictures, which reads them (default: on)", default=True)
    add_switch(parser, "json", "print JSON")
    parser.add_argument("--fix", metavar="OUT", help="write the data set, without what is wrong in it, to a new folder")
    add_config(parser)
    parser.set_defaults(function=run_check)


def run_check(options: argparse.Namespace) -> int:
    """Print the report."""
    from rfdetr.datasets.examine import examine

    source = _source(options)
    settings = {"resolution": options.resolution, "num_queries": options.num_queries}
    examined = examine(source, contents=options.contents, decode=options.decode, **settings)
    print(json.dumps(examined.report.as_dict(), indent=1) if options.json else examined.report.text())
    if options.fix:
        _fix(source, Path(options.fix).expanduser(), options.task)
        return 0
    return 1 if examined.report.fatal else 0


def _fix(source: Any, folder: Path, task: str | None) -> None:
    from rfdetr.datasets.annotations import SPLIT_FOLDERS
    from rfdetr.datasets.examine import Examined, examine, richest, with_outlines

    whole = examine(richest(source) if task is None else source, contents=False)
    if task is None:
        whole = Examined(with_outlines(whole.splits, source), whole.report)
    is_yolo = bool(whole.splits["train"].normalized.all()) if "train" in whole.splits else False
    for repair in whole.write(folder, is_yolo):
        print(f"{repair.kind}: {repair.count} (first: {repair.example})", file=sys.stderr)
    if lost := [split for split in SPLIT_FOLDERS if source.has(split) and split not in whole.splits]:
        print(f"left out, since it cannot be read: {', '.join(lost)}", file=sys.stderr)
    print(f"the repaired data set is in {folder}", file=sys.stderr)


def _source(options: argparse.Namespace) -> Any:
    from rfdetr.datasets.source import DataSource

    task = {"masks": options.task == "segment", "keypoints": options.task == "keypoints"}
    return DataSource([Path(path) for path in options.dataset], {}, options.dataset_file, **task)


def add_pack(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pack`."""
    add_data(parser)
    parser.add_argument("output", metavar="OUT", help="folder for the tar files")
    parser.add_argument("--task", choices=TASKS, help="what is packed (default: all there is)")
    add_number(parser, "max-shard-mb", "size of a tar file", kind=float, default=500)
    add_config(parser)
    parser.set_defaults(function=run_pack)


def run_pack(options: argparse.Namespace) -> int:
    """Write the tar files of every split."""
    from rfdetr.datasets.annotations import SPLIT_FOLDERS, AnnotationSet
    from rfdetr.datasets.examine import richest, with_outlines
    from rfdetr.datasets.pack import pack

    source = _source(options)
    source = richest(source) if options.task is None else source
    splits: dict[str, AnnotationSet] = {}
    for split in SPLIT_FOLDERS:
        if source.has(split):
            splits[split] = source.read(split, next(iter(splits.values()), None))
    if not splits:
        raise FileNotFoundError(f"{source} has no split of the layout {options.dataset_file}")
    for split, packed in (with_outlines(splits, source) if options.task is None else splits).items():
        for repair in pack(packed, Path(options.output).expanduser(), split, options.max_shard_mb):
            print(f"{split}: {repair.kind}: {repair.count} (first: {repair.example})", file=sys.stderr)
        print(f"{split}: {len(packed)} pictures")
    return 0
