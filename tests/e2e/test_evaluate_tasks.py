"""`engine.evaluate` of stand-ins that predict masks and keypoints, compared with pycocotools on the annotation file."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.batch import NestedTensor
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.synthetic import draw_dataset
from rfdetr.engine import evaluate, ground_truth
from rfdetr.evaluation.split import SplitEvaluation
from rfdetr.models.postprocess import PostProcess

HW, HEAD, QUERIES, CLASSES = (96, 128), (24, 32), 12, 3
SIZE = torch.tensor([[*HW]])
DEVICE = torch.device("cpu")
Outputs = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six pictures; one region is a crowd, one object has no labelled keypoint."""
    folder = tmp_path_factory.mktemp("shapes")
    draw_dataset(folder, {"train": 1, "valid": 6}, shapes=("dart", "star", "square"), hw=HW, max_objects=5)
    file = folder / "valid" / "_annotations.coco.json"
    document = json.loads(file.read_text())
    darts = [one for one in document["annotations"] if one["category_id"] == 1]
    darts[1]["keypoints"], darts[1]["num_keypoints"] = [0] * 12, 0
    crowd = next(one for one in document["annotations"] if one["category_id"] == 2)
    crowd["iscrowd"] = 1
    crowd["segmentation"] = coco_mask.frPyObjects(crowd["segmentation"], *HW)[0]
    crowd["segmentation"]["counts"] = crowd["segmentation"]["counts"].decode()
    file.write_text(json.dumps(document))
    return folder


def outputs_near(annotations: AnnotationSet, index: int, kind: str) -> Outputs:
    """Raw outputs whose first queries resemble the objects of a picture; the others are noise."""
    random = torch.Generator().manual_seed(index)
    rows = range(*annotations.rows(index).indices(len(annotations.labels)))[:QUERIES]
    logits = torch.randn(QUERIES, CLASSES + 1, generator=random) - 2
    boxes = torch.rand(QUERIES, 4, generator=random) / 2 + 0.2
    masks = torch.randn(QUERIES, *HEAD, generator=random) - 1
    keypoints = torch.rand(QUERIES, 4, 8, generator=random)
    for query, row in enumerate(rows):
        logits[query, annotations.labels[row]] += 4
        corners = torch.from_numpy(annotations.boxes_xyxy[row] / (HW[1], HW[0], HW[1], HW[0])).float()
        boxes[query] = torch.cat(((corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]))
        if kind == "masks":
            shape = torch.from_numpy(dense(annotations, row)).float()[None, None]
            masks[query] += 6 * F.interpolate(shape, HEAD, mode="area")[0, 0] - 2
        if kind == "keypoints" and annotations.labels[row] == 0:
            near = torch.from_numpy(annotations.keypoints[row, :, :2] / (HW[1], HW[0])).float()
            keypoints[query, :, :2] = near + 0.02 * torch.randn(4, 2, generator=random)
    keypoints[0, 0, 0], keypoints[3, 1, 1] = torch.inf, torch.nan
    found = {"pred_logits": logits[None], "pred_boxes": boxes[None]}
    return found | {f"pred_{kind}": {"masks": masks, "keypoints": keypoints}[kind][None]}


def dense(annotations: AnnotationSet, row: int) -> np.ndarray:
    mask = np.zeros(HW, bool)
    top, left, part = annotations.outlines.patch(row, *HW)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask


class Replay(nn.Module):
    """Stands in for the network and returns one recorded output after the other."""

    def __init__(self, outputs: list[Outputs]) -> None:
        super().__init__()
        self.outputs = iter(outputs)

    def forward(self, images: Tensor, mask: Tensor | None = None, **_: bool) -> Outputs:
        return next(self.outputs)


def evaluated(annotations: AnnotationSet, outputs: list[Outputs], made: PostProcess, **args: Any) -> dict[str, Any]:
    batch = NestedTensor(torch.zeros(1, 3, 8, 8), None), [{"orig_size": SIZE[0]}]
    loader = [batch] * len(annotations)
    return evaluate(Replay(outputs), None, made, loader, annotations, DEVICE, SimpleNamespace(**args))[0]


def measure_with_pycocotools(
    file: Path, found: list[dict], kind: str, max_dets: list[int], **params: Any
) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(file)
        evaluation = COCOeval(coco, coco.loadRes(found), kind)
        evaluation.params.maxDets = max_dets
        vars(evaluation.params).update(params)
        evaluation.evaluate()
        evaluation.accumulate()
        if kind == "keypoints":
            evaluation.summarize()
            return evaluation.stats.tolist()
    # pycocotools sums up at 100 detections whatever the limit.
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    parts = [precision[..., 0, -1], precision[0, ..., 0, -1], precision[5, ..., 0, -1]]
    parts += [precision[..., a, -1] for a in (1, 2, 3)] + [recall[..., 0, m] for m in range(3)]
    parts += [recall[..., a, -1] for a in (1, 2, 3)]
    return [part[part > -1].mean() if (part > -1).any() else -1 for part in parts]


def rows_of(index: int, one: dict[str, Tensor], values: dict[str, list]) -> list[dict]:
    """Detections of a picture as COCO's results file holds them, without the label that is no class."""
    return [
        {
            "image_id": index + 1,
            "category_id": int(label) + 1,
            "score": float(score),
            **{name: value[n] for name, value in values.items()},
        }
        for n, (label, score) in enumerate(zip(one["labels"], one["scores"], strict=True))
        if label < CLASSES
    ]


def boxes_of(one: dict[str, Tensor]) -> list[list[float]]:
    boxes = one["boxes"].double()
    return torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), dim=1).tolist()


def test_masks_are_evaluated_as_pycocotools_does(folder):
    annotations = read_split(folder, "valid", masks=True)
    outputs = [outputs_near(annotations, index, "masks") for index in range(6)]
    made, file = PostProcess(30), folder / "valid" / "_annotations.coco.json"
    stats = evaluated(annotations, outputs, made, eval_max_dets=20)
    boxes, masks = [], []
    for index, one in enumerate(made(output, SIZE)[0] for output in outputs):
        runs = [coco_mask.encode(np.asfortranarray(mask[0].numpy().astype(np.uint8))) for mask in one["masks"]]
        boxes += rows_of(index, one, {"bbox": boxes_of(one)})
        masks += rows_of(index, one, {"segmentation": runs})
    expected = {
        kind: measure_with_pycocotools(file, rows, kind, [1, 10, 20])
        for kind, rows in (("bbox", boxes), ("segm", masks))
    }
    np.testing.assert_allclose(stats["coco_eval_bbox"], expected["bbox"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(stats["coco_eval_masks"], expected["segm"], rtol=0, atol=1e-10)
    assert 0.2 < expected["segm"][0] < 0.95
    assert stats["results_json"]["class_map"][-1]["map@50:95"] == stats["coco_eval_masks"][0]
    assert stats["results_json_bbox"]["class_map"][-1]["map@50:95"] == stats["coco_eval_bbox"][0]


def test_masks_can_be_compared_at_the_size_of_the_mask_head(folder):
    annotations = read_split(folder, "valid", masks=True)
    outputs = [outputs_near(annotations, index, "masks") for index in range(6)]
    # Masks that are right at every sampled pixel, with boxes that tell nothing.
    y, x = (np.arange(cells) * pixels // cells for cells, pixels in zip(HEAD, HW, strict=True))
    for index, output in enumerate(outputs):
        for query, row in enumerate(range(*annotations.rows(index).indices(10**6))):
            output["pred_masks"][0, query] = torch.from_numpy(dense(annotations, row)[np.ix_(y, x)]).float() - 0.5
            output["pred_logits"][0, query, annotations.labels[row]] = 9.0
    stats = evaluated(annotations, outputs, PostProcess(30), eval_masks_head_resolution=True)
    assert stats["coco_eval_masks"][0] > 0.999
    assert stats["coco_eval_masks"][8] == 1.0
    assert evaluated(annotations, outputs, PostProcess(30))["coco_eval_masks"][0] < 0.9


def test_keypoints_are_evaluated_as_pycocotools_does(folder):
    annotations = read_split(folder, "valid", keypoints=True)
    outputs = [outputs_near(annotations, index, "keypoints") for index in range(6)]
    made, file = PostProcess(30, [4]), folder / "valid" / "_annotations.coco.json"
    stats = evaluated(annotations, outputs, made, keypoint_oks_sigmas=[0.1, 0.2, 0.1, 0.2])
    rows = []
    for index, one in enumerate(made(output, SIZE)[0] for output in outputs):
        points = one["keypoints"].double()
        points = torch.where(torch.isfinite(points), points, 0.0).flatten(1).tolist()
        rows += [row for row in rows_of(index, one, {"keypoints": points}) if row["category_id"] == 1]
    sigmas = np.array([0.1, 0.2, 0.1, 0.2])
    expected = measure_with_pycocotools(file, rows, "keypoints", [20], kpt_oks_sigmas=sigmas, catIds=[1])
    np.testing.assert_allclose(stats["coco_eval_keypoints"], expected, rtol=0, atol=1e-10)
    assert 0.05 < expected[0] < 0.95
    assert stats["results_json"]["class_map"][-1]["map@50:95"] == stats["coco_eval_bbox"][0]


def test_areas_at_the_size_of_the_mask_head_are_those_in_the_picture(folder):
    annotations = read_split(folder, "valid", masks=True)
    found = PostProcess(5)(outputs_near(annotations, 0, "masks"), SIZE, enlarge_masks=False)[0]
    found["labels"][:] = 1
    evaluation = SplitEvaluation(annotations, ground_truth(annotations), at_head_size=True)
    evaluation.add(0, found, HW)
    cells = (found["mask_logits"] > 0).sum((1, 2)).numpy()
    assert evaluation.masks.detections().area.tolist() == (cells * 16).tolist()


@pytest.mark.parametrize("kind", ["masks", "keypoints"])
def test_pictures_of_several_processes_add_up(folder, kind):
    annotations = read_split(folder, "valid", **{kind: True})
    outputs = [outputs_near(annotations, index, kind) for index in range(6)]
    made = PostProcess(30, [4])
    parts = [SplitEvaluation(annotations, ground_truth(annotations), sigmas=[0.1] * 4) for _ in range(3)]
    # The last process has none.
    for index, output in enumerate(outputs):
        parts[index % 2].add(index, made(output, SIZE, enlarge_masks=False)[0], HW)
    states = [part.state() for part in parts]
    expected = evaluated(annotations, outputs, made, keypoint_oks_sigmas=[0.1] * 4)
    for part in parts:
        part.load_state(states)
        assert part.stats() == expected
    assert f"coco_eval_{kind}" in expected


def test_a_detector_on_outlines_and_a_mask_model_on_boxes_are_evaluated_by_boxes(folder):
    annotations = {masks: read_split(folder, "valid", masks=masks) for masks in (True, False)}
    outputs = [outputs_near(annotations[True], index, "masks") for index in range(6)]
    only_boxes = [{name: output[name] for name in ("pred_logits", "pred_boxes")} for output in outputs]
    stats = [
        evaluated(annotations[True], only_boxes, PostProcess(30)),
        evaluated(annotations[False], outputs, PostProcess(30)),
    ]
    assert stats[0] == stats[1]
    assert stats[0].keys() == {"coco_eval_bbox", "results_json"}
