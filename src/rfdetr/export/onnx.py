"""ONNX files: input `input` (B, 3, H, W), normalised; outputs as the graph names them. Everything else is metadata."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.checkpoints.replacing import replacing
from rfdetr.export.files import Request
from rfdetr.extras import require

NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def write(graph: Any, folder: Path, request: Request) -> Path:
    """Trace a graph (`rfdetr.export.graph`) and write `<stem>.onnx`.

    Raises:
        ImportError: onnx is not installed; the message has the pip command.
    """
    onnx = require("onnx")
    slim = require("onnxslim").slim if request.simplify else None
    import torch

    path = folder / f"{request.stem}.onnx"
    # Of one picture, sizes of 1 could not be told from numbers of pictures.
    example = graph.example(request.batch_size or 2)
    axes = {name: {0: "batch"} for name in ("input", *graph.names)} if request.batch_size is None else None
    with torch.no_grad(), warnings.catch_warnings():
        # The tracer warns about every size that it takes as a constant; all but the number of pictures are.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (example,),
            str(path),
            opset_version=request.opset,
            dynamo=False,
            input_names=["input"],
            output_names=graph.names,
            dynamic_axes=axes,
        )
        outputs = graph(example)
    content = onnx.load(str(path))
    for port, output in zip(content.graph.output, outputs, strict=True):
        sizes = ["batch" if axes else output.shape[0], *output.shape[1:]]
        for place, size in zip(port.type.tensor_type.shape.dim, sizes, strict=True):
            place.Clear()
            setattr(place, "dim_param" if isinstance(size, str) else "dim_value", size)
    if slim is not None:
        content = slim(content)
    onnx.checker.check_model(content)
    with replacing(path) as handle:
        handle.write(content.SerializeToString())
    return path


def annotate(path: Path, texts: Mapping[str, str]) -> None:
    """Set the metadata of a file; what it had under other names stays."""
    onnx = require("onnx")
    content = onnx.load(str(path))
    known = {one.key: one.value for one in content.metadata_props} | dict(texts)
    onnx.helper.set_model_props(content, known)
    with replacing(path) as handle:
        handle.write(content.SerializeToString())


def texts_of(path: Path) -> dict[str, str]:
    """The metadata of a file; ValueError if it is no ONNX file."""
    onnx = require("onnx")
    try:
        return {one.key: one.value for one in onnx.load(str(path)).metadata_props}
    except Exception as error:
        # The decoder's errors are those of another package.
        raise ValueError(f"{path} is no ONNX file: {error}") from error


def _sizes(shape: list[Any] | None) -> tuple[int | None, ...] | None:
    """The sizes that are numbers; ONNX Runtime gives an empty shape where nothing is known."""
    return tuple(size if isinstance(size, int) else None for size in shape) if shape else None


class Runtime:
    """A file in ONNX Runtime (`rfdetr.export.files.Runtime`).

    Args:
        device: "cpu", or "cuda" for the CUDA provider of onnxruntime-gpu; None is "cpu".
        threads: that share one run; None lets ONNX Runtime choose.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: it is no ONNX file of one picture input, or the device is not there.
    """

    def __init__(self, path: Path, device: str | None = None, threads: int | None = None) -> None:
        runtime = require("onnxruntime")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device is not None and device != "cpu":
            kind, _, number = device.partition(":")
            if kind != "cuda" or "CUDAExecutionProvider" not in runtime.get_available_providers():
                there = ", ".join(runtime.get_available_providers())
                raise ValueError(f"device={device!r}: ONNX Runtime has {there} here; cuda needs onnxruntime-gpu")
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(number or 0)}))
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Threads that wait by spinning take the cores from each other and from everything else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            # onnxruntime has a dozen classes of errors without a common base.
            raise ValueError(f"{path} is no ONNX file that onnxruntime can run: {error}") from error
        self.texts = dict(self._session.get_modelmeta().custom_metadata_map)
        self.about = f"onnxruntime {runtime.__version__}, {device or 'cpu'}"
        self.outputs = {port.name: _sizes(port.shape) for port in self._session.get_outputs()}
        self._names = list(self.outputs)
        given = self._session.get_inputs()
        match [(port.type, port.shape) for port in given]:
            case [(("tensor(float)" | "tensor(float16)") as kind, [batch, int(channels), int(height), int(width)])]:
                self.shape = (batch if isinstance(batch, int) else None, channels, height, width)
                self._input, self._type = given[0].name, NUMPY_TYPES[kind]
            case ports:
                found = ", ".join(
                    f"{port.name} {shape} of {kind}" for port, (kind, shape) in zip(given, ports, strict=True)
                )
                raise ValueError(f"{path} has the inputs {found}; a detector has input (B, 3, H, W) of tensor(float)")

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """See `rfdetr.export.files.Runtime`."""
        found = self._session.run(self._names, {self._input: images.astype(self._type, copy=False)})
        return dict(zip(self._names, found, strict=True))
