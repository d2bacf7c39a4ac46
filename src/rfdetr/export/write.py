"""Writing a model as a file of another format: trace, write, compare with the model, and only then put it in place."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.export.check import check, check_features, chosen_pictures, measure
from rfdetr.export.files import FORMATS, Request, Runtime, module_of
from rfdetr.export.graph import BackboneGraph, ExportGraph, FinalGraph, Graph
from rfdetr.export.metadata import from_metadata, to_metadata
from rfdetr.export.predictor import FileRunner
from rfdetr.log import logger
from rfdetr.main import Model


def export(
    model: Model,
    folder: Path,
    format: str,
    request: Request,
    hw: tuple[int, int],
    *,
    part: str = "raw",
    notes: Any = None,
    pictures: Any = None,
    max_images: int = 100,
    allow_drift: bool = False,
    force: bool = False,
) -> Path:
    """Write a file and return its path.

    Args:
        part: "raw" for the network's outputs, "final" for detections, "backbone" for encoder and projector alone.
        pictures: what to compare on; None are drawn ones.
        allow_drift: write a file that finds something else, with a note of by how much.
        force: replace a file of the same name, whatever it is.

    Raises:
        FileExistsError: a file of the same name that is no earlier export of this model.
        RuntimeError: the file computes something else than the model, or has another precision than asked for.
        OSError: the folder cannot be written to.
    """
    module = module_of(format)
    texts = to_metadata(model, hw, final=part == "final", notes=notes)
    texts |= {"format": FORMATS[format], "precision": request.precision}
    chosen = chosen_pictures(pictures, max_images)
    with _workshop(folder) as workshop:
        graph = _graph(model, hw, part)
        path = module.write(graph, workshop, request)
        module.annotate(path, texts)
        if not force:
            _refuse_foreign(module, path, folder, texts)
        runtime = _opened(module, path, folder / path.name)
        if runtime is not None:
            kept = _compared(model, runtime, graph, chosen, folder / path.name, allow_drift)
            if part != "backbone":
                kept["compared_on"] = "drawn pictures" if pictures is None else "the user's pictures"
            del runtime  # some systems replace no file that is open
            module.annotate(path, {"parity": json.dumps(kept)})
        return _put(path, folder)


def _graph(model: Model, hw: tuple[int, int], part: str) -> Graph:
    network = model.ready()
    if part == "backbone":
        return BackboneGraph(network, hw)
    graph = ExportGraph(network, hw)
    return graph if part == "raw" else FinalGraph(graph, model.postprocess, model.hidden_labels())


def _opened(module: Any, path: Path, target: Path) -> Runtime | None:
    """The written file in its runtime; None, with a warning, where that is not to be had."""
    try:
        return module.Runtime(path)
    except (ImportError, NotImplementedError) as error:
        warnings.warn(f"{target} was not compared with the model: {error}", stacklevel=4)
        return None


def _compared(
    model: Model, runtime: Runtime, graph: Graph, pictures: list[np.ndarray], target: Path, allow_drift: bool
) -> dict[str, Any]:
    """What the comparison of a file with its model found."""
    if isinstance(graph, BackboneGraph):
        return check_features(graph, runtime, target)
    facts = from_metadata(runtime.texts, target)
    runner, precision = FileRunner(runtime, facts), runtime.texts["precision"]
    if allow_drift:
        parity = measure(model, runner, pictures, graph.hw, precision)
    else:
        parity = check(model, runner, pictures, graph.hw, precision, target)
    if not parity.detections:
        reason = "of these weights every score is as good as another"
        warnings.warn(f"{target}: no detection could be compared with the model, since {reason}", stacklevel=4)
        return asdict(parity)
    logger.info(
        "%s: %.1f %% of %d detections are the model's, boxes within %.2g px, scores within %.2g",
        *(target.name, 100 * parity.matched, parity.detections, parity.max_box_px, parity.max_score),
    )
    return asdict(parity)


@contextmanager
def _workshop(folder: Path) -> Iterator[Path]:
    """A folder inside of `folder`, so that what is made there can be moved in one step; gone afterwards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=".export-", dir=folder)
    except OSError as error:
        raise type(error)(f"nothing can be written to {folder}: {error.strerror}; give another output_dir") from error
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _refuse_foreign(module: Any, path: Path, folder: Path, texts: dict[str, str]) -> None:
    """FileExistsError if something else than an earlier export of this model has the name of anything that was made."""
    target = folder / path.name
    advice = "nothing is overwritten; give another output_name, or force=True"
    if not target.exists():
        if taken := [part.name for part in path.parent.iterdir() if (folder / part.name).exists()]:
            raise FileExistsError(f"{folder / taken[0]} exists, but no {target.name} that it belongs to; {advice}")
        return
    try:
        known = module.texts_of(target)
    except (ValueError, OSError) as error:
        raise FileExistsError(f"{target} exists and is no earlier export; {advice}") from error
    for name in ("model_name", "class_names", "task"):
        if known.get(name) != texts[name]:
            raise FileExistsError(f"{target} exists, and its {name} is {known.get(name, 'unknown')}; {advice}")


def _put(path: Path, folder: Path) -> Path:
    """Move everything that was made into place, last what refers to the rest."""
    for part in sorted(path.parent.iterdir(), key=lambda one: one == path):
        place = folder / part.name
        if place.is_dir():
            shutil.rmtree(place)
        part.replace(place)
    return folder / path.name
