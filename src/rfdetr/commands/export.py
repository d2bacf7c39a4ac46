"""`rfdetr export` and `rfdetr bench`: files for other runtimes, and how fast each of them is here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rfdetr.commands.parser import add_config
from rfdetr.commands.values import add_number, add_switch, sides
from rfdetr.export.files import FORMATS
from rfdetr.loading import open_model


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    parser.usage = "rfdetr export MODEL [--format FORMAT] [--output-dir DIR] ..."
    parser.add_argument("model", metavar="MODEL", help="checkpoint (.pth) or size (nano, seg-nano, ...)")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="(default: %(default)s)")
    parser.add_argument(
        "--output-dir", "--output", metavar="DIR", default="output", help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--output-name", "--name", metavar="NAME", help="file name without suffix (default: inference_model)"
    )
    parser.add_argument("--shape", type=sides, metavar="N|HxW", help="size of the input (default: the resolution)")
    add_number(parser, "batch-size", "pictures at once (default: any number where that works)")
    add_switch(parser, "half", "weights in float16 (openvino, tensorrt, coreml)")
    parser.add_argument("--opset-version", type=int, default=17, metavar="N", help="of ONNX (default: %(default)s)")
    add_switch(parser, "simplify", "let onnxslim fold the graph")
    add_switch(parser, "postprocess", "boxes, scores and classes as outputs")
    parser.add_argument(
        "--calibration-data", "--pictures", metavar="DIR", help="what to compare on (default: drawn pictures)"
    )
    add_switch(parser, "allow-drift", "write a file that finds something else")
    add_switch(parser, "force", "replace a file of this name, whatever it is")
    add_switch(parser, "json", "print path, metadata and how near it is, as JSON")
    add_config(parser)
    parser.set_defaults(function=run_export)


def run_export(options: argparse.Namespace) -> int:
    """Export the model and print the path of the file."""
    kind = FORMATS[options.format]
    precision = "float16" if options.half else None
    if options.half and kind not in ("openvino", "tensorrt", "coreml"):
        raise ValueError(f"--half: {options.format} files are written in float32; leave it out")
    model = open_model(options.model)
    if not hasattr(model, "export"):
        raise ValueError(f"{options.model} is an exported file already; name the checkpoint it was made of")
    settings = {
        "shape": options.shape,
        "batch_size": options.batch_size,
        "output_name": options.output_name,
        "opset_version": options.opset_version,
        "simplify": options.simplify,
        "postprocess": options.postprocess,
        "calibration_data": options.calibration_data,
        "openvino_precision": precision if kind == "openvino" else None,
        "coreml_precision": precision if kind == "coreml" else None,
    }
    permitted = {"allow_drift": options.allow_drift, "force": options.force}
    path = model.export(options.output_dir, format=options.format, fp16=options.half, **settings, **permitted)
    if not options.json:
        print(path)
        return 0
    from rfdetr.checkpoints.describe import describe

    print(json.dumps(describe(path), indent=1))
    return 0


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench`."""
    parser.add_argument("model", metavar="MODEL", nargs="?", default="nano", help="size, checkpoint or exported file")
    parser.add_argument("--backends", metavar="A,B", help="of torch, onnx, openvino, tensorrt (default: all there are)")
    parser.add_argument("--batch", metavar="N,M", default="1,8", help="pictures per step (default: %(default)s)")
    add_number(parser, "rounds", "how often each is timed", default=20)
    parser.add_argument("--picture", metavar="FILE", help="picture to predict on (default: a drawn one, 480 x 640)")
    add_switch(parser, "random", "random weights: speed alone, nothing is fetched")
    add_switch(parser, "json", "print JSON")
    parser.add_argument("--output", metavar="FILE", help="also write the report as JSON to a new file")
    add_config(parser)
    parser.set_defaults(function=run_bench)


def run_bench(options: argparse.Namespace) -> int:
    """Time the model and print a table."""
    from rfdetr.export.benchmark import as_table, bench

    if options.output and Path(options.output).expanduser().exists():
        raise FileExistsError(f"{options.output} exists, and nothing is overwritten; name another file")
    try:
        sizes = [int(size) for size in options.batch.split(",")]
    except ValueError:
        raise ValueError(f"--batch {options.batch}: numbers with commas between them are needed, such as 1,8") from None
    model = open_model(options.model, **({"pretrain_weights": None} if options.random else {}))
    report = bench(
        model,
        backends=options.backends.split(",") if options.backends else None,
        batch_sizes=sizes,
        rounds=options.rounds,
        picture=options.picture,
    )
    text = json.dumps(report, indent=1)
    print(text if options.json else as_table(report))
    if options.output:
        Path(options.output).expanduser().write_text(text, encoding="utf-8")
    return 0
