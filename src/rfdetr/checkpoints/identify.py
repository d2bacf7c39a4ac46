"""What a checkpoint is: read off its tensors and its stored settings, never off its file name alone."""

from __future__ import annotations

import warnings
from typing import Any

from rfdetr.checkpoints.load import MOST_NUMBERS, Checkpoint
from rfdetr.config import ModelConfig, PretrainWeightsCompatibilityWarning, RFDETRLargeDeprecatedConfig
from rfdetr.variants import ENCODERS, VARIANTS, Variant

_ENCODER = "backbone.0.encoder.encoder"
_POSITIONS = f"{_ENCODER}.embeddings.position_embeddings"
_PATCHES = f"{_ENCODER}.embeddings.patch_embeddings.projection.weight"
# Those of the settings below that tell one task from another.
TASK = ("segmentation_head", "use_grouppose_keypoints")
# Settings that the shapes of the tensors tell.
STRUCTURE = ("encoder", "patch_size", "hidden_dim", "dec_layers", "projector_scale", *TASK)
# Settings that a file restores beside them; the shapes do not tell these, or not alone.
RESTORED = (
    "out_feature_indexes",
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
    """The settings of `STRUCTURE`, read off the shapes of the tensors."""
    weights = checkpoint.weights
    dim, _, patch, _ = weights[_PATCHES].shape
    depth = 1 + _highest(checkpoint, f"{_ENCODER}.encoder.layer.")
    levels = 1 + _highest(checkpoint, "backbone.0.projector.stages.")
    names = [name for name, size in ENCODERS.items() if (size.dim, size.depth) == (dim, depth)]
    return {
        "encoder": names[0] if names else f"a ViT of width {dim} and depth {depth}",
        "patch_size": patch,
        "hidden_dim": weights["class_embed.weight"].shape[1],
        "dec_layers": 1 + _highest(checkpoint, "transformer.decoder.layers."),
        "projector_scale": [_level(checkpoint, i) for i in range(levels)],
        "segmentation_head": any(name.startswith("segmentation_head.") for name in weights),
        "use_grouppose_keypoints": any(name.startswith("keypoint_embed.") for name in weights),
    }


def _highest(checkpoint: Checkpoint, prefix: str) -> int:
    numbers = {name[len(prefix) :].split(".", 1)[0] for name in checkpoint.weights if name.startswith(prefix)}
    return max((int(number) for number in numbers if number.isdigit()), default=-1)


def _level(checkpoint: Checkpoint, index: int) -> str:
    prefix = f"backbone.0.projector.stages_sampling.{index}.0.0."
    if prefix + "bias" in checkpoint.weights:
        return "P3"
    return "P5" if prefix + "conv.weight" in checkpoint.weights else "P4"


def _row_structure(row: Variant) -> dict[str, Any]:
    defaults = row.config_defaults()
    return {name: defaults.get(name, False) for name in STRUCTURE}


def _named_size(checkpoint: Checkpoint) -> str | None:
    """The key in `VARIANTS` of the class that the file names, if it is a published one."""
    name = str(checkpoint.model_name).removesuffix("Config")
    return next((key for key in VARIANTS if class_name(key) == name), None)


def identify(checkpoint: Checkpoint) -> str:
    """The key in `VARIANTS` of the size that a checkpoint holds.

    Raises:
        ValueError: no published size has this structure, and the file does not name one.
    """
    if named := _named_size(checkpoint):
        return named
    found = structure(checkpoint)
    fitting = [key for key, row in VARIANTS.items() if _row_structure(row) == found]
    if len(fitting) > 1:
        known = {**checkpoint.args, **checkpoint.model_config}
        alike = [key for key in fitting if VARIANTS[key].queries == known.get("num_queries")] or fitting
        fitting = _by_origin(checkpoint, fitting) or [min(alike, key=lambda key: _position_gap(checkpoint, key))]
    if not fitting:
        told = ", ".join(f"{name}={value}" for name, value in found.items())
        raise ValueError(f"checkpoint {checkpoint.path} fits no published size ({told}); open it with its own class")
    return fitting[0]


def _by_origin(checkpoint: Checkpoint, keys: list[str]) -> list[str]:
    """Sizes that differ in nothing but the resolution are told apart by the weights the run started from."""
    origin = str(checkpoint.args.get("pretrain_weights") or "").replace("\\", "/").rsplit("/", 1)[-1]
    return [key for key in keys if VARIANTS[key].weights == origin]


def _position_gap(checkpoint: Checkpoint, key: str) -> int:
    side = round((checkpoint.weights[_POSITIONS].shape[1] - 1) ** 0.5)
    row = VARIANTS[key]
    return abs((row.position_side or row.resolution // row.patch_size) - side)


def class_name(key: str) -> str:
    """Public class of a size: "large-deprecated" -> "RFDETRLargeDeprecated", "2xlarge" -> "RFDETR2XLarge"."""
    return "RFDETR" + "".join(part.capitalize().replace("xlarge", "XLarge") for part in key.split("-")).replace(
        "Xlarge", "XLarge"
    )


def adopt(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """The configuration with everything the file knows and the user did not set.

    Raises:
        ValueError: the file holds another size or task than the class; the message names the right class.
    """
    named = _named_size(checkpoint)
    if config.variant == "large" and structure(checkpoint) == _row_structure(VARIANTS["large-deprecated"]):
        config, named = _first_large(config, checkpoint), "large-deprecated"
    changed = differing(config, checkpoint)
    other_task = any(name in changed for name in TASK)
    own = config.variant in (None, named) or checkpoint.model_name in ({config.model_name} - {None})
    # Sizes that differ in the resolution alone may start from each other's files where the user states it.
    if config.variant and named and not own and not other_task and not config.is_explicit("resolution"):
        wanted = config.model_name or class_name(config.variant)
        raise ValueError(f"checkpoint {checkpoint.path} does not hold {wanted}. {_advice(checkpoint)}")
    adopted = {n: v for n, v in changed.items() if own and n not in TASK and not config.is_explicit(n)}
    _check_structure(config, {n: v for n, v in changed.items() if n not in adopted}, checkpoint)
    adopted |= {n: checkpoint.settings[n] for n in RESTORED if checkpoint.settings.get(n) is not None}
    adopted["num_classes"] = checkpoint.class_rows - 1
    if checkpoint.schema:
        adopted["num_keypoints_per_class"] = checkpoint.schema
    adopted = {name: value for name, value in adopted.items() if not config.is_explicit(name)}
    try:
        config = config.with_values(_with_position_side(config, adopted))
    except (TypeError, ValueError) as error:  # the file may say anything
        raise ValueError(f"checkpoint {checkpoint.path} cannot be built: {error}") from None
    _check_growth(config, checkpoint)
    return config


def _check_growth(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """ValueError for a setting that would enlarge one of the file's tensors beyond all reason."""
    numbers = {
        "positional_encoding_size": config.positional_encoding_size**2 * checkpoint.weights[_POSITIONS].shape[2],
        "num_channels": config.num_channels * checkpoint.weights[_PATCHES][:, 0].numel(),
    }
    for name, count in numbers.items():
        if count > MOST_NUMBERS:
            told = f"{name}={getattr(config, name)} is too large"
            raise ValueError(f"checkpoint {checkpoint.path} cannot be built: {told}")


def _first_large(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    warnings.warn(
        f"{checkpoint.path} holds the first Large model (136 M parameters), which is built now; "
        "its class is RFDETRLargeDeprecated",
        PretrainWeightsCompatibilityWarning,
        stacklevel=7,
    )
    given: dict[str, Any] = {name: value for name, value in config.model_dump().items() if config.is_explicit(name)}
    given["model_name"] = class_name("large-deprecated")
    return RFDETRLargeDeprecatedConfig(**given)


def _with_position_side(config: ModelConfig, adopted: dict[str, Any]) -> dict[str, Any]:
    """The stored side of the position table belongs to the stored resolution; to another one its own."""
    side = "positional_encoding_size"
    stored = side in adopted and not config.is_explicit("resolution")
    if stored or config.is_explicit(side) or not config.positions_follow_resolution:
        return adopted
    patch = adopted.get("patch_size", config.patch_size)
    return {**adopted, side: adopted.get("resolution", config.resolution) // patch}


def differing(config: ModelConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the file's tensors tell otherwise than the configuration."""
    return {name: value for name, value in structure(checkpoint).items() if getattr(config, name) != value}


def _check_structure(config: ModelConfig, changed: dict[str, Any], checkpoint: Checkpoint) -> None:
    if not changed:
        return
    told = ", ".join(f"{name}={value} (the model has {getattr(config, name)})" for name, value in changed.items())
    if all(config.is_explicit(name) for name in changed) and not any(name in changed for name in TASK):
        warnings.warn(
            f"{checkpoint.path} was trained with {told}; tensors that fit are loaded, the others start fresh",
            PretrainWeightsCompatibilityWarning,
            stacklevel=7,
        )
        return
    wanted = config.model_name or "this model"
    raise ValueError(f"checkpoint {checkpoint.path} does not hold {wanted}: {told}. {_advice(checkpoint)}")


def _advice(checkpoint: Checkpoint) -> str:
    try:
        key = identify(checkpoint)
    except ValueError:
        return "No size of this release has this structure"
    right = class_name(key)
    return f"It holds {right}: use rfdetr.{right}(pretrain_weights=...) or rfdetr.from_checkpoint(...)"
