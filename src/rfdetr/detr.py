"""The models people use: one class per size, with predict, train, evaluate."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from rfdetr import config as configs
from rfdetr.checkpoints.download import find_weights
from rfdetr.checkpoints.identify import class_name, identify
from rfdetr.checkpoints.load import read_checkpoint
from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.datasets.network_input import MEAN, STD
from rfdetr.inference.predictor import Predictor, Runner, check_shape
from rfdetr.log import logger
from rfdetr.main import CHANGES, Model
from rfdetr.training.callbacks import by_event
from rfdetr.training.runtime import select_device


class RFDETR(Predictor):
    """A detector.

    Args:
        options: fields of the size's configuration (`rfdetr.config`), such as `resolution`, `num_classes`, `device`.
            `pretrain_weights` is a published file name, a path, or None for random weights.
        trust_checkpoint: run code that the checkpoint file contains. Only for files you made yourself.
        backend: what `predict` runs the network in: "torch", or "openvino", "onnx", "tensorrt" through an exported file
            that is written at the first `predict` and kept in the cache folder; "auto" takes the fastest one there is.

    Raises:
        ValueError: an unknown option or a value that is not allowed.
        ImportError: the backend is not installed; the message has the pip command.
        FileNotFoundError, ConnectionError: the weights are not there and cannot be fetched.
    """

    size: str | None = None
    means: ClassVar[list[float]] = list(MEAN)
    stds: ClassVar[list[float]] = list(STD)
    _model_config_class: type[ModelConfig] | None = None

    def __init__(self, *, trust_checkpoint: bool = False, backend: str = "torch", **options: Any) -> None:
        config = self.get_model_config(**options)
        if backend != "torch":
            from rfdetr.export.cached import choose_backend

            backend = choose_backend(backend, select_device(config.device).type)
        self.model = Model(config, trust_checkpoint=trust_checkpoint)
        self.backend = backend
        self._cached: Runner | None = None
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

    def _runner(self) -> Runner:
        if self.backend == "torch" or self.model.inference_model is not None:
            from rfdetr.inference.network import NetworkRunner

            return NetworkRunner(self.model)
        if self._cached is None:
            from rfdetr.export.cached import CachedRunner

            self._cached = CachedRunner(self.model, self.backend)
        return self._cached

    @property
    def module(self) -> torch.nn.Module:
        """The network: normalised images (B, 3, H, W) to a dict of logits and boxes (`rfdetr.models.detector`)."""
        return self.model.model

    def eval(self) -> RFDETR:
        """Put the network into evaluation mode, and return this model; `predict` does it by itself."""
        self.module.eval()
        return self

    def to(self, device: torch.device | str) -> RFDETR:
        """Move the network to a device, where it stays, and return this model."""
        self.model.device = select_device(str(device))
        self.model.ready()
        return self

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The parameters of the network."""
        return self.module.parameters()

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """Write the model as a folder that the Hugging Face Hub takes; see `rfdetr.checkpoints.hub`."""
        from rfdetr.checkpoints import hub

        return hub.save_pretrained(self.model, save_directory)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> RFDETR:
        """The model in a folder of `save_pretrained`, or in a repository of the Hugging Face Hub.

        Args:
            options: fields of the size's configuration; `RFDETR` itself takes the size from the file.
        """
        from rfdetr.checkpoints import hub

        given = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        path = hub.find_pretrained(name, **given)
        return from_checkpoint(path, **options) if cls is RFDETR else cls(pretrain_weights=str(path), **options)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, **options: Any) -> str:
        """Upload the model to a repository of the Hugging Face Hub, and return its address."""
        from rfdetr.checkpoints import hub

        return hub.push_to_hub(self.model, repo_id, private=private, **options)

    def inference(
        self,
        compile: bool = True,
        batch_size: int = 1,
        dtype: torch.dtype | str = torch.float32,
        *,
        inplace: bool = False,
        compile_backend: str = "torchscript",
    ) -> None:
        """Prepare `predict` for speed; any number of pictures and any shape still work afterwards.

        On a CPU `predict` is as fast as it gets in float32 already. On a GPU it is captured as one CUDA graph per input
        shape, which spares the launches of hundreds of kernels.

        Args:
            compile: capture graphs on a GPU.
            batch_size: pictures that the first graph is captured for.
            dtype: precision of encoder and projectors; the decoder stays in float32. A CPU without units for it is
                slower in half precision: then a warning says so, and it stays in float32.
            inplace: give up the float32 weights of what is converted; `train`, `export` and uploads are errors then.
            compile_backend: accepted for older scripts; there is one way.

        Raises:
            TypeError, ValueError: options that are not allowed.
        """
        from rfdetr.inference.optimised import to_dtype

        kind = to_dtype(dtype)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a positive whole number")
        if compile_backend not in ("torchscript", "inductor"):
            raise ValueError(f"compile_backend={compile_backend!r} must be 'torchscript' or 'inductor'")
        if inplace and compile:
            raise ValueError("inplace=True needs compile=False")
        self.model.refuse_inplace("inference()")
        self.model.optimise(kind, compile=compile, batch_size=batch_size, inplace=inplace)

    def optimize_for_inference(
        self, compile: bool = True, batch_size: int = 1, dtype: torch.dtype | str = torch.float32
    ) -> None:
        """The older name of `inference`."""
        self.inference(compile, batch_size, dtype)

    def remove_optimized_model(self) -> None:
        """Undo `inference`; after `inplace=True` there is nothing to go back to, and a warning says so."""
        if self.model.is_optimised_inplace:
            warnings.warn("inference(inplace=True) cannot be undone; build the model anew", stacklevel=2)
            return
        self.model.inference_model = None

    @property
    def is_optimized_inplace(self) -> bool:
        """Whether `inference(inplace=True)` gave up the float32 weights."""
        return self.model.is_optimised_inplace

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
        infer_dir: Any = None,
        backbone_only: bool = False,
        opset_version: int = 17,
        verbose: bool = True,
        shape: Sequence[int] | None = None,
        batch_size: int | None = None,
        dynamic_batch: bool | None = None,
        patch_size: int | None = None,
        format: str = "onnx",
        quantization: str | None = None,
        calibration_data: Any = None,
        max_images: int = 100,
        *,
        postprocess: bool = False,
        output_name: str | None = None,
        notes: Any = None,
        allow_drift: bool = False,
        force: bool = False,
        simplify: bool = False,
        backend: str | None = None,
        soc: str | None = None,
        fp16: bool = True,
        max_batch_size: int | None = None,
        coreml_precision: str | None = None,
        openvino_precision: str | None = None,
    ) -> Path:
        """Write the model as a file of another format, compare its detections with the model's, and return its path.

        `rfdetr.load` opens the file. Its metadata say what it detects, and how near it is to the model.

        Args:
            output_dir: folder of the file; created when missing.
            infer_dir, calibration_data: pictures to compare on, of which `max_images` are used; default drawn ones.
            backbone_only: encoder and projector alone.
            opset_version: of ONNX, 17 to 23.
            verbose: log what is done.
            shape: height and width of the input; default the resolution.
            batch_size: pictures that the file takes at once.
            dynamic_batch: any number of pictures; default where the format can, unless `batch_size` is given.
            patch_size: must be the model's, if given.
            format: "onnx", "openvino", "tensorrt", "coreml", "tflite" or "executorch".
            quantization: None; 8 bits are not offered, since detections do not survive them unharmed.
            postprocess: the file gives boxes, scores and classes instead of the network's outputs.
            output_name: name of the file without its suffix; default `inference_model`.
            notes: anything that JSON can hold, for the metadata.
            allow_drift: write a file that finds something else than the model.
            force: replace a file of this name whatever it is; an earlier export of the same model always is.
            simplify: let onnxslim fold the graph.
            backend, soc: of ExecuTorch.
            fp16: half precision, of TensorRT alone.
            max_batch_size: the most pictures of a dynamic batch, of TensorRT.
            coreml_precision, openvino_precision: "float32" (default) or "float16" for the weights.

        Raises:
            ImportError: a package is missing; the message has the pip command.
            TypeError, ValueError, NotImplementedError: options that are not allowed or not of this format.
            FileExistsError: something else has the name of the file.
            RuntimeError: the file would find something else than the model, or the converter gave up.
            OSError: the folder cannot be written to.
        """
        from rfdetr.export.options import read_options
        from rfdetr.export.write import export

        config = self.model.config
        self.model.refuse_inplace("export()")
        if patch_size is not None and patch_size != config.patch_size:
            raise ValueError(f"patch_size={patch_size} is not the model's, {config.patch_size}")
        hw = check_shape((config.resolution,) * 2 if shape is None else shape, config.block_size)
        request = read_options(
            format,
            batch_size=batch_size,
            dynamic_batch=dynamic_batch,
            max_batch_size=max_batch_size,
            quantization=quantization,
            opset=opset_version,
            output_name="backbone_model" if backbone_only and output_name is None else output_name,
            precisions={"openvino": openvino_precision, "coreml": coreml_precision, "tensorrt": fp16},
            simplify=simplify,
            backend=backend,
            soc=soc,
        )
        if backbone_only and postprocess:
            raise ValueError("backbone_only=True has no detections that postprocess=True could give")
        part = "backbone" if backbone_only else "final" if postprocess else "raw"
        pictures = infer_dir if calibration_data is None else calibration_data
        folder = Path(output_dir).expanduser()
        options = {"part": part, "notes": notes, "pictures": pictures, "max_images": max_images}
        path = export(self.model, folder, format, request, hw, allow_drift=allow_drift, force=force, **options)
        if verbose:
            logger.info("wrote %s", path)
        return path

    def export_for_roboflow(self, output_dir: str | Path) -> Path:
        """Write `weights.pt` and `class_names.txt`, as Roboflow's upload takes them; returns the folder.

        Raises:
            FileExistsError: the folder has one of the files, but is no earlier bundle.
        """
        from rfdetr.checkpoints import roboflow

        return roboflow.write_bundle(self.model, output_dir)

    def deploy_to_roboflow(
        self,
        workspace: str,
        project_id: str,
        version: int | str | None = None,
        api_key: str | None = None,
        size: str | None = None,
    ) -> None:
        """Upload the weights to a project of Roboflow.

        Args:
            version: of the data set; None is the newest.
            api_key: default `ROBOFLOW_API_KEY` of the environment.
            size: the model type; default that of the class.

        Raises:
            ImportError: the roboflow package is not installed.
            ValueError, ConnectionError: what the service refuses, or that it cannot be reached.
        """
        from rfdetr.checkpoints import roboflow

        roboflow.deploy(self.model, self.size, workspace, project_id, version, api_key, size)

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
