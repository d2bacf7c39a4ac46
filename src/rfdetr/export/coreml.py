"""Core ML packages for iOS 16 and macOS 13: input `input` (B, 3, H, W), normalised; outputs as the graph names them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.checkpoints.replacing import replacing
from rfdetr.export.files import Request
from rfdetr.extras import require

# What computes, by PyTorch's name for it; without a name Core ML chooses, and may take the Neural Engine.
UNITS = {None: "ALL", "cpu": "CPU_ONLY", "mps": "CPU_AND_GPU"}


def write(graph: Any, folder: Path, request: Request) -> Path:
    """Trace a graph (`rfdetr.export.graph`) and write `<stem>_fp32.mlpackage`, or `_fp16`, which computes in float16.

    Raises:
        NotImplementedError: a number of pictures that is not fixed.
        ImportError: coremltools is not installed; the message has the pip command.
        RuntimeError: coremltools cannot write the network.
    """
    from rfdetr.export.program import converting, fixed_batch_size, trace

    batch_size = fixed_batch_size(request, "Core ML")
    tools = require("coremltools")
    half = request.precision == "float16"
    path = folder / f"{request.stem}_{'fp16' if half else 'fp32'}.mlpackage"
    program = trace(graph, batch_size)
    kinds = {name: np.int32 if name == "classes" else np.float32 for name in graph.names}
    with converting("coremltools"):
        model = tools.convert(
            program,
            outputs=[tools.TensorType(name=name, dtype=kind) for name, kind in kinds.items()],
            minimum_deployment_target=tools.target.iOS16,
            compute_precision=tools.precision.FLOAT16 if half else tools.precision.FLOAT32,
            skip_model_load=True,
        )
        model.save(str(path))
    return path


def annotate(path: Path, texts: Mapping[str, str]) -> None:
    """Set metadata of a file; what it had under other names stays."""
    spec = _spec(path)
    spec.description.metadata.userDefined.update(texts)
    # The weights are in another file of the package.
    with replacing(next(path.rglob("*.mlmodel"))) as handle:
        handle.write(spec.SerializeToString())


def texts_of(path: Path) -> dict[str, str]:
    """The metadata of a file; ValueError if it is no Core ML package."""
    return dict(_spec(path).description.metadata.userDefined)


def _spec(path: Path) -> Any:
    tools = require("coremltools")
    try:
        return tools.utils.load_spec(str(path))
    except Exception as error:
        # A package is decoded by several others, each with errors of its own.
        raise ValueError(f"{path} is no Core ML package: {error}") from error


class Runtime:
    """A file in Core ML (`rfdetr.export.files.Runtime`).

    Args:
        device: "cpu", "mps" for the GPU as well, or None for whatever Core ML chooses.
        threads: must be None; Core ML chooses.

    Raises:
        NotImplementedError: this is not macOS.
        ImportError: coremltools is not installed.
        ValueError: it is no Core ML package, an unknown device, or a number of threads.
    """

    def __init__(self, path: Path, device: str | None = None, threads: int | None = None) -> None:
        if sys.platform != "darwin":
            raise NotImplementedError("Core ML files run on macOS only")
        tools = require("coremltools")
        if device not in UNITS:
            raise ValueError(f"device={device!r}: Core ML has 'cpu' and 'mps'")
        if threads is not None:
            raise ValueError(f"threads={threads}: Core ML chooses their number itself; leave it out")
        description = _spec(path).description
        try:
            self._model = tools.models.MLModel(str(path), compute_units=tools.ComputeUnit[UNITS[device]])
        except Exception as error:
            # What Core ML reports comes as errors without a common class.
            raise ValueError(f"{path} is no package that Core ML can run: {error}") from error
        self.texts = dict(description.metadata.userDefined)
        batch, channels, height, width = description.input[0].type.multiArrayType.shape
        self.shape = (batch, channels, height, width)
        self.outputs = {port.name: tuple(port.type.multiArrayType.shape) or None for port in description.output}
        self.about = f"Core ML, {UNITS[device].lower()}"

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """See `rfdetr.export.files.Runtime`."""
        found = self._model.predict({"input": images})
        return {name: one.astype(np.int64 if name == "classes" else np.float32) for name, one in found.items()}
