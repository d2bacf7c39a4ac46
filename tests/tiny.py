"""A small data set and a small network, the same code as every published size, for tests that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rfdetr import RFDETR, RFDETRKeypointPreview, RFDETRNano, RFDETRSegNano
from rfdetr.datasets.synthetic import draw_dataset

MODEL: dict[str, Any] = {
    "pretrain_weights": None,
    "encoder": "dinov2_windowed_tiny",
    "out_feature_indexes": [2, 4],
    "resolution": 64,
    "num_windows": 2,
    "hidden_dim": 32,
    "sa_nheads": 4,
    "ca_nheads": 4,
    "num_queries": 10,
    "num_select": 20,
    "group_detr": 2,
    "device": "cpu",
}
TRAINING: dict[str, Any] = {
    "batch_size": 2,
    "grad_accum_steps": 1,
    "num_workers": 0,
    "tensorboard": False,
    "run_test": False,
    "seed": 1,
}


def tiny_data(folder: Path, **options: Any) -> Path:
    """Ten drawn pictures to train on, four to validate, two for the test."""
    return draw_dataset(folder, {"train": 10, "valid": 4, "test": 2}, **{"hw": (64, 80), "max_objects": 3, **options})


def tiny_model(**options: Any) -> RFDETRNano:
    """A network with random weights."""
    return RFDETRNano(**{**MODEL, **options})


# What the networks of the other tasks have beside that: input sides are multiples of 24.
TASK_MODEL: dict[str, Any] = {**MODEL, "resolution": 48, "dec_layers": 2}


def tiny_segmenter(**options: Any) -> RFDETRSegNano:
    """A network with random weights that predicts masks."""
    return RFDETRSegNano(**{**TASK_MODEL, **options})


def tiny_keypoints(**options: Any) -> RFDETRKeypointPreview:
    """A network with random weights that predicts keypoints."""
    return RFDETRKeypointPreview(**{**TASK_MODEL, **options})


def decided_model(task: str = "detect", **options: Any) -> RFDETR:
    """A network of a task with random weights that decide clearly.

    Scores, shapes and start boxes are so far apart that neither half precision nor another runtime puts one in the
    place of another; every query-class pair is reported.
    """
    of_task = {
        "detect": (tiny_model, {}),
        "segment": (tiny_segmenter, {}),
        "keypoints": (tiny_keypoints, {"num_keypoints_per_class": [3, 2]}),
    }
    make, more = of_task[task]
    torch.manual_seed(7)
    model = make(**{"num_classes": 3, "num_queries": 6, "num_select": 24, **more, **options})
    network = model.model.model
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "masks" in name or "keypoint" in name:
                parameter.normal_(std=0.3)
        network.class_head.weight.normal_(std=0.5)
        network.class_head.bias.zero_()
        network.box_head.layers[-1].weight.normal_(std=0.1)
        network.proposals.classes.weight.normal_(std=1.0)
    return model
