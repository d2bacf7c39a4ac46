"""Every option of the package: its name, type, default, bound and help, in one line each. Nothing else defines one."""

from __future__ import annotations

import os
import warnings
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from rfdetr.options import Options, check_resolution
from rfdetr.variants import ENCODERS, VARIANTS

PathLikeStr = str | os.PathLike[str]


class PretrainWeightsCompatibilityWarning(UserWarning):
    """Architecture fields were changed although published weights are loaded."""


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
    use_grouppose_keypoints: bool = Field(False, description="Predict keypoints.")
    num_keypoints_per_class: list[int] = Field([], description="Keypoints of each class, the first classes first; others have none.")
    dual_projector: bool = Field(False, description="Keypoints read maps of their own; every keypoint model does, and no other.")
    dual_projector_kp_only: bool = Field(False, description="Boxes do not read those maps; as dual_projector.")
    keypoint_cross_attn: Literal[True] = Field(True, description="Keypoints look at the image themselves.")
    inter_instance_kp_attn: Literal[False] = Field(False, description="Keypoints do not look at those of other objects.")
    grouppose_keypoint_dim_downscale: Literal[1] = Field(1, description="Keypoints are as wide as the decoder.")
    num_decoder_registers: Literal[0] = Field(0, description="Further decoder tokens; there are none.")
    postprocess_trace_alpha: float = Field(0.2, ge=0, description="How much the precision of keypoints moves the score.")
    pretrain_weights: str | None = Field(None, description="Checkpoint to start from: a published file name, a path, or None for random weights.")
    device: str = Field("auto", description="Where the network runs: auto, cpu, cuda, cuda:1, mps, ...")
    resolution: int = Field(384, description="Side of the square network input in pixels, a multiple of patch_size x num_windows.")
    amp: bool = Field(True, description="Mixed precision where the device supports it.")
    compile: bool = Field(False, description="Train with torch.compile: minutes at the first step of each input size, fewer and larger kernels afterwards.")
    cuda_graphs: bool = Field(False, description="Train with CUDA graphs: each input size is recorded once and played back, which small batches gain by.")
    fused_optimizer: bool = Field(True, description="AdamW in one pass over weights and moments, where the device has it.")
    gradient_checkpointing: bool = Field(False, description="Recompute encoder blocks in the backward pass to save memory.")
    freeze_encoder: StrictBool | int = Field(False, ge=0, description="Do not train the encoder; a number freezes its patches, positions and first blocks.")
    backbone_lora: bool = Field(False, description="Train adapters (DoRA, rank 16) of query, key and value instead of the encoder's weights.")
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
        if "pretrained_weights" in values and values["pretrained_weights"] is None:
            # Callers such as OTX pass it to all models alike; it never meant anything.
            del values["pretrained_weights"]
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
        self._fit_keypoints()
        return self

    def _fit_keypoints(self) -> None:
        schema, wanted = self.num_keypoints_per_class, self.use_grouppose_keypoints
        if {self.dual_projector, self.dual_projector_kp_only} != {wanted}:
            raise ValueError(f"dual_projector and dual_projector_kp_only must be {wanted}, as use_grouppose_keypoints")
        if min(schema, default=0) < 0 or wanted != any(schema) or len(schema) > self.num_classes + 1:
            raise ValueError(
                f"num_keypoints_per_class={schema} must have a count for at most {self.num_classes + 1} classes with "
                "use_grouppose_keypoints, one of them above 0, and be [] without"
            )


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


class RFDETRSegPreviewConfig(ModelConfig):
    """Masks, 432 pixels, 4 decoder layers, 200 queries."""

    variant = "seg-preview"


class RFDETRSegNanoConfig(ModelConfig):
    """Masks, 312 pixels, 4 decoder layers."""

    variant = "seg-nano"


class RFDETRSegSmallConfig(ModelConfig):
    """Masks, 384 pixels, 4 decoder layers."""

    variant = "seg-small"


class RFDETRSegMediumConfig(ModelConfig):
    """Masks, 432 pixels, 5 decoder layers."""

    variant = "seg-medium"


class RFDETRSegLargeConfig(ModelConfig):
    """Masks, 504 pixels, 5 decoder layers."""

    variant = "seg-large"


class RFDETRSegXLargeConfig(ModelConfig):
    """Masks, 624 pixels, 6 decoder layers."""

    variant = "seg-xlarge"


class RFDETRSeg2XLargeConfig(ModelConfig):
    """Masks, 768 pixels, 6 decoder layers."""

    variant = "seg-2xlarge"


class RFDETRKeypointPreviewConfig(ModelConfig):
    """Keypoints of people, 576 pixels, 4 decoder layers."""

    variant = "keypoint-preview"


_NATIVE = ("cpu", "auto", "torchvision", "tv", "albumentations", "albu", "kornia", "gpu")


class TrainConfig(Options):
    """How a network is trained."""

    retired: ClassVar[dict[str, str]] = {
        "eval_ema_only": "use eval_base_model=False",
        "eval_backend": "there is one evaluator, and it gives pycocotools' numbers",
        "augmentation_backend": "there is one implementation, whatever is installed",
        "pack_targets": "targets are always moved together",
        "pad_targets_to": "targets need no padding",
        "train_log_sync_dist": "losses are always averaged over the processes",
        "do_random_resize_via_padding": "use multi_scale",
    }

    # fmt: off
    dataset_dir: str | list[str] = Field(description="Folder of the data set, or its data.yaml; a list of data sets is joined by the names of their classes. Not needed where train is given.")
    train: str | list[str] | None = Field(None, description="Where the training split is, instead of in dataset_dir: a COCO file, a folder, a YOLO list, or several.")
    valid: str | list[str] | None = Field(None, description="The same for the validation split.")
    test: str | list[str] | None = Field(None, description="The same for the test split.")
    output_dir: str = Field("output", description="Folder for checkpoints, logs and results; created when missing.")
    dataset_file: Literal["roboflow", "coco", "yolo", "o365", "webdataset"] = Field("roboflow", description="Layout; roboflow looks at the folder. coco and o365 take the category ids as labels.")
    class_names: list[str] | None = Field(None, description="Names to store instead of the data set's.")
    keep_classes: bool = Field(False, description="Keep the class rows of names that the weights know, and start the others anew.")
    epochs: int = Field(100, ge=1, description="Passes over the training split.")
    resume: StrictBool | str | None = Field(None, description="checkpoint.pth of a run to go on with; True takes the newest in output_dir, or starts a run where there is none.")
    seed: int | None = Field(None, ge=0, description="Seed of weights, order and augmentation; None draws one.")
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(4, description="Images per step and device; auto finds the largest that fits the GPU.")
    grad_accum_steps: int = Field(4, ge=1, description="Steps whose gradients are added before the weights move; auto batch size sets it.")
    auto_batch_target_effective: int = Field(16, ge=1, description="Images per optimiser step and device that batch_size=auto aims at.")
    auto_batch_max_targets_per_image: int = Field(100, ge=1, description="Objects per image when batch_size=auto tries a size.")
    auto_batch_ema_headroom: float = Field(0.7, gt=0, le=1, description="Part of the size found that is used with use_ema.")
    eval_batch_size: int | None = Field(None, ge=1, description="Images per evaluation step; None takes batch_size.")
    lr: float = Field(1e-4, gt=0, description="Learning rate of projector and heads.")
    lr_encoder: float = Field(1.5e-4, ge=0, description="Learning rate of the encoder before its decays.")
    lr_scheduler: Any = Field("step", description="step, cosine, a class of torch.optim.lr_scheduler by name, a dotted path or a callable.")
    lr_scheduler_kwargs: dict[str, Any] = Field({}, description="Arguments of another lr_scheduler than step and cosine.")
    lr_scheduler_interval: Literal["step", "epoch"] = Field("step", description="When another lr_scheduler than step and cosine moves on.")
    lr_scheduler_monitor: str = Field("val/loss", description="Column of metrics.csv that ReduceLROnPlateau watches.")
    lr_drop: int = Field(100, ge=1, description="Epoch at which the step schedule multiplies by 0.1.")
    lr_min_factor: float = Field(0.0, ge=0, le=1, description="Floor of the cosine schedule.")
    warmup_epochs: float = Field(0.0, ge=0, description="Epochs of linear warm-up from 0, with step and cosine.")
    optimizer: Any = Field("adamw", description="adamw, another class of torch.optim by name, a dotted path or a callable.")
    optimizer_kwargs: dict[str, Any] = Field({}, description="Further arguments of the optimiser.")
    weight_decay: float = Field(1e-4, ge=0, description="Decoupled weight decay.")
    clip_max_norm: float = Field(0.1, ge=0, description="Largest norm of all gradients together; 0 is off.")
    lr_vit_layer_decay: float = Field(0.8, gt=0, le=1, description="Learning rate of an encoder block relative to the next one.")
    lr_component_decay: float = Field(0.7, gt=0, le=1, description="Learning rate of the decoder, and squared of the encoder, relative to the heads.")
    drop_path: float = Field(0.0, ge=0, lt=1, description="Stochastic depth of the last encoder block.")
    drop_mode: Literal["standard", "early", "late"] = Field("standard", description="drop_path in the whole run, until cutoff_epoch, or from then on.")
    drop_schedule: Literal["constant", "linear"] = Field("constant", description="linear lets an early drop_path fall to 0.")
    cutoff_epoch: int = Field(0, ge=0, description="Epoch at which an early drop_path ends or a late one begins.")
    use_ema: bool = Field(True, description="Keep an average of the weights.")
    ema_decay: float = Field(0.993, ge=0, lt=1, description="Decay of the average.")
    ema_tau: float = Field(100, ge=0, description="Updates over which the decay warms up.")
    ema_update_interval: int = Field(1, ge=1, description="Optimiser steps per update of the average.")
    checkpoint_interval: int = Field(10, ge=1, description="Epochs between the numbered checkpoints that are kept.")
    dont_save_weights: bool = Field(False, description="Write logs but no checkpoint; the model keeps the last weights.")
    early_stopping: bool = Field(False, description="End the run when the validation score stops rising.")
    early_stopping_patience: int = Field(10, ge=1, description="Evaluations without a rise before the run ends.")
    early_stopping_min_delta: float = Field(0.001, ge=0, description="Smallest change that counts as a rise.")
    early_stopping_use_ema: bool = Field(False, description="Watch the averaged weights alone.")
    best_model_metric: Literal["map", "mar"] = Field("map", description="Score that decides the best checkpoint.")
    smooth_alpha: float = Field(0.0, ge=0, lt=1, description="Part of the former score in the smoothed score of the regular weights that decides the best.")
    skip_best_epochs: int = Field(0, ge=0, description="First epochs that cannot be the best.")
    multi_scale: bool | Literal["per-batch", "per-sample", "off"] = Field(True, description="Train at varying input sizes.")
    expanded_scales: bool = Field(True, description="Eleven input sizes instead of eight.")
    square_resize_div_64: bool = Field(True, description="Resize to squares; off keeps the aspect ratio.")
    scale_jitter: bool = Field(True, description="Every second picture is cropped before it is resized.")
    aug_config: dict | list | str | None = Field(None, description="Augmentations: {name: {parameters}}, a list of such, a preset; None mirrors every second picture, {} none.")
    save_dataset_grids: bool = Field(False, description="Save pictures of the first batches, as the network sees them, before the run.")
    tensorboard: bool = Field(True, description="Write TensorBoard events to output_dir.")
    wandb: bool = Field(False, description="Log to Weights & Biases.")
    mlflow: bool = Field(False, description="Log to MLflow.")
    clearml: bool = Field(False, description="Log to ClearML.")
    project: str | None = Field(None, description="Project of the loggers.")
    run: str | None = Field(None, description="Name of the run for the loggers.")
    train_log_on_step: bool = Field(False, description="Give the loggers the loss of every step too.")
    compact_train_metrics: bool = Field(True, description="Sum the losses of the earlier layers in the logs; off gives each a column.")
    compute_train_metrics: bool = Field(False, description="AP on the training split after every epoch too.")
    progress_bar: Literal["tqdm", "rich"] | None = Field(None, description="Live progress bar; True means tqdm.")
    run_test: bool = Field(True, description="Evaluate the best weights on the test split at the end.")
    num_sanity_val_steps: int = Field(0, ge=0, description="Validation batches that are run before the training, to fail early.")
    eval_max_dets: int = Field(500, ge=1, description="Detections per picture that count.")
    eval_interval: int = Field(1, ge=1, description="Epochs between evaluations; the last one always is.")
    eval_base_model: bool = Field(True, description="Evaluate the plain weights beside the averaged ones.")
    eval_masks_head_resolution: bool = Field(False, description="Compare masks at the resolution of the mask head; for segmentation models.")
    log_per_class_metrics: bool = Field(True, description="AP of every class in the logs.")
    compute_val_loss: bool | Literal["auto"] = Field(True, description="Loss on the validation split.")
    compute_test_loss: bool = Field(True, description="Loss on the test split.")
    fp16_eval: bool = Field(False, description="Evaluate in half precision.")
    amp_dtype: Literal["auto", "bf16", "fp16"] | None = Field("auto", description="Mixed precision; auto is bfloat16 where the device has it, None is float32.")
    accelerator: Literal["auto", "gpu", "cuda", "mps", "cpu"] = Field("auto", description="Kind of device, where device is not given.")
    device: str | None = Field(None, description="Device of the run; None takes the model's.")
    devices: int | Literal["auto"] | list[int] = Field(1, description="Processes of a run that no launcher started: a number, auto (all GPUs), or the GPUs to use.")
    num_nodes: int = Field(1, ge=1, description="Machines of the run; torchrun starts them.")
    strategy: Literal["auto", "ddp", "fsdp"] = Field("auto", description="ddp: every process holds the model; fsdp: the model is split over the processes.")
    sync_bn: bool = Field(False, description="Batch norms take their statistics over all processes.")
    num_workers: int = Field(2, ge=0, description="Processes that load pictures; if not given, on a GPU as many as fit the cores, at most 8.")
    cache: Literal["ram", "disk"] | None = Field(None, description="Keep decoded pictures after their first use: in memory that all processes share, or in a file in output_dir; until the run ends.")
    on_bad_image: Literal["skip", "error"] = Field("skip", description="What a picture that cannot be decoded does to a run; more than 1 % of them are an error in any case.")
    check_data: bool = Field(True, description="Look through the data set before the run and log what is odd.")
    pin_memory: bool | None = Field(None, description="Page-locked batches; None on CUDA.")
    persistent_workers: bool | None = Field(None, description="Keep the loading processes between epochs; None does.")
    prefetch_factor: int | None = Field(None, ge=1, description="Batches loaded ahead by each process; None is 2.")
    cls_loss_coef: float = Field(1.0, ge=0, description="Weight of the class loss.")
    keypoint_flip_pairs: list[int] = Field([], description="Keypoints that change places in a mirrored picture, pair after pair; for keypoint models.")
    keypoint_oks_sigmas: list[float] | None = Field(None, description="Tolerance of each keypoint in the evaluation; for keypoint models.")
    keypoint_l1_loss_coef: float = Field(0.0, ge=0, description="Weight of the keypoint distance; for keypoint models.")
    keypoint_findable_loss_coef: float = Field(0.0, ge=0, description="Weight of the loss of being annotated; for keypoint models.")
    keypoint_visible_loss_coef: float = Field(0.0, ge=0, description="Weight of the loss of being visible; for keypoint models.")
    keypoint_nll_loss_coef: float = Field(0.0, ge=0, description="Weight of the keypoint likelihood; for keypoint models.")
    notes: Any = Field(None, description="Kept in the checkpoints: texts, numbers, lists and dicts.")
    group_detr: int | None = Field(None, ge=1, description="Deprecated: belongs to the model and must agree with it.")
    segmentation_head: bool | None = Field(None, description="Deprecated: belongs to the model and must agree with it.")
    ia_bce_loss: bool | None = Field(None, description="Deprecated: belongs to the model; used for this run.")
    num_select: int | None = Field(None, ge=1, description="Deprecated: belongs to the model; used for this run.")
    # fmt: on

    def __init__(self, **values: Any) -> None:
        if values.get("dataset_dir") is None and any(values.get(split) for split in ("train", "valid", "test")):
            values["dataset_dir"] = []
        super().__init__(**_modern(values))

    @field_validator("output_dir", "resume", mode="before")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        # "last" is how the published package spells the newest checkpoint.
        return True if value == "last" else _expand(value)

    @field_validator("dataset_dir", "train", "valid", "test", mode="before")
    @classmethod
    def _absolute_paths(cls, value: Any) -> Any:
        return [_expand(path) for path in value] if isinstance(value, list | tuple) else _expand(value)

    @field_validator("device", mode="before")
    @classmethod
    def _device_text(cls, value: Any) -> Any:
        return value if value is None else str(value)

    @field_validator("devices", mode="before")
    @classmethod
    def _process_count(cls, value: Any) -> Any:
        value = "auto" if value in (-1, "-1") else value
        if isinstance(value, bool) or (isinstance(value, int) and value < 1) or value == []:
            raise ValueError("must be a number of processes, 'auto', or a list of GPU numbers")
        return value

    @field_validator("strategy", mode="before")
    @classmethod
    def _known_strategy(cls, value: Any) -> Any:
        """The many spellings of other trainers: what matters is whether the model is split."""
        text = str(value).lower()
        return next((short for short in ("fsdp", "ddp") if text.startswith(short)), value)

    @field_validator("progress_bar", mode="before")
    @classmethod
    def _named_bar(cls, value: Any) -> Any:
        return {True: "tqdm", False: None}.get(value, value) if isinstance(value, bool) else value

    @field_validator("aug_config")
    @classmethod
    def _known_augmentation(cls, value: Any) -> Any:
        from rfdetr.datasets.aug_configs import read_config

        read_config(value)
        return value

    @field_validator("lr_scheduler", "optimizer")
    @classmethod
    def _importable(cls, value: Any) -> Any:
        from rfdetr.training.optim import find_class

        if value not in ("step", "cosine", "adamw"):
            find_class(value)
        return value

    @field_validator("keypoint_flip_pairs")
    @classmethod
    def _in_pairs(cls, value: list[int]) -> list[int]:
        if len(value) % 2 or any(index < 0 for index in value):
            raise ValueError("must list keypoint numbers pair after pair, so an even number of them")
        if len(set(value)) < len(value):
            raise ValueError("must name no keypoint twice")
        return value

    @model_validator(mode="after")
    def _agree(self) -> TrainConfig:
        if self.lr_scheduler_kwargs and self.lr_scheduler in ("step", "cosine"):
            names = sorted(self.lr_scheduler_kwargs)
            raise ValueError(
                f"lr_scheduler_kwargs has {names}; with {self.lr_scheduler} it takes min_factor and lr_drop"
            )
        if self.warmup_epochs and self.lr_scheduler not in ("step", "cosine"):
            raise ValueError(f"warmup_epochs works with step and cosine, not with lr_scheduler={self.lr_scheduler!r}")
        if managed := {"lr", "weight_decay", "params"} & set(self.optimizer_kwargs):
            raise ValueError(f"optimizer_kwargs: {', '.join(sorted(managed))} are options of their own")
        plateau = "plateau" in str(self.lr_scheduler).lower()
        if plateau and self.lr_scheduler_monitor == "val/loss" and self.compute_val_loss is False:
            raise ValueError("compute_val_loss=False leaves nothing for lr_scheduler_monitor='val/loss' to watch")
        return self


class SegmentationTrainConfig(TrainConfig):
    """How a network that predicts masks is trained."""

    # fmt: off
    mask_point_sample_ratio: int = Field(16, ge=1, description="Pixels of a predicted mask per point at which it is compared.")
    mask_ce_loss_coef: float = Field(5.0, ge=0, description="Weight of the mask cross entropy, also in the matching.")
    mask_dice_loss_coef: float = Field(5.0, ge=0, description="Weight of the mask overlap, also in the matching.")
    # fmt: on


class KeypointTrainConfig(TrainConfig):
    """How a network that predicts keypoints is trained: other defaults than elsewhere."""

    @classmethod
    def preset(cls) -> dict[str, object]:
        losses = dict.fromkeys((f"keypoint_{name}_loss_coef" for name in ("l1", "findable", "visible", "nll")), 1.0)
        return {"cls_loss_coef": 2.0, "smooth_alpha": 0.5, "skip_best_epochs": 10, **losses}


def train_config_class(model: ModelConfig) -> type[TrainConfig]:
    """The options of a run for what a network predicts."""
    if model.segmentation_head:
        return SegmentationTrainConfig
    return KeypointTrainConfig if model.use_grouppose_keypoints else TrainConfig


def fields_of(args: Any, kind: type[Options]) -> dict[str, Any]:
    """What a namespace, such as older scripts pass around, gives of the fields of a configuration.

    What is None counts as not given; options of a run that belong to the model are left out, for they are deprecated.
    """
    other = ModelConfig.model_fields if issubclass(kind, TrainConfig) else {}
    given = {name: getattr(args, name, None) for name in kind.model_fields if name not in other}
    return {name: value for name, value in given.items() if value is not None}


def _modern(values: dict[str, Any]) -> dict[str, Any]:
    """Training options with older spellings replaced by today's, each with a DeprecationWarning."""
    values = dict(values)
    for name in ("group_detr", "segmentation_head", "ia_bce_loss", "num_select"):
        if values.get(name) is not None:
            warnings.warn(f"{name} is an option of the model; train({name}=...) is deprecated", DeprecationWarning, 5)
    if values.get("augmentation_backend", "cpu") not in _NATIVE:
        raise ValueError(f"augmentation_backend={values['augmentation_backend']!r} must be one of {', '.join(_NATIVE)}")
    if values.get("eval_ema_only"):
        if values.get("use_ema") is False or values.get("eval_base_model"):
            raise ValueError("eval_ema_only=True needs use_ema and contradicts eval_base_model=True")
        values["eval_base_model"] = False
    for name, reason in TrainConfig.retired.items():
        if name in values:
            values.pop(name)
            warnings.warn(f"{name} is deprecated and has no effect of its own: {reason}", DeprecationWarning, 5)
    moved = dict(values.get("lr_scheduler_kwargs") or {})
    if moved and values.get("lr_scheduler", "step") in ("step", "cosine"):
        for old, new in (("min_factor", "lr_min_factor"), ("lr_drop", "lr_drop")):
            if old in moved:
                warnings.warn(f"lr_scheduler_kwargs is deprecated here; use {new}=...", DeprecationWarning, 5)
                values.setdefault(new, moved.pop(old))
        values["lr_scheduler_kwargs"] = moved
    return values
