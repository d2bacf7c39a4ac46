"""Grids of what the network sees: where things are drawn, and that every kind of batch can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import tiny_data

from rfdetr.datasets.augment import build_augmentations
from rfdetr.datasets.grids import _colour, save_grid
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.loader import Pictures, TrainOrder, make_loader
from rfdetr.datasets.masks import MaskStack
from rfdetr.datasets.transforms import TrainTransform, normalise


def batch(count: int, hw: tuple[int, int] = (64, 64)) -> tuple[torch.Tensor, list[dict]]:
    """Grey pictures, each with one box in the middle."""
    target = {"boxes": np.array([[0.5, 0.5, 0.5, 0.5]], np.float32), "labels": np.array([1])}
    return normalise(torch.full((count, 3, *hw), 100, dtype=torch.uint8)), [dict(target) for _ in range(count)]


def saved(samples: torch.Tensor, targets: list[dict], path: Path, names: tuple[str, ...] = ("a", "b")) -> np.ndarray:
    save_grid(samples, targets, dict(enumerate(names)), path / "grid.png")
    assert [file.name for file in path.iterdir()] == ["grid.png"]
    with Image.open(path / "grid.png") as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


@pytest.mark.parametrize(
    ("count", "hw", "shape"),
    [
        (1, (64, 64), (64, 64)),
        (2, (64, 48), (64, 96)),
        (5, (64, 64), (128, 192)),
        (16, (64, 64), (256, 256)),
        (40, (64, 64), (256, 256)),  # at most 16 pictures
        (1, (640, 1280), (160, 320)),  # at most 320 px
    ],
)
def test_N017_pictures_are_tiled_nearly_square(count, hw, shape, tmp_path):
    assert saved(*batch(count, hw), tmp_path).shape == (*shape, 3)


def test_the_picture_is_as_it_was_before_it_was_normalised_and_the_box_where_it_belongs(tmp_path):
    pixels = saved(*batch(1), tmp_path)
    assert (pixels[:14] == 100).all()
    assert (pixels[40, 25:40] == 100).all()
    for y, x in ((47, 32), (32, 16), (32, 48)):
        assert pixels[y, x].tolist() == list(_colour(1))


def test_masks_and_keypoints_are_drawn_and_invisible_points_are_not(tmp_path):
    samples, targets = batch(1)
    mask = np.zeros((1, 32, 32), bool)
    mask[0, 24:32, 24:32] = True
    # A mask of another size than the picture, as after the resize of a whole batch.
    targets[0] |= {
        "masks": MaskStack.of(mask).packed(),
        "keypoints": np.array([[[0.25, 0.9, 2], [0.5, 0.9, 0]]], np.float32),
    }
    pixels = saved(samples, targets, tmp_path)
    assert (pixels[54:, 54:] != 100).any(axis=-1).all()
    assert pixels[57, 16].tolist() == list(_colour(1))
    assert (pixels[56:60, 30:34] == 100).all()


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_pictures_without_objects_and_labels_without_names(kind, tmp_path):
    samples, targets = batch(2)
    targets[0] = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
    targets[1]["labels"] = np.array([7])
    if kind == "tensors":
        targets = [{key: torch.from_numpy(value) for key, value in target.items()} for target in targets]
    pixels = saved(samples, targets, tmp_path)
    assert (pixels[:, :64] == 100).all()
    assert (pixels[:, 64:] != 100).any()


def test_names_belong_to_labels_and_not_to_positions(tmp_path):
    pictures = []
    for number, names in enumerate(({1: "wing"}, {0: "wing", 7: "x"}, {1: "1"})):
        save_grid(*batch(1), names, tmp_path / f"{number}.png")
        pictures.append((tmp_path / f"{number}.png").read_bytes())
    assert pictures[0] != pictures[1] == pictures[2]


def test_neighbouring_classes_have_colours_that_differ():
    colours = np.array([_colour(label) for label in range(12)])
    apart = np.abs(colours[:, None] - colours).sum(-1) + 999 * np.eye(12)
    assert apart.min() > 20
    assert np.abs(np.diff(colours, axis=0)).sum(-1).min() > 150


def test_S058_a_batch_of_the_loader_can_be_looked_at(tmp_path):
    annotations = read_split(tiny_data(tmp_path / "data"), "train")
    transform = TrainTransform((96,), augment=build_augmentations("aggressive"))
    order = TrainOrder(len(annotations), 4, seed=0)
    loader = make_loader(Pictures(annotations, transform), batch_size=4, order=order, num_workers=0)
    samples, targets = next(iter(loader))
    (tmp_path / "grids").mkdir()
    pixels = saved(normalise(samples.tensors), targets, tmp_path / "grids", tuple(annotations.class_names))
    assert pixels.shape == (192, 192, 3)
