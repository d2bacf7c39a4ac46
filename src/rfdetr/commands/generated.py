"""Options of commands out of the fields of a configuration: same name, same help, same values as in Python."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from pydantic_core import PydanticUndefined

from rfdetr.commands.values import TEXTS, Value, accepted
from rfdetr.options import Options


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
            action=Value,
            kinds=kinds,
            nargs=(0 if kinds == {bool} else "?") if switch else None,
            default=argparse.SUPPRESS,
            metavar=None if kinds == {bool} else _metavar(kinds),
            help=text.replace("%", "%%") if common is None or name in common else argparse.SUPPRESS,
        )


def _first_part(text: str) -> str:
    """A description up to its first full stop or semicolon."""
    return text if text.endswith("...") else text.split(";")[0].split(". ")[0].removesuffix(".")


def spoken(default: Any) -> str:
    """A default as it would be typed."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)


def _metavar(kinds: set[Any]) -> str:
    words = sorted(kind for kind in kinds if isinstance(kind, str) and kind != TEXTS)
    names = {int: "N", float: "X", str: "TEXT", dict: "JSON", list: "A,B"}
    parts = [*words, *(names[kind] for kind in names if kind in kinds)] or ["VALUE"]
    return "|".join(parts) if len(parts) < 4 else parts[-1]
