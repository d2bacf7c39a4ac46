"""COCO's evaluation of dicts of detections, as older scripts feed it; pycocotools does the work."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rfdetr.extras import require


class CocoEvaluator:
    """Collects detections by image id and judges them.

    `coco_eval[kind].stats` has COCO's numbers after `summarize`: AP, AP50, AP75, AP of small, medium and large objects,
    AR at 1, 10 and `max_dets` detections, AR of small, medium and large ones; -1 where there are no such objects.
    Keypoints have AP, AP50, AP75, AP medium, AP large, and the same of AR.

    Args:
        coco_gt: a `pycocotools.coco.COCO`.
        iou_types: of "bbox", "segm", "keypoints".
        max_dets: detections per picture and class that count for boxes and masks.
    """

    def __init__(
        self,
        coco_gt: Any,
        iou_types: Sequence[str] = ("bbox",),
        max_dets: int = 500,
        keypoint_oks_sigmas: Sequence[float] | None = None,
    ) -> None:
        self.coco_gt, self.iou_types, self.max_dets = coco_gt, tuple(iou_types), max_dets
        self.sigmas = keypoint_oks_sigmas
        self.img_ids: list[int] = []
        self.results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in self.iou_types}
        self.coco_eval: dict[str, Any] = {}

    def update(self, predictions: Mapping[int, Mapping[str, Any]]) -> None:
        """Take detections by image id: `scores` (N,), `labels` (N,) category ids, `boxes` (N, 4) xyxy in pixels; also
        `masks` (N, 1, H, W) or (N, H, W) for "segm" and `keypoints` (N, K, 3) for "keypoints"."""
        self.img_ids += [int(image) for image in predictions]
        for kind in self.iou_types:
            for image, found in predictions.items():
                self.results[kind] += _as_results(int(image), {k: np.asarray(v) for k, v in found.items()}, kind)

    def synchronize_between_processes(self) -> None:
        """Put the detections of all processes of a run together."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, (self.img_ids, self.results))
        self.img_ids = sorted({image for ids, _ in gathered for image in ids})
        self.results = {kind: [one for _, results in gathered for one in results[kind]] for kind in self.iou_types}

    def accumulate(self) -> None:
        """Compare what was found with what there is."""
        evaluation = require("pycocotools.cocoeval")
        for kind in self.iou_types:
            # It prints what it does, and cannot read no detections.
            with contextlib.redirect_stdout(io.StringIO()):
                found = self.coco_gt.loadRes(self.results[kind]) if self.results[kind] else type(self.coco_gt)()
                judged = evaluation.COCOeval(self.coco_gt, found, kind)
                judged.params.imgIds = sorted(set(self.img_ids))
                if kind == "keypoints" and self.sigmas is not None:
                    judged.params.kpt_oks_sigmas = np.asarray(self.sigmas, float)
                if kind != "keypoints":
                    judged.params.maxDets = [1, 10, self.max_dets]
                judged.evaluate()
                judged.accumulate()
            self.coco_eval[kind] = judged

    def summarize(self) -> None:
        """Make the numbers, and print them."""
        for kind, judged in self.coco_eval.items():
            judged.stats = _stats(judged)
            named = zip(_names(kind), judged.stats, strict=True)
            print(f"{kind}: " + "  ".join(f"{name} {value:.3f}" for name, value in named))


_SIZES = (" small", " medium", " large")


def _names(kind: str) -> list[str]:
    if kind == "keypoints":
        return [f"{one}{part}" for one in ("AP", "AR") for part in ("", "50", "75", *_SIZES[1:])]
    return [*(f"AP{part}" for part in ("", "50", "75", *_SIZES)), *(f"AR{part}" for part in ("1", "10", "", *_SIZES))]


def _stats(judged: Any) -> np.ndarray:
    """COCO's numbers at the largest limit; its own summary knows the limit 100 alone."""
    areas, last = judged.params.areaRngLbl, len(judged.params.maxDets) - 1

    def mean(part: str, iou: float | None = None, area: str = "all", limit: int = last) -> float:
        values = judged.eval[part][..., areas.index(area), limit]
        values = values if iou is None else values[np.isclose(judged.params.iouThrs, iou)]
        return float(values[values > -1].mean()) if (values > -1).any() else -1.0

    sizes = [area for area in areas if area != "all"]
    overlaps = [mean("precision", iou) for iou in (None, 0.5, 0.75)]
    precision = [*overlaps, *(mean("precision", area=area) for area in sizes)]
    if judged.params.iouType == "keypoints":
        recall = [mean("recall", iou) for iou in (None, 0.5, 0.75)]
    else:
        recall = [mean("recall", limit=limit) for limit in range(last + 1)]
    return np.array([*precision, *recall, *(mean("recall", area=area) for area in sizes)])


def _as_results(image: int, found: Mapping[str, np.ndarray], kind: str) -> list[dict[str, Any]]:
    """Detections of an image in COCO's format of results."""
    boxes = found["boxes"].reshape(-1, 4)
    rows = [
        {"image_id": image, "category_id": int(label), "score": float(score), "bbox": [x, y, right - x, bottom - y]}
        for label, score, (x, y, right, bottom) in zip(found["labels"], found["scores"], boxes.tolist(), strict=True)
    ]
    if kind == "segm":
        mask = require("pycocotools.mask")
        for row, one in zip(rows, found["masks"], strict=True):
            row["segmentation"] = mask.encode(np.asfortranarray(one.reshape(one.shape[-2:]), np.uint8))
            del row["bbox"]
    if kind == "keypoints":
        for row, points in zip(rows, found["keypoints"], strict=True):
            row["keypoints"] = points.reshape(-1).tolist()
    return rows
