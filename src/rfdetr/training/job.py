"""What a run is asked to do, read and checked before time is spent: splits, class names, where to go on."""

from __future__ import annotations

import os
import secrets
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfdetr.checkpoints.load import Checkpoint, read_checkpoint
from rfdetr.checkpoints.save import plain
from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.build import check_flip_pairs
from rfdetr.datasets.check import Report, check
from rfdetr.datasets.source import DataSource
from rfdetr.evaluation.oks import KeypointClasses, warn_of_guess
from rfdetr.evaluation.split import truth_has_outlines, truth_has_points
from rfdetr.log import logger
from rfdetr.training.loggers import require_services
from rfdetr.training.runtime import Processes, select_device
from rfdetr.training.state import newest

# Options that only models of another task have a use for.
_FOR_MASKS = ("eval_masks_head_resolution",)
_FOR_KEYPOINTS = ("keypoint_flip_pairs", "keypoint_oks_sigmas", "keypoint_l1_loss_coef")
_FOR_KEYPOINTS += ("keypoint_findable_loss_coef", "keypoint_visible_loss_coef", "keypoint_nll_loss_coef")


@dataclass
class Job:
    """The splits of a data set, read and checked, and where the run starts from."""

    train: AnnotationSet
    valid: AnnotationSet | None
    test: AnnotationSet | None
    class_names: list[str]
    seed: int
    checkpoint: Checkpoint | None
    report: Report | None = None
    """What the check of the data found; only the first process has it."""

    @property
    def raw_labels(self) -> list[int] | None:
        """Label of each class name where that is not its place."""
        labels = list(self.train.categories.labels)
        # A keypoint model says it always: its schema alone does not tell.
        return labels if self.train.schema or labels != list(range(len(labels))) else None

    @property
    def num_classes(self) -> int:
        """Classes that the head must have."""
        return self.train.categories.num_classes


def prepare(config: TrainConfig, model: ModelConfig, processes: Processes, resolution: int) -> Job:
    """Read and check everything that can be checked before time is spent.

    Args:
        resolution: that of the run.

    Raises:
        FileNotFoundError, ValueError: what is wrong, by name.
    """
    check_agreement(config, model)
    _check_output(Path(config.output_dir))
    require_services(config)
    plain(config.record(), "TrainConfig")
    source = source_of(config, model)
    checkpoint = find_checkpoint(config, processes)
    wanted = model.num_keypoints_per_class if model.is_explicit("num_keypoints_per_class") else None
    if checkpoint is not None:
        wanted = checkpoint.schema or None
    train = source.read("train", schema=wanted)
    if not len(train):
        raise ValueError(f"{train.source} lists no pictures to train on")
    valid, test = None, None
    if source.has("valid"):
        valid = source.read("valid", train)
    else:
        advice = "nothing is evaluated, and the last weights become checkpoint_best_total.pth"
        warnings.warn(f"{source} has no validation split: {advice}", stacklevel=4)
    if valid is not None and (missing := _missing_in(valid)):
        advice = "their boxes are judged alone and decide which weights are the best"
        warnings.warn(f"{valid.source} has no {missing} in its {len(valid)} pictures; {advice}", stacklevel=4)
    if config.run_test and source.has("test"):
        test = source.read("test", train)
    if train.schema is not None:
        KeypointClasses.of(train.schema.counts, config.keypoint_oks_sigmas)
        warn_of_guess(train.schema.counts, config.keypoint_oks_sigmas)
        check_flip_pairs(config.keypoint_flip_pairs, train.schema, train.source)
    report = _check_data(config, model, processes, {"train": train, "valid": valid, "test": test}, resolution)
    names = _class_names(config, train)
    if checkpoint is not None and names != checkpoint.class_names and sorted(names) == sorted(checkpoint.class_names):
        raise ValueError(
            f"{checkpoint.path} was written with the classes in another order, {checkpoint.class_names} instead of "
            f"{names}, so its run cannot go on; start a new one with pretrain_weights"
        )
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    seed = processes.share(secrets.randbelow(2**31) if config.seed is None else config.seed)
    return Job(train, valid, test, names, seed, checkpoint, report)


def _check_output(folder: Path) -> None:
    """OSError if a run could not write there; it is created later, when nothing else is wrong."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"output_dir={folder}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"output_dir={folder}: {there} cannot be written to; give another folder")


def _check_data(
    config: TrainConfig,
    model: ModelConfig,
    processes: Processes,
    splits: dict[str, AnnotationSet | None],
    resolution: int,
) -> Report | None:
    """Log what the data set looks like.

    Raises:
        ValueError: training could not go on with it.
    """
    report, wrong = None, ""
    if config.check_data and processes.is_first:
        there = {name: split for name, split in splits.items() if split is not None}
        report = check(there, resolution=resolution, block=model.block_size, num_queries=model.num_queries)
        wrong = report.text() if report.fatal else ""
    if wrong := processes.share(wrong):
        raise ValueError(f"the data set cannot be trained on\n{wrong}")
    if report is not None:
        logger.info("%s", report.text())
    return report


def source_of(config: TrainConfig, model: ModelConfig) -> DataSource:
    """Where the splits are."""
    given = {split: _paths(getattr(config, split)) for split in ("train", "valid", "test")}
    task = {"masks": model.segmentation_head, "keypoints": model.use_grouppose_keypoints}
    return DataSource(_paths(config.dataset_dir), given, config.dataset_file, **task)


def _paths(given: str | list[str] | None) -> list[Path]:
    return [Path(path) for path in ([given] if isinstance(given, str) else given or [])]


def _missing_in(annotations: AnnotationSet) -> str:
    """What the task is about and no object has."""
    if annotations.outlines is not None and not truth_has_outlines(annotations):
        return "outlines"
    return "labelled keypoints" if annotations.keypoints is not None and not truth_has_points(annotations) else ""


def _class_names(config: TrainConfig, train: AnnotationSet) -> list[str]:
    names, own = config.class_names or train.class_names, train.class_names
    if len(names) > len(own):
        raise ValueError(f"class_names has {len(names)} names for the {len(own)} classes of {train.source}")
    if names != own:
        warnings.warn(f"class_names differ from those of the data set, {own}", stacklevel=5)
    return list(names)


def find_checkpoint(config: TrainConfig, processes: Processes) -> Checkpoint | None:
    """The checkpoint of `resume`: a file, or for True the newest in the output folder; None starts a run."""
    if not config.resume:
        return None
    path: Any = config.resume
    if path is True:
        # Machines without a common folder must not each decide for themselves.
        path = processes.share(newest(Path(config.output_dir)))
        if path is None:
            logger.info("%s holds no checkpoint to go on with; a new run starts", config.output_dir)
            return None
        logger.info("going on with %s", path)
    return read_checkpoint(path)


def check_agreement(config: TrainConfig, model: ModelConfig) -> None:
    """Raise a ValueError for options that contradict the model or have no meaning for it."""
    for name in ("group_detr", "segmentation_head"):
        value = getattr(config, name)
        if value is not None and value != getattr(model, name):
            raise ValueError(f"train({name}={value}) contradicts the model's {name}={getattr(model, name)}")
    if config.strategy == "fsdp" and model.backbone_lora:
        raise ValueError("backbone_lora leaves few values to train; use strategy='ddp' with it")
    if config.strategy == "fsdp" and (model.compile or model.cuda_graphs):
        raise ValueError("compile and cuda_graphs do not work with strategy='fsdp'; use 'ddp', or leave them out")
    if model.cuda_graphs and select_device(model.device).type != "cuda":
        raise ValueError(f"cuda_graphs=True needs a CUDA device, and device={model.device!r} is none; leave it out")
    check_use(config, model)


def check_use(config: TrainConfig, model: ModelConfig) -> None:
    """Raise a ValueError for options that concern what the model does not predict."""
    unused = [name for name in _FOR_KEYPOINTS if getattr(config, name) and not model.use_grouppose_keypoints]
    unused += [name for name in _FOR_MASKS if getattr(config, name) and not model.segmentation_head]
    if unused:
        raise ValueError(f"{', '.join(unused)}: the model does not predict that, so it has no use for it")
