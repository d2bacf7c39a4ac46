"""Options of commands out of the fields of a configuration: same name, same help, same values as in Python."""

from __future__ import annotations

import argparse
import json
import types
from collections.abc import Collection
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from rfdetr.options import Options

_WORDS = {"true": True, "false": False, "none": None, "null": None}


def add_fields(
    parser: argparse._ActionsContainer,
    config: type[Options],
    common: Collection[str] | None,
    leave_out: Collection[str],
) -> None:
    """An option per field; the help of those not in `common` stays hidden, unless that is None.

    Fields that were not typed are absent from the result: their defaults are those of the configuration.
    """
    presets = config.preset()
    for name, field in config.model_fields.items():
        if name in leave_out:
            continue
        kinds = accepted(field.annotation)
        default = presets.get(name, field.default)
        # One line of help each, but for the list of all.
        text = (field.description or "").removesuffix(".") if common is None else _first_part(field.description or "")
        text += "" if default in (None, PydanticUndefined, [], {}) else f" (default: {spoken(default)})"
        dashed, switch = name.replace("_", "-"), bool in kinds
        parser.add_argument(
            *([f"--{dashed}", f"--no-{dashed}"] if switch else [f"--{dashed}"]),
            dest=name,
            action=Field,
            kinds=kinds,
            nargs=(0 if kinds == {bool} else "?") if switch else None,
            default=argparse.SUPPRESS,
            metavar=None if kinds == {bool} else _metavar(kinds),
            help=text.replace("%", "%%") if common is None or name in common else argparse.SUPPRESS,
        )


def _first_part(text: str) -> str:
    """A description up to its first full stop or semicolon."""
    return text if text.endswith("...") else text.split(";")[0].split(". ")[0].removesuffix(".")


class Field(argparse.Action):
    """Stores the value that a text stands for; `--name` alone and `--no-name` are True and False."""

    def __init__(self, *args: Any, kinds: set[Any], **options: Any) -> None:
        super().__init__(*args, **options)
        self.kinds = kinds

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values in (None, []):
            value: Any = not str(option_string).startswith("--no-")
        else:
            value = to_value(values, self.kinds)
        setattr(namespace, self.dest, value)


def accepted(annotation: Any) -> set[Any]:
    """The plain types and literal values that an annotation allows; `Any` is Any."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return set().union(*(accepted(part) for part in get_args(annotation)))
    if origin is Literal:
        return set(get_args(annotation))
    if origin is not None and hasattr(annotation, "__metadata__"):
        return accepted(get_args(annotation)[0])
    return {origin or annotation}


def to_value(text: str, kinds: set[Any]) -> Any:
    """The value that a text stands for among those that a field takes; what none fits is left to the field.

    Lists are JSON, or words with commas between them.
    """
    word = _WORDS.get(text.lower(), text)
    if word is not text and {type(word), Any} & kinds:
        return word
    if kinds <= {str, types.NoneType} or text in kinds:
        return text
    listed = list in kinds and not text.startswith("[")
    if listed and ("," in text or not {str, int} & kinds) and not (str in kinds and "/" in text):
        return [_scalar(part.strip()) for part in text.split(",")]
    return _scalar(text) if not kinds <= {str, list, types.NoneType} or text.startswith("[") else text


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def spoken(default: Any) -> str:
    """A default as it would be typed."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)


def _metavar(kinds: set[Any]) -> str:
    words = [str(kind) for kind in kinds if isinstance(kind, str)]
    if words and not {int, str} & kinds and len(", ".join(words)) < 40:
        return "|".join(sorted(words))
    if list in kinds or dict in kinds:
        return "JSON" if dict in kinds else "A,B"
    names = {int: "N", float: "X", str: "TEXT", bool: "N"}
    return next((names[kind] for kind in names if kind in kinds), "VALUE")
