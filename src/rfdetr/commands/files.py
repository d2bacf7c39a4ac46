"""`rfdetr models`, `download`, `info` and `diff`: which models there are, and what a file holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rfdetr.checkpoints.download import cache_folder, find_weights, require_weights
from rfdetr.commands.values import add_switch
from rfdetr.loading import model_file
from rfdetr.variants import VARIANTS


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the options of `models`."""
    add_switch(parser, "json", "print JSON")
    parser.set_defaults(function=run_models)


def run_models(options: argparse.Namespace) -> int:
    """Print a table of sizes, and which weights are here already."""
    rows = [_row(key) for key in VARIANTS]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{'model':18}{'task':11}{'input':>5}  {'licence':12}{'weights':36}here")
    for row in rows:
        here = f"{row['megabytes']:.0f} MB" if row["cached"] else "-"
        weights = row["weights"] or "not fetched"
        print(f"{row['model']:18}{row['task']:11}{row['input']:5}  {row['licence']:12}{weights:36}{here}")
    print(f"weights are kept in {cache_folder()} (RF_HOME); PML-1.0 is the Platform Model License")
    return 0


def _row(key: str) -> dict[str, Any]:
    from rfdetr.checkpoints.identify import class_name

    size = VARIANTS[key]
    cached = cache_folder() / size.weights if size.weights else None
    here = cached is not None and cached.is_file()
    return {
        "model": key,
        "class": class_name(key),
        "task": size.task,
        "input": size.resolution,
        "licence": "Apache-2.0" if size.weights else "PML-1.0",
        "weights": size.weights,
        "cached": str(cached) if here else None,
        "megabytes": cached.stat().st_size / 1e6 if cached is not None and here else None,
    }


def add_download(parser: argparse.ArgumentParser) -> None:
    """Add the options of `download`."""
    parser.description = "Fetch published weights into the cache folder, for machines without a network, or images."
    parser.add_argument("names", metavar="NAME", nargs="*", help="size (nano, ...) or published file name")
    add_switch(parser, "all", "every size whose weights are published")
    add_switch(parser, "json", "print the paths as JSON")
    parser.set_defaults(function=run_download)


def run_download(options: argparse.Namespace) -> int:
    """Fetch what is not here yet, and print the paths."""
    from rfdetr.commands.parser import UsageError

    names = list(VARIANTS) if options.all else options.names
    if not names:
        raise UsageError(f"name what to fetch, or --all; sizes are {', '.join(VARIANTS)}")
    found = {}
    for name in names:
        weights = VARIANTS[name].weights if name in VARIANTS else name
        if weights is None and options.all:
            continue
        require_weights(name if weights is None else None, given=False)
        found[name] = str(find_weights(weights or name))
        if not options.json:
            print(found[name], flush=True)
    if options.json:
        print(json.dumps(found, indent=1))
    return 0


def add_info(parser: argparse.ArgumentParser) -> None:
    """Add the options of `info`."""
    parser.add_argument("file", metavar="FILE", help="checkpoint (.pth, .ckpt, .safetensors) or exported file")
    add_switch(parser, "settings", "also all settings of model and run")
    add_switch(parser, "json", "print JSON")
    parser.set_defaults(function=run_info)


def run_info(options: argparse.Namespace) -> int:
    """Print what a file is. Nothing in it is run."""
    from rfdetr.checkpoints.describe import describe, settings_of

    path = _existing(options.file)
    found = describe(path)
    if options.settings:
        found["settings"] = settings_of(path)
    if options.json:
        print(json.dumps(found, indent=1, default=str))
        return 0
    for name, value in found.items():
        if name == "settings":
            print("settings:")
            print("\n".join(f"  {key:34}{_short(one)}" for key, one in value.items()))
        elif value not in (None, {}, []):
            print(f"{name.replace('_', ' '):14}{_short(value)}")
    return 0


def add_diff(parser: argparse.ArgumentParser) -> None:
    """Add the options of `diff`."""
    parser.add_argument("a", metavar="A", help="checkpoint or exported file")
    parser.add_argument("b", metavar="B", help="the other one")
    add_switch(parser, "json", "print JSON")
    parser.set_defaults(function=run_diff)


def run_diff(options: argparse.Namespace) -> int:
    """Print the settings that differ between two files."""
    from rfdetr.checkpoints.describe import differences

    found = differences(_existing(options.a), _existing(options.b))
    if options.json:
        print(json.dumps(found, indent=1, default=str))
    elif not found:
        print("no setting differs")
    else:
        width = max(map(len, found)) + 2
        print(f"{'':{width}}{'A':32}B")
        for name, (one, other) in found.items():
            print(f"{name:{width}}{_short(one):32}{_short(other)}")
    return 0


def _existing(name: str) -> Path:
    """The file of a path, or published weights that are here already."""
    path = model_file(name)
    return cache_folder() / name if not path.exists() and (cache_folder() / name).is_file() else path


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{key} {_short(one)}" for key, one in value.items())
    if isinstance(value, list):
        value = (
            ", ".join(map(str, value)) if len(value) <= 12 else f"{', '.join(map(str, value[:10]))}, ... ({len(value)})"
        )
    if isinstance(value, float):
        value = f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value > 9999 else str(value)
