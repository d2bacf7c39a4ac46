"""Every option of the package: its name, type, default, bound and help, in one line each. Nothing else defines one."""

from __future__ import annotations

import difflib
import os
import warnings
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from rfdetr.variants import ENCODERS, VARIANTS


class PretrainWeightsCompatibilityWarning(UserWarning):
    """Architecture fields were changed although published weights are loaded."""


class Options(BaseModel):
    """A set of options that refuses unknown names and wrong values with one line that names the nearest valid one."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())
    retired: ClassVar[tuple[str, ...]] = ()
    _explicit: frozenset[str] = PrivateAttr(frozenset())

    def __init__(self, **values: Any) -> None:
        self.refuse_unknown(values)
        try:
            super().__init__(**{**self.preset(), **values})
        except ValidationError as error:
            raise ValueError(_one_line(type(self).__name__, error)) from None
        self._explicit = frozenset(values)

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            self.__dict__[name] = before
            raise ValueError(_one_line(type(self).__name__, error)) from None

    @classmethod
    def preset(cls) -> dict[str, object]:
        """Values that a subclass sets before the user's."""
        return {}

    def is_explicit(self, name: str) -> bool:
        """Whether the user gave this option, also when the value equals the default."""
        return name in self._explicit

    @classmethod
    def refuse_unknown(cls, values: dict[str, Any]) -> None:
        """Raise a ValueError that names each unknown option, its nearest valid one, and all there are."""
        unknown = [name for name in values if name not in cls.model_fields and name not in cls.retired]
        if not unknown:
            return
        hints = [f"{name!r}{_did_you_mean(name, cls.model_fields)}" for name in unknown]
        raise ValueError(
            f"{cls.__name__} has no option {', '.join(hints)}. The options are: {', '.join(sorted(cls.model_fields))}"
        )


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _one_line(name: str, error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{field}={item['input']!r}: {message}" if field else message)
    return f"{name}: " + "; ".join(parts)


def check_resolution(value: Any, block: int, what: str = "resolution") -> int:
    """Return a legal square input size, a positive multiple of `block` (patch size x windows per side).

    A multiple of 14 that does not fit is rounded up with a UserWarning, because older guides allow it.

    Raises:
        ValueError: any other value; the message names the two nearest legal sizes.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{what}={value!r} must be a positive whole number, a multiple of {block}")
    if value % block == 0:
        return value
    lower, upper = value // block * block, -(-value // block) * block
    if value % 14 == 0:
        warnings.warn(
            f"{what}={value} is not a multiple of {block} (patch size x windows); using {upper}", UserWarning, 3
        )
        return upper
    nearest = f"{lower} and {upper}" if lower else str(upper)
    raise ValueError(f"{what}={value} is not divisible by {block} (patch size x windows); the nearest are {nearest}")


def _expand(path: Any) -> Any:
    return str(Path(path).expanduser().absolute()) if isinstance(path, str | os.PathLike) else path


class ModelConfig(Options):
    """What a network is. The class of a size fills in its row of `variants.VARIANTS`."""

    variant: ClassVar[str | None] = None

    # fmt: off
    encoder: Literal["dinov2_windowed_small", "dinov2_windowed_base", "dinov2_windowed_tiny"] = Field("dinov2_windowed_small", description="Backbone, a row of variants.ENCODERS.")
    out_feature_indexes: list[int] = Field([3, 6, 9, 12], description="After how many encoder blocks feature maps are taken.")
    dec_layers: int = Field(3, ge=1, description="Decoder layers.")
    projector_scale: list[Literal["P3", "P4", "P5"]] = Field(["P4"], description="Pyramid levels, ascending.")
    hidden_dim: int = Field(256, ge=8, description="Width of the decoder.")
    patch_size: int = Field(16, ge=1, description="Side of one patch in pixels.")
    num_windows: int = Field(2, ge=1, description="Attention windows per side.")
    positional_encoding_size: int = Field(24, ge=1, description="Side of the stored position table; follows the resolution where the size's default does.")
    sa_nheads: int = Field(8, ge=1, description="Heads of the decoder's self attention.")
    ca_nheads: int = Field(16, ge=1, description="Heads of the deformable attention.")
    dec_n_points: int = Field(2, ge=1, description="Sampling points per head of the deformable attention.")
    num_queries: int = Field(300, ge=1, description="Queries per group, the most objects that can be found.")
    num_select: int = Field(300, ge=1, description="Detections kept before the threshold.")
    num_classes: int = Field(90, ge=1, description="Foreground classes; given explicitly it pins the class head.")
    group_detr: int = Field(13, ge=1, description="Query groups that are trained side by side; one is used afterwards.")
    two_stage: Literal[True] = Field(True, description="Start boxes come from the encoder.")
    bbox_reparam: Literal[True] = Field(True, description="Boxes are refined relative to their size.")
    lite_refpoint_refine: Literal[True] = Field(True, description="All decoder layers refine the same start box.")
    layer_norm: Literal[True] = Field(True, description="Layer norm in the projector.")
    ia_bce_loss: bool = Field(True, description="Class loss weighted by the overlap of the box.")
    segmentation_head: bool = Field(False, description="Predict masks.")
    mask_downsample_ratio: int = Field(4, ge=1, description="Input pixels per mask pixel.")
    pretrain_weights: str | None = Field(None, description="Checkpoint to start from: a published file name, a path, or None for random weights.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, ...")
    resolution: int = Field(384, description="Side of the square network input in pixels, a multiple of patch_size x num_windows.")
    amp: bool = Field(True, description="Mixed precision where the device supports it.")
    gradient_checkpointing: bool = Field(False, description="Recompute encoder blocks in the backward pass to save memory.")
    freeze_encoder: bool = Field(False, description="Do not train the encoder.")
    num_channels: int = Field(3, ge=1, description="Input channels.")
    first_label: Literal[0, 1] | None = Field(None, description="Label of the first class name; None reads it off the checkpoint.")
    license: str = Field("Apache-2.0", description="Licence of the weights.")
    model_name: str | None = Field(None, description="Class name, stored in checkpoints.")
    # fmt: on

    @classmethod
    def preset(cls) -> dict[str, object]:
        return VARIANTS[cls.variant].config_defaults() if cls.variant else {}

    def __init__(self, **values: Any) -> None:
        if values.get("num_classes", 0) is None:
            del values["num_classes"]  # callers such as SAHI pass None for "whatever the file has"
        super().__init__(**values)
        if (
            self.positions_follow_resolution
            and self.is_explicit("resolution")
            and not self.is_explicit("positional_encoding_size")
        ):
            self.positional_encoding_size = self.resolution // self.patch_size

    def with_values(self, values: dict[str, Any]) -> ModelConfig:
        """A copy with other values; what the user set stays known as such."""
        copy = type(self)(**{**self.model_dump(), **values})
        copy._explicit = self._explicit
        return copy

    @property
    def block_size(self) -> int:
        """Input height and width must be multiples of this."""
        return self.patch_size * self.num_windows

    @property
    def positions_follow_resolution(self) -> bool:
        """Whether the position table has one entry per patch; in Base and the first Large it has its own size."""
        row = VARIANTS.get(self.variant or "")
        return row is None or row.position_side is None

    @field_validator("resolution", mode="before")
    @classmethod
    def _whole_number(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError("must be a whole number")
        return int(value)

    @field_validator("device", mode="before")
    @classmethod
    def _device_to_text(cls, value: Any) -> Any:
        return str(value)

    @field_validator("pretrain_weights", mode="before")
    @classmethod
    def _path_to_text(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @model_validator(mode="after")
    def _fit(self) -> ModelConfig:
        legal = check_resolution(self.resolution, self.block_size)
        if legal != self.resolution:
            self.__dict__["resolution"] = legal
        if self.hidden_dim % self.sa_nheads or self.hidden_dim % self.ca_nheads:
            raise ValueError(
                f"hidden_dim={self.hidden_dim} must be divisible by sa_nheads={self.sa_nheads} "
                f"and ca_nheads={self.ca_nheads}"
            )
        depth = ENCODERS[self.encoder].depth
        if not self.out_feature_indexes or max(self.out_feature_indexes) > depth or min(self.out_feature_indexes) < 1:
            raise ValueError(
                f"out_feature_indexes={self.out_feature_indexes} must lie in 1..{depth} for {self.encoder}"
            )
        return self


class RFDETRNanoConfig(ModelConfig):
    """384 pixels, 2 decoder layers."""

    variant = "nano"


class RFDETRSmallConfig(ModelConfig):
    """512 pixels, 3 decoder layers."""

    variant = "small"


class RFDETRMediumConfig(ModelConfig):
    """576 pixels, 4 decoder layers."""

    variant = "medium"


class RFDETRBaseConfig(ModelConfig):
    """560 pixels, 3 decoder layers, patches of 14 pixels."""

    variant = "base"


class RFDETRLargeConfig(ModelConfig):
    """704 pixels, 4 decoder layers."""

    variant = "large"


class RFDETRLargeDeprecatedConfig(ModelConfig):
    """The first Large: ViT-B, 560 pixels, two pyramid levels."""

    variant = "large-deprecated"


class RFDETRXLargeConfig(ModelConfig):
    """ViT-B, 700 pixels, 5 decoder layers."""

    variant = "xlarge"


class RFDETR2XLargeConfig(ModelConfig):
    """ViT-B, 880 pixels, 5 decoder layers."""

    variant = "2xlarge"


class TrainConfig(Options):
    """How a network is trained."""

    retired = ("lr_scheduler_kwargs",)

    # fmt: off
    dataset_dir: str = Field(description="Folder of the data set, or its data.yaml.")
    output_dir: str = Field("output", description="Folder for checkpoints, logs and results; created when missing.")
    dataset_file: Literal["roboflow", "coco", "yolo", "o365"] = Field("roboflow", description="Layout; roboflow looks at the folder and takes COCO or YOLO.")
    class_names: list[str] | None = Field(None, description="Names to store instead of the data set's.")
    epochs: int = Field(100, ge=1, description="Passes over the training split.")
    resume: str | None = Field(None, description="checkpoint.pth of a run to go on with.")
    seed: int | None = Field(None, ge=0, description="Seed of weights, order and augmentation; None draws one.")
    batch_size: int = Field(4, ge=1, description="Images per step and device.")
    grad_accum_steps: int = Field(4, ge=1, description="Steps whose gradients are added before the weights move.")
    eval_batch_size: int | None = Field(None, ge=1, description="Images per evaluation step; None takes batch_size.")
    lr: float = Field(1e-4, gt=0, description="Learning rate of projector and heads.")
    lr_encoder: float = Field(1.5e-4, ge=0, description="Learning rate of the encoder before its decays.")
    lr_scheduler: Literal["step", "cosine"] = Field("step", description="Schedule of the learning rate.")
    lr_drop: int = Field(100, ge=1, description="Epoch at which the step schedule multiplies by 0.1.")
    lr_min_factor: float = Field(0.0, ge=0, le=1, description="Floor of the cosine schedule.")
    warmup_epochs: float = Field(0.0, ge=0, description="Epochs of linear warm-up from 0.")
    weight_decay: float = Field(1e-4, ge=0, description="Decoupled weight decay.")
    clip_max_norm: float = Field(0.1, ge=0, description="Largest norm of all gradients together; 0 is off.")
    lr_vit_layer_decay: float = Field(0.8, gt=0, le=1, description="Learning rate of an encoder block relative to the next one.")
    lr_component_decay: float = Field(0.7, gt=0, le=1, description="Learning rate of the decoder, and squared of the encoder, relative to the heads.")
    drop_path: float = Field(0.0, ge=0, lt=1, description="Stochastic depth of the last encoder block.")
    use_ema: bool = Field(True, description="Keep an average of the weights.")
    ema_decay: float = Field(0.993, ge=0, lt=1, description="Decay of the average.")
    ema_tau: float = Field(100, ge=0, description="Updates over which the decay warms up.")
    ema_update_interval: int = Field(1, ge=1, description="Optimiser steps per update of the average.")
    checkpoint_interval: int = Field(10, ge=1, description="Epochs between the numbered checkpoints that are kept.")
    early_stopping: bool = Field(False, description="End the run when the validation score stops rising.")
    early_stopping_patience: int = Field(10, ge=1, description="Evaluations without a rise before the run ends.")
    early_stopping_min_delta: float = Field(0.001, ge=0, description="Smallest change that counts as a rise.")
    early_stopping_use_ema: bool = Field(False, description="Watch the averaged weights alone.")
    best_model_metric: Literal["map", "mar"] = Field("map", description="Score that decides the best checkpoint.")
    skip_best_epochs: int = Field(0, ge=0, description="First epochs that cannot be the best.")
    multi_scale: bool | Literal["per-batch", "per-sample", "off"] = Field(True, description="Train at varying input sizes.")
    expanded_scales: bool = Field(True, description="Eleven input sizes instead of eight.")
    square_resize_div_64: bool = Field(True, description="Resize to squares; off keeps the aspect ratio.")
    scale_jitter: bool = Field(True, description="Every second picture is cropped before it is resized.")
    aug_config: dict | list | None = Field(None, description="None: mirrored with probability 1/2; {}: never.")
    tensorboard: bool = Field(True, description="Write TensorBoard events to output_dir.")
    wandb: bool = Field(False, description="Log to Weights & Biases.")
    project: str | None = Field(None, description="Project of the loggers.")
    run: str | None = Field(None, description="Name of the run for the loggers.")
    progress_bar: Literal["tqdm"] | None = Field(None, description="Live progress bar; True means tqdm.")
    run_test: bool = Field(True, description="Evaluate the best weights on the test split at the end.")
    eval_max_dets: int = Field(500, ge=1, description="Detections per picture that count.")
    eval_interval: int = Field(1, ge=1, description="Epochs between evaluations; the last one always is.")
    eval_base_model: bool = Field(True, description="Evaluate the plain weights beside the averaged ones.")
    log_per_class_metrics: bool = Field(True, description="AP of every class in the logs.")
    compute_val_loss: bool | Literal["auto"] = Field(True, description="Loss on the validation split.")
    compute_test_loss: bool = Field(True, description="Loss on the test split.")
    fp16_eval: bool = Field(False, description="Evaluate in half precision.")
    amp_dtype: Literal["auto", "bf16", "fp16"] | None = Field("auto", description="Mixed precision; auto is bfloat16 where the device has it, None is float32.")
    device: str | None = Field(None, description="Device of the run; None takes the model's.")
    num_workers: int = Field(2, ge=0, description="Processes that load pictures.")
    pin_memory: bool | None = Field(None, description="Page-locked batches; None on CUDA.")
    persistent_workers: bool | None = Field(None, description="Keep the loading processes between epochs; None does.")
    prefetch_factor: int | None = Field(None, ge=1, description="Batches loaded ahead by each process; None is 2.")
    cls_loss_coef: float = Field(1.0, ge=0, description="Weight of the class loss.")
    notes: Any = Field(None, description="Kept in the checkpoints.")
    group_detr: int | None = Field(None, ge=1, description="Deprecated: belongs to the model and must agree with it.")
    segmentation_head: bool | None = Field(None, description="Deprecated: belongs to the model and must agree with it.")
    ia_bce_loss: bool | None = Field(None, description="Deprecated: belongs to the model; used for this run.")
    num_select: int | None = Field(None, ge=1, description="Deprecated: belongs to the model; used for this run.")
    # fmt: on

    def __init__(self, **values: Any) -> None:
        super().__init__(**_modern(values))

    @field_validator("dataset_dir", "output_dir", "resume", mode="before")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        return _expand(value)

    @field_validator("device", mode="before")
    @classmethod
    def _device_text(cls, value: Any) -> Any:
        return value if value is None else str(value)

    @field_validator("progress_bar", mode="before")
    @classmethod
    def _named_bar(cls, value: Any) -> Any:
        return {True: "tqdm", False: None}.get(value, value) if isinstance(value, bool) else value

    @field_validator("aug_config")
    @classmethod
    def _known_augmentation(cls, value: Any) -> Any:
        if value:
            raise ValueError("only None (mirroring) and {} (none) are available in this release")
        return value


def _modern(values: dict[str, Any]) -> dict[str, Any]:
    """Training options with older spellings replaced by today's, each with a DeprecationWarning."""
    values = dict(values)
    for name in ("group_detr", "segmentation_head", "ia_bce_loss", "num_select"):
        if values.get(name) is not None:
            warnings.warn(f"{name} is an option of the model; train({name}=...) is deprecated", DeprecationWarning, 5)
    moved = dict(values.pop("lr_scheduler_kwargs", None) or {})
    for old, new in (("min_factor", "lr_min_factor"), ("lr_drop", "lr_drop")):
        if old in moved:
            warnings.warn(f"lr_scheduler_kwargs is deprecated; use {new}=...", DeprecationWarning, 5)
            values.setdefault(new, moved.pop(old))
    if moved:
        raise ValueError(f"lr_scheduler_kwargs has {sorted(moved)}; it takes min_factor and lr_drop")
    return values
