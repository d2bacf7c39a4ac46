"""The demo of each task: draw pictures, train, judge the result on pictures never seen, and show what it finds."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rfdetr.checkpoints.download import find_weights
from rfdetr.datasets.decode import decode
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.synthetic import KEYPOINTS, SHAPES, draw_dataset
from rfdetr.detr import RFDETR, RFDETRKeypointPreview, RFDETRNano, RFDETRSegNano, from_checkpoint
from rfdetr.export.predictor import ExportedModel
from rfdetr.inference.sv import supervision

# A file that says that a folder may be written over by the next demo.
MARK = "written by rfdetr demo.txt"


@dataclass(frozen=True)
class Task:
    """What differs between the demos.

    Args:
        shapes: what is drawn.
        column, name: the number that the demo ends with, as `evaluate` calls it and for people.
        tuned_side: pixels of the pictures when it starts from published weights.
        model, training: further options when it starts from random weights.
        judging: options of the evaluation.
    """

    kind: type[RFDETR]
    shapes: tuple[str, ...]
    column: str
    name: str
    tuned_side: int
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    judging: dict[str, Any] = field(default_factory=dict)


# Masks and keypoints cost more per query.
SMALLER: dict[str, Any] = {"resolution": 120, "dec_layers": 2, "num_queries": 25, "num_select": 50}
TASKS = {
    "detect": Task(RFDETRNano, SHAPES, "mAP_50", "box AP50", 256),
    "segment": Task(RFDETRSegNano, SHAPES, "segm_mAP_50", "mask AP50", 252, SMALLER),
    "keypoints": Task(
        RFDETRKeypointPreview,
        ("dart",),
        "keypoint_map_50",
        "keypoint AP50 (OKS)",
        264,
        SMALLER,
        {"epochs": 5, "skip_best_epochs": 0},
        {"keypoint_oks_sigmas": [0.05] * 4},
    ),
}
# From random weights: a network small enough to learn shapes in minutes on two cores.
FRESH_MODEL: dict[str, Any] = {
    "pretrain_weights": None,
    "encoder": "dinov2_windowed_tiny",
    "out_feature_indexes": [2, 4, 6],
    "resolution": 128,
    "num_windows": 1,
    "num_queries": 50,
    "num_select": 100,
    "group_detr": 3,
}
# No decay between the parts: from random weights the encoder has as much to learn as the heads.
FRESH_TRAINING: dict[str, Any] = {
    "epochs": 8,
    "batch_size": 8,
    "grad_accum_steps": 1,
    "lr": 3e-4,
    "lr_encoder": 3e-4,
    "lr_vit_layer_decay": 1.0,
    "lr_component_decay": 1.0,
    "clip_max_norm": 0.0,
    "lr_scheduler": "cosine",
    "warmup_epochs": 0.5,
    "multi_scale": False,
    "scale_jitter": False,
}
FRESH_PICTURES = {"train": 640, "valid": 48, "test": 48}
# From published weights: little is left to learn, but every picture costs more.
TUNED_TRAINING: dict[str, Any] = {"epochs": 3, "batch_size": 4, "grad_accum_steps": 1, "multi_scale": False}
TUNED_PICTURES = {"train": 64, "valid": 16, "test": 48}


def run_demo(output: str | Path, weights: str | None = None, epochs: int | None = None, task: str = "detect") -> float:
    """Run the demo of a task in a folder and return its AP at an overlap of 0.5 on the held-out pictures.

    Raises:
        FileExistsError: the folder is there and was not written by a demo.
    """
    started = time.monotonic()
    what = TASKS[task]
    _refuse_other(Path(output))
    model_options: dict[str, Any]
    model_options, training = {**FRESH_MODEL, **what.model}, {**FRESH_TRAINING, **what.training}
    pictures = FRESH_PICTURES
    if weights:
        model_options = {"resolution": what.tuned_side, "pretrain_weights": str(find_weights(weights))}
        training, pictures = {**what.training, **TUNED_TRAINING}, TUNED_PICTURES
    model, side = what.kind(**model_options), int(model_options["resolution"])
    folder = _claim(Path(output))
    print(f"demo: drawing {sum(pictures.values())} pictures of shapes into {folder / 'data'}")
    draw_dataset(folder / "data", pictures, hw=(side, side), max_objects=4, shapes=what.shapes)
    options = {**training, **what.judging, **({"epochs": epochs} if epochs else {})}
    print(f"demo: training for {options['epochs']} epochs; checkpoints and logs go to {folder / 'run'}", flush=True)
    model.train(
        dataset_dir=folder / "data",
        output_dir=folder / "run",
        seed=0,
        run_test=False,
        tensorboard=False,
        progress_bar="tqdm",
        num_workers=0,
        **options,
    )
    if model.model.ended_by is not None:
        raise KeyboardInterrupt
    saved = folder / "run" / "checkpoint_best_total.pth"
    print(f"demo: loading {saved} and judging it on the pictures it has never seen")
    loaded = from_checkpoint(saved)
    judging: dict[str, Any] = {"report_dir": folder / "report", "num_workers": 0, "batch_size": 16, **what.judging}
    metrics = loaded.evaluate(folder / "data", split="test", **judging)
    sheet = show_predictions(loaded, folder / "data", folder / "pictures")
    _show_export(loaded, folder)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    score = metrics[f"test/{what.column}"]
    print(f"demo: pictures with what it found are in {sheet.parent}; {sheet.name} shows all of them")
    print(
        f"demo: {what.name} {score:.2f} on {pictures['test']} held-out pictures after {minutes} min {seconds} s",
        flush=True,
    )
    return score


def _show_export(model: RFDETR, folder: Path) -> None:
    """Write an ONNX file where that is possible, and say how near it is."""
    if not all(importlib.util.find_spec(package) for package in ("onnx", "onnxruntime")):
        print('demo: no file for other runtimes, which takes pip install "rfdetr[onnx]"')
        return
    pictures = sorted((folder / "data" / "test").glob("*.jpg"))
    exported = ExportedModel(model.export(folder / "exported", calibration_data=pictures, max_images=8, verbose=False))
    parity = exported.facts.parity
    print(
        f"demo: {exported.path} finds the same: {parity['matched']:.1%} of {parity['detections']} detections, boxes "
        f"within {parity['max_box_px']:.4f} px, scores within {parity['max_score']:.6f}"
    )


def _refuse_other(folder: Path) -> None:
    """FileExistsError for a folder that is not left by an earlier demo."""
    if folder.exists() and not (folder / MARK).is_file():
        raise FileExistsError(f"{folder} exists and was not written by a demo; give another folder with --output")


def _claim(folder: Path) -> Path:
    """The demo's folder, with a mark in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("The next `rfdetr demo` writes over this folder.\n", encoding="utf-8")
    return folder


def show_predictions(model: RFDETR, data: Path, folder: Path, count: int = 12, threshold: float = 0.4) -> Path:
    """Draw what the model finds on held-out pictures, one file each and a sheet of all; returns the sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out = read_split(data, "test")
    paths = [held_out.path(i) for i in range(min(count, len(held_out)))]
    drawn = []
    for path, detections in zip(paths, model.predict(paths, threshold=threshold), strict=True):
        picture = annotate(Image.fromarray(decode(path)), detections)
        picture.save(folder / f"{path.stem}.png")
        drawn.append(picture)
    sheet = folder / "all.png"
    contact_sheet(drawn, columns=4).save(sheet)
    return sheet


def annotate(picture: Image.Image, found: Any, side: int = 360) -> Image.Image:
    """The picture with masks or keypoints, boxes, names and scores on it, enlarged so that the text can be read."""
    sv = supervision()
    scale = max(1, round(side / max(picture.size)))
    large = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
    has_points = isinstance(found, sv.KeyPoints)
    boxes = found.data["xyxy"] if has_points else found.xyxy
    scores = found.detection_confidence if has_points else found.confidence
    scaled = sv.Detections(xyxy=boxes * scale, confidence=scores, class_id=found.class_id)
    if not has_points and found.mask is not None:
        scaled.mask = found.mask.repeat(scale, axis=1).repeat(scale, axis=2)
        large = sv.MaskAnnotator(opacity=0.5).annotate(large, scaled)
    names = [f"{name} {score:.2f}" for name, score in zip(found.data["class_name"], scores, strict=True)]
    large = sv.BoxAnnotator(thickness=2).annotate(large, scaled)
    large = sv.LabelAnnotator(text_scale=0.4, text_padding=3).annotate(large, scaled, names)
    if has_points and len(boxes):
        points = sv.KeyPoints(xy=found.xy * scale, class_id=found.class_id)
        lines = sv.EdgeAnnotator(color=sv.Color.WHITE, thickness=2, edges=list(KEYPOINTS["dart"][1]))
        large = sv.VertexAnnotator(color=sv.Color.RED, radius=4).annotate(lines.annotate(large, points), points)
    return large


def contact_sheet(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size side by side."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = np.asarray(picture.convert("RGB"))
    return Image.fromarray(sheet)
