"""What a checkpoint is: read off its tensors and its stored settings, never off its file name alone."""

from __future__ import annotations

import warnings
from typing import Any

from rfdetr.checkpoints.load import Checkpoint
from rfdetr.config import ModelConfig, PretrainWeightsCompatibilityWarning
from rfdetr.variants import ENCODERS, VARIANTS, Variant

_ENCODER = "backbone.0.encoder.encoder"
# Settings that a checkpoint of ours or of the newer published releases restores.
RESTORED = (
    "encoder",
    "out_feature_indexes",
    "dec_layers",
    "projector_scale",
    "hidden_dim",
    "patch_size",
    "num_windows",
    "positional_encoding_size",
    "sa_nheads",
    "ca_nheads",
    "dec_n_points",
    "num_queries",
    "num_select",
    "group_detr",
    "num_channels",
    "resolution",
)


def structure(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings that the shapes of the tensors tell."""
    weights = checkpoint.weights
    dim, _, patch, _ = weights[f"{_ENCODER}.embeddings.patch_embeddings.projection.weight"].shape
    depth = 1 + _highest(checkpoint, f"{_ENCODER}.encoder.layer.")
    names = [name for name, size in ENCODERS.items() if (size.dim, size.depth) == (dim, depth)]
    return {
        "encoder": names[0] if names else f"a ViT of width {dim} and depth {depth}",
        "patch_size": patch,
        "hidden_dim": weights["class_embed.weight"].shape[1],
        "dec_layers": 1 + _highest(checkpoint, "transformer.decoder.layers."),
        "projector_scale": [_level(checkpoint, i) for i in range(1 + _highest(checkpoint, "backbone.0.projector.stages."))],
        "segmentation_head": "segmentation_head.bias" in weights,
    }


def _highest(checkpoint: Checkpoint, prefix: str) -> int:
    numbers = {name[len(prefix) :].split(".", 1)[0] for name in checkpoint.weights if name.startswith(prefix)}
    return max((int(number) for number in numbers if number.isdigit()), default=-1)


def _level(checkpoint: Checkpoint, index: int) -> str:
    prefix = f"backbone.0.projector.stages_sampling.{index}.0.0."
    if prefix + "bias" in checkpoint.weights:
        return "P3"
    return "P5" if prefix + "conv.weight" in checkpoint.weights else "P4"


def row_structure(row: Variant) -> dict[str, Any]:
    """The same settings of a published size."""
    defaults = row.config_defaults()
    return {
        name: defaults[name]
        for name in ("encoder", "patch_size", "hidden_dim", "dec_layers", "projector_scale", "segmentation_head")
    }


def identify(checkpoint: Checkpoint) -> str:
    """The key in `VARIANTS` of the size that a checkpoint holds.

    Raises:
        ValueError: no published size has this structure, and the file does not name one.
    """
    for key in VARIANTS:
        if checkpoint.model_name and checkpoint.model_name.removesuffix("Config") == class_name(key):
            return key
    found = structure(checkpoint)
    fitting = [key for key, row in VARIANTS.items() if row_structure(row) == found]
    if len(fitting) > 1:
        fitting = _by_origin(checkpoint, fitting) or [min(fitting, key=lambda key: _position_gap(checkpoint, key))]
    if not fitting:
        told = ", ".join(f"{name}={value}" for name, value in found.items())
        raise ValueError(f"checkpoint {checkpoint.path} fits no published size ({told}); open it with its own class")
    return fitting[0]


def _by_origin(checkpoint: Checkpoint, keys: list[str]) -> list[str]:
    """Sizes that differ in nothing but the resolution are told apart by the weights the run started from."""
    origin = str(checkpoint.args.get("pretrain_weights") or "").replace("\\", "/").rsplit("/", 1)[-1]
    return [key for key in keys if VARIANTS[key].weights == origin]


def _position_gap(checkpoint: Checkpoint, key: str) -> int:
    side = round((checkpoint.weights[f"{_ENCODER}.embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    row = VARIANTS[key].config_defaults()
    return abs(int(row["positional_encoding_size"]) - side)


def class_name(key: str) -> str:
    """Public class of a size: "large-deprecated" -> "RFDETRLargeDeprecated"."""
    parts = [part if part[0].isdigit() else part.capitalize() for part in key.split("-")]
    return "RFDETR" + "".join(parts).replace("large", "Large").replace("Xlarge", "XLarge")


def adopt(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """The configuration with everything the file knows and the user did not set.

    Raises:
        ValueError: the file holds another size or task than the class; the message names the right class.
    """
    stored = checkpoint.model_config
    known = {name: stored[name] for name in RESTORED if name in stored}
    if known and checkpoint.model_name in (None, config.model_name):
        changed = {name: value for name, value in known.items() if not config.is_explicit(name)}
    else:
        changed = {}
    if not config.is_explicit("num_classes"):
        changed["num_classes"] = checkpoint.class_rows - 1
    adopted = config.with_values(changed)
    _check_structure(adopted, checkpoint)
    return adopted


def _check_structure(config: ModelConfig, checkpoint: Checkpoint) -> None:
    found = structure(checkpoint)
    differing = {name: value for name, value in found.items() if getattr(config, name) != value}
    if not differing:
        return
    told = ", ".join(f"{name}={value} (the model has {getattr(config, name)})" for name, value in differing.items())
    if all(config.is_explicit(name) for name in differing) and "segmentation_head" not in differing:
        warnings.warn(
            f"{checkpoint.path} was trained with {told}; tensors that fit are loaded, the others start fresh",
            PretrainWeightsCompatibilityWarning,
            stacklevel=4,
        )
        return
    raise ValueError(f"checkpoint {checkpoint.path} does not hold {config.model_name or 'this model'}: {told}. {_advice(checkpoint)}")


def _advice(checkpoint: Checkpoint) -> str:
    try:
        right = class_name(identify(checkpoint))
    except ValueError:
        return "No detection size has this structure"
    return f"It is a {right}: use rfdetr.{right}(pretrain_weights=...) or rfdetr.from_checkpoint(...)"
