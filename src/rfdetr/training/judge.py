"""Judging a model on a split of a data set: numbers, the best thresholds, and a report with pictures."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

import rfdetr
from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.batch import collate
from rfdetr.datasets.build import build_eval_loader
from rfdetr.datasets.check import relative_name
from rfdetr.datasets.decode import decode_bytes
from rfdetr.datasets.loader import Pictures
from rfdetr.datasets.merge import with_labels
from rfdetr.engine import evaluate, shares, split_evaluation
from rfdetr.evaluation.analysis import Analysis, analyse
from rfdetr.evaluation.coco import GroundTruth
from rfdetr.evaluation.oks import warn_of_guess
from rfdetr.evaluation.plots import WorstPicture
from rfdetr.evaluation.report import write_report
from rfdetr.evaluation.split import SplitEvaluation, ground_truth
from rfdetr.extras import require
from rfdetr.labels import unique_names
from rfdetr.log import logger
from rfdetr.options import check_resolution
from rfdetr.training.job import check_use, source_of
from rfdetr.training.metrics import precision_columns
from rfdetr.training.progress import Progress
from rfdetr.training.runtime import Runtime, evaluating, launched
from rfdetr.training.state import set_aside

SPLITS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
# Files of a report, and how many of the pictures with most errors it shows.
REPORT = ("report.html", "results.json", "worst")
REPORT += tuple(
    f"{kind}{plot}.png"
    for kind in ("", "boxes_", "masks_", "keypoints_")
    for plot in ("confusion_matrix", "precision_recall", "f1_confidence")
)
SHOWN = 12
TO_XYXY = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])


class Judged(Protocol):
    """A network with what has to be known about it: `rfdetr.main.Model`, or an exported file."""

    config: ModelConfig
    class_names: list[str]
    postprocess: Any
    thresholds: dict[str, float]

    @property
    def class_labels(self) -> list[int]:
        """The label of each class name."""

    @property
    def origin(self) -> str:
        """Where the weights come from."""

    @property
    def has_names(self) -> bool:
        """Whether the class names say what the classes are."""

    def ready(self) -> nn.Module:
        """The network on its device."""


def evaluate_split(
    model: Judged,
    config: TrainConfig,
    split: str,
    report_dir: str | Path | None = None,
    resolution: int | None = None,
) -> dict[str, float]:
    """Metrics of a model on one split, named `<split>/<metric>`; its `thresholds` are those of this split then.

    Args:
        resolution: side of the network input, for this evaluation alone; None is the model's.
        report_dir: folder for `results.json`, plots, pictures and `report.html`.

    Raises:
        ValueError: an unknown split, or classes that the model does not know.
        FileExistsError: `report_dir` holds something else than an earlier report.
    """
    if not isinstance(split, str) or split not in SPLITS:
        raise ValueError(f"split={split!r} is not known; choose one of train, val, test")
    check_use(config, model.config)
    side = check_resolution(model.config.resolution if resolution is None else resolution, model.config.block_size)
    settings = model.config.with_values({"resolution": side})
    # Of several processes that were started together one is enough to write.
    folder = Path(report_dir).expanduser() if report_dir is not None and launched().is_first else None
    if folder is not None:
        _check_folder(folder)
    annotations = read_for(model, config, SPLITS[split])
    if annotations.schema is not None:
        warn_of_guess(annotations.schema.counts, config.keypoint_oks_sigmas)
    module = model.ready()
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if config.device is not None and torch.device(config.device).type not in (device.type, "auto"):
        raise ValueError(f"device={config.device!r}: the model is on {device.type}; build it there to judge it there")
    runtime = Runtime(device, torch.float16 if config.fp16_eval else None)
    loader = build_eval_loader(config, settings, annotations, device.type == "cuda", keep_workers=False)
    evaluation = split_evaluation(annotations, config, across_classes=True)
    shared: dict[str, Any] = {"runtime": runtime, "progress": Progress(config.progress_bar), "evaluation": evaluation}
    stats, _ = evaluate(module, None, model.postprocess, loader, annotations, device, config, **shared)
    analyses = evaluation.analyses()
    main = analyses.get("masks", analyses["boxes"])
    model.thresholds = _thresholds(model, annotations, main)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        set_aside(folder, REPORT)
        worst = _worst(model, config, runtime, loader.dataset, evaluation, main)
        facts = _facts(model, settings, config, split, main)
        page = write_report(folder, analyses, facts, worst, lambda index: relative_name(annotations, index))
        logger.info("the report is in %s", page)
    ground_truth.cache_clear()
    return {f"{split}/{name}": value for name, value in _metrics(stats, main).items()}


def _metrics(stats: dict[str, Any], main: Analysis) -> dict[str, float]:
    table = stats["results_json"]
    metrics = precision_columns(stats)
    sizes = zip(("small", "medium", "large"), stats["coco_eval_bbox"][3:6], strict=True)
    metrics |= {f"mAP_{size}": value for size, value in sizes}
    metrics |= {"F1": table["f1_score"], "precision": table["precision"], "recall": table["recall"]}
    return {**metrics, "best_threshold": main.threshold, "duplicate_rate": main.duplicate_rate}


def _thresholds(model: Judged, annotations: AnnotationSet, main: Analysis) -> dict[str, float]:
    """The best thresholds by the model's names; of classes without objects here those that are known already."""
    if not main.objects:
        return model.thresholds
    name_of = dict(zip(model.class_labels, unique_names(model.class_names), strict=False))
    columns = zip(annotations.categories.labels, main.thresholds.values(), main.sweep.num_truth, strict=True)
    found = {name_of[label]: (value, count > 0) for label, value, count in columns if label in name_of}
    guessed = {name: value for name, (value, measured) in found.items() if not measured}
    return {**guessed, **model.thresholds, **{name: value for name, (value, measured) in found.items() if measured}}


def _check_folder(folder: Path) -> None:
    """FileExistsError if a report would not be alone in a folder, but for earlier ones."""
    require("matplotlib.figure")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if (folder.exists() and not folder.is_dir()) or any(
        name not in REPORT and not name.startswith("earlier_") for name in names
    ):
        raise FileExistsError(f"{folder} holds something else than a report, and nothing is overwritten; name another")


def _facts(
    model: Judged, settings: ModelConfig, config: TrainConfig, split: str, main: Analysis
) -> dict[str, str | float]:
    return {
        "model": f"{settings.model_name or 'a network'} at {settings.resolution} px",
        "weights": model.origin,
        "data set": str(source_of(config, settings)),
        "split": split,
        "pictures": main.evaluator.ground_truth.num_images,
        "objects": main.objects,
        "date": datetime.datetime.now().isoformat(sep=" ", timespec="minutes"),
        "rfdetr": rfdetr.__version__,
    }


def _worst(
    model: Judged,
    config: TrainConfig,
    runtime: Runtime,
    pictures: Pictures,
    evaluation: SplitEvaluation,
    main: Analysis,
) -> Iterator[WorstPicture]:
    """The pictures with most errors, each detected in once more and judged alone, at the thresholds of all."""
    module, annotations, truth = model.ready(), evaluation.annotations, evaluation.truth
    for errors in main.worst(SHOWN):
        index = errors.image_index
        samples, targets = runtime.to_device(collate([pictures[index]], model.config.block_size))
        with evaluating(module), runtime.autocast():
            outputs = module(samples.tensors, samples.mask, last_only=True, whole_masks=False)
            (found,) = model.postprocess(outputs, targets[0]["orig_size"][None], enlarge_masks=False)
        rows = np.flatnonzero(truth.image_index == index)
        alone = SplitEvaluation(annotations, _rows_of(truth, rows), config.eval_max_dets, across_classes=True)
        hw = (int(targets[0]["orig_size"][0]), int(targets[0]["orig_size"][1]))
        alone.add(index, found, hw, shares(samples)[0])
        own = analyse(alone.masks or alone.boxes, main.best)
        kept, classes = alone.known(found["labels"])
        scores, boxes = (found[name].float().cpu().numpy()[kept] for name in ("scores", "boxes"))
        outcome, of_objects = own.outcome(index, scores, classes)
        yield WorstPicture(
            name=relative_name(annotations, index),
            pixels=decode_bytes(annotations.read(index), str(annotations.path(index))),
            truth_boxes_xyxy_px=truth.boxes_xywh_px[rows] @ TO_XYXY,
            truth_labels=truth.label[rows],
            truth_outcome=of_objects,
            boxes_xyxy_px=boxes,
            labels=classes,
            scores=scores,
            outcome=outcome,
        )


def _rows_of(truth: GroundTruth, rows: np.ndarray) -> GroundTruth:
    names = ("image_index", "label", "boxes_xywh_px", "area", "crowd", "row")
    return replace(truth, **{name: getattr(truth, name)[rows] for name in names})


def read_for(model: Judged, config: TrainConfig, split: str) -> AnnotationSet:
    """A split with the labels of the model, by the names of the classes.

    Raises:
        ValueError: the model does not know the name of a class.
    """
    source, counts = source_of(config, model.config), tuple(model.config.num_keypoints_per_class)
    annotations = source.read(split)
    names = list(config.class_names or annotations.class_names)
    if len(names) != len(annotations.class_names):
        raise ValueError(
            f"class_names has {len(names)} names for the {len(annotations.class_names)} classes of "
            f"{annotations.source}, {annotations.class_names}; give the model's name of each of them"
        )
    label_of = dict(zip(model.class_names, model.class_labels, strict=False))
    labels = [label_of.get(name, -1) for name in names]
    if names == model.class_names:
        labels = list(model.class_labels)  # also where two classes have the same name
    elif model.has_names:
        _check_names(names, label_of, annotations)
    else:
        logger.info("the model does not know what its classes are called, so that they are compared by number")
        labels = list(annotations.categories.labels)
        if (wanted := annotations.categories.num_classes) > model.config.num_classes:
            raise ValueError(f"{annotations.source} has {wanted} classes, the model {model.config.num_classes}")
        if counts:
            return source.read(split, schema=counts)
    schema = annotations.schema
    if schema is not None:
        own = annotations.categories.labels
        here, there = ([c[n] if n < len(c) else 0 for n in of] for c, of in ((schema.counts, own), (counts, labels)))
        if here != there:
            raise ValueError(f"{annotations.source}: {names} have {here} keypoints, but {there} in the model")
        schema = replace(schema, counts=counts)
    annotations = replace(with_labels(annotations, labels), schema=schema)
    return replace(annotations, categories=replace(annotations.categories, names=tuple(names)))


def _check_names(names: list[str], known: Mapping[str, int], annotations: AnnotationSet) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) < len(names):
        what = f"classes that the model does not know: {', '.join(unknown)}" if unknown else "a class name twice"
        raise ValueError(
            f"{annotations.source} has {what}. The model's classes are {', '.join(known)}. Give "
            f"class_names=[...] with the model's name of each of {names}, in this order"
        )
