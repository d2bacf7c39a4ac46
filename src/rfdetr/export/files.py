"""The formats of exported files: which module writes and runs each. Imports no PyTorch and no runtime."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rfdetr.checkpoints.replacing import replacing

# Every name of a format, and the module of this package that knows it.
FORMATS = {
    "onnx": "onnx",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "trt": "tensorrt",
    "coreml": "coreml",
    "tflite": "litert",
    "litert": "litert",
    "executorch": "executorch",
    "pte": "executorch",
}
SUFFIXES = {
    ".onnx": "onnx",
    ".xml": "openvino",
    ".trt": "tensorrt",
    ".engine": "tensorrt",
    ".mlpackage": "coreml",
    ".tflite": "litert",
    ".pte": "executorch",
}


@dataclass(frozen=True)
class Request:
    """How a file is to be written.

    Args:
        stem: its name without what the format adds.
        batch_size: pictures that it takes at once; None for any number.
        max_batch_size: the most of any number, for formats that must know.
        precision: "float32" or "float16", of its weights.
        opset: of ONNX files, and of what is made of them.
        simplify: let onnxslim fold an ONNX file.
        backend: of ExecuTorch: "xnnpack", "coreml" or "qnn".
        soc: chip that a backend is made for.
    """

    stem: str
    batch_size: int | None = None
    max_batch_size: int | None = None
    precision: str = "float32"
    opset: int = 17
    simplify: bool = False
    backend: str = "xnnpack"
    soc: str | None = None


class Runtime(Protocol):
    """An exported file that is ready to run; the class `Runtime` of every format's module."""

    # What `annotate` wrote.
    texts: dict[str, str]
    # Pictures (None for any number), channels, height and width of the input.
    shape: tuple[int | None, int, int, int]
    # Shape of every output by name, with None for what is not fixed, or for all that the file does not tell.
    outputs: dict[str, tuple[int | None, ...] | None]
    # Where it runs and in which precision, for people.
    about: str

    def __init__(self, path: Path, device: str | None = None, threads: int | None = None) -> None: ...

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Normalised images (B, C, H, W) float32, B as `shape` says, to every output by name."""
        ...


def module_of(name: str) -> Any:
    """The module of a format, with `write(graph, folder, request) -> path`, `annotate(path, texts)` and `Runtime`.

    Raises:
        ValueError: an unknown format; the message lists those there are.
    """
    if name not in FORMATS:
        raise ValueError(f"format={name!r} must be one of {', '.join(FORMATS)}")
    return importlib.import_module(f"rfdetr.export.{FORMATS[name]}")


def format_of(path: Path) -> str:
    """The format of a file, by its suffix.

    Raises:
        ValueError: none that exports have.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path}: the suffix {path.suffix!r} is of no exported format; known are {', '.join(SUFFIXES)}"
        )
    return SUFFIXES[path.suffix.lower()]


def write_beside(path: Path, texts: Mapping[str, str]) -> None:
    """Keep what a format has no room for in a JSON file beside it."""
    with replacing(beside(path), "w") as handle:
        json.dump(dict(texts), handle, indent=1)


def read_beside(path: Path) -> dict[str, str]:
    """What `write_beside` wrote.

    Raises:
        FileNotFoundError: there is none; the file has been moved without it.
    """
    try:
        return json.loads(beside(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{beside(path)} is missing, which says what {path.name} detects; keep both together"
        ) from None


def beside(path: Path) -> Path:
    """The name of that JSON file."""
    return path.with_name(path.name + ".json")
