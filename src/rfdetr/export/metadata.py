"""What an exported file says of its model, as text by name: written at export, read where a file is opened."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rfdetr
from rfdetr.datasets.network_input import MEAN, STD
from rfdetr.labels import Labels
from rfdetr.variants import TASKS

if TYPE_CHECKING:
    from rfdetr.main import Model

# Every file has these; the others came later.
_REQUIRED = ("class_names", "resolution")
# What is read as JSON; whatever else a file says is text.
_FACTS = (
    *("class_names", "class_labels", "hidden_labels", "has_names", "thresholds", "num_classes", "num_select"),
    *("resolution", "block_size", "final", "num_keypoints_per_class", "postprocess_trace_alpha", "parity"),
)


@dataclass(frozen=True)
class Facts:
    """What has to be known of the model in a file to predict with it and to judge it.

    Args:
        hw: height and width of the network input.
        block: sides of inputs are multiples of it.
        final: the outputs are detections, not logits (`rfdetr.export.graph.FinalGraph`).
        schema, trace_alpha: of keypoint models.
        parity: what `rfdetr.export.check` found when the file was written; {} of older files.
        texts: everything as it stands in the file.
    """

    task: str
    labels: Labels
    has_names: bool
    hw: tuple[int, int]
    block: int
    num_select: int
    final: bool
    schema: tuple[int, ...]
    trace_alpha: float
    model_name: str
    parity: dict[str, Any]
    texts: dict[str, str]


def to_metadata(model: Model, hw: tuple[int, int], *, final: bool, notes: Any = None) -> dict[str, str]:
    """The metadata of a model for inputs of a height and width; all but what is text already is JSON."""
    config = model.config
    facts = {
        "class_names": model.class_names,
        "class_labels": model.class_labels,
        "hidden_labels": model.hidden_labels(),
        "has_names": model.has_names,
        "thresholds": model.thresholds,
        "num_classes": config.num_classes,
        "num_select": config.num_select,
        "resolution": hw[0] if hw[0] == hw[1] else list(hw),
        "block_size": config.block_size,
        "mean": MEAN,
        "std": STD,
        "final": final,
        "num_keypoints_per_class": list(config.num_keypoints_per_class),
        "postprocess_trace_alpha": config.postprocess_trace_alpha,
    }
    task = TASKS[1 if config.segmentation_head else 2 if config.use_grouppose_keypoints else 0]
    texts = {"task": task, "model_name": config.model_name or "", "rfdetr_version": rfdetr.__version__}
    if notes is not None:
        texts["rfdetr_notes"] = notes if isinstance(notes, str) else json.dumps(notes)
    return {name: json.dumps(value) for name, value in facts.items()} | texts


def from_metadata(texts: Mapping[str, str], path: Path) -> Facts:
    """The facts of `to_metadata` in a file; those that it is too old for are what they were then.

    Raises:
        ValueError: the file has not been made by this package, or its metadata are damaged.
    """
    if missing := [name for name in _REQUIRED if name not in texts]:
        raise ValueError(
            f"{path} lacks the metadata {', '.join(missing)}, which say what it detects; write it with export() of "
            "this package"
        )
    if (task := texts.get("task", "detect")) not in TASKS:
        raise ValueError(f"{path} is a model for the task {task!r}; known are {', '.join(TASKS)}")
    facts: dict[str, Any] = {"model_name": texts.get("model_name", "")}
    for name in (name for name in _FACTS if name in texts):
        try:
            facts[name] = json.loads(texts[name])
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} has damaged metadata, {name} is {texts[name]!r}; write it again with export()"
            ) from error
    _check_kinds(facts, path)
    names, side = facts["class_names"], facts["resolution"]
    labels = facts.get("class_labels", list(range(len(names))))
    count = facts.get("num_classes", len(names)) + 1
    return Facts(
        task,
        Labels(names, labels, count, facts.get("hidden_labels", [count - 1]), facts.get("thresholds", {})),
        facts.get("has_names", names != [str(place) for place in range(len(names))]),
        (side, side) if isinstance(side, int) else tuple(side),
        facts.get("block_size", 1),
        facts.get("num_select", 300),
        facts.get("final", False),
        tuple(facts.get("num_keypoints_per_class", ())),
        facts.get("postprocess_trace_alpha", 0.2),
        facts["model_name"],
        facts.get("parity", {}),
        dict(texts),
    )


def _check_kinds(facts: Mapping[str, Any], path: Path) -> None:
    """ValueError if a fact is not what it has to be."""

    def all_are(kind: type, values: Any) -> bool:
        return isinstance(values, list) and all(type(value) is kind for value in values)

    def whole(name: str, least: int) -> bool:
        return type(facts.get(name, least)) is int and facts.get(name, least) >= least

    names, labels, side = facts["class_names"], facts.get("class_labels"), facts["resolution"]
    highest = facts["num_classes"] if type(facts.get("num_classes")) is int else math.inf
    thresholds = facts.get("thresholds", {})
    sound = {
        "class_names": all_are(str, names),
        "class_labels": labels is None
        or (all_are(int, labels) and len(labels) == len(names) and all(0 <= label <= highest for label in labels)),
        "thresholds": isinstance(thresholds, dict) and all_are(float, list(thresholds.values())),
        "resolution": whole("resolution", 1) or (all_are(int, side) and len(side) == 2 and min(side) > 0),
        "hidden_labels": all_are(int, facts.get("hidden_labels", [])),
        "num_keypoints_per_class": all_are(int, facts.get("num_keypoints_per_class", [])),
        "postprocess_trace_alpha": isinstance(facts.get("postprocess_trace_alpha", 0.2), int | float),
        **{name: whole(name, least) for name, least in (("num_select", 1), ("num_classes", 1), ("block_size", 1))},
        **{name: isinstance(facts.get(name, kind()), kind) for name, kind in (("final", bool), ("parity", dict))},
    }
    if wrong := [name for name, good in sound.items() if not good]:
        raise ValueError(
            f"{path} has damaged metadata, {wrong[0]} is {facts[wrong[0]]!r}; write it again with export()"
        )
