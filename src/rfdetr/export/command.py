"""The commands `rfdetr export` and `rfdetr bench`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rfdetr.export.files import FORMATS
from rfdetr.inference.command import load_model, sides


def add_export(commands: Any) -> None:
    """Add `export` to the parser of all commands."""
    export = commands.add_parser("export", help="write a model as ONNX, OpenVINO, TensorRT, ... and check the file")
    export.add_argument("model", metavar="MODEL", help="checkpoint (.pth) or size (nano, seg-nano, ...)")
    export.add_argument("--format", choices=list(FORMATS), default="onnx", help="(default: %(default)s)")
    export.add_argument("--output", metavar="DIR", default="output", help="folder (default: %(default)s)")
    export.add_argument("--name", help="file name without suffix (default: inference_model)")
    export.add_argument("--shape", type=sides, metavar="N|HxW", help="size of the input (default: the resolution)")
    export.add_argument("--batch-size", type=int, help="pictures at once (default: any number where that works)")
    export.add_argument("--half", action="store_true", help="weights in float16 (openvino, tensorrt, coreml)")
    export.add_argument("--postprocess", action="store_true", help="boxes, scores and classes as outputs")
    export.add_argument("--pictures", metavar="DIR", help="what to compare on (default: drawn pictures)")
    export.add_argument("--allow-drift", action="store_true", help="write a file that finds something else")
    export.add_argument("--force", action="store_true", help="replace a file of this name, whatever it is")
    export.set_defaults(run=run_export)


def run_export(options: argparse.Namespace) -> int:
    """Export the model and print the path of the file."""
    kind = FORMATS[options.format]
    precision = "float16" if options.half else None
    if options.half and kind not in ("openvino", "tensorrt", "coreml"):
        raise ValueError(f"--half: {options.format} files are written in float32; leave it out")
    model = load_model(options.model)
    if not hasattr(model, "export"):
        raise ValueError(f"{options.model} is an exported file already; name the checkpoint it was made of")
    settings = {
        "shape": options.shape,
        "batch_size": options.batch_size,
        "output_name": options.name,
        "postprocess": options.postprocess,
        "calibration_data": options.pictures,
        "openvino_precision": precision if kind == "openvino" else None,
        "coreml_precision": precision if kind == "coreml" else None,
    }
    permitted = {"allow_drift": options.allow_drift, "force": options.force}
    try:
        path = model.export(options.output, format=options.format, fp16=options.half, **settings, **permitted)
    except NotImplementedError:
        raise
    except RuntimeError as error:
        # The file would find something else, or the converter gave up: the message is all there is to know.
        raise ValueError(str(error)) from error
    print(path)
    return 0


def add_bench(commands: Any) -> None:
    """Add `bench` to the parser of all commands."""
    bench = commands.add_parser("bench", help="time prediction on this machine, in every runtime that is installed")
    bench.add_argument("model", metavar="MODEL", nargs="?", default="nano", help="size, checkpoint or exported file")
    bench.add_argument("--backends", metavar="A,B", help="of torch, onnx, openvino, tensorrt (default: all there are)")
    bench.add_argument("--batch", metavar="N,M", default="1,8", help="pictures per step (default: %(default)s)")
    bench.add_argument("--rounds", type=int, default=20, help="how often each is timed (default: %(default)s)")
    bench.add_argument("--picture", metavar="FILE", help="picture to predict on (default: a drawn one, 480 x 640)")
    bench.add_argument("--random", action="store_true", help="random weights: speed alone, nothing is fetched")
    bench.add_argument("--json", metavar="FILE", help="also write the report as JSON; - prints it alone")
    bench.set_defaults(run=run_bench)


def run_bench(options: argparse.Namespace) -> int:
    """Time the model and print a table."""
    from rfdetr.export.benchmark import as_table, bench

    try:
        sizes = [int(size) for size in options.batch.split(",")]
    except ValueError:
        raise ValueError(f"--batch {options.batch}: numbers with commas between them are needed, such as 1,8") from None
    model = load_model(options.model, **({"pretrain_weights": None} if options.random else {}))
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
