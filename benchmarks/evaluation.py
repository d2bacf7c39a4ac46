"""Evaluation of a drawn set of 5,000 pictures: this package, pycocotools and the published package in turn.

    python benchmarks/evaluation.py --published /path/to/other/venv/bin/python

Prints ratios of the fastest rounds (below 1: ours is faster), first for AP and AR against pycocotools, then for a whole
epoch end (every picture added, AP, AR, F1 sweep) against the published package. Their AP must agree before that.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from worker import timed

CLASSES, PER_PICTURE, BATCH, MAX_DETS = 80, 100, 4, 500
# How far the AP of two packages may lie apart: the published one rounds its thresholds to float32.
ALLOWED = {"pycocotools": 1e-12, "published": 1e-3}
Data = dict[str, np.ndarray]


def draw(num_images: int) -> Data:
    """Truth (A, ...) and detections (num_images, 100, ...): near an object, or of no object at all. Boxes are xyxy."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, CLASSES + 1)
    num_truth = int(7.25 * num_images)
    image = np.sort(rng.integers(0, num_images, num_truth))
    label = rng.choice(CLASSES, num_truth, p=share / share.sum())
    size = np.exp(rng.normal(4, 1, (num_truth, 2))).clip(4, 400)
    corner = rng.random((num_truth, 2)) * (640 - size)
    boxes = np.concatenate((corner, corner + size), axis=1)
    bounds = np.searchsorted(image, np.arange(num_images + 1))
    count = np.diff(bounds)[:, None]
    near = bounds[:-1, None] + (rng.random((num_images, PER_PICTURE)) * count).astype(int)
    near = near.clip(max=num_truth - 1)
    is_near = (rng.random(near.shape) < 0.6) & (count > 0)
    noise = rng.normal(0, 0.12, (*near.shape, 4)) * np.tile(size[near], 2)
    wrong = rng.random((*near.shape, 4)) * [400, 400, 200, 200]
    wrong[..., 2:] += wrong[..., :2] + 4
    found = np.where(is_near[..., None], boxes[near] + noise, wrong)
    found[..., 2:] = np.maximum(found[..., 2:], found[..., :2] + 1)
    labels = np.where(is_near & (rng.random(near.shape) < 0.8), label[near], rng.integers(0, CLASSES, near.shape))
    scores = rng.beta(1, 6, near.shape) + np.where(is_near, 0.5 * rng.random(near.shape), 0)
    return {
        "image": image,
        "label": label,
        "boxes": boxes.astype(np.float32),
        "crowd": rng.random(num_truth) < 0.012,
        "found": found.astype(np.float32),
        "labels": labels,
        "scores": scores.clip(0, 1).astype(np.float32),
        "bounds": bounds,
    }


def new_evaluator(data: Data, max_dets: int) -> Any:
    from rfdetr.evaluation.coco import CocoEvaluator, GroundTruth

    boxes = data["boxes"].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    truth = GroundTruth(
        image_index=data["image"],
        label=data["label"],
        boxes_xywh_px=boxes,
        area=boxes[:, 2] * boxes[:, 3],
        crowd=data["crowd"],
        row=np.arange(len(boxes)),
        num_images=len(data["scores"]),
        class_names=[str(label) for label in range(CLASSES)],
    )
    return CocoEvaluator(truth, max_dets)


def ours_ap(data: Data) -> float:
    evaluator = new_evaluator(data, PER_PICTURE)
    for index, picture in enumerate(zip(data["scores"], data["labels"], data["found"], strict=True)):
        evaluator.update(index, *picture)
    return float(evaluator.summarize().stats[0])


def prepare_pycocotools(data: Data) -> tuple[dict, np.ndarray]:
    """The annotation file and the detections as `loadRes` takes them, (D, 7)."""
    boxes, found = (data[name].astype(np.float64).reshape(-1, 4) for name in ("boxes", "found"))
    for part in (boxes, found):
        part[:, 2:] -= part[:, :2]
    columns = zip(*(data[name].tolist() for name in ("image", "label", "crowd")), boxes.tolist(), strict=True)
    document = {
        "images": [{"id": index} for index in range(len(data["scores"]))],
        "categories": [{"id": label} for label in range(CLASSES)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": label, "iscrowd": int(crowd), "bbox": box, "area": box[2] * box[3]}
            for n, (i, label, crowd, box) in enumerate(columns, 1)
        ],
    }
    image = np.repeat(np.arange(len(data["scores"])), PER_PICTURE)
    return document, np.c_[image, found, data["scores"].reshape(-1), data["labels"].reshape(-1)]


def pycocotools_ap(prepared: tuple[dict, np.ndarray]) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = prepared[0]
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(prepared[1]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def to_batches(data: Data) -> list[tuple[list[dict], list[dict]]]:
    """Detections and targets as tensors, in batches."""
    found = [
        {name: torch.from_numpy(data[key][i]) for name, key in (("scores",) * 2, ("labels",) * 2, ("boxes", "found"))}
        for i in range(len(data["scores"]))
    ]
    parts = [slice(*data["bounds"][i : i + 2]) for i in range(len(found))]
    targets = [
        {
            "boxes": torch.from_numpy(data["boxes"][part]),
            "labels": torch.from_numpy(data["label"][part]),
            "iscrowd": torch.from_numpy(data["crowd"][part].astype(np.int64)),
        }
        for part in parts
    ]
    return [(found[i : i + BATCH], targets[i : i + BATCH]) for i in range(0, len(found), BATCH)]


def ours_epoch_end(data: Data, batches: list) -> float:
    from rfdetr.evaluation.f1 import results_table, sweep_confidence

    evaluator = new_evaluator(data, MAX_DETS)
    for found, _ in batches:
        for picture in found:
            evaluator.update(len(evaluator), *(picture[name].cpu().numpy() for name in ("scores", "labels", "boxes")))
    result = evaluator.summarize()
    results_table(result, sweep_confidence(evaluator))
    return float(result.stats[0])


def published_epoch_end(batches: list) -> float:
    """Its metric object and its matching, one batch at a time, then its mAP and sweep; targets come converted."""
    from rfdetr.training.coco_map import OnePassCocoMeanAveragePrecision

    from rfdetr.evaluation import f1_sweep, matching

    metric = OnePassCocoMeanAveragePrecision(
        iou_type="bbox",
        class_metrics=True,
        max_detection_thresholds=[1, 10, MAX_DETS],
        sync_on_compute=False,
        backend="vernier",
    )
    judged = matching.init_matching_accumulator()
    for found, targets in batches:
        metric.update(found, targets)
        matching.merge_matching_data(judged, matching.build_matching_data(found, targets, 0.5, "bbox"))
    result = metric.compute()
    rows = [judged[label] for label in sorted(judged)]
    annotated = [n for n, row in enumerate(rows) if row["total_gt"] > 0]
    f1_sweep.sweep_confidence_thresholds(rows, np.linspace(0, 1, 101), annotated)
    return float(result["map"])


def serve(path: Path, threads: int) -> None:
    """Answer the name of a task, one per line, with its times and its AP."""
    torch.set_num_threads(threads)
    data = dict(np.load(path))
    batches, found = to_batches(data), []
    # What each side gets ready beforehand is not timed.
    prepared = functools.cache(lambda: prepare_pycocotools(data))
    tasks = {
        "ours": lambda: found.append(ours_ap(data)),
        "ours epoch end": lambda: found.append(ours_epoch_end(data, batches)),
        "pycocotools": lambda: found.append(pycocotools_ap(prepared())),
        "published": lambda: found.append(published_epoch_end(batches)),
    }
    for line in sys.stdin:
        task = line.strip()
        if task == "pycocotools":
            prepared()
        print(json.dumps({**timed(tasks[task]), "ap": found[-1]}), flush=True)


class Side:
    """This file in a process of its own, under one of the pythons."""

    def __init__(self, python: str, data: Path, threads: int) -> None:
        command = [python, "-W", "ignore", __file__, "--serve", str(data), "--threads", str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self.process = subprocess.Popen(command, **pipes)

    def ask(self, task: str) -> dict[str, float]:
        print(task, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{task}: the process ended with an error")
        return json.loads(answer)


def compare(name: str, ours: tuple[Side, str], other: tuple[Side, str], rounds: int) -> dict[str, Any]:
    pairs = [(ours[0].ask(ours[1]), other[0].ask(other[1])) for _ in range(rounds)]
    gap = abs(pairs[0][0]["ap"] - pairs[0][1]["ap"])
    if gap > ALLOWED[other[1]]:
        raise SystemExit(f"{name}: AP {pairs[0][0]['ap']} and {pairs[0][1]['ap']}; timing different work says nothing")
    row: dict[str, Any] = {"task": name, "ap": pairs[0][0]["ap"], "gap": gap}
    cells = []
    for clock in ("wall", "cpu"):
        best = [min(pair[side][clock] for pair in pairs) for side in (0, 1)]
        row |= {f"ours_{clock}": best[0], f"other_{clock}": best[1], f"ratio_{clock}": best[0] / best[1]}
        cells += [*best, best[0] / best[1]]
    row |= {f"{side}_peak": max(pair[n]["peak"] for pair in pairs) for n, side in enumerate(("ours", "other"))}
    show(name, [f"{cell:.3f}" for cell in cells] + [f"{row[f'{side}_peak']:.0f}" for side in ("ours", "other")])
    return row


def show(name: str, cells: list[str]) -> None:
    print(f"{name:34s}" + "".join(f"{cell:>11s}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", help="python of an environment with the published package")
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, **draw(options.pictures))
        ours = Side(sys.executable, data, options.threads)
        print(f"{options.pictures} pictures, threads {options.threads}, load {os.getloadavg()[0]:.1f}")
        show("task", ["ours s", "other s", "ratio", "ours cpu", "other cpu", "ratio", "ours MB", "other MB"])
        rows = []
        if options.published:
            published = Side(options.published, data, options.threads)
            rows.append(
                compare("epoch end / published", (ours, "ours epoch end"), (published, "published"), options.rounds)
            )
        tools = Side(sys.executable, data, options.threads)
        rows.append(compare("AP and AR / pycocotools", (ours, "ours"), (tools, "pycocotools"), min(2, options.rounds)))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
