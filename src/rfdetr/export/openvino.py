"""OpenVINO files: `<stem>.xml` and the weights in `<stem>.bin`, made of an ONNX file. Ports have the same names."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.export import onnx
from rfdetr.export.files import Request
from rfdetr.extras import require

# The place of our metadata among those of a file.
_SECTION = "rfdetr"


def write(graph: Any, folder: Path, request: Request) -> Path:
    """Write `<stem>.xml` and `<stem>.bin`; with precision "float16" weights are stored in half the room.

    Raises:
        ImportError: openvino or onnx is not installed.
        RuntimeError: the weights do not have the precision that was asked for.
    """
    openvino = require("openvino")
    source = onnx.write(graph, folder, replace(request, stem=f"{request.stem}_source"))
    path = folder / f"{request.stem}.xml"
    half = request.precision == "float16"
    openvino.save_model(_core().read_model(str(source)), str(path), compress_to_fp16=half)
    source.unlink()
    if _holds_halves(openvino, path) != half:
        raise RuntimeError(f"OpenVINO did not store the weights as {request.precision}; nothing is written")
    return path


def _core() -> Any:
    """OpenVINO, which reads weights instead of mapping them: who replaces a file must not crash those who opened it."""
    core = require("openvino").Core()
    core.set_property({"ENABLE_MMAP": False})
    return core


def _holds_halves(openvino: Any, path: Path) -> bool:
    """Whether the large constants of a file are of 16 bits."""
    constants = [op for op in _core().read_model(str(path)).get_ops() if op.get_type_name() == "Constant"]
    kinds = {op.get_element_type().get_type_name() for op in constants if len(op.get_output_shape(0)) >= 2}
    return "f16" in kinds and "f32" not in {
        op.get_element_type().get_type_name() for op in constants if np.prod(list(op.get_output_shape(0))) >= 2**14
    }


def annotate(path: Path, texts: Mapping[str, str]) -> None:
    """Set the metadata of a file."""
    openvino = require("openvino")
    model = _core().read_model(str(path))
    for name, text in texts.items():
        model.set_rt_info(text, [_SECTION, name])
    part = path.with_name(f"{path.stem}_part.xml")
    openvino.save_model(model, str(part), compress_to_fp16=False)
    del model  # its weights lie in the file that is replaced
    part.with_suffix(".bin").replace(path.with_suffix(".bin"))
    part.replace(path)


def texts_of(path: Path) -> dict[str, str]:
    """The metadata of a file; ValueError if OpenVINO cannot read it."""
    try:
        return _texts(_core().read_model(str(path)))
    except RuntimeError as error:
        raise ValueError(f"{path} is no file that OpenVINO can read: {error}") from error


def _texts(model: Any) -> dict[str, str]:
    if not model.has_rt_info([_SECTION]):
        return {}
    return {name: str(value) for name, value in model.get_rt_info([_SECTION]).value.items()}


def _sizes(shape: Any) -> tuple[int | None, ...]:
    return tuple(None if size.is_dynamic else size.get_length() for size in shape)


class Runtime:
    """A file in OpenVINO (`rfdetr.export.files.Runtime`), in the precision it was written in.

    Args:
        device: of OpenVINO, such as "CPU", "GPU" or "AUTO"; None is "CPU".
        threads: that share one run; None is all cores.

    Raises:
        ImportError: openvino is not installed.
        FileNotFoundError: the weights are missing beside the file.
        ValueError: it is no file of OpenVINO, or the device is not there.
    """

    def __init__(self, path: Path, device: str | None = None, threads: int | None = None) -> None:
        openvino = require("openvino")
        if path.suffix == ".xml" and not path.with_suffix(".bin").is_file():
            raise FileNotFoundError(
                f"{path.with_suffix('.bin')} is missing, the weights of {path.name}; keep both together"
            )
        core = _core()
        try:
            self._model = core.read_model(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} is no file that OpenVINO can read: {error}") from error
        self.texts = _texts(self._model)
        name = (device or "CPU").upper()
        if name.split(".")[0].split(":")[0] not in {*(one.split(".")[0] for one in core.available_devices), "AUTO"}:
            raise ValueError(f"device={device!r}: OpenVINO has {', '.join(core.available_devices)} here, and AUTO")
        self._core, self._device = core, name
        # Otherwise processors with units for bfloat16 would compute in that, without a word.
        self._settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._compiled: dict[int, Any] = {}
        self._lock, self._local = threading.Lock(), threading.local()
        if len(self._model.inputs) != 1:
            raise ValueError(f"{path} has {len(self._model.inputs)} inputs; a detector has one, (B, 3, H, W)")
        (given,) = self._model.inputs
        sizes = _sizes(given.partial_shape)
        if len(sizes) != 4 or None in sizes[1:]:
            raise ValueError(f"{path} has an input of {given.partial_shape}; a detector has (B, 3, H, W)")
        self.shape = sizes
        self._input = given.any_name
        self.outputs = {port.any_name: _sizes(port.partial_shape) for port in self._model.outputs}
        self._names = list(self.outputs)
        self.about = f"openvino {openvino.__version__.split('-')[0]}, {name}"

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """See `rfdetr.export.files.Runtime`."""
        request = self._request(len(images))
        request.infer({self._input: np.ascontiguousarray(images)})
        # Copies: the next run writes over the request's memory.
        return {name: request.get_tensor(name).data.copy() for name in self._names}

    def _request(self, count: int) -> Any:
        """A request of this thread for a number of pictures; a network is compiled for each number, once."""
        mine = self._local.__dict__.setdefault("requests", {})
        if count not in mine:
            with self._lock:
                if count not in self._compiled:
                    model = self._model.clone()
                    if self.shape[0] is None:
                        model.reshape({self._input: [count, *self.shape[1:]]})
                    self._compiled[count] = self._core.compile_model(model, self._device, self._settings)
            mine[count] = self._compiled[count].create_infer_request()
        return mine[count]
