"""Modules of earlier releases: they are at their paths, and do what scripts use them for."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from tests.tiny import MODEL, tiny_data, tiny_model
from torch.utils.data import DataLoader, Subset

from rfdetr.engine import evaluate, train_one_epoch
from rfdetr.evaluation.coco_eval import CocoEvaluator
from rfdetr.evaluation.f1_sweep import sweep_confidence_thresholds
from rfdetr.main import populate_args
from rfdetr.models.lwdetr import build_criterion_and_postprocessors, build_model
from rfdetr.util import box_ops, misc
from rfdetr.util.early_stopping import EarlyStoppingCallback
from rfdetr.util.get_param_dicts import get_param_dict
from rfdetr.util.metrics import MetricsPlotSink, MetricsTensorBoardSink, to_columns
from rfdetr.visualize.training import plot_metrics

RECORDED = Path(__file__).parents[1] / "data" / "evaluation"
# Every path that the specification of the interface calls must or should, with the names people import.
PATHS = {
    "rfdetr.assets.coco_classes": "COCO_CLASSES COCO_CLASS_NAMES",
    "rfdetr.assets.model_weights": "download_pretrain_weights",
    "rfdetr.cli": "main",
    "rfdetr.config": "TrainConfig ModelConfig SegmentationTrainConfig KeypointTrainConfig PathLikeStr "
    "PretrainWeightsCompatibilityWarning RFDETRBaseConfig RFDETRSeg2XLargeConfig",
    "rfdetr.datasets": "build_dataset get_coco_api_from_dataset detect_roboflow_format",
    "rfdetr.datasets.aug_config": "AUG_CONFIG AUG_CONSERVATIVE AUG_AGGRESSIVE AUG_AERIAL AUG_INDUSTRIAL",
    "rfdetr.datasets.aug_configs": "AUG_CONFIG AUG_CONSERVATIVE AUG_AGGRESSIVE AUG_AERIAL AUG_INDUSTRIAL",
    "rfdetr.datasets.coco": "",
    "rfdetr.datasets.coco_eval": "CocoEvaluator",
    "rfdetr.datasets.o365": "build_o365",
    "rfdetr.datasets.transforms": "",
    "rfdetr.datasets.yolo": "",
    "rfdetr.detr": "RFDETR RFDETRBase RFDETRNano RFDETRSegXLarge RFDETRSeg2XLarge from_checkpoint",
    "rfdetr.engine": "train_one_epoch evaluate",
    "rfdetr.evaluation.coco_eval": "CocoEvaluator",
    "rfdetr.evaluation.f1_sweep": "sweep_confidence_thresholds",
    "rfdetr.evaluation.keypoint_oks": "MetricKeypointOKS",
    "rfdetr.evaluation.matching": "",
    "rfdetr.export": "",
    "rfdetr.export.benchmark": "",
    "rfdetr.export.inference": "OnnxInference OpenVINOInference TRTInference",
    "rfdetr.inference": "ModelContext",
    "rfdetr.main": "Model populate_args HOSTED_MODELS",
    "rfdetr.models": "build_model build_criterion_and_postprocessors",
    "rfdetr.models.backbone": "",
    "rfdetr.models.backbone.dinov2": "DinoV2",
    "rfdetr.models.backbone.dinov2_with_windowed_attn": "WindowedDinov2WithRegistersBackbone",
    "rfdetr.models.lwdetr": "LWDETR MLP PostProcess SetCriterion build_model build_criterion_and_postprocessors",
    "rfdetr.models.matcher": "",
    "rfdetr.util.box_ops": "box_cxcywh_to_xyxy box_xyxy_to_cxcywh box_iou generalized_box_iou masks_to_boxes",
    "rfdetr.util.coco_classes": "COCO_CLASSES",
    "rfdetr.util.early_stopping": "EarlyStoppingCallback",
    "rfdetr.util.get_param_dicts": "get_param_dict",
    "rfdetr.util.logger": "get_logger",
    "rfdetr.util.metrics": "MetricsPlotSink MetricsTensorBoardSink MetricsWandBSink",
    "rfdetr.util.misc": "NestedTensor collate_fn nested_tensor_from_tensor_list",
    "rfdetr.utilities": "box_ops tensors logger",
    "rfdetr.utilities.box_ops": "box_cxcywh_to_xyxy",
    "rfdetr.utilities.logger": "get_logger",
    "rfdetr.utilities.tensors": "NestedTensor collate_fn nested_tensor_from_tensor_list",
    "rfdetr.visualize.training": "plot_metrics",
}


@pytest.mark.parametrize("module", PATHS)
def test_a_documented_path_has_its_names(module: str) -> None:
    found = importlib.import_module(module)
    for name in PATHS[module].split():
        assert getattr(found, name) is not None


def test_what_is_lightnings_is_an_import_error_that_says_so() -> None:
    with pytest.raises(ImportError, match=r"belongs to Lightning, which is not used here: call model\.train"):
        exec("from rfdetr.training import RFDETRModelModule")
    with pytest.raises(ImportError, match="nothing_of_the_sort"):
        exec("from rfdetr.training import nothing_of_the_sort")


def test_boxes_are_compared_as_by_a_naive_loop() -> None:
    corners = torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(0)).sort(0).values
    a = torch.cat((corners[0], corners[1]), 1)
    b = a[:4] * 0.9 + 0.05
    iou, union = box_ops.box_iou(a, b)
    giou = box_ops.generalized_box_iou(a, b)
    for i, one in enumerate(a.tolist()):
        for j, other in enumerate(b.tolist()):
            sides = [min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1)]
            inter = max(sides[0], 0) * max(sides[1], 0)
            areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
            hull = 1.0
            for k in (0, 1):
                hull *= max(one[k + 2], other[k + 2]) - min(one[k], other[k])
            whole = sum(areas) - inter
            assert float(union[i, j]) == pytest.approx(whole, abs=1e-6)
            assert float(iou[i, j]) == pytest.approx(inter / whole, abs=1e-5)
            assert float(giou[i, j]) == pytest.approx(inter / whole - (hull - whole) / hull, abs=1e-5)
    assert torch.allclose(box_ops.box_cxcywh_to_xyxy(box_ops.box_xyxy_to_cxcywh(a)), a, atol=1e-6)


def test_a_mask_has_the_box_of_its_pixels() -> None:
    masks = torch.zeros(2, 8, 9)
    masks[0, 2:5, 3:7] = 1
    assert box_ops.masks_to_boxes(masks).tolist() == [[3, 2, 6, 4], [0, 0, 0, 0]]


def test_pictures_of_different_sizes_are_one_padded_batch() -> None:
    pictures = [torch.ones(3, 10, 20), torch.ones(3, 12, 8)]
    batch, targets = misc.collate_fn([(picture, {"n": i}) for i, picture in enumerate(pictures)])
    images, mask = batch.decompose()
    assert images.shape == (2, 3, 12, 20)
    assert [int((~one).sum()) for one in mask] == [200, 96]
    assert torch.equal(images[:, 0], (~mask).float())
    assert [target["n"] for target in targets] == [0, 1]
    assert misc.nested_tensor_from_tensor_list(pictures, 16).tensors.shape == (2, 3, 16, 32)


def test_a_training_loop_of_ones_own_over_a_built_data_set(tmp_path: Path) -> None:
    """What the low-level interface is for: data set, network, losses, groups of rates, the two loops."""
    from rfdetr.datasets import build_dataset, detect_roboflow_format, get_coco_api_from_dataset

    data = tiny_data(tmp_path / "data")
    assert detect_roboflow_format(data) == "coco"
    settings = {**MODEL, "dataset_dir": str(data), "num_classes": 4, "amp": False, "multi_scale": False}
    args = populate_args(**settings, grad_accum_steps=1, seed=0)
    torch.manual_seed(0)
    model = build_model(args)
    criterion, postprocess = build_criterion_and_postprocessors(args)
    train, valid = (build_dataset(split, args, 64) for split in ("train", "val"))
    image, target = valid[0]
    assert image.shape == (3, 64, 64)
    assert image.min() < -0.5  # normalised
    assert {"boxes", "labels", "image_id", "orig_size"} <= target.keys()
    assert all(isinstance(value, torch.Tensor) for value in target.values())
    loaders = [DataLoader(part, batch_size=2, collate_fn=misc.collate_fn) for part in (train, valid)]
    optimizer = torch.optim.AdamW(get_param_dict(args, model))
    assert len(optimizer.param_groups) > 5
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    before = model.box_head.layers[0].weight.detach().clone()
    stats = train_one_epoch(model, criterion, schedule, loaders[0], optimizer, torch.device("cpu"), 0, 2, args=args)
    assert np.isfinite(stats["loss"])
    assert not torch.equal(before, model.box_head.layers[0].weight)
    truth = get_coco_api_from_dataset(Subset(valid, [0]))
    stats, evaluator = evaluate(model, criterion, postprocess, loaders[1], truth, torch.device("cpu"), args)
    assert stats["coco_eval_bbox"] == evaluator.coco_eval["bbox"].stats.tolist()


def test_a_data_set_that_is_built_is_what_the_network_sees(tmp_path: Path) -> None:
    """The loader of a run and the data set of a script give the network the same pictures."""
    from rfdetr.config import ModelConfig, TrainConfig
    from rfdetr.datasets import build_dataset
    from rfdetr.datasets.build import build_eval_loader
    from rfdetr.training.runtime import Runtime

    data = tiny_data(tmp_path / "data")
    args = SimpleNamespace(dataset_dir=str(data), patch_size=16, num_windows=2)
    built = build_dataset("val", args, 64)
    runtime = Runtime(torch.device("cpu"))
    config = TrainConfig(dataset_dir=str(data), num_workers=0)
    loader = build_eval_loader(config, ModelConfig(resolution=64), built.annotations, False)
    ours, targets = runtime.to_device(next(iter(loader)))
    theirs, same = runtime.to_device(misc.collate_fn([built[i] for i in range(4)]))
    assert torch.equal(ours.tensors, theirs.tensors)
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(targets, same, strict=True))
    with pytest.raises(ValueError, match="image_set='dev'"):
        build_dataset("dev", args, 64)


# pycocotools makes its masks in a way that NumPy 2 warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_evaluator_of_dicts_gives_what_pycocotools_gives(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools import mask as rle
    from pycocotools.cocoeval import COCOeval

    name = next(path.name.removesuffix("_gt.json") for path in sorted(RECORDED.glob(f"*{kind}*_gt.json")))
    found = json.loads((RECORDED / f"{name}_dt.json").read_text(encoding="utf-8"))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(RECORDED / f"{name}_gt.json"))
        judged = COCOeval(truth, truth.loadRes([dict(row) for row in found]), kind)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    evaluator = CocoEvaluator(truth, [kind], max_dets=100)
    for image in truth.getImgIds():
        rows = [row for row in found if row["image_id"] == image]
        boxes = np.array([row.get("bbox", [0, 0, 1, 1]) for row in rows], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        prediction = {
            "scores": torch.tensor([row["score"] for row in rows], dtype=torch.float64),
            "labels": torch.tensor([row["category_id"] for row in rows]),
            "boxes": torch.from_numpy(boxes),
        }
        if kind == "segm":
            prediction["masks"] = [np.asarray(rle.decode(row["segmentation"])) for row in rows]
        evaluator.update({image: prediction})
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    evaluator.summarize()
    assert evaluator.coco_eval[kind].stats == pytest.approx(judged.stats, abs=1e-9)
    assert capsys.readouterr().out.startswith(f"{kind}: AP 0.")


def test_an_evaluator_without_detections_finds_nothing() -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(next(RECORDED.glob("*bbox*_gt.json"))))
    evaluator = CocoEvaluator(truth)
    empty = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    evaluator.update(dict.fromkeys(truth.getImgIds(), empty))
    evaluator.accumulate()
    evaluator.summarize()
    assert evaluator.coco_eval["bbox"].stats[0] == 0


def test_the_sweep_is_that_of_a_naive_loop() -> None:
    rng = np.random.default_rng(0)
    classes = [
        {"scores": rng.random(n), "matches": rng.integers(0, 2, n), "ignore": rng.random(n) < 0.2, "total_gt": total}
        for n, total in ((30, 20), (5, 4), (0, 3), (4, 0))
    ]
    for row in sweep_confidence_thresholds(classes, [0.0, 0.3, 0.95], [0, 1, 2]):
        f1s = []
        for data in classes[:3]:
            kept = [i for i in range(len(data["scores"])) if data["scores"][i] >= row["confidence_threshold"]]
            kept = [i for i in kept if not data["ignore"][i]]
            right = sum(int(data["matches"][i]) for i in kept)
            precision, recall = (right / len(kept) if kept else 0), right / data["total_gt"]
            f1s.append(2 * precision * recall / (precision + recall) if precision + recall else 0)
        assert row["macro_f1"] == pytest.approx(np.mean(f1s), abs=1e-12)
        assert row["per_class_f1"][:3] == pytest.approx(f1s, abs=1e-12)
        assert len(row["per_class_rec"]) == 4


def test_the_callback_ends_a_run_that_does_not_get_better() -> None:
    asked = []
    model = SimpleNamespace(request_early_stop=lambda: asked.append(True))
    callback = EarlyStoppingCallback(model, patience=2, verbose=False)
    for score in (0.1, 0.2, 0.2005):
        callback.update({"test_coco_eval_bbox": [score], "ema_test_coco_eval_bbox": [score - 0.05]})
        assert asked == []
    callback.update({"test_coco_eval_bbox": [0.2]})
    assert asked == [True]


def test_the_sinks_take_the_lines_of_a_run(tmp_path: Path) -> None:
    model = tiny_model()
    plot, board = MetricsPlotSink(tmp_path), MetricsTensorBoardSink(tmp_path)
    model.callbacks["on_fit_epoch_end"] += [plot.update, board.update]
    data = tiny_data(tmp_path / "data")
    options = {"batch_size": 2, "grad_accum_steps": 1, "num_workers": 0, "tensorboard": False, "run_test": False}
    model.train(dataset_dir=data, output_dir=tmp_path / "run", epochs=1, **options)
    plot.save()
    board.close()
    assert (tmp_path / "metrics_plot.png").stat().st_size > 10_000
    assert list(tmp_path.glob("events*"))
    # The numbers are those of the run's own table, which is drawn the same way.
    line = json.loads((tmp_path / "run" / "log.txt").read_text(encoding="utf-8"))
    header, row = ((tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines())[:2]
    table = dict(zip(header.split(","), row.split(","), strict=True))
    columns = to_columns(line)
    assert "val/ema_mAP_50" in columns
    assert columns == {name: pytest.approx(float(table[name])) for name in columns}
    drawn = plot_metrics(tmp_path / "run", tmp_path / "again.png")
    assert drawn.stat().st_size > 10_000
    (tmp_path / "no.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no column epoch"):
        plot_metrics(tmp_path / "no.csv")
