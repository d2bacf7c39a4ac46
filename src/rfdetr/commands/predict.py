"""`rfdetr predict`: find objects in whatever is named, print them, and draw them."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

from rfdetr.commands.parser import add_config, add_model, runtime_of
from rfdetr.commands.values import add_number, add_switch, sides
from rfdetr.inference.objects import to_objects


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.usage = "rfdetr predict SOURCE [--model SIZE|FILE] [--threshold X] [--save] ..."
    parser.add_argument("source", metavar="SOURCE", help="file, folder, 'pattern*', address, or number of a camera")
    add_model(parser, "--model", metavar="SIZE|FILE")
    parser.add_argument(
        "--threshold",
        type=_threshold,
        metavar="X|auto",
        default=0.5,
        help="lowest score, or auto (default: %(default)s)",
    )
    parser.add_argument(
        "--save",
        metavar="DIR",
        nargs="?",
        const="predictions",
        help="write drawn pictures or a drawn video (default folder: %(const)s)",
    )
    add_switch(parser, "show-boxes", "boxes in what is drawn (default: on)", default=True)
    add_switch(parser, "json", "print a JSON object per picture, each on a line")
    add_number(parser, "batch-size", "pictures per step", default=1)
    add_number(parser, "stride", "take every n-th frame", default=1)
    parser.add_argument("--resolution", "--shape", type=sides, metavar="N|HxW", help="size of the network input")
    parser.add_argument("--tile", type=sides, metavar="N|HxW", help="cut large pictures into tiles of this size")
    parser.add_argument("--overlap", type=float, metavar="X", help="part of a tile that the next one has as well")
    parser.add_argument(
        "--nms", type=float, metavar="X", help="overlap of boxes above which the lower score is dropped"
    )
    add_switch(parser, "one-label-per-box", "keep the best class of each box alone")
    add_config(parser)
    parser.set_defaults(function=run)


def _threshold(text: str) -> float | str:
    return text if text == "auto" else float(text)


# How argparse names what it could not read.
_threshold.__name__ = "number or auto"


def run(options: argparse.Namespace) -> int:
    """Find objects in every picture of the source; what is drawn up to an error or Ctrl-C is kept."""
    from rfdetr.inference.draw import draw, open_writer
    from rfdetr.inference.sources import open_source
    from rfdetr.loading import open_model

    with ExitStack() as stack:
        source = stack.enter_context(open_source(options.source, stride=options.stride))
        writer = open_writer(options.save, source) if options.save else None
        if writer is not None:
            stack.callback(lambda: _tell(writer.paths))
            stack.enter_context(writer)
        for found, seconds in _timed(_predict(open_model(options.model, **runtime_of(options)), source, options)):
            print(_to_json(found) if options.json else _to_text(found, seconds, options.batch_size), flush=True)
            if writer is not None:
                drawn = draw(found.picture, found.result, boxes=options.show_boxes)
                writer.write(drawn, found.name, found.seconds)
    return 0


def _predict(model: Any, source: Any, options: argparse.Namespace) -> Iterator[Any]:
    from rfdetr.inference.stream import predict_stream

    wanted = {"shape": options.resolution, "tile": options.tile, "overlap": options.overlap, "nms": options.nms}
    settings = {name: value for name, value in wanted.items() if value is not None}
    if options.one_label_per_box:
        settings["one_label_per_box"] = True
    if model.has_masks:
        settings["mask_format"] = "rle"
    # Lines on a terminal show well enough how far it is.
    progress = sys.stderr.isatty() and not sys.stdout.isatty()
    return predict_stream(
        model, source, batch_size=options.batch_size, progress=progress, threshold=options.threshold, **settings
    )


def _timed(found: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Each item with the seconds that it took."""
    begun = perf_counter()
    for one in found:
        yield one, perf_counter() - begun
        begun = perf_counter()


def _tell(paths: list[Path]) -> None:
    if paths:
        what = f"{len(paths)} drawn pictures are in {paths[0].parent}" if len(paths) > 1 else f"drawn: {paths[0]}"
        print(what, file=sys.stderr)


def _to_text(found: Any, seconds: float, batch_size: int) -> str:
    """Such as "picture.jpg: 2 cat, 1 dog (37 ms)"; in a batch the time of one picture is not known."""
    labelled = zip(found.result.data["class_name"], found.result.class_id, strict=True)
    names = Counter(name or str(label) for name, label in labelled)
    counts = ", ".join(f"{count} {name}" for name, count in names.most_common()) or "nothing"
    where = found.name if found.seconds is None else f"{found.name} frame {found.index} ({found.seconds:.2f} s)"
    return f"{where}: {counts}" + (f" ({seconds * 1000:.0f} ms)" if batch_size == 1 else "")


def _to_json(found: Any) -> str:
    """The line of one picture: where it is from, and the objects with boxes in pixels, best first."""
    objects = to_objects(found.result)
    return json.dumps({"name": found.name, "index": found.index, "seconds": found.seconds, "detections": objects})
