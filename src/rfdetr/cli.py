"""The command line: `rfdetr COMMAND`; a command's module is imported when it is used."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import rfdetr
from rfdetr.commands.parser import Parser, UsageError, as_dashes, did_you_mean, print_config, use_config


class Command(NamedTuple):
    """Where a command is: module of `rfdetr.commands`, the function that adds its options, and what it does."""

    module: str
    add: str
    help: str


COMMANDS = {
    "train": Command("train", "add_options", "fine-tune a model on your data"),
    "predict": Command("predict", "add_options", "find objects in pictures, videos or what a camera sees"),
    "evaluate": Command("evaluate", "add_options", "judge a checkpoint or an exported file on a data set"),
    "export": Command("export", "add_export", "write a model as ONNX, OpenVINO, TensorRT, ... and check the file"),
    "check": Command("data", "add_check", "look through a data set before training"),
    "pack": Command("data", "add_pack", "pack a data set into tar files, which are trained on as they are"),
    "bench": Command("export", "add_bench", "time prediction on this machine, in every runtime that is installed"),
    "models": Command("files", "add_models", "list sizes, licences and which weights are here"),
    "download": Command("files", "add_download", "fetch published weights"),
    "info": Command("files", "add_info", "tell what a checkpoint or an exported file is"),
    "diff": Command("files", "add_diff", "compare the settings of two checkpoints"),
    "demo": Command("demo", "add_options", "train, evaluate and show a detector on drawn pictures"),
    "serve": Command("serve", "add_options", "try a model in the browser, and let other programs ask it"),
    "completion": Command("completion", "add_options", "print the completion script of a shell"),
}
# Commands of other programs that people try, and ours.
_MEANT = {"fit": "train", "validate": "evaluate", "val": "evaluate", "test": "evaluate", "detect": "predict"}


def build_parser(only: str | None = None, *, everything: bool = False) -> tuple[Parser, Parser | None]:
    """The parser of all commands, with the options of one alone or of all, and the parser of that one.

    Args:
        everything: the help of `train` lists every option.
    """
    parser = Parser(prog="rfdetr", description="Real-time detection transformers for your own data.")
    parser.add_argument("--version", action="version", version=f"rfdetr {rfdetr.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {name: commands.add_parser(name, help=command.help) for name, command in COMMANDS.items()}
    for name, command in COMMANDS.items():
        if only in (None, name):
            module = importlib.import_module(f"rfdetr.commands.{command.module}")
            getattr(module, command.add)(parsers[name], **({"everything": everything} if name == "train" else {}))
    return parser, parsers.get(only or "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 it failed, 2 wrong usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "_ARGCOMPLETE" in os.environ:
        from rfdetr.commands import completion

        completion.answer()
    # Threads that wait by spinning starve each other when something else uses the cores. It is read when PyTorch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _plain_warnings():
            return _run(given)
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has had enough; Python would complain of it once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UsageError as error:
        print(f"rfdetr: error: {error}", file=sys.stderr)
        return 2
    # RuntimeError is what PyTorch raises when memory runs out, and NotImplementedError is one.
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"rfdetr: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rfdetr: interrupted", file=sys.stderr)
        return 130


def _run(given: list[str]) -> int:
    from rfdetr.commands import older

    if older.is_older(given):
        return older.run(given)
    options = parse(given)
    if getattr(options, "print_config", False):
        return print_config(options)
    return options.function(options)


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The options of a command; SystemExit with code 2 for wrong ones."""
    arguments = as_dashes(given)
    name = arguments[0] if arguments else ""
    parser, chosen = build_parser(name, everything="--help-all" in arguments)
    if chosen is None:
        if name and not name.startswith("-"):
            hint = f" (did you mean {_MEANT[name]}?)" if name in _MEANT else did_you_mean(name, COMMANDS)
            parser.error(f"there is no command {name!r}{hint}; commands are {', '.join(COMMANDS)}")
        return parser.parse_args(arguments)
    use_config(chosen, arguments)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        chosen.refuse(unknown)
    return options


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings without the line of code that they come from."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"rfdetr: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


if __name__ == "__main__":
    sys.exit(main())
