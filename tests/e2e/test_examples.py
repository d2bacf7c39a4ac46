"""The examples run, and give what they say."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image
from tests.sets import Apart, assert_same_set
from tests.small_world import shrink
from tests.tiny import TRAINING, decided_model, tiny_data
from torch import nn

import rfdetr
from rfdetr import RFDETRNano
from rfdetr.checkpoints.save import description, published_weights, save_checkpoint
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.source import DataSource

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs an example with arguments, in a folder of its own, where RF-DETR nano is tiny."""
    shrink("nano", tmp_path / "cache", monkeypatch)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny_data(tmp_path / "data") / "train"


def decided_file(path: Path, **options: Any) -> tuple[Path, RFDETRNano]:
    """A checkpoint of a model of three classes that is sure of what it finds."""
    model = decided_model(**{"resolution": 56, **options})
    model.model.class_names = ["cat", "dog", "große Katze"]
    about = description(model.model_config, model.class_names)
    save_checkpoint(path, {"model": published_weights(model.module.state_dict()), **about})
    return path, rfdetr.load(path, device="cpu")


def read(folder: Path) -> list[AnnotationSet]:
    source = DataSource([folder], {}, "roboflow", masks=False, keypoints=False)
    train = source.read("train", None)
    return [train, source.read("valid", train)]


def assert_holds_the_predictions(folder: Path, pictures: Path, model: RFDETRNano, threshold: float) -> None:
    """Our reader finds every picture in one of the splits, with the boxes and names that `predict` gives."""
    seen = []
    for split in read(folder):
        boxes = split.all_boxes_xyxy_px()
        for index in range(len(split)):
            name = split.path(index).name
            found = model.predict(pictures / name, threshold=threshold)
            rows = slice(split.offsets[index], split.offsets[index + 1])
            names = [split.class_names[split.categories.labels.index(label)] for label in split.labels[rows]]
            assert sorted(names) == sorted(found.data["class_name"])
            # A label file has its objects in an order of its own.
            order, expected = (np.lexsort(np.round(one, 1).T) for one in (boxes[rows], found.xyxy))
            np.testing.assert_allclose(boxes[rows][order], found.xyxy[expected], atol=0.05)
            seen.append(name)
    assert sorted(seen) == sorted(path.name for path in pictures.glob("*.jpg"))


def drawn_as_a_data_set(folder: Path) -> None:
    """A run starts from the folder, as it would from one that a label tool has exported."""
    RFDETRNano(device="cpu").train(dataset_dir=folder, output_dir=folder.parent / "run", epochs=1, **TRAINING)
    assert (folder.parent / "run" / "checkpoint_best_total.pth").is_file()


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.glob("*.py"))])
def test_an_example_is_short_and_says_how_it_is_run(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    _, told, code = text.split('"""', 2)
    assert f"python examples/{name} " in told
    assert len([line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]) <= 40


@pytest.mark.parametrize("layout", ["coco", "yolo"])
def test_prelabelled_pictures_are_a_data_set_to_train_on(layout: str, run: Run, pictures: Path, tmp_path: Path) -> None:
    weights, model = decided_file(tmp_path / "weights.pth")
    run("prelabel.py", pictures, "--weights", weights, "--threshold", 0.6, "--format", layout, "--output", "labelled")
    assert_holds_the_predictions(tmp_path / "labelled", pictures, model, 0.6)
    if layout == "coco":
        drawn_as_a_data_set(tmp_path / "labelled")


def test_a_loop_of_ones_own_trains_what_is_saved(
    run: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run("custom_loop.py", pictures.parent, "--epochs", 2, "--batch-size", 5, "--device", "cpu")
    assert "epoch 2: loss " in capsys.readouterr().out
    again = rfdetr.RFDETR.from_pretrained(tmp_path / "trained")
    assert again.class_names == ["circle", "square", "triangle", "star"]
    states = [published_weights(model.module.state_dict()) for model in (again, made["model"], RFDETRNano())]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert not torch.equal(states[0]["bbox_embed.layers.0.weight"], states[2]["bbox_embed.layers.0.weight"])


class Trainer:
    """What the example needs of Lightning's trainer."""

    def __init__(self, max_epochs: int, gradient_clip_val: float, log_every_n_steps: int) -> None:
        self.max_epochs, self.clip = max_epochs, gradient_clip_val

    def fit(self, module: Any, loader: Any) -> None:
        self.module, optimizer = module, module.configure_optimizers()
        for _ in range(self.max_epochs):
            module.on_train_epoch_start()
            for index, batch in enumerate(loader):
                optimizer.zero_grad()
                module.training_step(batch, index).backward()
                nn.utils.clip_grad_norm_(module.parameters(), self.clip)
                optimizer.step()

    def save_checkpoint(self, path: str) -> None:
        torch.save({"state_dict": self.module.state_dict(), "pytorch-lightning_version": "2.6"}, path)


def test_a_lightning_module_trains_the_network_and_its_checkpoint_is_opened(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[float] = []
    base = type("LightningModule", (nn.Module,), {"log": lambda self, name, value, **_: logged.append(value.item())})
    monkeypatch.setitem(sys.modules, "pytorch_lightning", SimpleNamespace(LightningModule=base, Trainer=Trainer))
    made = run("lightning_module.py", pictures.parent, "--epochs", 2, "--batch-size", 5)
    assert len(logged) == 4
    assert np.isfinite(logged).all()
    again = RFDETRNano(pretrain_weights=str(tmp_path / "trained.ckpt"))
    assert again.model_config.num_classes == 4
    mine, theirs = (published_weights(model.module.state_dict()) for model in (again, made["model"]))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


class Tracker:
    """Gives the best object of a frame the number 7, others none."""

    def __init__(self, frame_rate: float) -> None:
        self.frame_rate = frame_rate

    def update(self, detections: sv.Detections) -> sv.Detections:
        detections.tracker_id = np.where(np.arange(len(detections)) == 0, 7, -1)
        return detections


def test_a_tracked_video_has_every_frame_drawn(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackers", SimpleNamespace(ByteTrackTracker=Tracker))
    with sv.VideoSink(str(tmp_path / "in.mp4"), sv.VideoInfo(80, 64, 5, 3)) as video:
        for path in sorted(pictures.glob("*.jpg"))[:3]:
            video.write_frame(np.asarray(Image.open(path))[..., ::-1].copy())
    weights, _ = decided_file(tmp_path / "weights.pth")
    made = run("track.py", "in.mp4", "--weights", weights, "--threshold", 0.1)
    assert "1 objects, drawn in tracked.mp4" in capsys.readouterr().out
    assert made["tracker"].frame_rate == 5
    before, after = (list(sv.get_video_frames_generator(str(tmp_path / name))) for name in ("in.mp4", "tracked.mp4"))
    assert len(before) == len(after) == 3
    # Where nothing is drawn, the colours stay in their places; a box of a track changes some of the rest.
    for was, now in zip(before, after, strict=True):
        change = np.abs(was.astype(int) - now).max(-1)
        assert np.median(change) < 30 < change.max()


def fake_fiftyone(folder: Path) -> tuple[ModuleType, ModuleType]:
    """The calls of the example, with the layout that FiftyOne's `COCODetectionDataset` exports."""

    class Sample(dict):
        def __init__(self, path: Path) -> None:
            self.filepath, self.tags = str(path), set()

    class Dataset(list):
        @staticmethod
        def from_images_dir(place: str) -> Dataset:
            return Dataset(Sample(path) for path in sorted(Path(place).glob("*.jpg")))

        def iter_samples(self, autosave: bool, progress: bool) -> Dataset:
            assert autosave
            return self

        def distinct(self, field: str) -> list[str]:
            assert field == "rfdetr.detections.label"
            return sorted({one.label for sample in self for one in sample["rfdetr"].detections})

        def match_tags(self, tag: str) -> Dataset:
            return Dataset(sample for sample in self if tag in sample.tags)

        def export(self, export_dir: str, dataset_type: str, label_field: str, classes: list[str]) -> None:
            assert dataset_type == "COCODetectionDataset"
            images, objects = [], []
            (Path(export_dir) / "data").mkdir(parents=True)
            for number, sample in enumerate(self, 1):
                path = Path(sample.filepath)
                (Path(export_dir) / "data" / path.name).write_bytes(path.read_bytes())
                with Image.open(path) as picture:
                    width, height = picture.size
                images.append({"id": number, "file_name": path.name, "width": width, "height": height})
                for one in sample[label_field].detections:
                    x, y, w, h = one.bounding_box
                    box = [x * width, y * height, w * width, h * height]
                    about = {"id": len(objects) + 1, "image_id": number, "bbox": box, "area": box[2] * box[3]}
                    objects.append({**about, "category_id": classes.index(one.label), "iscrowd": 0})
            categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
            document = {"images": images, "categories": categories, "annotations": objects}
            (Path(export_dir) / "labels.json").write_text(json.dumps(document), encoding="utf-8")

    def random_split(dataset: Dataset, parts: dict[str, float], seed: int) -> None:
        for number, sample in enumerate(dataset):
            sample.tags.add(list(parts)[number % len(parts)])

    fiftyone, random = ModuleType("fiftyone"), ModuleType("fiftyone.utils.random")
    types = SimpleNamespace(COCODetectionDataset="COCODetectionDataset")
    vars(fiftyone).update(Dataset=Dataset, Detection=SimpleNamespace, Detections=SimpleNamespace, types=types)
    vars(random).update(random_split=random_split)
    return fiftyone, random


def test_what_fiftyone_exports_is_a_data_set_to_train_on(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fiftyone, random = fake_fiftyone(tmp_path)
    for name, module in (("", fiftyone), (".utils", ModuleType("fiftyone.utils")), (".utils.random", random)):
        monkeypatch.setitem(sys.modules, f"fiftyone{name}", module)
    weights, model = decided_file(tmp_path / "weights.pth")
    run("fiftyone_round_trip.py", pictures, "--weights", weights, "--threshold", 0.6)
    assert_holds_the_predictions(tmp_path / "from_fiftyone", pictures, model, 0.6)


def test_an_exported_file_finds_the_same_objects_without_pytorch(pictures: Path, tmp_path: Path) -> None:
    _, model = decided_file(tmp_path / "weights.pth", resolution=64)
    file = model.export(tmp_path / "output", verbose=False, max_images=1)
    (tmp_path / "some").mkdir()
    for path in sorted(pictures.glob("*.jpg"))[:2]:
        (tmp_path / "some" / path.name).write_bytes(path.read_bytes())
    without = "import runpy, sys; sys.modules |= {'torch': None, 'rfdetr': None}; runpy.run_path(sys.argv.pop(1))"
    command = [sys.executable, "-c", without, str(EXAMPLES / "onnx_without_torch.py"), file, tmp_path / "some"]
    done = subprocess.run([*command, "--threshold", "0.4"], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    for path in sorted((tmp_path / "some").iterdir()):
        rows = [rest.rsplit(" ", 5) for name, rest in lines if name == path.name]
        expected = model.predict(path, threshold=0.4, include_source_image=False)
        boxes = np.array([row[2:] for row in rows], np.float32)
        names = np.array([row[0] for row in rows], object)
        found = sv.Detections(
            xyxy=boxes,
            confidence=np.array([row[1] for row in rows], np.float32),
            class_id=np.array([model.class_names.index(name) for name in names]),
            data={"class_name": names, "source_shape": expected.data["source_shape"]},
        )
        assert len(expected) > 3
        assert_same_set(found, expected, Apart(box_px=0.02, score=2e-4))
