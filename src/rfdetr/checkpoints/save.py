"""Writing files so that an interruption never leaves half of one, and what a checkpoint says about itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

import rfdetr
from rfdetr.checkpoints.names import to_published
from rfdetr.config import ModelConfig


@contextmanager
def replacing(path: Path, mode: str = "wb") -> Iterator[IO]:
    """A file to write beside `path`; it takes its place, synced, only when the block ends without an error."""
    part = path.with_name(path.name + ".part")
    try:
        # A name that is no text, of a file or a class, must not end what is being written.
        encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
        with part.open(mode, encoding=encoding, errors=errors) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint that `torch.load(weights_only=True)` reads: plain containers, tensors, numbers and texts.

    Raises:
        TypeError: some value is of another type; the message names it.
    """
    with replacing(path) as handle:
        torch.save(plain(content), handle)


def plain(value: Any, where: str = "") -> Any:
    """`value` with tuples, sets and paths as lists and texts; everything else must already be plain."""
    if value is None or isinstance(value, bool | Tensor):
        return value
    # Subclasses, such as NumPy's numbers and enums, become what they are made of: the safe reader refuses them.
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{where.lstrip('.')} is a {type(value).__name__}, which a checkpoint cannot hold")


def published_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their published names, on the CPU, each with memory of its own."""
    return {name: tensor.detach().cpu().clone() for name, tensor in to_published(state).items()}


def description(config: ModelConfig, class_names: list[str], train: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The entries by which a checkpoint says what it is: `args`, `model_name`, `model_config`, `rfdetr_version`."""
    settings = config.model_dump()
    return {
        "args": {**settings, **(train or {}), "class_names": list(class_names), "num_classes": config.num_classes},
        "model_name": config.model_name,
        "model_config": settings,
        "rfdetr_version": rfdetr.__version__,
    }
