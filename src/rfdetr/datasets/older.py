"""Data sets as older scripts build them, item by item, for training loops of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rfdetr.config import ModelConfig, TrainConfig, fields_of
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.build import augmentations, train_transform
from rfdetr.datasets.layout import find_split
from rfdetr.datasets.loader import Draw, Pictures
from rfdetr.datasets.source import DataSource
from rfdetr.datasets.transforms import EvalTransform, multi_scale_sizes, normalise

SPLITS = ("train", "valid", "test")


class OlderDataset(Dataset):
    """Normalised pictures (3, H, W) and targets of tensors; `boxes` are relative cxcywh.

    Args:
        pictures: what is read, decoded and transformed.
        draws: items are augmented, differently whenever they are asked for.
    """

    def __init__(self, pictures: Pictures, *, draws: bool) -> None:
        self.pictures, self.draws = pictures, draws
        self._asked = 0

    @property
    def annotations(self) -> AnnotationSet:
        """The labels, as `rfdetr.engine.evaluate` takes them for `base_ds`."""
        return self.pictures.annotations

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self.draws:
            self._asked += 1
            image, target = self.pictures[Draw(0, self._asked, index)]
        else:
            image, target = self.pictures[index]
        pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous()
        return normalise(pixels[None])[0], {name: torch.as_tensor(value) for name, value in target.items()}


def build_dataset(image_set: str, args: Any, resolution: int) -> OlderDataset:
    """A split of a data set.

    Args:
        image_set: "train", "val" or "test".
        args: has `dataset_dir`, and any other option of `TrainConfig` and `ModelConfig`; absent ones are defaults.
        resolution: side of the network's input.

    Raises:
        FileNotFoundError, ValueError: as `train()` for the same data.
    """
    # Where splits have paths of their own in a run, a namespace of older scripts may hold anything.
    given = {name: value for name, value in fields_of(args, TrainConfig).items() if name not in SPLITS}
    config = TrainConfig(**given)
    model = ModelConfig(**{**fields_of(args, ModelConfig), "resolution": resolution})
    if image_set not in ("train", "val", "test"):
        raise ValueError(f"image_set={image_set!r} must be 'train', 'val' or 'test'")
    roots = config.dataset_dir if isinstance(config.dataset_dir, list) else [config.dataset_dir]
    tasks = {"masks": model.segmentation_head, "keypoints": model.use_grouppose_keypoints}
    source = DataSource([Path(root) for root in roots], {}, config.dataset_file, **tasks)
    train = source.read("train", None)
    if image_set == "train":
        transform = train_transform(config, model, augmentations(config, train))
        return OlderDataset(Pictures(train, transform, config.seed or 0), draws=True)
    transform = EvalTransform(resolution, config.square_resize_div_64)
    split = "valid" if image_set == "val" else image_set
    return OlderDataset(Pictures(source.read(split, train), transform), draws=False)


def get_coco_api_from_dataset(dataset: Any) -> AnnotationSet:
    """The labels of a data set, or of a `Subset` of one, as `rfdetr.engine.evaluate` takes them for `base_ds`."""
    if isinstance(dataset, torch.utils.data.Subset):
        return get_coco_api_from_dataset(dataset.dataset)
    return dataset.annotations


def detect_roboflow_format(dataset_dir: str | Path) -> str:
    """ "coco" or "yolo".

    Raises:
        ValueError: the folder has the layout of neither.
    """
    place = find_split(Path(dataset_dir).expanduser(), "train")
    if place is None or place.format not in ("coco", "yolo"):
        raise ValueError(f"{dataset_dir} has no train split in the layout of COCO or YOLO")
    return place.format


def compute_multi_scale_scales(
    resolution: int, expanded_scales: bool = False, patch_size: int = 16, num_windows: int = 4
) -> list[int]:
    """Input sizes of multi-scale training."""
    return multi_scale_sizes(resolution, patch_size * num_windows, expanded_scales)
