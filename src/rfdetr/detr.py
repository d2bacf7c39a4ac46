"""The models people use: one class per size, with predict, train, evaluate."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from rfdetr import config as configs
from rfdetr.checkpoints.download import find_weights
from rfdetr.checkpoints.identify import class_name, identify
from rfdetr.checkpoints.load import read_checkpoint
from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.datasets.transforms import MEAN, STD, normalise, to_network_size
from rfdetr.inference.images import check_shape, load_images
from rfdetr.inference.masks import check_format
from rfdetr.inference.results import to_result
from rfdetr.main import CHANGES, DEFAULT_THRESHOLD, Model
from rfdetr.training.callbacks import by_event

# Pictures per forward pass of a long list.
CHUNK = 32


class RFDETR:
    """A detector.

    Args:
        options: fields of the size's configuration (`rfdetr.config`), such as `resolution`, `num_classes`, `device`.
            `pretrain_weights` is a published file name, a path, or None for random weights.
        trust_checkpoint: run code that the checkpoint file contains. Only for files you made yourself.

    Raises:
        ValueError: an unknown option or a value that is not allowed.
        FileNotFoundError, ConnectionError: the weights are not there and cannot be fetched.
    """

    size: str | None = None
    means: ClassVar[list[float]] = list(MEAN)
    stds: ClassVar[list[float]] = list(STD)
    _model_config_class: type[ModelConfig] | None = None

    def __init__(self, *, trust_checkpoint: bool = False, **options: Any) -> None:
        self.model = Model(self.get_model_config(**options), trust_checkpoint=trust_checkpoint)
        self.callbacks: defaultdict[str, list[Callable]] = defaultdict(list)

    @classmethod
    def get_model_config(cls, **options: Any) -> ModelConfig:
        """The configuration of this size with some options changed."""
        if cls._model_config_class is None:
            raise TypeError("RFDETR is the base of the sizes; construct one of them, such as RFDETRNano()")
        return cls._model_config_class(**{"model_name": cls.__name__, **options})

    def get_train_config(self, **options: Any) -> TrainConfig:
        """The configuration of a training run."""
        return configs.train_config_class(self.model_config)(**options)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, trust_checkpoint: bool = False, **options: Any) -> RFDETR:
        """The model in a file: its size, classes, names and resolution are read from it; options win over them."""
        return from_checkpoint(path, trust_checkpoint=trust_checkpoint, **options)

    @property
    def model_config(self) -> ModelConfig:
        """The configuration of the network."""
        return self.model.config

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; label i is name i, except for COCO's category ids (`rfdetr.assets.coco_classes`)."""
        return self.model.class_names

    def predict(
        self,
        images: Any,
        threshold: float | str | Mapping[str, float] = DEFAULT_THRESHOLD,
        shape: Sequence[int] | None = None,
        patch_size: int | None = None,
        include_source_image: bool = True,
        *,
        mask_format: str = "dense",
        batch_size: int = CHUNK,
    ) -> Any:
        """Find objects.

        Args:
            images: a path, URL, bytes, file, PIL image, array (H, W, 3) or tensor (3, H, W), RGB, or a list of them.
                Numbers are uint8, or floats in 0..1.
            threshold: detections with a score above it are returned; a dict gives some classes their own by name, the
                others 0.5; "auto" takes the ones with the best F1 of `evaluate()` or of the training's validation.
            shape: height and width of the network input, multiples of patch size x windows; default the resolution.
            patch_size: must be the model's, if given.
            include_source_image: keep the picture in `metadata["source_image"]`, for keypoints in `data`.
            mask_format: "dense" gives masks as `mask`; in less memory "rle" as `data["rle"]`, like COCO's files, and
                "polygon" as `data["polygons"]`.
            batch_size: pictures per forward pass of a list.

        Returns:
            `supervision.Detections` with boxes in pixels of the picture, best first, or of keypoint models
            `supervision.KeyPoints`; a list of them for a list.
        """
        config = self.model.config
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        if patch_size is not None and patch_size != config.patch_size:
            raise ValueError(f"patch_size={patch_size} is not the model's, {config.patch_size}")
        check_format(mask_format, config.segmentation_head)
        hw = check_shape(shape, config.block_size) if shape is not None else (config.resolution, config.resolution)
        pictures, single = load_images(images)
        limits = self.model.limits(threshold)
        lowest = limits if isinstance(limits, float) else min(limits)
        module = self.model.ready().eval()
        names, hidden = self.model.name_of_label(), self.model.hidden_labels()
        results = []
        for start in range(0, len(pictures), batch_size):
            chunk = pictures[start : start + batch_size]
            sizes = [(picture.shape[0], picture.shape[1]) for picture in chunk]
            with torch.inference_mode():
                inputs = torch.stack([to_network_size(picture.to(self.model.device), hw) for picture in chunk])
                outputs = module(normalise(inputs), last_only=True, whole_masks=False)
                found = self.model.postprocess(outputs, torch.tensor(sizes), lowest, enlarge_masks=False)
            sources = chunk if include_source_image else [None] * len(chunk)
            results += [
                to_result(one, limits, names, hidden, size, source, mask_format)
                for one, size, source in zip(found, sizes, sources, strict=True)
            ]
        return results[0] if single else results

    def train(self, **options: Any) -> None:
        """Fine-tune on a data set; afterwards the model holds the best weights.

        Args:
            options: fields of `TrainConfig`, of which `dataset_dir` is required; also `resolution`,
                `gradient_checkpointing` and `callbacks`: a dict of functions by event, or objects with methods of
                those names.
        """
        given = by_event(options.pop("callbacks", None))
        for name in ("start_epoch", "do_benchmark"):
            if options.pop(name, None):
                warnings.warn(f"train({name}=...) has no effect; use resume to go on with a run", DeprecationWarning, 2)
        # Here because `Model.train` lets other settings pass, with a warning.
        of_run = {name: value for name, value in options.items() if name not in CHANGES}
        configs.train_config_class(self.model_config).refuse_unknown(of_run)
        callbacks = {name: [*self.callbacks.get(name, ()), *given.get(name, ())] for name in {*self.callbacks, *given}}
        self.model.train(callbacks, **options)

    def evaluate(
        self,
        dataset_dir: str | Path | Sequence[str | Path] | None = None,
        *,
        split: str = "test",
        report_dir: str | Path | None = None,
        **options: Any,
    ) -> dict[str, float]:
        """COCO metrics of the weights in memory on one split; `predict(threshold="auto")` uses what it finds.

        Args:
            dataset_dir: a data set, or several that are joined by the names of their classes.
            split: "test", "val" or "train"; it is the prefix of the returned names, such as "test/mAP_50_95".
            report_dir: folder for `report.html`, `results.json`, plots and the worst pictures.
            options: fields of `TrainConfig`, and `resolution` for this call alone; `class_names` is what the model
                calls each class of the data set. Those that concern training alone have no effect.

        Raises:
            ValueError: the data set has classes that the model does not know by name.
            FileExistsError: `report_dir` holds something else than an earlier report.
        """
        from rfdetr.training.judge import evaluate_split

        resolution = {name: options.pop(name, None) for name in (*CHANGES, "callbacks")}["resolution"]
        config = self.get_train_config(dataset_dir=dataset_dir, **options)
        return evaluate_split(self.model, config, split, report_dir, resolution)

    def export(
        self,
        output_dir: str | Path = "output",
        *,
        opset_version: int = 17,
        shape: Sequence[int] | None = None,
        batch_size: int = 1,
        output_name: str = "inference_model",
    ) -> Path:
        """Write an ONNX file, compare it with the model, and return its path.

        Args:
            output_dir: folder of the file; created when missing.
            shape: height and width of the input, equal; default the resolution.
            batch_size: pictures that the file takes at once.
            output_name: name of the file without its suffix.

        Raises:
            ImportError: onnx is not installed.
            ValueError: a model of masks or keypoints, or a shape that is not square or no multiple of the block size.
            RuntimeError: the file computes something else than the model.
        """
        from rfdetr.export import onnx
        from rfdetr.export.graph import ExportGraph
        from rfdetr.export.metadata import to_metadata

        config = self.model.config
        if config.segmentation_head or config.use_grouppose_keypoints:
            raise ValueError("exports hold boxes alone in this release; this model predicts masks or keypoints")
        height, width = check_shape(shape or (config.resolution, config.resolution), config.block_size)
        if height != width:
            raise ValueError(f"shape=({height}, {width}): exports are square in this release")
        path = Path(output_dir).expanduser() / f"{output_name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.write(
            ExportGraph(self.model.model, height),
            path,
            side=height,
            batch_size=batch_size,
            opset=opset_version,
            metadata=to_metadata(self.model, height),
        )
        return path

    def __repr__(self) -> str:
        config = self.model.config
        return f"{type(self).__name__}(resolution={config.resolution}, num_classes={config.num_classes})"


def from_checkpoint(path: str | Path, *, trust_checkpoint: bool = False, **options: Any) -> RFDETR:
    """The model in a checkpoint file, whatever its size; see `RFDETR.from_checkpoint`."""
    path = find_weights(str(path))
    right = globals()[class_name(identify(read_checkpoint(path, trust_checkpoint)))]
    return right(pretrain_weights=str(path), trust_checkpoint=trust_checkpoint, **options)


class RFDETRNano(RFDETR):
    """30.5 M parameters, 384 pixels."""

    size = "rfdetr-nano"
    _model_config_class = configs.RFDETRNanoConfig


class RFDETRSmall(RFDETR):
    """32.1 M parameters, 512 pixels."""

    size = "rfdetr-small"
    _model_config_class = configs.RFDETRSmallConfig


class RFDETRMedium(RFDETR):
    """33.7 M parameters, 576 pixels."""

    size = "rfdetr-medium"
    _model_config_class = configs.RFDETRMediumConfig


class RFDETRBase(RFDETR):
    """32.2 M parameters, 560 pixels."""

    size = "rfdetr-base"
    _model_config_class = configs.RFDETRBaseConfig


class RFDETRLarge(RFDETR):
    """33.9 M parameters, 704 pixels. The first Large, of 136 M, is `RFDETRLargeDeprecated`."""

    size = "rfdetr-large"
    _model_config_class = configs.RFDETRLargeConfig


class RFDETRLargeDeprecated(RFDETR):
    """The first Large: 135.6 M parameters, 560 pixels."""

    size = "rfdetr-large"
    _model_config_class = configs.RFDETRLargeDeprecatedConfig


class RFDETRXLarge(RFDETR):
    """126.4 M parameters, 700 pixels. Its published weights are under another licence and are not fetched."""

    size = "rfdetr-xlarge"
    _model_config_class = configs.RFDETRXLargeConfig


class RFDETR2XLarge(RFDETR):
    """126.9 M parameters, 880 pixels. Its published weights are under another licence and are not fetched."""

    size = "rfdetr-2xlarge"
    _model_config_class = configs.RFDETR2XLargeConfig


class RFDETRSegPreview(RFDETR):
    """Masks; 432 pixels, the first segmentation model."""

    size = "rfdetr-seg-preview"
    _model_config_class = configs.RFDETRSegPreviewConfig


class RFDETRSegNano(RFDETR):
    """Masks; 312 pixels."""

    size = "rfdetr-seg-nano"
    _model_config_class = configs.RFDETRSegNanoConfig


class RFDETRSegSmall(RFDETR):
    """Masks; 384 pixels."""

    size = "rfdetr-seg-small"
    _model_config_class = configs.RFDETRSegSmallConfig


class RFDETRSegMedium(RFDETR):
    """Masks; 432 pixels."""

    size = "rfdetr-seg-medium"
    _model_config_class = configs.RFDETRSegMediumConfig


class RFDETRSegLarge(RFDETR):
    """Masks; 504 pixels."""

    size = "rfdetr-seg-large"
    _model_config_class = configs.RFDETRSegLargeConfig


class RFDETRSegXLarge(RFDETR):
    """Masks; 624 pixels."""

    size = "rfdetr-seg-xlarge"
    _model_config_class = configs.RFDETRSegXLargeConfig


class RFDETRSeg2XLarge(RFDETR):
    """Masks; 768 pixels."""

    size = "rfdetr-seg-2xlarge"
    _model_config_class = configs.RFDETRSeg2XLargeConfig


class RFDETRKeypointPreview(RFDETR):
    """Keypoints, of people where nothing else was trained; 576 pixels."""

    size = "rfdetr-keypoint-preview"
    _model_config_class = configs.RFDETRKeypointPreviewConfig


__all__ = [
    "RFDETR",
    "RFDETR2XLarge",
    "RFDETRBase",
    "RFDETRKeypointPreview",
    "RFDETRLarge",
    "RFDETRLargeDeprecated",
    "RFDETRMedium",
    "RFDETRNano",
    "RFDETRSeg2XLarge",
    "RFDETRSegLarge",
    "RFDETRSegMedium",
    "RFDETRSegNano",
    "RFDETRSegPreview",
    "RFDETRSegSmall",
    "RFDETRSegXLarge",
    "RFDETRSmall",
    "RFDETRXLarge",
    "from_checkpoint",
]
