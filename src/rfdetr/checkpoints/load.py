"""Reading checkpoints of every release: safely, completely, and fitted to the model that is wanted."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfdetr.assets.coco_classes import COCO_CLASS_NAMES
from rfdetr.checkpoints.file import read_file
from rfdetr.checkpoints.names import KEYPOINT_MASK, to_internal, to_published
from rfdetr.config import ModelConfig
from rfdetr.models.backbone import resize_positions
from rfdetr.models.keypoint_network import schema_masks
from rfdetr.models.refit import resize_rows

_CLASS_HEADS = ("class_embed.", "transformer.enc_out_class_embed.")
_QUERY_TABLES = ("refpoint_embed.weight", "query_feat.weight")
_POSITIONS = "backbone.0.encoder.encoder.embeddings.position_embeddings"
_KEYPOINT_TABLES = ("transformer.decoder.keypoint_pos_embed",)
_KEYPOINT_TABLES += tuple(f"transformer.keypoint_query_initializer{kind}.queries" for kind in ("", "_enc"))
_PATCHES = "backbone.0.encoder.encoder.embeddings.patch_embeddings.projection.weight"
_ENCODER = "backbone.0.encoder."
_PROJECTOR, _KEYPOINT_PROJECTOR = "backbone.0.projector.", "backbone.0.cross_attn_projector."
_ADAPTED = _ENCODER + "base_model.model."
# Every RF-DETR has these, with so many dimensions; their shapes tell most of what it is.
_ESSENTIAL = {"class_embed.weight": 2, "class_embed.bias": 1, **dict.fromkeys(_QUERY_TABLES, 2)}
_ESSENTIAL |= {_POSITIONS: 3, _PATCHES: 4}
# In a tensor of a file, or one that is fitted to its settings: 1 GB.
MOST_NUMBERS = 2**28


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
    def schema(self) -> list[int]:
        """Keypoints of each class; empty for other tasks."""
        mask = self.weights.get(KEYPOINT_MASK)
        return [] if mask is None or mask.dim() != 2 or not mask.any() else (mask != 0).sum(1).tolist()

    @property
    def thresholds(self) -> dict[str, float]:
        """The best confidence of each class, where an evaluation has found it."""
        stored = self.content.get("thresholds")
        return dict(stored) if isinstance(stored, Mapping) else {}

    @property
    def settings(self) -> dict[str, Any]:
        """What the file says of the model: `model_config`, or in older fine-tuned files the same names in `args`."""
        tuned = self.class_names and self.class_names != COCO_CLASS_NAMES
        return self.model_config or (self.args if tuned else {})

    @property
    def first_label(self) -> int:
        """Label of the first name: 1 in files of releases 1.2 to 1.4, whose row 0 was never trained, else 0."""
        old = self.namespace_args and not self.model_name and not self.model_config
        names = self.class_names
        return 1 if old and names and len(names) == self.class_rows - 1 else 0


def read_checkpoint(path: str | Path, trust: bool = False) -> Checkpoint:
    """Read any layout: `model`, Lightning's `state_dict` with prefix `model.`, args as Namespace or dict."""
    path = Path(path).expanduser()
    content = read_file(path, trust)
    weights = content.get("model")
    args = content.get("args")
    if not isinstance(weights, Mapping):
        weights = _lightning_weights(path, content)
        args = args if args is not None else content.get("hyper_parameters")
    weights = {_bare_name(str(name)): tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)}
    if "class_head.weight" in weights:
        # What `state_dict()` of the network gives, which a script has saved.
        weights = to_published(weights)
    if odd := [f"{name} {tuple(tensor.shape)}" for name, tensor in weights.items() if not _is_usable(tensor)]:
        raise ValueError(f"checkpoint {path}: {_shortened(odd)} is no tensor of plain numbers, or far too large")
    try:
        weights = merge_adapters(weights)
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from None
    absent = [name for name in _ESSENTIAL if name not in weights]
    if absent:
        raise ValueError(f"checkpoint {path} holds no RF-DETR: it has no tensor {', '.join(absent)}")
    if odd := [name for name, dims in _ESSENTIAL.items() if weights[name].dim() != dims or not weights[name].numel()]:
        shapes = ", ".join(f"{name} is {tuple(weights[name].shape)}" for name in odd)
        raise ValueError(f"checkpoint {path} holds no RF-DETR: {shapes}")
    config = content.get("model_config")
    return Checkpoint(
        path=path,
        weights=weights,
        args=_as_dict(args),
        model_name=content.get("model_name"),
        model_config=_as_dict(config),
        content=content,
        namespace_args=args is not None and not isinstance(args, Mapping),
    )


def _is_usable(tensor: Tensor) -> bool:
    """Whether it is plain numbers that fit in memory; repeated, sparse or only described, they have any size."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and tensor.numel() <= MOST_NUMBERS


def _bare_name(name: str) -> str:
    """A tensor's name without what a module around the network, such as DataParallel's or compiled ones, adds to it."""
    return re.sub(r"^(?:(?:module|model|_orig_mod)\.)+", "", name)


def _as_dict(settings: Any) -> dict[str, Any]:
    return dict(settings if isinstance(settings, Mapping) else getattr(settings, "__dict__", {}))


def _lightning_weights(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        entries = sorted(map(str, content))[:8]
        raise ValueError(f"checkpoint {path} has neither 'model' nor 'state_dict'; its entries are {entries}")
    found = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    if not found:
        raise ValueError(f"checkpoint {path}: no entry of 'state_dict' starts with 'model.'")
    return found


def merge_adapters(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plain encoder weights of a file with adapters (DoRA, arXiv 2402.09353); other files stay as they are.

    Row r of the merged matrix is row r of W + B A, scaled to the adapter's magnitude r.
    """
    if not any(name.startswith(_ADAPTED) for name in weights):
        return weights
    merged = {}
    for name, tensor in weights.items():
        stem = name.removesuffix(".base_layer.weight")
        if stem != name:
            parts = [f"{stem}.lora_{part}.default.weight" for part in ("A", "B", "magnitude_vector")]
            if absent := [part for part in parts if part not in weights]:
                raise ValueError(f"an adapter is incomplete: {_shortened(absent)} is missing")
            down, up, magnitude = (weights[part].float() for part in parts)
            tensor = magnitude.unsqueeze(1) * torch.nn.functional.normalize(tensor.float() + up @ down, dim=1)
        if ".lora_" not in name:
            merged[name.replace(_ADAPTED, _ENCODER, 1).replace(".base_layer.", ".")] = tensor
    return merged


def fit_queries(table: Tensor, queries: int, groups: int, file_queries: int | None, file_groups: int | None) -> Tensor:
    """Fit a query table (file groups * file queries, X) to (groups * queries, X).

    Of each group the first queries are kept. More queries than the file's repeat them: they start from other boxes of
    the encoder, so they find other objects. Without knowledge of the file's layout the first rows are taken; group 0
    is right then, which inference uses.
    """
    rows = len(table)
    file_queries, file_groups = _query_layout(rows, file_queries, file_groups)
    if file_queries and file_groups:
        grouped = table.view(file_groups, file_queries, -1)[:groups]
        return grouped[:, torch.arange(queries) % file_queries].reshape(-1, table.shape[1])
    return table[: queries * groups]


def _query_layout(rows: int, queries: int | None, groups: int | None) -> tuple[int, int] | tuple[None, None]:
    """Queries per group and groups of a file's table; one may follow from the other. None when they do not agree."""
    queries = queries or (rows // groups if groups else None)
    groups = groups or (rows // queries if queries else None)
    return (queries, groups) if queries and groups and queries * groups == rows else (None, None)


def _fit_queries(weights: dict[str, Tensor], checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Fit the query tables in place.

    Raises:
        ValueError: the model needs more groups than the file has, or more queries of unknown groups.
    """
    wanted_queries, wanted_groups = config.num_queries, config.group_detr
    rows = len(weights[_QUERY_TABLES[0]])
    known = {**checkpoint.args, **checkpoint.model_config}
    queries, groups = _query_layout(rows, known.get("num_queries"), known.get("group_detr"))
    too_few = []
    if queries and groups and wanted_groups > groups:
        too_few.append(f"group_detr={wanted_groups} is more than the {groups} of the file")
    if not queries and wanted_queries * wanted_groups > rows:
        too_few.append(f"num_queries={wanted_queries} x group_detr={wanted_groups} is more than its {rows} query rows")
    if too_few:
        raise ValueError(f"checkpoint {checkpoint.path}: {', '.join(too_few)}; they can be left out, not added")
    if not queries and wanted_groups > 1 and rows > wanted_queries * wanted_groups:
        warnings.warn(
            f"checkpoint {checkpoint.path} does not say how its queries are grouped; groups 1 and up start mixed",
            stacklevel=7,
        )
    for name in _QUERY_TABLES:
        weights[name] = fit_queries(weights[name], wanted_queries, wanted_groups, queries, groups)


def fit(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, Tensor]:
    """The weights of a file in our names, fitted to a configuration: class rows, queries, groups, position table.

    Raises:
        ValueError: the file has fewer queries than the model, or only a part of a tensor that is joined in ours.
    """
    weights = dict(checkpoint.weights)
    rows = config.num_classes + 1
    for name in weights:
        if name.startswith(_CLASS_HEADS) and weights[name].dim() and len(weights[name]) != rows:
            weights[name] = resize_rows(weights[name], rows)
    _fit_queries(weights, checkpoint, config)
    weights = {n: t for n, t in weights.items() if not _is_other_group(n, config.group_detr)}
    if len(weights[_POSITIONS][0]) != 1 + config.positional_encoding_size**2:
        weights[_POSITIONS] = _fit_positions(weights[_POSITIONS], config.positional_encoding_size)
    weights[_PATCHES] = adapt_channels(weights[_PATCHES], config.num_channels)
    if config.use_grouppose_keypoints:
        _fit_keypoints(weights, config.num_keypoints_per_class)
    try:
        fitted, unknown = to_internal(weights)
    except (ValueError, RuntimeError) as error:  # the latter of tensors whose shapes do not go together
        raise ValueError(f"{checkpoint.path} does not fit this model: {error}") from None
    if unknown:
        _warn_unused(checkpoint.path, unknown)
    return fitted


def _fit_keypoints(weights: dict[str, Tensor], schema: list[int]) -> None:
    """Fit a keypoint network in place to a schema, and files whose boxes and keypoints share a projector."""
    for name in _KEYPOINT_TABLES:
        if name in weights and weights[name].dim():
            weights[name] = resize_rows(weights[name], sum(schema))
    weights[KEYPOINT_MASK], weights["transformer.decoder.keypoint_class_mask"] = schema_masks(schema)
    if not any(name.startswith(_KEYPOINT_PROJECTOR) for name in weights):
        shared = {name: tensor for name, tensor in weights.items() if name.startswith(_PROJECTOR)}
        weights |= {_KEYPOINT_PROJECTOR + name.removeprefix(_PROJECTOR): one for name, one in shared.items()}


def _warn_unused(path: Path, names: list[str]) -> None:
    warnings.warn(f"{path} holds {len(names)} tensors this model does not use: {_shortened(names)}", stacklevel=7)


def _shortened(texts: list[str]) -> str:
    return ", ".join(texts[:6]) + (", ..." if len(texts) > 6 else "")


def _is_other_group(name: str, groups: int) -> bool:
    parts = name.split(".")
    return name.startswith("transformer.enc_out") and parts[2].isdigit() and int(parts[2]) >= groups


def _fit_positions(table: Tensor, side: int) -> Tensor:
    stored = round((table.shape[1] - 1) ** 0.5)
    if stored * stored != table.shape[1] - 1:
        warnings.warn(f"the position table of {table.shape[1] - 1} entries is not square; it is kept", stacklevel=7)
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


def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put weights in our names into a module on the meta device, each tensor with memory of its own.

    Raises:
        ValueError: a tensor is missing or has another shape; the message lists them by published name.
    """
    wanted, given = to_published(module.state_dict()), to_published(weights)
    wrong = [
        f"{name} is {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    wrong += [f"{name} is missing" for name in wanted if name not in given]
    if wrong:
        raise ValueError(f"{path} does not fit this model: {_shortened(wrong)}")
    if unused := [name for name in given if name not in wanted]:
        _warn_unused(path, unused)
    own = {name: weights[name].to(tensor.dtype).clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(own, assign=True)
