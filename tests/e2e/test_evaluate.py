"""`model.evaluate`: pycocotools' numbers for what `predict` returns, one preprocessing, thresholds, the report."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tests.tiny import TRAINING, tiny_keypoints, tiny_model, tiny_segmenter

from rfdetr import from_checkpoint
from rfdetr.checkpoints.file import store_thresholds
from rfdetr.datasets.synthetic import draw_dataset
from rfdetr.training.metrics import precision_columns

NAMES = ["a", "b", "c"]
SIGMAS = [0.05] * 4


def scattered(make: Any, **options: Any) -> Any:
    """A network whose random weights find boxes, masks and keypoints of many places, classes and scores."""
    torch.manual_seed(3)
    model = make(num_classes=3, num_queries=20, num_select=40, **options)
    with torch.no_grad():
        for head in (model.model.model.class_head, model.model.model.proposals.classes):
            head.weight.mul_(8)
            head.bias.fill_(-1.0)
        for head in (model.model.model.box_head, model.model.model.proposals.boxes):
            head.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, 0.8, 0.9]))
        if model.model.model.mask_head is not None:
            model.model.model.mask_head.bias.fill_(-1.0)
    model.model.class_names, model.model._trained = list(NAMES), True
    return model


def annotate_with(model: Any, folder: Path) -> Path:
    """A data set whose objects are what the model finds, moved a little, with one crowd region and one miss."""
    draw_dataset(folder, {"train": 1, "valid": 6}, hw=(72, 96), shapes=("dart", "star", "square"))
    file = folder / "valid" / "_annotations.coco.json"
    document, rng = json.loads(file.read_text()), np.random.default_rng(0)
    document["categories"] = [{"id": 7 + i, "name": name} for i, name in enumerate(NAMES)]
    if model.model.config.use_grouppose_keypoints:
        document["categories"][0]["keypoints"] = ["tip", "left", "right", "end"]
    document["annotations"] = []
    for image in document["images"]:
        found = model.predict(folder / "valid" / image["file_name"], threshold=0.0)
        boxes = found.data["xyxy"] if hasattr(found, "keypoint_confidence") else found.xyxy
        moved = (boxes.astype(float) + rng.normal(0, 1, boxes.shape)).clip(0, (96, 72, 96, 72))
        large = (moved[:, 2:] - moved[:, :2] > 4).all(1)
        if model.model.config.segmentation_head:
            large &= found.mask.any((1, 2))
        for row in np.flatnonzero(large)[:14:2]:
            x0, y0, x1, y1 = moved[row].tolist()
            entry = {
                "id": len(document["annotations"]) + 1,
                "image_id": image["id"],
                "iscrowd": int(rng.random() < 0.1),
            }
            entry |= {"category_id": 7 + int(found.class_id[row]), "bbox": [x0, y0, x1 - x0, y1 - y0]}
            entry["area"] = (x1 - x0) * (y1 - y0) * 0.7
            if model.model.config.segmentation_head:
                # A part of the mask that was found.
                mask = found.mask[row] & (np.arange(96) > np.quantile(np.nonzero(found.mask[row])[1], rng.random() / 3))
                runs = coco_mask.encode(np.asfortranarray(mask))
                entry["segmentation"] = {"size": [72, 96], "counts": runs["counts"].decode()}
            if model.model.config.use_grouppose_keypoints and entry["category_id"] == 7:
                points = np.column_stack((found.xy[row] + rng.normal(0, 1, (4, 2)), np.full(4, 2)))
                entry |= {"keypoints": points.ravel().tolist(), "num_keypoints": 4}
            document["annotations"].append(entry)
    file.write_text(json.dumps(document))
    return folder


def of_pycocotools(model: Any, folder: Path, kind: str) -> COCOeval:
    """pycocotools' evaluation of what `predict` returns for the files of the split."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "valid" / "_annotations.coco.json"))
        results = []
        for image in truth.dataset["images"]:
            path = folder / "valid" / image["file_name"]
            found = model.predict(path, threshold=0.0, **({"mask_format": "rle"} if kind == "segm" else {}))
            boxes = found.data["xyxy"] if kind == "keypoints" else found.xyxy
            scores = found.detection_confidence if kind == "keypoints" else found.confidence
            for row, (box, score, label) in enumerate(zip(boxes, scores, found.class_id, strict=True)):
                x0, y0, x1, y1 = box.astype(float)
                one = {"image_id": image["id"], "category_id": 7 + int(label), "score": float(score)}
                if kind == "bbox":
                    one["bbox"] = [x0, y0, x1 - x0, y1 - y0]
                elif kind == "segm":
                    one["segmentation"] = found.data["rle"][row]
                else:
                    one["keypoints"] = np.column_stack((found.xy[row], np.ones(4))).ravel().tolist()
                results.append(one)
        judged = COCOeval(truth, truth.loadRes(results), kind)
        judged.params.maxDets = [20] if kind == "keypoints" else [1, 10, 500]
        if kind == "keypoints":
            judged.params.kpt_oks_sigmas = np.array(SIGMAS)
            judged.params.catIds = [7]
        judged.evaluate()
        judged.accumulate()
    return judged


@pytest.mark.parametrize(
    ("make", "kind", "prefix"),
    [(tiny_model, "bbox", "mAP"), (tiny_segmenter, "segm", "segm_mAP"), (tiny_keypoints, "keypoints", "keypoint_map")],
)
@pytest.mark.filterwarnings("ignore:.*change places:UserWarning")
def test_an_evaluation_is_what_pycocotools_says_of_predictions(
    tmp_path: Path, make: Any, kind: str, prefix: str
) -> None:
    options = {"num_keypoints_per_class": [4]} if kind == "keypoints" else {}
    model = scattered(make, **options)
    folder = annotate_with(model, tmp_path / "data")
    more = {"keypoint_oks_sigmas": SIGMAS} if kind == "keypoints" else {}
    found = model.evaluate(folder, split="val", num_workers=0, batch_size=3, **more)
    judged = of_pycocotools(model, folder, kind)
    precision, recall = judged.eval["precision"][..., 0, -1], judged.eval["recall"][..., 0, -1]
    expected = {
        f"{prefix}_50_95": precision[precision > -1].mean(),
        f"{prefix}_50": precision[0][precision[0] > -1].mean(),
        f"{prefix}_75": precision[5][precision[5] > -1].mean(),
        "keypoint_mAR" if kind == "keypoints" else prefix.replace("mAP", "mAR"): recall[recall > -1].mean(),
    }
    assert 0.02 < expected[f"{prefix}_50_95"] < 0.98
    assert {name: found[f"val/{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_all_paths_give_the_network_the_same_bits(tmp_path: Path) -> None:
    folder = draw_dataset(tmp_path / "data", {"train": 2, "valid": 3}, hw=(300, 200))
    model, seen = tiny_model(), []
    model.model.model.register_forward_pre_hook(
        lambda module, given: None if module.training else seen.append(given[0].clone())
    )
    paths = sorted((folder / "valid").glob("*.jpg"))
    model.predict(paths)
    predicted = [image for batch in seen for image in batch]
    seen.clear()
    model.predict([Image.open(path) for path in paths])
    opened = [image for batch in seen for image in batch]
    seen.clear()
    options = {**TRAINING, "use_ema": False, "multi_scale": False, "epochs": 1}
    model.train(dataset_dir=folder, output_dir=tmp_path / "out", **options)
    validated = [image for batch in seen for image in batch][:3]
    seen.clear()
    model.evaluate(folder, split="val", num_workers=2)
    evaluated = [image for batch in seen for image in batch]
    for others in (opened, validated, evaluated):
        assert len(others) == len(predicted) == 3
        for image, other in zip(predicted, others, strict=True):
            assert torch.equal(image.view(torch.int32), other.view(torch.int32))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("judged")
    model = scattered(tiny_model)
    data = annotate_with(model, folder / "data")
    return model, data, model.evaluate(data, split="val", num_workers=0, report_dir=folder / "report")


def test_thresholds_are_those_with_the_best_f1(judged: tuple[Any, Path, dict[str, float]]) -> None:
    model, data, metrics = judged
    results = json.loads((data.parent / "report" / "results.json").read_text())
    assert results["thresholds"] == model.model.thresholds
    assert set(model.model.thresholds) == set(NAMES)
    assert len(set(model.model.thresholds.values())) > 1
    for name, threshold in model.model.thresholds.items():
        f1 = results["curves"]["classes"][name]["f1_by_confidence"]
        assert f1[round(100 * threshold)] == max(f1)
    assert metrics["val/best_threshold"] == results["threshold"]
    assert metrics["val/duplicate_rate"] == results["duplicate_rate"]


def test_predict_takes_a_threshold_for_each_class(judged: tuple[Any, Path, dict[str, float]]) -> None:
    model, data, _ = judged
    path = next((data / "valid").glob("*.jpg"))
    every = model.predict(path, threshold=0.0)
    limits = {"auto": model.model.thresholds, "dict": {"a": 0.05, "c": 0.9}}
    for given, by_name in (("auto", limits["auto"]), (limits["dict"], limits["dict"])):
        found = model.predict(path, threshold=given)
        names = every.data["class_name"]
        keep = every.confidence > [by_name.get(name, 0.5) for name in names]
        assert 0 < keep.sum() < len(every)
        np.testing.assert_array_equal(found.xyxy, every.xyxy[keep])
        np.testing.assert_array_equal(found.class_id, every.class_id[keep])


@pytest.mark.parametrize(
    ("threshold", "says"),
    [
        ({"d": 0.3}, r"threshold has \['d'\]; the model's classes are a, b, c"),
        ("best", "threshold='best' must be a number, 'auto', or a dict"),
        (None, "threshold=None must be a number"),
    ],
)
def test_thresholds_that_are_none_are_refused(judged: tuple[Any, Path, Any], threshold: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        judged[0].predict(np.zeros((8, 8, 3), np.uint8), threshold=threshold)


def test_auto_needs_an_evaluation() -> None:
    with pytest.raises(ValueError, match=r"call evaluate\(\) first, or load a checkpoint_best_total.pth"):
        tiny_model().predict(np.zeros((8, 8, 3), np.uint8), threshold="auto")


def test_thresholds_of_a_run_are_in_its_best_checkpoint(tmp_path: Path) -> None:
    folder = draw_dataset(tmp_path / "data", {"train": 4, "valid": 2}, hw=(64, 80))
    model = tiny_model()
    model.train(dataset_dir=folder, output_dir=tmp_path / "out", **{**TRAINING, "epochs": 1})
    assert set(model.model.thresholds) == set(model.class_names)
    loaded = from_checkpoint(tmp_path / "out" / "checkpoint_best_total.pth")
    assert loaded.model.thresholds == model.model.thresholds
    assert json.loads((tmp_path / "out" / "results.json").read_text())["thresholds"] == model.model.thresholds
    loaded.predict(np.zeros((8, 8, 3), np.uint8), threshold="auto")


def test_classes_meet_by_name_or_are_refused(judged: tuple[Any, Path, dict[str, float]], tmp_path: Path) -> None:
    model, data, metrics = judged
    folder = shutil.copytree(data, tmp_path / "renamed")
    file = folder / "valid" / "_annotations.coco.json"
    document = json.loads(file.read_text())
    # Another order of the ids, and the same names.
    for entry in (*document["categories"], *document["annotations"]):
        key = "id" if "name" in entry else "category_id"
        entry[key] = 20 - entry[key]
    file.write_text(json.dumps(document))
    same = model.evaluate(folder, split="val", num_workers=0)
    assert same == pytest.approx(metrics, abs=1e-12)
    for entry in document["categories"]:
        entry["name"] = entry["name"].upper()
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"classes that the model does not know: C, B, A\. The model's .* a, b, c\."):
        model.evaluate(folder, split="val", num_workers=0)
    mapped = model.evaluate(folder, split="val", num_workers=0, class_names=["c", "b", "a"])
    assert mapped == pytest.approx(metrics, abs=1e-12)


def test_a_report_replaces_none_but_an_earlier_one(judged: tuple[Any, Path, dict[str, float]], tmp_path: Path) -> None:
    model, data, _ = judged
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else than a report"):
        model.evaluate(data, split="val", report_dir=tmp_path, num_workers=0)
    report = data.parent / "report"
    before = (report / "results.json").read_text()
    model.evaluate(data, split="val", num_workers=0, report_dir=report)
    assert (report / "earlier_1" / "results.json").read_text() == before
    assert (report / "earlier_1" / "worst").is_dir()
    assert {path.name for path in report.iterdir()} >= {"report.html", "results.json", "worst", "earlier_1"}


def test_the_columns_are_those_of_training(judged: tuple[Any, Path, dict[str, float]]) -> None:
    stats = {"coco_eval_bbox": [0.0] * 12}
    further = {"mAP_small", "mAP_medium", "mAP_large", "F1", "precision", "recall", "best_threshold", "duplicate_rate"}
    assert {name.removeprefix("val/") for name in judged[2]} == set(precision_columns(stats)) | further


def test_a_resolution_counts_for_one_evaluation(judged: tuple[Any, Path, dict[str, float]]) -> None:
    model, data, metrics = judged
    seen: list[tuple[int, ...]] = []
    handle = model.model.model.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape[2:])))
    other = model.evaluate(data, split="val", num_workers=0, resolution=96)
    assert set(seen) == {(96, 96)}
    assert other != metrics
    assert model.evaluate(data, split="val", num_workers=0) == metrics
    handle.remove()
    with pytest.raises(ValueError, match="resolution=100 is not divisible by 32"):
        model.evaluate(data, split="val", resolution=100)


def test_what_fails_leaves_the_report_as_it_was(judged: tuple[Any, Path, dict[str, float]], tmp_path: Path) -> None:
    model, data, _ = judged
    report = tmp_path / "report"
    model.evaluate(data, split="val", num_workers=0, report_dir=report)
    before = {path.name for path in report.iterdir()}
    with pytest.raises(ValueError, match="does not know"):
        model.evaluate(draw_dataset(tmp_path / "other", {"valid": 1}), split="val", report_dir=report)
    assert {path.name for path in report.iterdir()} == before
    # As an interruption in the middle of writing leaves it.
    (report / "report.html").unlink()
    model.evaluate(data, split="val", num_workers=0, report_dir=report)
    assert (report / "report.html").is_file()


def test_thresholds_are_those_of_the_weights_in_memory(tmp_path: Path) -> None:
    folder = draw_dataset(tmp_path / "data", {"train": 4, "valid": 2}, hw=(64, 80))
    options = {**TRAINING, "epochs": 1, "dataset_dir": folder, "output_dir": tmp_path / "out"}
    model = tiny_model()
    model.train(**options)
    assert model.model.thresholds
    again = tiny_model()
    again.train(**{**options, "resume": True})
    assert again.model.thresholds == model.model.thresholds
    with pytest.warns(UserWarning, match=r"no validation split|starts again"):
        model.train(**{**options, "dataset_dir": None, "train": folder / "train", "output_dir": tmp_path / "second"})
    assert model.model.thresholds == {}
    with pytest.raises(ValueError, match="nothing has measured"):
        model.predict(np.zeros((8, 8, 3), np.uint8), threshold="auto")


def test_thresholds_of_classes_that_are_not_there_stay(
    judged: tuple[Any, Path, dict[str, float]], tmp_path: Path
) -> None:
    model, data, _ = judged
    model.evaluate(data, split="val", num_workers=0)
    before = model.model.thresholds
    folder = shutil.copytree(data, tmp_path / "part")
    file = folder / "valid" / "_annotations.coco.json"
    document = json.loads(file.read_text())
    # The mean over the classes is another one then, and so is the threshold of b alone.
    document["annotations"] = [one for one in document["annotations"] if one["category_id"] == 8][::2]
    file.write_text(json.dumps(document))
    model.evaluate(folder, split="val", num_workers=0)
    assert {name: model.model.thresholds[name] for name in "ac"} == {name: before[name] for name in "ac"}
    file.write_text(json.dumps({**document, "annotations": []}))
    now = model.model.thresholds
    model.evaluate(folder, split="val", num_workers=0)
    assert model.model.thresholds == now
    model.model.thresholds = before


def test_numbers_are_names_where_they_were_trained(tmp_path: Path) -> None:
    folder = draw_dataset(tmp_path / "data", {"train": 2, "valid": 2}, hw=(64, 80))
    for split in ("train", "valid"):
        file = folder / split / "_annotations.coco.json"
        document = json.loads(file.read_text())
        for place, entry in enumerate(document["categories"]):
            entry["name"] = str(place)
        file.write_text(json.dumps(document))
    model = tiny_model()
    model.train(dataset_dir=folder, output_dir=tmp_path / "out", **{**TRAINING, "epochs": 1})
    for entry, name in zip(document["categories"], "7890", strict=True):
        entry["name"] = name
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"does not know: 7, 8, 9\. The model's classes are 0, 1, 2, 3"):
        model.evaluate(folder, split="val", num_workers=0)


def test_a_checkpoint_with_paths_in_it_can_be_stored_with_thresholds(tmp_path: Path) -> None:
    folder = draw_dataset(tmp_path / "data", {"train": 2, "valid": 2}, hw=(64, 80))
    tiny_model().train(dataset_dir=folder, output_dir=tmp_path / "out", **{**TRAINING, "epochs": 1})
    content = torch.load(tmp_path / "out" / "checkpoint_best_total.pth", weights_only=True)
    content["args"] = argparse.Namespace(**{**content["args"], "output_dir": Path("out")})
    torch.save(content, tmp_path / "old.pth")
    store_thresholds(tmp_path / "old.pth", tmp_path / "new.pth", {"circle": 0.25})
    assert from_checkpoint(tmp_path / "new.pth").model.thresholds == {"circle": 0.25}
