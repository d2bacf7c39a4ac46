"""`rfdetr evaluate`: judge a checkpoint or an exported file on a data set."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rfdetr.commands.generated import add_fields
from rfdetr.commands.parser import UsageError, add_config, add_data
from rfdetr.commands.values import TEXTS, Value, add_number, add_switch, positive
from rfdetr.config import TrainConfig
from rfdetr.export.files import SUFFIXES

# Options of a run that an evaluation has as well, by their names in Python.
OPTIONS = (
    *("eval_max_dets", "keypoint_oks_sigmas", "eval_masks_head_resolution", "fp16_eval", "num_workers", "on_bad_image"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.usage = "rfdetr evaluate MODEL DATASET... [--split SPLIT] [--json] ..."
    parser.add_argument("model", metavar="MODEL", help="size, checkpoint (.pth) or exported file (.onnx, .xml, ...)")
    add_data(parser)
    parser.add_argument("--split", default="test", help="test, val or train (default: %(default)s)")
    parser.add_argument(
        *("--report-dir", "--output"), metavar="DIR", default="evaluation", help="report (default: %(default)s)"
    )
    add_switch(parser, "report", "write the report (default: on)", default=True)
    parser.add_argument(
        *("--batch-size", "--eval-batch-size"),
        type=positive(int),
        default=4,
        help="pictures per step (default: %(default)s)",
    )
    parser.add_argument(
        "--class-names",
        action=Value,
        kinds={list, TEXTS},
        metavar="A,B",
        help="what the model calls each class of the data set",
    )
    add_number(parser, "resolution", "side of the network input")
    add_fields(parser, TrainConfig, OPTIONS, leave_out=set(TrainConfig.model_fields) - set(OPTIONS))
    add_switch(parser, "json", "print JSON")
    parser.add_argument("--device", help="cpu, cuda, ... (default: what is there)")
    parser.add_argument("--save-thresholds", metavar="FILE", help="write the checkpoint with the best thresholds")
    add_config(parser)
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Print the metrics, and write the report."""
    from rfdetr.loading import open_model

    exported = Path(options.model).suffix.lower() in SUFFIXES
    if options.save_thresholds and exported:
        raise ValueError("--save-thresholds writes checkpoints; an exported file keeps the thresholds it has")
    if options.save_thresholds and Path(options.save_thresholds).suffix not in (".pth", ".pt"):
        raise UsageError(f"--save-thresholds {options.save_thresholds}: checkpoints end with .pth or .pt")
    if options.save_thresholds and Path(options.save_thresholds).expanduser().exists():
        raise FileExistsError(f"{options.save_thresholds} exists, and nothing is overwritten; name another file")
    more: dict[str, Any] = {name: getattr(options, name) for name in OPTIONS if hasattr(options, name)}
    chosen = {"resolution": options.resolution, "class_names": options.class_names}
    more |= {name: value for name, value in chosen.items() if value is not None}
    model: Any = open_model(options.model, **({"device": options.device} if options.device else {}))
    metrics = model.evaluate(
        options.dataset,
        split=options.split,
        report_dir=options.report_dir if options.report else None,
        dataset_file=options.dataset_file,
        eval_batch_size=options.batch_size,
        progress_bar="tqdm" if sys.stderr.isatty() else None,
        **more,
    )
    if options.save_thresholds:
        from rfdetr.checkpoints.download import find_weights
        from rfdetr.checkpoints.file import store_thresholds

        target = Path(options.save_thresholds).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        store_thresholds(find_weights(model.model_config.pretrain_weights), target, model.model.thresholds)
    if options.json:
        print(json.dumps(metrics, indent=1))
    else:
        print("\n".join(f"{name:24}{value:8.4f}" for name, value in metrics.items()))
    return 0
