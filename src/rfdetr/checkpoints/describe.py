"""What a model file is, as plain values: for people who find one and wonder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rfdetr.checkpoints.identify import class_name, identify, structure
from rfdetr.checkpoints.load import Checkpoint, read_checkpoint
from rfdetr.loading import SUFFIXES, load


def describe(path: Path) -> dict[str, Any]:
    """Kind of file, model, classes, and how it came to be.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `rfdetr.load`.
    """
    found = _exported(path) if path.suffix.lower() in SUFFIXES else _checkpoint(read_checkpoint(path))
    # Core ML packages are folders.
    files = path.rglob("*") if path.is_dir() else [path]
    return {"file": str(path), "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1), **found}


def _exported(path: Path) -> dict[str, Any]:
    model: Any = load(path)
    facts = model.facts
    return {
        "kind": f"export ({SUFFIXES[path.suffix.lower()]})",
        "class": facts.model_name or None,
        "task": facts.task,
        "input": list(facts.hw),
        "batch": model.runtime.shape[0] or "any",
        "classes": list(facts.labels.class_names),
        "outputs": "detections" if facts.final else "boxes and logits",
        "thresholds": facts.labels.thresholds,
        "parity": facts.parity,
        "written_by": facts.texts.get("rfdetr_version"),
    }


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    content, args = checkpoint.content, checkpoint.args
    try:
        kind: str | None = class_name(identify(checkpoint))
    except ValueError:
        kind = None
    found = structure(checkpoint)
    task = "segment" if found["segmentation_head"] else "keypoints" if found["use_grouppose_keypoints"] else "detect"
    return {
        "kind": "checkpoint",
        "class": kind,
        "task": task,
        "input": checkpoint.settings.get("resolution"),
        "classes": checkpoint.class_names,
        "class_rows": checkpoint.class_rows,
        "parameters": sum(weight.numel() for weight in checkpoint.weights.values() if weight.is_floating_point()),
        "licence": checkpoint.model_config.get("license"),
        "thresholds": checkpoint.thresholds,
        "epoch": content.get("epoch"),
        # Without the optimiser's state a run can start from it, but not go on.
        "can_resume": "optimizer" in content,
        "trained_on": args.get("dataset_dir"),
        "written_by": content.get("rfdetr_version"),
    }


def settings_of(path: Path) -> dict[str, Any]:
    """The settings of model and run that a checkpoint or an exported file has kept, and its class names.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `rfdetr.load`.
    """
    if path.suffix.lower() in SUFFIXES:
        return _exported_settings(path)
    checkpoint = read_checkpoint(path)
    # What the run left open is what the model says.
    run = {name: value for name, value in checkpoint.args.items() if value is not None}
    tensors = structure(checkpoint)
    return {**tensors, **run, **checkpoint.model_config, "class_names": checkpoint.class_names}


def _exported_settings(path: Path) -> dict[str, Any]:
    """What an exported file knows of its model, by the names that checkpoints have for it."""
    model: Any = load(path)
    facts = model.facts
    return {
        "model_name": facts.model_name,
        "segmentation_head": facts.task == "segment",
        "use_grouppose_keypoints": facts.task == "keypoints",
        "resolution": facts.hw[0] if facts.hw[0] == facts.hw[1] else list(facts.hw),
        "num_select": facts.num_select,
        "num_keypoints_per_class": list(facts.schema),
        "class_names": list(facts.labels.class_names),
    }


def differences(a: Path, b: Path) -> dict[str, list[Any]]:
    """Settings by name with their two values, where these differ; None where a checkpoint has none.

    Beside an exported file only what it knows is compared.
    """
    one, other = settings_of(a), settings_of(b)
    names = [*one, *(name for name in other if name not in one)]
    if any(path.suffix.lower() in SUFFIXES for path in (a, b)):
        names = [name for name in names if name in one and name in other]
    return {name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)}
