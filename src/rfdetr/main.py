"""A network with its settings, class names and device: what `RFDETR.model` is, and the older `rfdetr.main.Model`."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rfdetr.assets.coco_classes import COCO_CLASS_NAMES, COCO_CLASSES
from rfdetr.checkpoints import identify, load
from rfdetr.checkpoints.download import BASE_URL, PUBLISHED, find_weights, require_weights
from rfdetr.checkpoints.names import to_internal
from rfdetr.config import ModelConfig, SegmentationTrainConfig, TrainConfig, train_config_class
from rfdetr.labels import Labels
from rfdetr.log import logger
from rfdetr.models import refit
from rfdetr.models.build import build_model, build_postprocess, initialise
from rfdetr.models.detector import Detector
from rfdetr.options import check_resolution
from rfdetr.training.callbacks import Callbacks, check_callbacks
from rfdetr.training.runtime import select_device

# Where the published weights are, by file name.
HOSTED_MODELS = {name: BASE_URL + path for name, (path, _) in PUBLISHED.items()}


def populate_args(**settings: Any) -> SimpleNamespace:
    """Every option of model and run with its default in one namespace, as older scripts read them; `settings` win."""
    fields = {**SegmentationTrainConfig.model_fields, **ModelConfig.model_fields}
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    return SimpleNamespace(**{**defaults, "dataset_dir": None, **settings})


class Model:
    """A loaded network.

    Args:
        config: what to build; without it, one is made from `settings`, whose unknown names are left out.
        trust_checkpoint: run code that the checkpoint file contains. Only for files you made yourself.
    """

    def __init__(self, config: ModelConfig | None = None, *, trust_checkpoint: bool = False, **settings: Any) -> None:
        self.config = config or ModelConfig(**{k: v for k, v in settings.items() if k in ModelConfig.model_fields})
        self.device = select_device(self.config.device)
        self.stop_early = False
        self.class_names: list[str] = []
        self._made_up: list[str] | None = None
        self.first_label = 0
        self.raw_labels: list[int] | None = None
        self.thresholds: dict[str, float] = {}
        # What predict() runs in place of the network after inference() (`rfdetr.inference.optimised.Optimised`).
        self.inference_model: Any = None
        self.is_optimised_inplace = False
        # The signal that ended the last run, if one did.
        self.ended_by: int | None = None
        self._trust = trust_checkpoint
        self._trained = False
        self._lock = threading.Lock()
        self._build()
        self._stamp = self._stamp_of(self.config.pretrain_weights)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _build(self) -> None:
        require_weights(self.config.variant, self.config.is_explicit("pretrain_weights"))
        self.thresholds = {}
        if self.config.pretrain_weights is None:
            self.model: Detector = initialise(build_model(self.config))
            self._name_classes([], 0)
        else:
            self._load(find_weights(self.config.pretrain_weights))
        self.model.encoder.freeze(self.config.freeze_encoder)
        self.postprocess = build_postprocess(self.config)

    def _load(self, path: Path) -> None:
        checkpoint = load.read_checkpoint(path, self._trust)
        explicit = self.config.is_explicit("num_classes")
        self.config = identify.adopt(self.config, checkpoint)
        if explicit and checkpoint.class_rows != self.config.num_classes + 1:
            warnings.warn(
                f"{path} has {checkpoint.class_rows - 1} classes; the class head is resized to "
                f"num_classes={self.config.num_classes} by repeating or cutting its rows",
                stacklevel=5,
            )
        self.model = build_model(self.config)
        weights = load.fit(checkpoint, self.config)
        if identify.differing(self.config, checkpoint):
            weights = self._with_fresh(weights)
        load.load_weights(self.model, weights, path)
        first = self.config.first_label
        self._name_classes(checkpoint.class_names, checkpoint.first_label if first is None else first)
        self.raw_labels = checkpoint.args.get("class_labels")
        self.thresholds = checkpoint.thresholds

    def _with_fresh(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Start values, replaced by what fits of a file whose architecture was changed deliberately."""
        fresh = initialise(build_model(self.config)).state_dict()
        fitting = {n: t for n, t in weights.items() if n in fresh and t.shape == fresh[n].shape}
        return {**fresh, **fitting}

    def _name_classes(self, names: list[str], first_label: int) -> None:
        usual = _usual_names(self.config)
        known = self.config.pretrain_weights is not None and usual[0] != "0"
        self._made_up = None if names or known else usual
        self.class_names, self.first_label = names or usual, first_label

    @property
    def has_names(self) -> bool:
        """Whether the class names say what the classes are, and were not made up for lack of any."""
        return self.class_names != self._made_up

    @property
    def origin(self) -> str:
        """Where the weights in memory come from."""
        start = self.config.pretrain_weights or "random weights"
        return f"in memory, trained from {start}" if self._trained else start

    @property
    def is_coco(self) -> bool:
        """Whether labels are COCO category ids: more classes than names, and the names are COCO's."""
        return self.config.num_classes > len(self.class_names) and self.class_names == COCO_CLASS_NAMES

    @property
    def class_labels(self) -> list[int]:
        """The label of each class name: its place, unless category ids are the labels."""
        if self.raw_labels is not None:
            return self.raw_labels
        with_points = [label for label, count in enumerate(self.config.num_keypoints_per_class) if count]
        if len(with_points) == len(self.class_names):
            # The keypoint models of the published package can have the background first.
            return with_points
        return list(COCO_CLASSES) if self.is_coco else [self.first_label + i for i in range(len(self.class_names))]

    @property
    def labels(self) -> Labels:
        """What the outputs of the class head are called, and their thresholds."""
        count = self.config.num_classes + 1
        return Labels(self.class_names, self.class_labels, count, self.hidden_labels(), self.thresholds)

    def name_of_label(self) -> list[str]:
        """A name for every output of the class head: "" where there is none."""
        return self.labels.names()

    def hidden_labels(self) -> list[int]:
        """The outputs that are no class and not reported; none where category ids are labels, as in COCO's heads."""
        schema = self.config.num_keypoints_per_class
        if not schema and (self.raw_labels is not None or self.is_coco):
            return []
        last = self.config.num_classes
        return [0, last] if schema[:1] == [0] and 0 not in self.class_labels else [0 if self.first_label else last]

    @property
    def resolution(self) -> int:
        """Side of the network's square input in pixels."""
        return self.config.resolution

    @property
    def args(self) -> SimpleNamespace:
        """All settings in one namespace, as older scripts read them."""
        return SimpleNamespace(**{**self.config.model_dump(), "class_names": list(self.class_names)})

    def ready(self) -> Detector:
        """The network on its device; it is moved at the first use, not at construction."""
        with self._lock:
            if any(parameter.device != self.device for parameter in self.model.parameters()):
                self.model.to(self.device)
        return self.model

    def for_prediction(self) -> Callable[..., dict[str, Any]]:
        """What computes the outputs for `predict`: the network in eval mode, or what `inference` made of it."""
        made, network = self.inference_model, self.model
        if network.training:
            network.eval()
        if made is None:
            return self.ready()
        if not self.is_optimised_inplace and not made.is_of(network):
            # Somebody wrote to the weights: the copies in another precision follow.
            made = self.inference_model = type(made)(self.ready(), made.dtype, made.graphs)
        return made

    def optimise(self, dtype: torch.dtype, *, compile: bool, batch_size: int, inplace: bool) -> None:
        """Prepare the network for prediction; see `RFDETR.inference`."""
        from rfdetr.inference.optimised import optimise

        self.inference_model = None
        side, network = self.config.resolution, self.ready().eval()
        example = torch.zeros(batch_size, self.config.num_channels, side, side, device=self.device)
        self.inference_model = optimise(network, dtype, compile, example)
        if inplace:
            self.model, self.is_optimised_inplace = self.inference_model.network, True

    def refuse_inplace(self, what: str) -> None:
        """RuntimeError if the weights in full precision have been given up."""
        if self.is_optimised_inplace:
            raise RuntimeError(f"{what} needs the weights that inference(inplace=True) gave up; build the model anew")

    def reinitialize_detection_head(self, num_outputs: int) -> None:
        """Give the class heads `num_outputs` rows (classes + 1): old rows are cut or repeated in turn."""
        self.model.reinitialize_detection_head(num_outputs)
        self.config.num_classes = num_outputs - 1

    def request_early_stop(self) -> None:
        """End training after the running epoch."""
        self.stop_early = True

    def train(self, callbacks: Callbacks | None = None, **settings: Any) -> None:
        """Train on a data set; afterwards the model holds the best weights and the data set's class names.

        Ctrl-C ends the run after its step, saves it, and returns with the weights of that moment.

        Args:
            callbacks: functions by event: `on_fit_epoch_end(stats)`, `on_train_batch_start(info)`, `on_train_end()`.
            settings: fields of `TrainConfig`, `resolution` and `gradient_checkpointing`; others have no effect.

        Raises:
            ValueError: an unknown event, a wrong value, or a data set that cannot be used.
            SystemExit: SIGTERM ended the run, after it was saved.
        """
        from rfdetr.training.launch import helpers

        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise RuntimeError(
                "a loading process runs the script again, and would train once more: put the code of the script under "
                "`if __name__ == '__main__':`, or give num_workers=0"
            )
        self.refuse_inplace("train()")
        self.inference_model = None
        callbacks = check_callbacks(callbacks)
        changes = {name: settings.pop(name) for name in CHANGES if settings.get(name) is not None}
        if "resolution" in changes:
            changes["resolution"] = check_resolution(changes["resolution"], self.config.block_size)
        kind = train_config_class(self.config)
        known = {k: v for k, v in settings.items() if k in kind.model_fields or k in kind.retired}
        if unknown := sorted(name for name in settings if name not in known and name not in CHANGES):
            warnings.warn(f"settings without effect in train(): {', '.join(unknown)}", stacklevel=2)
        config = kind(**known)
        with helpers(self, config, changes) as processes:
            number = self.ended_by = self.train_in(processes, config, changes, callbacks)
        if number == signal.SIGTERM:
            raise SystemExit(128 + number)

    def train_in(
        self, processes: Any, config: TrainConfig, changes: dict[str, Any], callbacks: Callbacks
    ) -> int | None:
        """Train as one of the processes of a run; returns the number of the signal that ended it, if one did.

        Args:
            changes: `resolution` and `gradient_checkpointing`, applied when everything else has been checked.
        """
        from rfdetr.training.job import prepare
        from rfdetr.training.run import run
        from rfdetr.training.runtime import join
        from rfdetr.training.seeds import seed_everything

        device = _device_of(config, self.device, processes.world, processes.local)
        if config.batch_size == "auto" and device.type != "cuda":
            raise ValueError(f"batch_size='auto' measures GPU memory, but the device is {device}; give a number")
        join(processes, device.type == "cuda")
        job = prepare(config, self.config, processes, changes.get("resolution", self.config.resolution))
        if self._trained and job.checkpoint is None:
            self._start_again()
        self._check_classes(job.num_classes)
        self.device, self.stop_early, self._trained = device, False, True
        seed_everything(job.seed)
        self._change(**changes)
        old_rows = dict(zip(self.class_names, self.class_labels, strict=False))
        if job.train.schema is not None:
            self._fit_keypoints(job.train.schema.counts, forget=job.checkpoint is None)
        labels = job.train.categories.labels
        kept = {new: old_rows[name] for new, name in zip(labels, job.class_names, strict=False) if name in old_rows}
        if config.keep_classes:
            logger.info("known classes: %s", ", ".join(name for name in job.class_names if name in old_rows) or "none")
        self._fit_head(job.num_classes, kept if config.keep_classes else None)
        self.class_names, self.first_label, self.raw_labels = list(job.class_names), 0, job.raw_labels
        self._made_up, self.thresholds = None, {}
        try:
            return run(self, config, job, callbacks, processes)
        finally:
            self.model.eval()

    def _start_again(self) -> None:
        """Go back to the weights that the model was built with.

        Raises:
            ValueError: their file was replaced since, maybe by the former run.
        """
        if self._stamp != self._stamp_of(self.config.pretrain_weights):
            raise ValueError(
                f"{self.config.pretrain_weights} has changed since the model was built, so train() cannot start from "
                "it again; build the model anew from the file you mean"
            )
        warnings.warn("train() starts again from pretrain_weights, not from the weights in memory", stacklevel=5)
        self._build()

    @staticmethod
    def _stamp_of(weights: str | None) -> tuple[int, int] | None:
        path = Path(weights) if weights else None
        return (path.stat().st_mtime_ns, path.stat().st_size) if path is not None and path.is_file() else None

    def _change(self, resolution: int | None = None, gradient_checkpointing: bool | None = None) -> None:
        config = self.config
        if gradient_checkpointing is not None:
            config.gradient_checkpointing = self.model.encoder.checkpointing = bool(gradient_checkpointing)
        if resolution is not None:
            follows = config.positional_encoding_size == config.resolution // config.patch_size
            config.resolution = resolution
            if follows:
                config.positional_encoding_size = resolution // config.patch_size
                self.model.encoder.resize_position_table(config.positional_encoding_size)

    def _check_classes(self, num_classes: int) -> None:
        own = self.config.num_classes
        if not self.config.is_explicit("num_classes") or num_classes == own:
            return
        if num_classes > own:
            raise ValueError(
                f"the labels of the data set need num_classes={num_classes}, but num_classes={own} was given; leave it "
                "out to take the data set's"
            )
        warnings.warn(f"num_classes={own} is kept; the data set has {num_classes}", stacklevel=5)

    def _fit_keypoints(self, schema: tuple[int, ...], forget: bool) -> None:
        """Give the network the data set's keypoints; `forget`: with their precision unlearned."""
        network = self.model.keypoints
        assert network is not None
        if schema != network.schema:
            logger.info("the network is set up for the data set's keypoints per class, %s", list(schema))
            refit.resize_keypoints(network, schema)
            rows = max(self.config.num_classes, len(schema))
            values = {"num_keypoints_per_class": list(schema), "num_classes": rows}
            self.config = self.config.with_values(values)
            self.postprocess = build_postprocess(self.config)
        if forget:
            refit.forget_precision(network)

    def _fit_head(self, num_classes: int, kept: dict[int, int] | None) -> None:
        """Give the class head the data set's number of classes; `kept`: start all rows anew but these, new to old."""
        heads = (self.model.class_head, self.model.proposals.classes)
        before = [{n: p.detach().clone() for n, p in head.named_parameters()} for head in heads]
        if num_classes + 1 != self.model.class_head.out_features and not self.config.is_explicit("num_classes"):
            logger.info("the class head is set up for the data set's %d classes", num_classes)
            self.reinitialize_detection_head(num_classes + 1)
        if kept is not None:
            for head, rows in zip(heads, before, strict=True):
                refit.start_rows(head, rows, kept)

    def load_weights(self, path: Path) -> None:
        """Put the weights of a checkpoint of this very model into the network in memory."""
        weights = load.fit(load.read_checkpoint(path), self.config)
        self.model.load_state_dict(weights, strict=True)

    def put_weights(self, published: dict[str, torch.Tensor]) -> None:
        """Put weights with published names, of this very model, into the network in memory."""
        self.model.load_state_dict(to_internal(published)[0])


def _usual_names(config: ModelConfig) -> list[str]:
    """Class names of a file without any: those of the published weights, else numbers."""
    if config.use_grouppose_keypoints:
        counts = [count for count in config.num_keypoints_per_class if count]
        return ["person"] if counts == [17] else [str(i) for i in range(len(counts))]
    return list(COCO_CLASS_NAMES) if config.num_classes == 90 else [str(i) for i in range(config.num_classes)]


# Settings of the model that `train()` changes.
CHANGES = ("resolution", "gradient_checkpointing")


def _device_of(config: TrainConfig, own: torch.device, world: int, local: int) -> torch.device:
    """What `device` or `accelerator` say, else the model's device; each process of a run takes a GPU of its own."""
    wanted = config.device or {"gpu": "cuda", "auto": str(own)}.get(config.accelerator, config.accelerator)
    if wanted.startswith("cuda") and not torch.cuda.device_count():
        raise ValueError(f"there is no CUDA device here; leave out device={config.device!r} or accelerator")
    device = select_device(wanted)
    if device.type != "cuda" or (world == 1 and not isinstance(config.devices, list)):
        return device
    numbers = config.devices if isinstance(config.devices, list) else list(range(torch.cuda.device_count()))
    needed = max(local + 1, config.devices if isinstance(config.devices, int) else 1)
    if needed > len(numbers) or max(numbers) >= torch.cuda.device_count():
        raise ValueError(f"devices={config.devices}: this machine has {torch.cuda.device_count()} GPUs")
    device = torch.device("cuda", numbers[local])
    if world > 1:
        torch.cuda.set_device(device)
    return device
