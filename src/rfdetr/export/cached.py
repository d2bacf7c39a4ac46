"""A model that predicts through an exported file: written at the first need, and kept for the next process."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

import rfdetr
from rfdetr.checkpoints.download import cache_folder
from rfdetr.export.files import FORMATS, Request, module_of
from rfdetr.export.metadata import from_metadata
from rfdetr.export.predictor import FileRunner
from rfdetr.inference.decode import Found
from rfdetr.inference.optimised import fingerprint
from rfdetr.labels import Labels
from rfdetr.log import logger
from rfdetr.main import Model

# Files of other weights, shapes and versions that are kept beside the newest.
KEPT = 8
# What `backend` can be, and the packages that each needs.
_PACKAGES = {"openvino": ("openvino", "onnx"), "onnx": ("onnxruntime", "onnx"), "tensorrt": ("tensorrt", "onnx")}
BACKENDS = ("auto", "torch", *_PACKAGES)


def choose_backend(backend: str, device_type: str) -> str:
    """What runs the network: `backend` itself, or for "auto" the fastest that is installed for this machine.

    Raises:
        ValueError: an unknown backend; the message lists those there are.
        ImportError: a package that it needs is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} must be one of {', '.join(BACKENDS)}")
    if backend in _PACKAGES:
        for package in _PACKAGES[backend]:
            if importlib.util.find_spec(package) is None:
                extra = "onnx" if package.startswith("onnx") else backend
                raise ImportError(f'backend={backend!r} needs {package}: pip install "rfdetr[{extra}]"')
        return backend
    if backend == "torch" or device_type != "cpu":
        return "torch"
    # OpenVINO's kernels are made for x86 processors.
    names = ("openvino", "onnx") if platform.machine().lower() in ("x86_64", "amd64") else ("onnx",)
    return next((name for name in names if is_installed(name)), "torch")


def is_installed(backend: str) -> bool:
    """Whether every package that a backend needs is there."""
    return all(importlib.util.find_spec(package) for package in _PACKAGES.get(backend, ()))


class CachedRunner:
    """A model whose network runs in an exported file (`rfdetr.inference.predictor.Runner`)."""

    chunk = 8

    def __init__(self, model: Model, backend: str) -> None:
        self.model, self.backend = model, backend
        self._runners: dict[tuple[int, int], tuple[object, FileRunner]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {"model": self.model, "backend": self.backend}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    @property
    def labels(self) -> Labels:
        """Those of the model, whose thresholds change."""
        return self.model.labels

    @property
    def has_masks(self) -> bool:
        """Whether the network finds masks."""
        return self.model.config.segmentation_head

    @property
    def hw(self) -> tuple[int, int]:
        """The usual height and width of the input."""
        return (self.model.config.resolution,) * 2

    @property
    def block(self) -> int:
        """Sides of inputs are multiples of it."""
        return self.model.config.block_size

    @property
    def patch_size(self) -> int:
        """Side of the patches."""
        return self.model.config.patch_size

    def check_size(self, hw: tuple[int, int]) -> None:
        """Every multiple of the block gets a file of its own."""

    def detect(self, pictures: Sequence[np.ndarray], hw: tuple[int, int], threshold: float) -> list[Found]:
        """See `Runner`."""
        return self.file(hw).detect(pictures, hw, threshold)

    def file(self, hw: tuple[int, int]) -> FileRunner:
        """The file for inputs of a height and width, written now if the weights have changed since."""
        with self._lock:
            weights = fingerprint(self.model.model)
            known = self._runners.get(hw)
            if known is None or known[0] != weights:
                known = self._runners[hw] = weights, _open(self.model, self.backend, hw)
            return known[1]


def _open(model: Model, backend: str, hw: tuple[int, int]) -> FileRunner:
    from rfdetr.export.write import export

    module, folder = module_of(backend), cache_folder() / "exports" / _digest(model, backend, hw)
    found = [path for path in folder.glob("*") if path.suffix in (".onnx", ".xml", ".trt")]
    if found:
        folder.touch()
    else:
        logger.info("the network is prepared for %s, once for these weights", backend)
        found = [export(model, folder, backend, Request("inference_model"), hw)]
        _tidy(folder.parent)
    # A program that gave PyTorch fewer threads than there are cores means this too.
    threads = torch.get_num_threads()
    runtime = module.Runtime(found[0], threads=threads if threads < (os.cpu_count() or 1) else None)
    return FileRunner(runtime, from_metadata(runtime.texts, found[0]))


def _digest(model: Model, backend: str, hw: tuple[int, int]) -> str:
    """A name for weights, settings, shape and the versions of everything that takes part."""
    settings = {name: value for name, value in model.config.model_dump().items() if name != "pretrain_weights"}
    about = [rfdetr.__version__, FORMATS[backend], hw, sorted(settings.items(), key=str), model.class_names]
    digest = hashlib.blake2b(repr(about).encode(), digest_size=16)
    for package in (*_PACKAGES[backend], "torch"):
        try:
            digest.update(f"{package} {version(package)}".encode())
        except PackageNotFoundError:
            digest.update(package.encode())
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tidy(folder: Path) -> None:
    """Remove the files that were not used for longest."""
    kept = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in kept[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
