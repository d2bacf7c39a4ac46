"""`rfdetr demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rfdetr.commands.values import add_number, add_switch
from rfdetr.extras import require
from rfdetr.variants import TASKS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--task",
        choices=TASKS,
        default="detect",
        help="what to learn (default: %(default)s)",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="fine-tune this checkpoint of the task instead of starting fresh"
    )
    parser.add_argument("--output", metavar="DIR", default="demo", help="folder to write to (default: %(default)s)")
    add_number(parser, "epochs", "passes over the drawn pictures")
    add_switch(parser, "ui", "then serve the model: a page that looks at your pictures")
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Train, evaluate and show."""
    from rfdetr.demo import run_demo

    if options.ui:
        # What is missing shows before the training.
        require("starlette")
        require("uvicorn")
    run_demo(options.output, weights=options.weights, epochs=options.epochs, task=options.task)
    if options.ui:
        from rfdetr.loading import load
        from rfdetr.serve.server import serve

        serve(load(Path(options.output) / "run" / "checkpoint_best_total.pth"), f"demo ({options.task})", port=0)
    return 0
