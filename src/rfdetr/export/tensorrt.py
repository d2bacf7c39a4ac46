"""TensorRT engines: `<stem>_fp16.trt` or `<stem>_fp32.trt`, for the GPU and the TensorRT they were built with."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.checkpoints.replacing import replacing
from rfdetr.export import onnx
from rfdetr.export.files import Request, read_beside, write_beside
from rfdetr.extras import require

# Small numbers that decide about places and order, which half precision would ruin.
_IN_FLOAT32 = ("NORMALIZATION", "SOFTMAX", "TOPK", "GRID_SAMPLE", "REDUCE")


def write(graph: Any, folder: Path, request: Request) -> Path:
    """Build an engine of an ONNX file; inputs and outputs are float32.

    Raises:
        ImportError: tensorrt or onnx is not installed.
        RuntimeError: TensorRT refuses the network, or cannot build it in the precision that was asked for.
    """
    tensorrt = require("tensorrt")
    source = onnx.write(graph, folder, replace(request, stem=f"{request.stem}_source"))
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(source.read_bytes()):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise RuntimeError(f"TensorRT cannot read the network: {reasons}")
    source.unlink()
    settings = builder.create_builder_config()
    if request.precision == "float16":
        _allow_halves(tensorrt, network, settings)
    if request.batch_size is None:
        profile, most = builder.create_optimization_profile(), request.max_batch_size or 8
        sizes = [(count, *network.get_input(0).shape[1:]) for count in (1, 1, most)]
        profile.set_shape("input", *sizes)
        settings.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, settings)
    if engine is None:
        raise RuntimeError("TensorRT built no engine; its own messages above say why")
    path = folder / f"{request.stem}_{'fp16' if request.precision == 'float16' else 'fp32'}.trt"
    with replacing(path) as handle:
        handle.write(engine)
    write_beside(path, {})
    return path


def _allow_halves(tensorrt: Any, network: Any, settings: Any) -> None:
    """Let TensorRT compute in half precision but for what must not be.

    Raises:
        RuntimeError: this TensorRT has no such choice any more.
    """
    if not hasattr(tensorrt.BuilderFlag, "FP16"):
        raise RuntimeError(
            f"TensorRT {tensorrt.__version__} takes the precision of the network, which is float32; give fp16=False"
        )
    settings.set_flag(tensorrt.BuilderFlag.FP16)
    settings.set_flag(tensorrt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    kinds = {getattr(tensorrt.LayerType, name) for name in _IN_FLOAT32 if hasattr(tensorrt.LayerType, name)}
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        if layer.type in kinds and layer.get_output(0).dtype == tensorrt.float32:
            layer.precision = tensorrt.float32


def annotate(path: Path, texts: Mapping[str, str]) -> None:
    """Set the metadata of an engine, in the JSON file beside it."""
    write_beside(path, {**read_beside(path), **texts})


def texts_of(path: Path) -> dict[str, str]:
    """The metadata of an engine."""
    return read_beside(path)


class Runtime:
    """An engine on a GPU (`rfdetr.export.files.Runtime`); PyTorch holds its memory.

    Raises:
        ImportError: tensorrt is not installed.
        ValueError: there is no GPU, or the engine was built for another one or by another TensorRT.
    """

    def __init__(self, path: Path, device: str | None = None, threads: int | None = None) -> None:
        tensorrt = require("tensorrt")
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f"{path} needs an NVIDIA GPU, and there is none here")
        self._torch, self._device = torch, torch.device(device or "cuda")
        self.texts = read_beside(path)
        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ValueError(f"{path} was built for another GPU or by another TensorRT; export it again here")
        self._context, self._lock = self._engine.create_execution_context(), threading.Lock()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        given = [name for name in names if self._engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        self._input, self._names = given[0], [name for name in names if name not in given]
        self.outputs = dict.fromkeys(self._names)
        batch, *rest = self._engine.get_tensor_shape(self._input)
        self.shape = (None if batch < 0 else batch, *rest)
        self.about = f"tensorrt {tensorrt.__version__}, {torch.cuda.get_device_name(self._device)}"

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """See `rfdetr.export.files.Runtime`."""
        torch = self._torch
        with self._lock, torch.cuda.device(self._device):
            given = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
            self._context.set_input_shape(self._input, tuple(given.shape))
            self._context.set_tensor_address(self._input, given.data_ptr())
            found = {}
            for name in self._names:
                whole = "INT64" in str(self._engine.get_tensor_dtype(name))
                shape = tuple(self._context.get_tensor_shape(name))
                found[name] = torch.empty(shape, dtype=torch.int64 if whole else torch.float32, device=self._device)
                self._context.set_tensor_address(name, found[name].data_ptr())
            stream = torch.cuda.current_stream()
            self._context.execute_async_v3(stream.cuda_stream)
            stream.synchronize()
            return {name: values.cpu().numpy() for name, values in found.items()}
