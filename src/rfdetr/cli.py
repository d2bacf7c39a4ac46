"""The command line: `rfdetr demo`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import rfdetr


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="rfdetr", description="Real-time detection transformers for your own data.")
    parser.add_argument("--version", action="version", version=f"rfdetr {rfdetr.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    demo = commands.add_parser("demo", help="train, evaluate and show a detector on drawn pictures")
    demo.add_argument(
        "--task",
        choices=["detect", "segment", "keypoints"],
        default="detect",
        help="what to learn (default: %(default)s)",
    )
    demo.add_argument(
        "--weights", metavar="FILE", help="fine-tune this checkpoint of the task instead of starting fresh"
    )
    demo.add_argument("--output", metavar="DIR", default="demo", help="folder to write to (default: %(default)s)")
    demo.add_argument("--epochs", type=int, help="passes over the drawn pictures")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 it failed, 2 wrong usage, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    # Threads that wait by spinning starve each other when something else uses the cores. It is read when PyTorch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from rfdetr.demo import run_demo

        run_demo(options.output, weights=options.weights, epochs=options.epochs, task=options.task)
    except (ValueError, OSError, ImportError) as error:
        print(f"rfdetr: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rfdetr: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
