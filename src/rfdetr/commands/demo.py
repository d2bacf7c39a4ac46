"""`rfdetr demo`."""

from __future__ import annotations

import argparse

from rfdetr.commands.parser import positive


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--task",
        choices=["detect", "segment", "keypoints"],
        default="detect",
        help="what to learn (default: %(default)s)",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="fine-tune this checkpoint of the task instead of starting fresh"
    )
    parser.add_argument("--output", metavar="DIR", default="demo", help="folder to write to (default: %(default)s)")
    parser.add_argument("--epochs", type=positive(int), help="passes over the drawn pictures")
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Train, evaluate and show."""
    from rfdetr.demo import run_demo

    run_demo(options.output, weights=options.weights, epochs=options.epochs, task=options.task)
    return 0
