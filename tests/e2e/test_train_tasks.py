"""Runs of segmentation and keypoint models: what they write, what decides, what goes on, and what each option does."""

from __future__ import annotations

import csv
import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import TRAINING, tiny_data, tiny_keypoints, tiny_model, tiny_segmenter

import rfdetr
from rfdetr.config import (
    KeypointTrainConfig,
    RFDETRKeypointPreviewConfig,
    RFDETRNanoConfig,
    RFDETRSegNanoConfig,
    SegmentationTrainConfig,
    TrainConfig,
    train_config_class,
)
from rfdetr.datasets.build import build_eval_loader, build_train_loader
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.loader import TrainOrder
from rfdetr.engine import evaluate
from rfdetr.models.build import build_criterion
from rfdetr.models.postprocess import PostProcess
from rfdetr.training.metrics import score_of

MODELS = {"segment": tiny_segmenter, "keypoints": tiny_keypoints}
SIGMAS = {"segment": {}, "keypoints": {"keypoint_oks_sigmas": [0.05] * 4, "skip_best_epochs": 0}}
COLUMNS = {
    "segment": ["segm_mAP_50_95", "segm_mAP_50", "segm_mAP_75", "segm_mAR"],
    "keypoints": ["keypoint_map_50_95", "keypoint_map_50", "keypoint_map_75", "keypoint_mAR"],
}
LOSSES = {
    "segment": ["loss_mask_ce", "loss_mask_dice"],
    "keypoints": [f"loss_keypoints_{name}" for name in ("l1", "findable", "visible", "nll")],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("data")
    return {"segment": tiny_data(place / "shapes"), "keypoints": tiny_data(place / "darts", shapes=("dart",))}


def train(task: str, data: dict[str, Path], out: Path, model: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    model = model or MODELS[task](**options.pop("model", {}))
    settings = {**TRAINING, "epochs": 2, **SIGMAS[task], **options}
    model.train(dataset_dir=data[task], output_dir=out, **settings)
    return model


@pytest.fixture(scope="module", params=MODELS)
def finished(request: pytest.FixtureRequest, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task, the folder of its run over two epochs, and the model afterwards."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    return request.param, out, train(request.param, data, out, run_test=True)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_S072_N003_a_run_logs_losses_and_precision_of_its_task(finished: Any) -> None:
    task, out, _ = finished
    rows = table(out)
    for name in COLUMNS[task]:
        values = [rows[0][f"val/{name}"], rows[0][f"val/ema_{name}"], rows[-1][f"test/{name}"]]
        assert all(-1 <= float(value) <= 1 for value in values), name
    for name in LOSSES[task]:
        for column in (f"train/{name}", f"train/{name}_aux", f"val/{name}"):
            assert np.isfinite([float(row[column]) for row in rows if row[column]]).all()
    line = json.loads((out / "log.txt").read_text().splitlines()[0])
    entry, count = {"segment": ("coco_eval_masks", 12), "keypoints": ("coco_eval_keypoints", 10)}[task]
    assert len(line[f"test_{entry}"]) == len(line[f"ema_test_{entry}"]) == count
    results = json.loads((out / "results.json").read_text())
    assert {"valid", "test"} == set(results["class_map"])
    assert ("boxes" in results) == (task == "segment")


def test_the_best_file_opens_as_its_class_and_predicts_what_the_model_in_memory_does(
    finished: Any, data: dict[str, Path]
) -> None:
    task, out, model = finished
    loaded = rfdetr.from_checkpoint(out / "checkpoint_best_total.pth", device="cpu")
    assert type(loaded) is type(model)
    assert loaded.class_names == model.class_names
    picture = read_split(data[task], "test").path(0)
    one, other = (each.predict(picture, threshold=0.0) for each in (model, loaded))
    if task == "segment":
        assert one.mask.shape == (len(one), 64, 80)
        assert np.array_equal(one.mask, other.mask)
        assert np.array_equal(one.xyxy, other.xyxy)
    else:
        assert one.xy.shape == (len(one.xy), 4, 2)
        assert np.array_equal(one.xy, other.xy)
        assert loaded.model_config.num_keypoints_per_class == [4]


def test_an_interrupted_run_ends_bit_for_bit_like_a_straight_one(
    data: dict[str, Path], finished: Any, tmp_path: Path
) -> None:
    task = finished[0]
    torch.manual_seed(0)
    model = MODELS[task]()
    stop = lambda info: os.kill(os.getpid(), signal.SIGINT) if info["step"] == 6 else None  # noqa: E731
    model.callbacks["on_train_batch_start"].append(stop)
    train(task, data, tmp_path, model, run_test=True)
    assert torch.load(tmp_path / "checkpoint.pth")["position"]["step"] == 2
    train(task, data, tmp_path, run_test=True, resume=True)
    ours, theirs = (torch.load(folder / "checkpoint.pth") for folder in (tmp_path, finished[1]))
    for kind in ("model", "ema_model"):
        assert all(torch.equal(tensor, theirs[kind][name]) for name, tensor in ours[kind].items())
    assert (tmp_path / "metrics.csv").read_text() == (finished[1] / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("entries", "metric", "score"),
    [
        ({"coco_eval_bbox": range(12)}, "map", 0),
        ({"coco_eval_bbox": range(12)}, "mar", 8),
        ({"coco_eval_bbox": range(12), "coco_eval_masks": range(20, 32)}, "map", 20),
        ({"coco_eval_bbox": range(12), "coco_eval_masks": range(20, 32)}, "mar", 28),
        ({"coco_eval_bbox": range(12), "coco_eval_keypoints": range(40, 50)}, "map", 40),
        ({"coco_eval_bbox": range(12), "coco_eval_keypoints": range(40, 50)}, "mar", 45),
    ],
)
def test_masks_and_keypoints_decide_where_there_are_some(entries: dict, metric: str, score: int) -> None:
    assert score_of({name: list(values) for name, values in entries.items()}, metric) == score
    assert score_of(None, metric) is None


def test_every_task_has_its_options_and_defaults() -> None:
    kinds = {
        RFDETRNanoConfig: TrainConfig,
        RFDETRSegNanoConfig: SegmentationTrainConfig,
        RFDETRKeypointPreviewConfig: KeypointTrainConfig,
    }
    for model, train_config in kinds.items():
        assert train_config_class(model(pretrain_weights=None)) is train_config
    masks, keypoints = (kind(dataset_dir=".") for kind in (SegmentationTrainConfig, KeypointTrainConfig))
    assert (masks.mask_point_sample_ratio, masks.mask_ce_loss_coef, masks.mask_dice_loss_coef) == (16, 5.0, 5.0)
    assert masks.cls_loss_coef == 1.0
    assert (keypoints.cls_loss_coef, keypoints.smooth_alpha, keypoints.skip_best_epochs) == (2.0, 0.5, 10)
    for name in ("l1", "findable", "visible", "nll"):
        assert getattr(keypoints, f"keypoint_{name}_loss_coef") == 1.0
        assert getattr(TrainConfig(dataset_dir="."), f"keypoint_{name}_loss_coef") == 0.0
    assert KeypointTrainConfig(dataset_dir=".", smooth_alpha=0.0).smooth_alpha == 0.0
    with pytest.raises(ValueError, match="TrainConfig has no option 'mask_ce_loss_coef'"):
        TrainConfig(dataset_dir=".", mask_ce_loss_coef=1)
    with pytest.raises(ValueError, match="mask_point_sample_ratio=0"):
        SegmentationTrainConfig(dataset_dir=".", mask_point_sample_ratio=0)


def test_the_coefficients_weigh_losses_and_matching() -> None:
    model = RFDETRSegNanoConfig(pretrain_weights=None)
    options = {"mask_ce_loss_coef": 2.0, "mask_dice_loss_coef": 3.0, "mask_point_sample_ratio": 4}
    criterion = build_criterion(model, SegmentationTrainConfig(dataset_dir=".", **options))
    assert (criterion.masks.ce, criterion.masks.dice, criterion.masks.ratio) == (2.0, 3.0, 4)
    for suffix in ("", "_0", "_2", "_enc"):
        assert criterion.weight_dict[f"loss_mask_ce{suffix}"] == 2.0
        assert criterion.weight_dict[f"loss_mask_dice{suffix}"] == 3.0
    model = RFDETRKeypointPreviewConfig(pretrain_weights=None)
    coefs = {"l1": 2.0, "findable": 3.0, "visible": 4.0, "nll": 5.0}
    given = {f"keypoint_{name}_loss_coef": value for name, value in coefs.items()}
    criterion = build_criterion(model, KeypointTrainConfig(dataset_dir=".", **given))
    for name, value in coefs.items():
        assert getattr(criterion.keypoints, name) == value
        assert criterion.weight_dict[f"loss_keypoints_{name}_1"] == value
    assert criterion.weight_dict["loss_ce"] == 2.0


def test_points_are_as_many_as_the_ratio_says(data: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    counted: list[int] = []
    drawn = torch.rand

    def rand(*shape: int, **options: Any) -> torch.Tensor:
        counted.append(shape[1] if len(shape) == 3 else 0)
        return drawn(*shape, **options)

    seen = {}
    for ratio in (4, 16):
        model = tiny_segmenter()
        criterion = build_criterion(
            model.model_config, model.get_train_config(dataset_dir=".", mask_point_sample_ratio=ratio)
        )
        counted.clear()
        object.__setattr__(criterion.masks, "uniform", rand)
        torch.manual_seed(0)
        target = {"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}
        target["masks"] = torch.ones(1, 48, 48, dtype=torch.bool)
        criterion(model.model.model.train()(torch.rand(1, 3, 48, 48)), [target])
        seen[ratio] = max(counted)
    # Maps have 12 x 12 pixels; three times the points are drawn to choose from.
    assert seen == {4: 3 * 36, 16: 3 * 12}


def test_known_pairs_are_mirrored_and_unknown_ones_are_not(data: dict[str, Path], tmp_path: Path) -> None:
    """Mirrored pictures swap the wings of a dart; without pairs no picture is mirrored, and that is said."""

    def loaded(folder: Path, **options: Any) -> list[np.ndarray]:
        annotations = read_split(folder, "train", keypoints=True)
        config = KeypointTrainConfig(
            dataset_dir=folder, num_workers=0, multi_scale=False, scale_jitter=False, **options
        )
        model = RFDETRKeypointPreviewConfig(pretrain_weights=None, resolution=48, num_keypoints_per_class=[4])
        order = TrainOrder(len(annotations), 10, seed=0)
        return [
            target["keypoints"]
            for _, targets in build_train_loader(config, model, annotations, order, False)
            for target in targets
        ]

    def turns(keypoints: list[np.ndarray]) -> set[bool]:
        """On which side of the line from tail to nose the right wing lies."""
        joined = np.concatenate(keypoints)
        nose, right, tail = (joined[:, i, :2] * (80, 64) for i in range(3))
        seen = (joined[..., 2] > 0).all(1)
        along, wing = nose - tail, right - tail
        return set((along[:, 0] * wing[:, 1] - along[:, 1] * wing[:, 0] > 0)[seen].tolist())

    assert turns(loaded(data["keypoints"], aug_config={})) == {True}
    # A mirrored dart has its right wing on the left; the pairs put the name where it belongs.
    assert turns(loaded(data["keypoints"])) == {True}
    assert turns(loaded(data["keypoints"], keypoint_flip_pairs=[0, 2, 1, 3])) == {True, False}
    unnamed = tiny_data(tmp_path / "unnamed", shapes=("dart",))
    for file in unnamed.glob("*/_annotations.coco.json"):
        content = json.loads(file.read_text())
        content["categories"][0]["keypoints"] = ["a", "b", "c", "d"]
        file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="keypoint_flip_pairs"):
        assert turns(loaded(unnamed)) == {True}


@pytest.mark.parametrize(
    ("task", "shapes", "given", "message"),
    [
        ("keypoints", ("circle",), {}, "no category has 'keypoints'"),
        ("keypoints", ("dart",), {"num_keypoints_per_class": [3]}, r"num_keypoints_per_class=\[3\]; a model takes"),
        ("segment", ("circle",), {}, "outline"),
    ],
)
def test_data_without_what_the_task_needs_is_refused_before_the_run(
    task: str, shapes: tuple, given: dict, message: str, tmp_path: Path
) -> None:
    folder = tiny_data(tmp_path / "data", shapes=shapes)
    if task == "segment":
        for file in folder.glob("*/_annotations.coco.json"):
            content = json.loads(file.read_text())
            content["annotations"] = [{**one, "segmentation": []} for one in content["annotations"]]
            file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as raised:
        MODELS[task](**given).train(dataset_dir=folder, output_dir=tmp_path / "out", **TRAINING)
    assert str(folder) in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_several_classes_with_different_keypoints_and_some_without(tmp_path: Path) -> None:
    folder = tiny_data(tmp_path / "data", shapes=("circle", "dart", "square"))
    for file in folder.glob("*/_annotations.coco.json"):
        content = json.loads(file.read_text())
        square = content["categories"][2]
        square["keypoints"] = ["left_top", "right_top"]
        for one in content["annotations"]:
            if one["category_id"] == square["id"]:
                x, y, width, _ = one["bbox"]
                one["keypoints"] = [x, y, 2, x + width, y, 1]
        file.write_text(json.dumps(content))
    options = {"keypoint_flip_pairs": [], "aug_config": {}, "skip_best_epochs": 0, "epochs": 1}
    model = tiny_keypoints()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(dataset_dir=folder, output_dir=tmp_path / "out", **{**TRAINING, **options})
    assert model.model_config.num_keypoints_per_class == [0, 4, 2]
    assert model.class_names == ["circle", "dart", "square"]
    assert model.model_config.num_classes == 3
    # A schema with the background first puts the classes with keypoints behind it.
    first = tiny_keypoints(num_keypoints_per_class=[0, 4])
    darts = tiny_data(tmp_path / "darts", shapes=("dart",))
    first.train(dataset_dir=darts, output_dir=tmp_path / "first", **{**TRAINING, **SIGMAS["keypoints"], "epochs": 1})
    assert (first.class_names, first.model.class_labels) == (["dart"], [1])
    loaded = rfdetr.from_checkpoint(tmp_path / "first" / "checkpoint_best_total.pth", device="cpu")
    assert (loaded.class_names, loaded.model.class_labels) == (["dart"], [1])
    found = loaded.predict(read_split(darts, "test").path(0), threshold=0.0)
    assert set(found.class_id.tolist()) <= {1}


def test_keypoints_start_with_a_precision_of_one_and_keep_it_when_resumed(
    data: dict, tmp_path: Path, monkeypatch: Any
) -> None:
    torch.manual_seed(0)
    model = tiny_keypoints()
    with torch.no_grad():
        for parameter in model.model.model.keypoints.head.layers[-1].parameters():
            parameter.fill_(0.5)
    seen: list[torch.Tensor] = []

    def look(info: dict[str, Any]) -> None:
        seen.append(info["model"].keypoints.head.layers[-1].bias.detach().clone())

    model.callbacks["on_train_batch_start"].append(look)
    train("keypoints", data, tmp_path, model, epochs=1)
    assert seen[0].tolist() == [0.5] * 4 + [0.0] * 3 + [0.5]
    saved = torch.load(tmp_path / "checkpoint.pth")["model"]["keypoint_embed.layers.2.bias"]
    again = tiny_keypoints()
    again.callbacks["on_train_batch_start"].append(look)
    seen.clear()
    train("keypoints", data, tmp_path, again, epochs=2, resume=True)
    assert torch.equal(seen[0], saved)
    assert saved[4:7].any()


def test_masks_are_compared_at_the_size_of_the_head_where_that_is_wanted(data: dict[str, Path]) -> None:
    torch.manual_seed(0)
    model = tiny_segmenter(num_classes=4)
    with torch.no_grad():
        model.model.model.mask_head.bias.fill_(10.0)
    at_picture, at_head = (
        model.evaluate(data["segment"], num_workers=0, eval_masks_head_resolution=given) for given in (False, True)
    )
    assert set(at_picture) == set(at_head)
    assert at_picture["test/mAP_50_95"] == at_head["test/mAP_50_95"]
    with pytest.raises(ValueError, match="eval_masks_head_resolution: the model does not predict that"):
        tiny_model().train(dataset_dir=data["segment"], eval_masks_head_resolution=True, **TRAINING)


@pytest.mark.parametrize(("task", "field"), [("segment", "segmentation"), ("keypoints", "keypoints")])
def test_a_validation_split_without_what_the_task_is_about_is_judged_by_its_boxes(
    task: str, field: str, tmp_path: Path
) -> None:
    folder = tiny_data(tmp_path / "data", shapes=("dart",))
    file = folder / "valid" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    for one in content["annotations"]:
        del one[field]
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning) as raised:
        train(task, {task: folder}, tmp_path / "out", epochs=1)
    told = [str(one.message) for one in raised]
    what = {"segment": "outlines", "keypoints": "labelled keypoints"}[task]
    assert sum(f"has no {what} in its 4 pictures; their boxes are judged alone" in text for text in told) == 1
    line = json.loads((tmp_path / "out" / "log.txt").read_text())
    assert "test_coco_eval_bbox" in line
    assert not {"test_coco_eval_masks", "test_coco_eval_keypoints"} & set(line)
    assert line["best_res" if "best_res" in line else "all_best_res"] == line["test_coco_eval_bbox"][0]


def test_a_score_that_is_not_defined_decides_nothing() -> None:
    assert score_of({"coco_eval_bbox": [-1.0] * 12}, "map") is None


def test_an_evaluation_refuses_what_a_run_refuses(data: dict[str, Path]) -> None:
    model = tiny_model(num_classes=4)
    with pytest.raises(ValueError, match="keypoint_oks_sigmas: the model does not predict that"):
        model.evaluate(data["segment"], keypoint_oks_sigmas=[0.1])
    with pytest.raises(ValueError, match="split='dev' is not known; choose one of train, val, test"):
        model.evaluate(data["segment"], split="dev")
    with pytest.raises(ValueError, match=r"\[17\]; a model takes those of the data set in train\(\)"):
        tiny_keypoints(num_classes=1, num_keypoints_per_class=[17]).evaluate(data["keypoints"])


class Oracle(torch.nn.Module):
    """Predicts the masks and boxes of the pictures it is asked for, one batch after the other."""

    def __init__(self, targets: list[dict[str, Any]]) -> None:
        super().__init__()
        self.targets, self.seen = targets, 0

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None, **_: bool) -> dict[str, torch.Tensor]:
        batch = self.targets[self.seen : self.seen + len(images)]
        self.seen += len(images)
        height, width = images.shape[-2:]
        logits = torch.full((len(batch), 9, 5), -20.0)
        boxes, masks = torch.full((len(batch), 9, 4), 0.5), torch.full((len(batch), 9, height // 2, width // 2), -1.0)
        for image, target in enumerate(batch):
            count = len(target["labels"])
            logits[image, torch.arange(count), torch.from_numpy(target["labels"])] = 20.0
            boxes[image, :count] = torch.from_numpy(target["boxes"])
            dense = np.unpackbits(target["masks"], axis=0, count=count, bitorder="little").astype(np.float32)
            whole = torch.zeros(count, height, width)
            whole[:, : dense.shape[1], : dense.shape[2]] = torch.from_numpy(dense)
            masks[image, :count] = torch.nn.functional.avg_pool2d(whole, 2) - 0.5
        return {"pred_logits": logits, "pred_boxes": boxes, "pred_masks": masks}


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("at_head", [True, False])
def test_the_masks_of_padded_pictures_are_compared_where_the_picture_is(
    square: bool, at_head: bool, tmp_path: Path
) -> None:
    """What is predicted are the masks of the loader, so nothing but rounding is between them and the annotations."""
    one, other = (tiny_data(tmp_path / name, hw=hw) for name, hw in (("a", (160, 260)), ("b", (240, 130))))
    document = json.loads((one / "valid" / "_annotations.coco.json").read_text())
    more = json.loads((other / "valid" / "_annotations.coco.json").read_text())
    for image in more["images"]:
        (other / "valid" / image["file_name"]).rename(one / "valid" / f"b_{image['file_name']}")
        document["images"].append({**image, "id": image["id"] + 100, "file_name": f"b_{image['file_name']}"})
    document["annotations"] += [
        {**entry, "id": entry["id"] + 100, "image_id": entry["image_id"] + 100} for entry in more["annotations"]
    ]
    (one / "valid" / "_annotations.coco.json").write_text(json.dumps(document))
    annotations = read_split(one, "valid", masks=True)
    options = {"square_resize_div_64": square, "num_workers": 0, "batch_size": 3, "eval_masks_head_resolution": at_head}
    config = SegmentationTrainConfig(dataset_dir=one, **options)
    model = RFDETRSegNanoConfig(pretrain_weights=None, resolution=192, num_classes=4)
    loader = build_eval_loader(config, model, annotations, False)
    targets = [target for _, batch in loader for target in batch]
    stats, _ = evaluate(Oracle(targets), None, PostProcess(9), loader, annotations, torch.device("cpu"), config)
    assert stats["coco_eval_bbox"][0] == pytest.approx(1.0)
    assert stats["coco_eval_masks"][1] == pytest.approx(1.0)
    assert stats["coco_eval_masks"][0] > 0.9


def test_an_evaluation_finds_the_classes_of_the_model_by_name(tmp_path: Path) -> None:
    """Other ids and a class less in the file leave the numbers of those that are there."""
    folder = tiny_data(tmp_path / "data", shapes=("circle", "dart", "star"))
    model = tiny_keypoints(num_classes=3, num_keypoints_per_class=[0, 4])
    model.model.class_names, model.model.raw_labels = ["circle", "dart", "star"], [0, 1, 2]
    options = {"keypoint_oks_sigmas": [0.1] * 4, "split": "train", "num_workers": 0}
    file = folder / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    named = {2: 30, 3: 7}
    kept = [one for one in content["annotations"] if one["category_id"] in named]
    file.write_text(json.dumps({**content, "annotations": kept}))
    expected = model.evaluate(folder, **options)
    used = [{**one, "category_id": named[one["category_id"]]} for one in kept]
    categories = [{**one, "id": named[one["id"]]} for one in content["categories"] if one["id"] in named]
    file.write_text(json.dumps({**content, "annotations": used, "categories": categories}))
    assert model.evaluate(folder, **options) == expected
    model.model.class_names = ["circle", "star", "dart"]
    with pytest.raises(ValueError, match=r"have \[0, 4\] keypoints, but \[4, 0\] in the model"):
        model.evaluate(folder, **options)


def test_a_run_goes_on_only_with_its_own_classes_and_keypoints(data: dict[str, Path], tmp_path: Path) -> None:
    darts = data["keypoints"]
    options = {**TRAINING, **SIGMAS["keypoints"], "output_dir": tmp_path / "first"}
    tiny_keypoints(num_keypoints_per_class=[0, 4]).train(dataset_dir=darts, epochs=1, **options)
    # The schema with the background first is in the file, and need not be given again.
    again = rfdetr.from_checkpoint(tmp_path / "first" / "checkpoint.pth", device="cpu")
    again.train(dataset_dir=darts, epochs=2, resume=True, **options)
    assert again.model_config.num_keypoints_per_class == [0, 4]
    assert len((tmp_path / "first" / "log.txt").read_text().splitlines()) == 2
    mixed = [
        tiny_data(tmp_path / "-".join(shapes), shapes=shapes) for shapes in (("dart", "circle"), ("circle", "dart"))
    ]
    options["output_dir"] = tmp_path / "mixed"
    tiny_keypoints().train(dataset_dir=mixed[0], epochs=1, **options)
    with pytest.raises(ValueError, match="was written with the classes in another order"):
        tiny_keypoints().train(dataset_dir=mixed[1], epochs=2, resume=True, **options)


@pytest.mark.parametrize(("pairs", "message"), [([5, 6], "keypoint"), ([1, 1], "name no keypoint twice")])
def test_pairs_that_cannot_be_are_refused_before_the_model_changes(
    pairs: list[int], message: str, data: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_keypoints()
    before = (list(model.class_names), model.model_config.num_classes)
    with pytest.raises(ValueError, match=message):
        train("keypoints", data, tmp_path / "out", model, keypoint_flip_pairs=pairs)
    assert (model.class_names, model.model_config.num_classes) == before
    assert not (tmp_path / "out").exists()
