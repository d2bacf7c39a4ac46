"""LiteRT (TensorFlow Lite) files: input `input` (B, 3, H, W), normalised; outputs as the graph names them."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.checkpoints.replacing import replacing
from rfdetr.export.files import Request
from rfdetr.extras import require

# Files of this format carry others in a zip archive behind the model; ours has the texts.
TEXTS = "metadata.json"


def write(graph: Any, folder: Path, request: Request) -> Path:
    """Trace a graph (`rfdetr.export.graph`) and write `<stem>.tflite`.

    Raises:
        NotImplementedError: a number of pictures that is not fixed.
        ValueError: another precision than float32.
        ImportError: litert-torch is not installed; the message has the pip command.
        RuntimeError: litert-torch cannot write the network.
    """
    from rfdetr.export.program import Named, converting, fixed_batch_size, trace

    batch_size = fixed_batch_size(request, "LiteRT")
    if request.precision != "float32":
        raise ValueError(f"precision={request.precision!r}: LiteRT files are written in float32 alone")
    tools = require("litert_torch")
    path = folder / f"{request.stem}.tflite"
    program = trace(graph, batch_size)
    images = graph.example(batch_size)
    with converting("litert-torch"):
        tools.convert(Named(program.module(), graph.names), sample_kwargs={"input": images}).export(str(path))
    return path


def annotate(path: Path, texts: Mapping[str, str]) -> None:
    """Set metadata of a file; what it had under other names stays."""
    model, known = _parts(path)
    with replacing(path) as handle:
        handle.write(model)
        with zipfile.ZipFile(handle, "a") as archive:
            archive.writestr(zipfile.ZipInfo(TEXTS), json.dumps(known | dict(texts)))


def texts_of(path: Path) -> dict[str, str]:
    """The metadata of a file; ValueError if it is no LiteRT file."""
    return _parts(path)[1]


def _parts(path: Path) -> tuple[bytes, dict[str, str]]:
    """The model in a file without the archive behind it, and the texts in that."""
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise ValueError(f"{path} is no LiteRT file")
    if not zipfile.is_zipfile(path):
        return content, {}
    with zipfile.ZipFile(path) as archive:
        if TEXTS not in archive.namelist():
            return content, {}
        return content[: archive.infolist()[0].header_offset], json.loads(archive.read(TEXTS))


class Runtime:
    """A file in the LiteRT interpreter (`rfdetr.export.files.Runtime`).

    Args:
        device: "cpu" or None.
        threads: that share one run; None lets LiteRT choose.

    Raises:
        ImportError: ai-edge-litert is not installed.
        ValueError: it is no LiteRT file, or another device.
    """

    def __init__(self, path: Path, device: str | None = None, threads: int | None = None) -> None:
        module = require("ai_edge_litert.interpreter")
        if device not in (None, "cpu"):
            raise ValueError(f"device={device!r}: LiteRT files run on the 'cpu' here")
        self.texts = texts_of(path)
        try:
            # It must live as long as its runner.
            self._interpreter = module.Interpreter(str(path), num_threads=threads)
            self._runner = self._interpreter.get_signature_runner()
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} is no file that LiteRT can run: {error}") from error
        batch, channels, height, width = self._runner.get_input_details()["input"]["shape"].tolist()
        self.shape = (batch, channels, height, width)
        self.outputs = {name: tuple(one["shape"].tolist()) for name, one in self._runner.get_output_details().items()}
        self.about = "LiteRT, cpu"
        self._lock = threading.Lock()

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """See `rfdetr.export.files.Runtime`."""
        with self._lock:
            found = self._runner(input=images)
        return {name: one.astype(np.int64 if name == "classes" else np.float32) for name, one in found.items()}
