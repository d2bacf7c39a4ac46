"""`rfdetr export` and `rfdetr bench`: files for other runtimes, and how fast each of them is here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rfdetr.commands.parser import add_config
from rfdetr.commands.predict import sides
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
    parser.add_argument("--output-name", "--name", help="file name without suffix (default: inference_model)")
    parser.add_argument("--shape", type=sides, metavar="N|HxW", help="size of the input (default: the resolution)")
    parser.add_argument("--batch-size", type=int, help="pictures at once (default: any number where that works)")
    parser.add_argument("--half", action="store_true", help="weights in float16 (openvino, tensorrt, coreml)")
    parser.add_argument("--opset-version", type=int, default=17, metavar="N", help="of ONNX (default: %(default)s)")
    parser.add_argument("--simplify", action="store_true", help="let onnxslim fold the graph")
    parser.add_argument("--postprocess", action="store_true", help="boxes, scores and classes as outputs")
    parser.add_argument(
        "--calibration-data", "--pictures", metavar="DIR", help="what to compare on (default: drawn pictures)"
    )
    parser.add_argument("--allow-drift", action="store_true", help="write a file that finds something else")
    parser.add_argument("--force", action="store_true", help="replace a file of this name, whatever it is")
    parser.add_argument("--json", action="store_true", help="print path, metadata and how near it is, as JSON")
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
    try:
        path = model.export(options.output_dir, format=options.format, fp16=options.half, **settings, **permitted)
    except NotImplementedError:
        raise
    except RuntimeError as error:
        # The file would find something else, or the converter gave up: the message is all there is to know.
        raise ValueError(str(error)) from error
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
    parser.add_argument("--rounds", type=int, default=20, help="how often each is timed (default: %(default)s)")
    parser.add_argument("--picture", metavar="FILE", help="picture to predict on (default: a drawn one, 480 x 640)")
    parser.add_argument("--random", action="store_true", help="random weights: speed alone, nothing is fetched")
    parser.add_argument("--json", metavar="FILE", help="also write the report as JSON; - prints it alone")
    add_config(parser)
    parser.set_defaults(function=run_bench)


def run_bench(options: argparse.Namespace) -> int:
    """Time the model and print a table."""
    from rfdetr.export.benchmark import as_table, bench

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
    if options.json == "-":
        print(text)
        return 0
    print(as_table(report))
    if options.json:
        Path(options.json).expanduser().write_text(text, encoding="utf-8")
    return 0
