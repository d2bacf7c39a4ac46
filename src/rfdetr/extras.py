"""Optional packages: which extra brings each of them, and the one way to import one."""

from __future__ import annotations

import importlib
from types import ModuleType

# import name: (extra of this package, what it is for)
EXTRAS = {
    "simplejpeg": ("fast", "faster JPEG decoding"),
    "albumentations": ("aug", "augmentations beyond the built-in ones"),
    "tensorboard": ("loggers", "TensorBoard logging"),
    "wandb": ("loggers", "logging to Weights & Biases"),
    "mlflow": ("loggers", "logging to MLflow"),
    "onnx": ("onnx", "exporting to ONNX"),
    "onnxruntime": ("onnx", "running ONNX files"),
    "matplotlib": ("visual", "drawing plots"),
    "yaml": ("data", "reading YOLO data sets"),
}


def require(name: str) -> ModuleType:
    """Import an optional package.

    Raises:
        ImportError: it is not installed; the message says what needs it and the pip command.
    """
    package = name.split(".", maxsplit=1)[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package and not (error.name or "").startswith(package + "."):
            raise
        extra, purpose = EXTRAS[package]
        raise ImportError(f'{purpose} needs {package}: pip install "rfdetr[{extra}]"') from error
