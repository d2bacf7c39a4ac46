"""ONNX files: input `input` (B, 3, H, W), normalised; outputs `dets` (B, Q, 4) and `labels` (B, Q, C), raw logits."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path

import torch

from rfdetr.checkpoints.save import replacing
from rfdetr.export.graph import ExportGraph
from rfdetr.extras import require

# Largest difference to the network that a written file may show, for relative boxes and logits.
TOLERANCE = 1e-3


def write(graph: ExportGraph, path: Path, *, side: int, batch_size: int, opset: int, metadata: dict[str, str]) -> None:
    """Write the graph for square inputs of `side` pixels and compare the file with the network.

    Raises:
        ImportError: onnx is not installed; the message has the pip command.
        RuntimeError: the file computes something else than the network.
    """
    onnx = require("onnx")
    images = torch.randn(batch_size, 3, side, side, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The tracer warns about every shape it takes as a constant; the input size is one here.
        warnings.simplefilter("ignore")
        traced = str(Path(folder) / "traced.onnx")
        names = {"input_names": ["input"], "output_names": ["dets", "labels"]}
        torch.onnx.export(graph, (images,), traced, opset_version=opset, dynamo=False, **names)
        model = onnx.load(traced)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    check(graph, content, images, path)
    with replacing(path) as handle:
        handle.write(content)


def check(graph: ExportGraph, content: bytes, images: torch.Tensor, path: Path) -> None:
    """Compare the content of a file with the network it was made of, where onnxruntime is installed."""
    try:
        runtime = require("onnxruntime")
    except ImportError:
        warnings.warn(f"{path} was not compared with the model: that needs onnxruntime (rfdetr[onnx])", stacklevel=4)
        return
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, {"input": images.numpy()})
    with torch.no_grad():
        expected, exact = graph(images), copy.deepcopy(graph).double()(images.double())
    for name, ours, precise, theirs in zip(("dets", "labels"), expected, exact, found, strict=True):
        # Nearly equal start boxes may swap places and change what follows, in any arithmetic: the gap between single
        # and double precision says how much of that these weights allow.
        gap, own = _gap(ours, torch.from_numpy(theirs)), _gap(ours, precise.float())
        if not gap <= max(TOLERANCE, 3 * own):
            raise RuntimeError(f"{path} was not written: it would compute other {name} than the model (by {gap:.2g})")


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two outputs (B, Q, X) as sets of queries."""
    return (a.sort(1).values - b.sort(1).values).abs().max().item()
