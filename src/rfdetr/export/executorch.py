"""ExecuTorch files for one backend: one input (B, 3, H, W), normalised; the outputs' names are in a file beside it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.checkpoints.replacing import replacing
from rfdetr.export.files import Request, read_beside, write_beside
from rfdetr.extras import require

# The precisions that each backend computes in.
BACKENDS = {"xnnpack": ("float32",), "coreml": ("float32", "float16"), "qnn": ("float32", "float16")}
# Core ML would compute quotients of whole numbers as floats, that are no indices; they stay with ExecuTorch.
DIVISIONS = ("floor_divide.default", "aten.floor_divide.default", "div.tensor_mode", "aten.div.tensor_mode")
# The text that has the names of the outputs, a JSON list.
OUTPUTS = "outputs"


def write(graph: Any, folder: Path, request: Request) -> Path:
    """Trace a graph (`rfdetr.export.graph`) and write `<stem>_<backend>.pte`.

    Raises:
        NotImplementedError: a number of pictures that is not fixed.
        ValueError: an unknown backend, or a precision or a chip that it does not have.
        ImportError: executorch is not installed; the message has the pip command.
        RuntimeError: executorch cannot write the network.
    """
    from rfdetr.export.program import converting, fixed_batch_size, trace

    batch_size = fixed_batch_size(request, "ExecuTorch")
    _check(request)
    lower = _lowering(request)
    path = folder / f"{request.stem}_{request.backend}.pte"
    program = trace(graph, batch_size)
    with converting("executorch"):
        content = lower(program).to_executorch().buffer
    with replacing(path) as handle:
        handle.write(content)
    write_beside(path, {OUTPUTS: json.dumps(graph.names)})
    return path


def _check(request: Request) -> None:
    backend, precision, soc = request.backend, request.precision, request.soc
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} must be one of {', '.join(BACKENDS)}")
    if precision not in BACKENDS[backend]:
        raise ValueError(f"precision={precision!r}: the backend {backend!r} has {', '.join(BACKENDS[backend])}")
    if (soc is None) == (backend == "qnn"):
        raise ValueError(f"soc={soc!r}: the backend 'qnn' needs a chip, such as soc='SM8750', and no other takes one")


def _lowering(request: Request) -> Callable[[Any], Any]:
    """What hands the operators of a program that a backend knows over to it."""
    exir = require("executorch.exir")
    half = request.precision == "float16"
    if request.backend == "qnn":
        utils = require("executorch.backends.qualcomm.utils.utils")
        chips = require("executorch.backends.qualcomm.serialization.qc_schema").QcomChipset
        if request.soc not in chips.__members__:
            raise ValueError(f"soc={request.soc!r} must be one of {', '.join(list(chips.__members__)[1:])}")
        # Its tensor processor computes in half precision whatever was asked for.
        options = utils.generate_htp_compiler_spec(use_fp16=True)
        specs = utils.generate_qnn_executorch_compiler_spec(chips[request.soc], options)
        lower = utils.to_edge_transform_and_lower_to_qnn
        return lambda program: lower(program.module(), program.example_inputs[0], specs)
    if request.backend == "coreml":
        tools = require("coremltools")
        specs = require("executorch.backends.apple.coreml.compiler").CoreMLBackend.generate_compile_specs(
            compute_precision=tools.precision.FLOAT16 if half else tools.precision.FLOAT32,
            minimum_deployment_target=tools.target.iOS16,
        )
        partitioner = require("executorch.backends.apple.coreml.partition").CoreMLPartitioner
        part = partitioner(compile_specs=specs, skip_ops_for_coreml_delegation=list(DIVISIONS))
    else:
        part = require("executorch.backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner()
    return lambda program: exir.to_edge_transform_and_lower(program, partitioner=[part])


def annotate(path: Path, texts: Mapping[str, str]) -> None:
    """Set metadata of a file, in the JSON file beside it; what it had under other names stays."""
    write_beside(path, read_beside(path) | dict(texts))


def texts_of(path: Path) -> dict[str, str]:
    """The metadata of a file; FileNotFoundError if there are none."""
    return read_beside(path)


class Runtime:
    """A file in the ExecuTorch runtime (`rfdetr.export.files.Runtime`).

    Args:
        device: "cpu" or None; the file itself was made for a backend.
        threads: of this whole process; None lets ExecuTorch choose.

    Raises:
        ImportError: executorch is not installed.
        NotImplementedError: the backend of the file is not in this build of ExecuTorch.
        FileNotFoundError: the JSON file beside it is missing.
        ValueError: it is no ExecuTorch file, or another device.
    """

    def __init__(self, path: Path, device: str | None = None, threads: int | None = None) -> None:
        runtime = require("executorch.runtime").Runtime.get()
        if device not in (None, "cpu"):
            raise ValueError(f"device={device!r}: the backend of {path.name} was chosen when it was written")
        self.texts = read_beside(path)
        if threads is not None:
            require("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)
        try:
            # A program must live as long as its methods.
            self._program = runtime.load_program(path)
        except RuntimeError as error:
            raise ValueError(f"{path} is no file that ExecuTorch can run: {error}") from error
        try:
            self._method = self._program.load_method("forward")
        except RuntimeError as error:
            there = ", ".join(runtime.backend_registry.registered_backend_names)
            raise NotImplementedError(f"ExecuTorch has {there} here, and cannot load the file: {error}") from error
        ports = self._method.metadata
        batch, channels, height, width = ports.input_tensor_meta(0).sizes()
        self.shape = (batch, channels, height, width)
        names = json.loads(self.texts[OUTPUTS])
        self.outputs = {name: tuple(ports.output_tensor_meta(i).sizes()) for i, name in enumerate(names)}
        self.about = f"ExecuTorch, {path.stem.rpartition('_')[2]}"
        self._lock = threading.Lock()

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """See `rfdetr.export.files.Runtime`."""
        import torch

        with self._lock:
            found = self._method.execute([torch.from_numpy(np.ascontiguousarray(images))])
        return {name: one.numpy() for name, one in zip(self.outputs, found, strict=True)}
