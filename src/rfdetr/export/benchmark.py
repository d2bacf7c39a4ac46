"""How long prediction takes on this machine, in every runtime that is installed, stage by stage, and how near it is."""

from __future__ import annotations

import io
import itertools
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

import rfdetr
from rfdetr.datasets.decode import decode_bytes
from rfdetr.inference.predictor import Predictor
from rfdetr.inference.results import select, to_result

STAGES = ("decode", "preprocess", "network", "postprocess")


@dataclass
class Timed:
    """A runner under test.

    Args:
        name: of its runtime.
        about: version, device and precision.
        runner: with `prepare`, `compute` and `read`.
        parity: how near its detections are to PyTorch's (`rfdetr.export.check.Parity`); {} where nobody knows.
        seconds: of each stage, by pictures per batch, one entry per round.
    """

    name: str
    about: str
    runner: Any
    parity: dict[str, Any]
    seconds: dict[int, list[tuple[float, ...]]] = field(default_factory=dict)


def bench(
    model: Any,
    *,
    backends: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    rounds: int = 20,
    picture: str | Path | None = None,
) -> dict[str, Any]:
    """Time a model, or an exported file, in turn in all its runtimes.

    Args:
        model: what `rfdetr.load` returns, or a model class's object.
        backends: runtimes to compare, of "torch", "onnx", "openvino", "tensorrt"; default those that are installed. Of
            an exported file there is its own alone.
        batch_sizes: pictures per forward pass.
        rounds: how often each is timed, after one round that is not counted.
        picture: a file to predict on; default a drawn JPEG of 480 x 640 pixels.

    Returns:
        A report that `json.dumps` takes: `machine`, `model`, `picture`, and `rows` with milliseconds per picture.

    Raises:
        ValueError: options that are not allowed.
        ImportError: a runtime that was asked for is not installed.
    """
    if rounds < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"rounds={rounds} and batch_sizes={list(batch_sizes)} must be at least 1")
    data = Path(picture).expanduser().read_bytes() if picture is not None else drawn_jpeg()
    pixels = decode_bytes(data, str(picture or "the drawn picture"))
    timed = _runners(model, backends)
    for size in batch_sizes:
        for one in timed:
            if one.runner.chunk == 1 and size > 1:
                continue
            one.seconds[size] = []
        for number in range(rounds + 1):
            # In turn, so that what else the machine does slows all of them alike.
            for one in timed:
                if size in one.seconds:
                    taken = _round(one.runner, data, size)
                    if number:
                        one.seconds[size].append(taken)
    rows = [_row(one, size) for one in timed for size in one.seconds]
    return {
        "machine": _machine(),
        "model": repr(model),
        "picture": f"{pixels.shape[0]} x {pixels.shape[1]}, {len(data)} bytes",
        "rounds": rounds,
        "rows": rows,
    }


def drawn_jpeg() -> bytes:
    """A drawn picture of 480 x 640 pixels as a JPEG file."""
    from rfdetr.datasets.synthetic import SHAPES, draw_picture

    buffer = io.BytesIO()
    picture, _ = draw_picture(np.random.default_rng(0), (480, 640), 6, SHAPES)
    Image.fromarray(np.asarray(picture)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _runners(model: Predictor, backends: Sequence[str] | None) -> list[Timed]:
    from rfdetr.export.predictor import ExportedModel

    if isinstance(model, ExportedModel):
        if backends not in (None, [model.facts.texts.get("format")]):
            raise ValueError(f"{model.path} is one file for one runtime; leave out the backends, or name a checkpoint")
        return [
            Timed(model.facts.texts.get("format", "file"), model.runtime.about, model._runner(), model.facts.parity)
        ]
    import torch

    from rfdetr.export.cached import BACKENDS, CachedRunner, choose_backend, is_installed
    from rfdetr.inference.network import NetworkRunner

    inner: Any = model.model  # pyrefly: ignore[missing-attribute]
    if backends is None:
        backends = [name for name in BACKENDS if name != "auto" and is_installed(name)]
    timed = []
    for name in backends:
        chosen = choose_backend(name, inner.device.type)
        if chosen == "torch":
            about = f"torch {torch.__version__}, {inner.device}, {torch.get_num_threads()} threads"
            timed.append(Timed("torch", about, NetworkRunner(inner), {}))
        else:
            file = CachedRunner(inner, chosen).file((inner.resolution, inner.resolution))
            timed.append(Timed(chosen, file.runtime.about, file, file.facts.parity))
    return timed


def _round(runner: Any, data: bytes, size: int) -> tuple[float, ...]:
    """Seconds per picture of every stage, once."""
    hw, labels = runner.hw, runner.labels
    marks = [perf_counter()]
    pictures = [decode_bytes(data, "the picture") for _ in range(size)]
    marks.append(perf_counter())
    inputs = runner.prepare(pictures, hw)
    marks.append(perf_counter())
    outputs = _finished(runner, inputs)
    marks.append(perf_counter())
    sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
    names = labels.names()
    for found, picture in zip(runner.read(outputs, sizes, 0.5), pictures, strict=False):
        to_result(select(found, 0.5, labels.hidden), names, picture.shape[:2], picture)
    marks.append(perf_counter())
    return tuple((after - before) / size for before, after in itertools.pairwise(marks))


def _finished(runner: Any, inputs: Any) -> Any:
    """The outputs, once the device has computed them."""
    if isinstance(inputs, np.ndarray):
        return runner.compute(inputs)
    import torch

    with torch.inference_mode():
        outputs = runner.compute(inputs)
    if inputs.is_cuda:
        torch.cuda.synchronize()
    return outputs


def _row(one: Timed, size: int) -> dict[str, Any]:
    seconds = np.array(one.seconds[size])
    total = seconds.sum(1)
    stages = {name: float(np.median(column) * 1e3) for name, column in zip(STAGES, seconds.T, strict=True)}
    p50, p95 = (float(value) * 1e3 for value in np.percentile(total, (50, 95)))
    row = {"runtime": one.name, "about": one.about, "batch": size, **stages, "p50": p50, "p95": p95}
    return {**row, "pictures_per_second": 1e3 / p50, "parity": one.parity}


def _machine() -> dict[str, Any]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"system": platform.platform(), "cores": os.cpu_count(), "load": load, "rfdetr": rfdetr.__version__}


def as_table(report: dict[str, Any]) -> str:
    """The report for people: milliseconds per picture."""
    machine = report["machine"]
    lines = [
        f"{report['model']}; picture {report['picture']}; {machine['cores']} cores, load {machine['load'] or 0:.1f}; "
        f"median of {report['rounds']} rounds, milliseconds per picture",
        f"{'runtime':<10} {'batch':>5} " + " ".join(f"{name:>11}" for name in STAGES) + f" {'p50':>8} {'p95':>8} agree",
    ]
    for row in report["rows"]:
        agree = f"{row['parity']['matched']:.1%}" if "matched" in row["parity"] else "-"
        stages = " ".join(f"{row[name]:11.2f}" for name in STAGES)
        lines.append(f"{row['runtime']:<10} {row['batch']:>5} {stages} {row['p50']:8.1f} {row['p95']:8.1f} {agree}")
    lines += sorted({f"{row['runtime']}: {row['about']}" for row in report["rows"]})
    return "\n".join(lines)
