"""What an exported file says of its model, as text by name: written at export, read where a file is opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rfdetr
from rfdetr.datasets.transforms import MEAN, STD
from rfdetr.main import Model

# Every file has these; the others came later.
_REQUIRED = ("class_names", "resolution")
_TEXTS = ("task", "model_name", "rfdetr_version")


def to_metadata(model: Model, side: int) -> dict[str, str]:
    """The metadata of a detector for square inputs of `side` pixels; all but `_TEXTS` is JSON."""
    facts = {
        "class_names": model.class_names,
        "class_labels": model.class_labels,
        "hidden_labels": model.hidden_labels(),
        "has_names": model.has_names,
        "thresholds": model.thresholds,
        "num_classes": model.config.num_classes,
        "num_select": model.config.num_select,
        "resolution": side,
        "block_size": model.config.block_size,
        "mean": MEAN,
        "std": STD,
    }
    texts = dict(zip(_TEXTS, ("detect", model.config.model_name or "", rfdetr.__version__), strict=True))
    return {name: json.dumps(value) for name, value in facts.items()} | texts


def from_metadata(texts: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The facts of `to_metadata` in a file; those that it is too old for are what they were then.

    Raises:
        ValueError: the file has not been made by this package, or for another task.
    """
    if missing := [name for name in _REQUIRED if name not in texts]:
        raise ValueError(
            f"{path} lacks the metadata {', '.join(missing)}, which say what it detects; write it with export() of "
            "this package"
        )
    if (task := texts.get("task", "detect")) != "detect":
        raise ValueError(f"{path} is a model for the task {task!r}; only 'detect' can be run from a file")
    try:
        facts = {name: text if name in _TEXTS else json.loads(text) for name, text in texts.items()}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has damaged metadata, {dict(texts)}; write it again with export()") from error
    _check_kinds(facts, path)
    places = range(len(facts["class_names"]))
    older = {
        "class_labels": list(places),
        "has_names": facts["class_names"] != [str(place) for place in places],
        "thresholds": {},
        "num_select": 300,
        "block_size": 1,
        "model_name": "",
    }
    return older | facts


def _check_kinds(facts: Mapping[str, Any], path: Path) -> None:
    """ValueError if a fact is not what it has to be."""

    def all_are(kind: type, values: Any) -> bool:
        return isinstance(values, list) and all(type(value) is kind for value in values)

    names, labels, thresholds = facts["class_names"], facts.get("class_labels"), facts.get("thresholds", {})
    sound = {
        "class_names": all_are(str, names),
        "class_labels": labels is None
        or (all_are(int, labels) and len(labels) == len(names) and min(labels, default=0) >= 0),
        "thresholds": isinstance(thresholds, dict) and all_are(float, list(thresholds.values())),
        "num_select": type(facts.get("num_select", 1)) is int,
    }
    if wrong := [name for name, good in sound.items() if not good]:
        raise ValueError(
            f"{path} has damaged metadata, {wrong[0]} is {facts[wrong[0]]!r}; write it again with export()"
        )
