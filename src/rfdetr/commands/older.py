"""The command line of releases 1.0 to 1.5: `rfdetr --coco_dir DIR`, or a data set of Roboflow, and Base is trained."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from rfdetr.commands.parser import Parser, as_dashes, exit_code

NAMES = ("--coco-dir", "--api-key", "--workspace", "--project-name", "--dataset-version")


def is_older(arguments: Sequence[str]) -> bool:
    """Whether the first argument is one of those options."""
    return bool(arguments) and as_dashes(arguments)[0].split("=")[0] in NAMES


def run(arguments: Sequence[str]) -> int:
    """Train Base on a COCO folder, or on a version of a Roboflow project, which is fetched first."""
    parser = Parser(prog="rfdetr", usage="rfdetr --coco_dir DIR | --api_key K --workspace W --project_name P ...")
    for name in NAMES:
        parser.add_argument(name, type=int if name == "--dataset-version" else str)
    options, unknown = parser.parse_known_args(as_dashes(arguments))
    if unknown:
        parser.refuse(unknown)
    warnings.warn("rfdetr --coco_dir DIR is now rfdetr train DIR --model base; it still works", FutureWarning, 2)
    folder = options.coco_dir or _fetched(options, parser)
    if not Path(folder).expanduser().exists():
        parser.error(f"--coco_dir {folder}: there is no such folder")
    from rfdetr import RFDETRBase

    model = RFDETRBase()
    model.train(dataset_dir=folder)
    return exit_code(model)


def _fetched(options: argparse.Namespace, parser: Parser) -> str:
    from rfdetr.extras import require

    key = options.api_key or os.environ.get("ROBOFLOW_API_KEY")
    given = {"api_key": key, **{name: vars(options)[name] for name in ("workspace", "project_name", "dataset_version")}}
    if missing := [name for name, value in given.items() if value is None]:
        parser.error(f"a data set of Roboflow needs --{', --'.join(missing)}; or give a folder with --coco_dir")
    service = require("roboflow").Roboflow(api_key=key)
    project = service.workspace(options.workspace).project(options.project_name)
    return project.version(options.dataset_version).download("coco").location
