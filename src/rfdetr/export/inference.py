"""Exported files as bare sessions: network input in, raw outputs out. `rfdetr.load` gives detections instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rfdetr.export.files import module_of


class _Session:
    """An exported file that is ready to run."""

    format: ClassVar[str]

    def __init__(self, model_path: str | Path, device: str | None = None) -> None:
        self.runtime = module_of(self.format).Runtime(Path(model_path).expanduser(), device)

    def infer(self, input_data: Any) -> dict[str, np.ndarray]:
        """Normalised images (B, 3, H, W) float32, an array or a tensor, to every output by name."""
        array = input_data.detach().cpu().numpy() if hasattr(input_data, "detach") else np.asarray(input_data)
        return self.runtime.run(np.ascontiguousarray(array, np.float32))

    __call__ = infer


class OnnxInference(_Session):
    """An ONNX file."""

    format = "onnx"


class OpenVINOInference(_Session):
    """An OpenVINO file (.xml)."""

    format = "openvino"


class TRTInference(_Session):
    """A TensorRT engine."""

    format = "tensorrt"
