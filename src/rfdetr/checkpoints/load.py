"""Reading checkpoints of every release: safely, completely, and fitted to the model that is wanted."""

from __future__ import annotations

import argparse
import pickle
import types
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfdetr.assets.coco_classes import COCO_CLASS_NAMES
from rfdetr.checkpoints.names import to_internal
from rfdetr.config import ModelConfig
from rfdetr.models.backbone import resize_positions

_CLASS_HEADS = ("class_embed.", "transformer.enc_out_class_embed.")
_QUERY_TABLES = ("refpoint_embed.weight", "query_feat.weight")
_POSITIONS = "backbone.0.encoder.encoder.embeddings.position_embeddings"
_PATCHES = "backbone.0.encoder.encoder.embeddings.patch_embeddings.projection.weight"


@dataclass
class Checkpoint:
    """A file that was read: `weights` by published name, and what it says about itself."""

    path: Path
    weights: dict[str, Tensor]
    args: dict[str, Any]
    model_name: str | None
    model_config: dict[str, Any]
    content: dict[str, Any] = field(repr=False)
    namespace_args: bool = False

    @property
    def class_names(self) -> list[str]:
        """Names stored in the file; a text counts as one name, entries that are no text are left out."""
        names = self.args.get("class_names") or []
        names = [names] if isinstance(names, str) else names
        names = names.values() if isinstance(names, Mapping) else names
        return [name for name in names if isinstance(name, str)]

    @property
    def class_rows(self) -> int:
        """Rows of the class head: one more than there are classes."""
        return len(self.weights["class_embed.bias"])

    @property
    def first_label(self) -> int:
        """Label of the first name: 1 in files of releases 1.2 to 1.4, whose row 0 was never trained, else 0."""
        old = self.namespace_args and not self.model_name and not self.model_config
        names = self.class_names
        return 1 if old and names and len(names) == self.class_rows - 1 and names != COCO_CLASS_NAMES else 0


class _TextPath(str):
    """Stands in for the path classes of files written on other systems."""

    def __new__(cls, *parts: str) -> _TextPath:
        return super().__new__(cls, "/".join(parts))


def _allowed() -> list[Any]:
    paths = ("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath")
    local = ("pathlib._local.PosixPath", "pathlib._local.WindowsPath")
    return [argparse.Namespace, types.SimpleNamespace, *((_TextPath, name) for name in paths + local)]


def read_file(path: Path, trust: bool = False) -> dict[str, Any]:
    """The dict in a checkpoint file. Code in the file is never run unless `trust` is set.

    Raises:
        FileNotFoundError, ValueError: what is wrong with the file, by name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: there is no such file")
    try:
        with torch.serialization.safe_globals(_allowed()):
            content = torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError) as error:
        raise ValueError(_why_unreadable(path, error)) from None
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds a {type(content).__name__}, not the dict of a checkpoint")
    return content


def _why_unreadable(path: Path, error: Exception) -> str:
    if zipfile.is_zipfile(path):
        try:
            code = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except (pickle.UnpicklingError, RuntimeError, ValueError):
            code = []
        if code:
            return (
                f"checkpoint {path} asks to run {', '.join(code)} and was not loaded; weights need no code. "
                "Only if you trust who made the file: trust_checkpoint=True"
            )
    first = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
    return f"{path} is not a readable checkpoint ({first}); a complete file written by torch.save is needed"


def read_checkpoint(path: str | Path, trust: bool = False) -> Checkpoint:
    """Read any layout: `model`, Lightning's `state_dict` with prefix `model.`, args as Namespace or dict."""
    path = Path(path).expanduser()
    content = read_file(path, trust)
    weights = content.get("model")
    args = content.get("args")
    if not isinstance(weights, Mapping):
        weights = _lightning_weights(path, content)
        args = args if args is not None else content.get("hyper_parameters")
    weights = {name.removeprefix("module."): t for name, t in weights.items() if isinstance(t, Tensor)}
    if "class_embed.bias" not in weights:
        raise ValueError(f"checkpoint {path} holds no RF-DETR: it has no tensor class_embed.bias")
    namespace = not isinstance(args, Mapping) and args is not None
    config = content.get("model_config")
    return Checkpoint(
        path=path,
        weights=weights,
        args=dict(vars(args) if namespace else args or {}),
        model_name=content.get("model_name"),
        model_config=dict(config) if isinstance(config, Mapping) else {},
        content=content,
        namespace_args=namespace,
    )


def _lightning_weights(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        raise ValueError(f"checkpoint {path} has neither 'model' nor 'state_dict'; its entries are {sorted(content)[:8]}")
    found = {
        name.removeprefix("model.").removeprefix("_orig_mod."): tensor
        for name, tensor in state.items()
        if name.startswith("model.")
    }
    if not found:
        raise ValueError(f"checkpoint {path}: no entry of 'state_dict' starts with 'model.'")
    return found


def resize_rows(tensor: Tensor, rows: int) -> Tensor:
    """Cut or cyclically repeat the first axis: new row i is old row i mod the old count."""
    return tensor[torch.arange(rows, device=tensor.device) % len(tensor)]


def cut_queries(table: Tensor, queries: int, groups: int, file_queries: int | None, file_groups: int | None) -> Tensor:
    """Fit a query table (file groups * file queries, X) to (groups * queries, X), keeping the first of each group.

    Without knowledge of the file's layout the first rows are taken; group 0 is right then, which inference uses.
    """
    rows = len(table)
    if file_queries and not file_groups:
        file_groups = rows // file_queries
    elif file_groups and not file_queries:
        file_queries = rows // file_groups
    if file_queries and file_groups and file_queries * file_groups == rows:
        grouped = table.view(file_groups, file_queries, -1)
        return grouped[:groups, :queries].reshape(-1, table.shape[1])
    if rows > queries * groups and groups > 1:
        warnings.warn("The checkpoint does not say how its queries are grouped; groups 1 and up start mixed.", stacklevel=3)
    return table[: queries * groups]


def fit(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, Tensor]:
    """The weights of a file in our names, fitted to a configuration: class rows, queries, groups, position table."""
    weights = dict(checkpoint.weights)
    rows = config.num_classes + 1
    for name in weights:
        if name.startswith(_CLASS_HEADS) and len(weights[name]) != rows:
            weights[name] = resize_rows(weights[name], rows)
    known = {**checkpoint.args, **checkpoint.model_config}
    for name in _QUERY_TABLES:
        weights[name] = cut_queries(
            weights[name], config.num_queries, config.group_detr, known.get("num_queries"), known.get("group_detr")
        )
    weights = {n: t for n, t in weights.items() if not _is_other_group(n, config.group_detr)}
    if len(weights[_POSITIONS][0]) != 1 + config.positional_encoding_size**2:
        weights[_POSITIONS] = _fit_positions(weights[_POSITIONS], config.positional_encoding_size)
    weights[_PATCHES] = adapt_channels(weights[_PATCHES], config.num_channels)
    fitted, unknown = to_internal(weights)
    if unknown:
        warnings.warn(
            f"{checkpoint.path} holds {len(unknown)} tensors this model does not use: {', '.join(unknown[:4])}, ...",
            stacklevel=3,
        )
    return fitted


def _is_other_group(name: str, groups: int) -> bool:
    parts = name.split(".")
    return name.startswith("transformer.enc_out") and parts[2].isdigit() and int(parts[2]) >= groups


def _fit_positions(table: Tensor, side: int) -> Tensor:
    stored = round((table.shape[1] - 1) ** 0.5)
    if stored * stored != table.shape[1] - 1:
        warnings.warn(f"The position table of {table.shape[1] - 1} entries is not square; it is left alone.", stacklevel=4)
        return table
    return resize_positions(table, side, side)


def adapt_channels(kernel: Tensor, channels: int) -> Tensor:
    """Fit a patch kernel (D, C, p, p) to another channel count: the mean for one, else a scaled cyclic repetition."""
    have = kernel.shape[1]
    if have == channels:
        return kernel
    if channels == 1:
        return kernel.mean(1, keepdim=True)
    return kernel[:, torch.arange(channels) % have] * (have / channels)


def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], path: Path, partial: bool = False) -> list[str]:
    """Put weights into a module on the meta device, taking over their memory; returns the names that stay empty.

    Raises:
        ValueError: a tensor is missing (unless `partial`) or has another shape; all are listed in one message.
    """
    wanted = module.state_dict()
    wrong = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    missing = [name for name in wanted if name not in weights]
    if wrong or (missing and not partial):
        found = wrong + [f"{name} is missing" for name in missing]
        raise ValueError(f"{path} does not fit this model: {'; '.join(found[:6])}" + (", ..." if len(found) > 6 else ""))
    own = {name: weights[name].float().clone() for name in wanted if name in weights}
    module.load_state_dict(own, strict=not missing, assign=True)
    return missing
