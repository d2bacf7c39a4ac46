"""What typed texts stand for, and the switches and values that options take."""

from __future__ import annotations

import argparse
import json
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {"true": True, "false": False, "none": None, "null": None}
# Among the kinds of a field: a list's entries are texts, whatever they look like.
TEXTS = "texts in a list"


class Value(argparse.Action):
    """Stores the value that a text stands for; a switch is True by its name alone, and False by `--no-name`."""

    def __init__(self, *args: Any, kinds: set[Any], **options: Any) -> None:
        super().__init__(*args, **options)
        self.kinds = kinds

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        is_off = str(option_string).startswith("--no-")
        if values in (None, []):
            setattr(namespace, self.dest, not is_off)
        elif is_off:
            parser.error(f"{option_string} takes no value, but {values!r} follows it")
        else:
            setattr(namespace, self.dest, to_value(values, self.kinds))


def add_switch(parser: argparse._ActionsContainer, name: str, text: str, *, default: bool = False) -> None:
    """Add `--name` and `--no-name`."""
    parser.add_argument(f"--{name}", f"--no-{name}", action=Value, kinds={bool}, nargs=0, default=default, help=text)


def accepted(annotation: Any) -> set[Any]:
    """The plain types and literal values that an annotation allows; `Any` is Any."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return set().union(*(accepted(part) for part in get_args(annotation)))
    if origin is Literal:
        return set(get_args(annotation))
    if origin is not None and hasattr(annotation, "__metadata__"):
        return accepted(get_args(annotation)[0])
    if origin is list and get_args(annotation) == (str,):
        return {list, TEXTS}
    return {origin or annotation}


def to_value(text: str, kinds: set[Any]) -> Any:
    """The value that a text stands for among those that a field takes; what none fits is left to the field.

    Lists are JSON, or words with commas between them.
    """
    word = _WORDS.get(text.lower(), text)
    if word is not text and {type(word), Any} & kinds:
        return word
    types_only = kinds - {TEXTS}
    if types_only <= {str, types.NoneType} or text in kinds:
        return text
    listed = list in kinds and not text.startswith("[")
    if listed and ("," in text or not {str, int} & kinds) and not (str in kinds and "/" in text):
        return [part.strip() if TEXTS in kinds else _scalar(part.strip()) for part in text.split(",")]
    return _scalar(text) if not types_only <= {str, list, types.NoneType} or text.startswith("[") else text


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def positive(kind: type) -> Callable[[str], Any]:
    """What argparse makes of a number that has to be above 0."""

    def number(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    number.__name__ = "number above 0"
    return number


def add_number(
    parser: argparse._ActionsContainer, name: str, text: str, *, kind: type = int, default: float | None = None
) -> None:
    """Add an option that is a number above 0."""
    text = text if default is None else f"{text} (default: {default})"
    metavar = "X" if kind is float else "N"
    parser.add_argument(f"--{name}", type=positive(kind), metavar=metavar, default=default, help=text)


def sides(text: str) -> tuple[int, int]:
    """Height and width of "640" or "480x640"."""
    found = [int(side) for side in text.lower().split("x")]
    height, width = found * 2 if len(found) == 1 else found
    return height, width


# How argparse names what it could not read.
sides.__name__ = "size such as 640 or 480x640"


def from_file(action: argparse.Action, value: Any) -> Any:
    """The value that an option takes from a configuration file: as if it had been typed.

    Raises:
        ValueError: the option does not take it; the message says what it takes.
    """
    if value is None:
        return None
    if isinstance(action, Value):
        if action.kinds == {bool} and not isinstance(value, bool):
            raise ValueError("it must be true or false")
        return to_value(value, action.kinds) if isinstance(value, str) else value
    if action.nargs in ("+", "*"):
        return [str(one) for one in (value if isinstance(value, list) else [value])]
    if action.nargs == "?" and isinstance(value, bool):
        return action.const if value else None
    between = "x" if action.type is sides else ","
    text = between.join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        read = action.type(text) if callable(action.type) else text
    except (TypeError, ValueError):
        raise ValueError(f"it must be a {getattr(action.type, '__name__', 'value')}") from None
    if action.choices is not None and read not in action.choices:
        raise ValueError(f"it must be one of {', '.join(map(str, action.choices))}")
    return read
