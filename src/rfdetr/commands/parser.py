"""What all commands share: names as in Python, help with misspelt ones, and options from a file."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rfdetr.commands.values import add_switch, from_file


class UsageError(ValueError):
    """What was typed cannot be meant; the exit code is 2, as for argparse's own errors."""


class Formatter(argparse.HelpFormatter):
    """Help of one line per option where it fits: `--[no-]name` for switches, no second spelling of the others."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=max(80, min(120, shutil.get_terminal_size().columns)) - 2)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == argparse.SUPPRESS:
            return super()._format_action_invocation(action)
        names = action.option_strings
        metavar = "" if action.nargs == 0 else " " + self._format_args(action, "VALUE")
        if any(name.startswith("--no-") for name in names[1:]):
            return f"--[no-]{names[0][2:]}{metavar}"
        return ("" if names[0].startswith("--") else f"{names[0]}, ") + names[-1 if names[0] == "-h" else 0] + metavar


class Parser(argparse.ArgumentParser):
    """Knows no abbreviations, which would break when a name is added."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **options)

    def error(self, message: str) -> NoReturn:
        """One line, without the list of all options before it."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """End with an error that names what is unknown, and what it might have been."""
        known = [text for action in self._actions for text in action.option_strings]
        named = [f"{text}{did_you_mean(text.split('=')[0], known)}" for text in unknown]
        self.error(f"unrecognized: {', '.join(named)}; {self.prog} --help lists the options")


def exit_code(model: Any) -> int:
    """That of a command that has trained: 130 after Ctrl-C."""
    return 0 if model.model.ended_by is None else 128 + model.model.ended_by


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Such as " (did you mean --epochs?)", or nothing."""
    from rfdetr.options import nearest

    close = nearest(name, known)
    return f" (did you mean {close}?)" if close else ""


def as_dashes(arguments: Sequence[str]) -> list[str]:
    """Arguments with the names of options in dashes, and `--name=true` or `=false` as the switches that they are."""
    written = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            written.append(argument)
            continue
        name = name.replace("_", "-")
        if value.lower() == "true":
            written.append(name)
        elif value.lower() == "false":
            written.append(f"--no-{name[2:]}")
        else:
            written.append(f"{name}{equals}{value}")
    return written


def add_model(parser: argparse.ArgumentParser, *name: str, **options: Any) -> None:
    """The model that a command opens, a positional argument unless `name` says otherwise, and where it runs."""
    text = "size (nano, seg-nano, ...), checkpoint (.pth) or exported file (default: %(default)s)"
    parser.add_argument(*(name or ("model",)), default="nano", help=text, **options)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: what is there)")
    parser.add_argument("--backend", metavar="NAME", help="what runs the model (default: that of the file)")


def runtime_of(options: argparse.Namespace) -> dict[str, Any]:
    """What was given of the options of `add_model` that models take."""
    return {name: getattr(options, name) for name in ("device", "backend") if getattr(options, name) is not None}


def add_data(parser: argparse.ArgumentParser) -> None:
    """The data set that a command reads."""
    parser.add_argument(
        "dataset", metavar="DATASET", nargs="+", help="folder or data.yaml; several are joined by class name"
    )
    parser.add_argument(
        "--dataset-file",
        choices=["roboflow", "coco", "yolo", "o365", "webdataset"],
        default="roboflow",
        help="layout; roboflow looks at the folder (default)",
    )


# What is no setting of a command.
_CONTROL = ("command", "dataset_option", "function", "settings", "config", "print_config", "help_all")


def add_config(parser: argparse._ActionsContainer) -> None:
    """`--config` and `--print-config`."""
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON with options; those typed win over it")
    add_switch(parser, "print-config", "print all options as such a file, and end")


def use_config(parser: Parser, arguments: Sequence[str]) -> None:
    """Make what the file of `--config` says the defaults of a command's options.

    Raises:
        UsageError: the file cannot be read, or names an option that there is not.
    """
    finder = Parser(prog=parser.prog, add_help=False, argument_default=argparse.SUPPRESS)
    finder.add_argument("--config")
    path = getattr(finder.parse_known_args(arguments)[0], "config", None)
    if path is None or not any(action.dest == "config" for action in parser._actions):
        return
    values = read_config(Path(path).expanduser())
    known = {action.dest: action for action in parser._actions if action.dest not in ("help", *_CONTROL)}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"--config {path}: there is no option {name!r}{did_you_mean(name, known)}")
        action = known[name]
        try:
            action.default = from_file(action, value)
        except ValueError as error:
            raise UsageError(f"--config {path}: {name}={value!r}: {error}") from None
        if not action.option_strings and action.default is not None:
            # Typed arguments replace it; without any it counts as one.
            action.nargs = "*" if action.nargs == "+" else "?" if action.nargs is None else action.nargs


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        UsageError: there is no such file, or it holds something else.
    """
    from rfdetr.extras import require

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} cannot be read: {error}") from None
    # JSON is YAML too.
    yaml = require("yaml")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UsageError(f"--config {path} must hold options by name, such as 'epochs: 10'")
    return {name.replace("-", "_"): value for name, value in values.items()}


def print_config(options: argparse.Namespace) -> int:
    """Print the options of a command as a file for `--config`; those of a run that were not given as comments."""
    from rfdetr.extras import require

    yaml = require("yaml")
    settings = getattr(options, "settings", None)
    values, rest = settings(options) if settings else (vars(options), {})
    values = {name: value for name, value in values.items() if name not in _CONTROL}
    # ASCII alone: what a console makes of other letters is not always UTF-8.
    yaml.safe_dump(json.loads(json.dumps(values)), sys.stdout, sort_keys=False)
    for name, (default, text) in rest.items():
        value = yaml.safe_dump(json.loads(json.dumps(default)), default_flow_style=True, width=1000).split("\n")[0]
        print(f"# {name}: {value}  # {text}")
    return 0
