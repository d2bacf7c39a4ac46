"""Options: names, bounds, the numbers of the sizes, the resolution rule."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from rfdetr import RFDETRNano, config
from rfdetr.config import ModelConfig, RFDETRBaseConfig, RFDETRMediumConfig, RFDETRNanoConfig, TrainConfig
from rfdetr.variants import VARIANTS

FIELDS = (
    *("resolution", "patch_size", "num_windows", "positional_encoding_size", "out_feature_indexes", "projector_scale"),
    *("hidden_dim", "sa_nheads", "ca_nheads", "dec_n_points", "dec_layers", "num_queries", "num_select", "encoder"),
    "pretrain_weights",
)
OLD, NEW = [2, 5, 8, 11], [3, 6, 9, 12]
SMALL, WIDE = "dinov2_windowed_small", "dinov2_windowed_base"
SIZES = {
    # class: the numbers of section 1.1 of the specification, in the order of FIELDS
    "RFDETRNano": (384, 16, 2, 24, NEW, ["P4"], 256, 8, 16, 2, 2, 300, 300, SMALL, "rf-detr-nano.pth"),
    "RFDETRSmall": (512, 16, 2, 32, NEW, ["P4"], 256, 8, 16, 2, 3, 300, 300, SMALL, "rf-detr-small.pth"),
    "RFDETRMedium": (576, 16, 2, 36, NEW, ["P4"], 256, 8, 16, 2, 4, 300, 300, SMALL, "rf-detr-medium.pth"),
    "RFDETRBase": (560, 14, 4, 37, OLD, ["P4"], 256, 8, 16, 2, 3, 300, 300, SMALL, "rf-detr-base.pth"),
    "RFDETRLarge": (704, 16, 2, 44, NEW, ["P4"], 256, 8, 16, 2, 4, 300, 300, SMALL, "rf-detr-large-2026.pth"),
    "RFDETRLargeDeprecated": (
        *(560, 14, 4, 37, OLD, ["P3", "P5"], 384, 12, 24, 4, 3, 300, 300, WIDE, "rf-detr-large.pth"),
    ),
    "RFDETRXLarge": (700, 20, 1, 35, NEW, ["P4"], 512, 16, 32, 4, 5, 300, 300, WIDE, None),
    "RFDETR2XLarge": (880, 20, 2, 44, NEW, ["P4"], 512, 16, 32, 4, 5, 300, 300, WIDE, None),
}
COMMON = {
    "num_classes": 90,
    "group_detr": 13,
    "num_channels": 3,
    "mask_downsample_ratio": 4,
    "ia_bce_loss": True,
    "two_stage": True,
    "bbox_reparam": True,
    "lite_refpoint_refine": True,
    "layer_norm": True,
    "freeze_encoder": False,
    "gradient_checkpointing": False,
    "segmentation_head": False,
}


@pytest.mark.parametrize("name", SIZES)
def test_the_numbers_of_a_size_are_the_documented_ones(name):
    found = getattr(config, f"{name}Config")()
    assert tuple(getattr(found, field) for field in FIELDS) == SIZES[name]
    assert {field: getattr(found, field) for field in COMMON} == COMMON
    assert found.resolution % found.block_size == 0


def test_every_detection_size_is_documented():
    classes = {
        value.variant for value in vars(config).values() if isinstance(value, type) and hasattr(value, "variant")
    }
    detection = {key for key, row in VARIANTS.items() if row.task == "detect"}
    assert detection <= classes
    assert len(detection) == len(SIZES)


# Names and bounds


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (RFDETRNanoConfig, {"resolutoin": 384}, "no option 'resolutoin' \\(did you mean 'resolution'\\?\\)"),
        (RFDETRNanoConfig, {"pretrained_weights": "mine.pth"}, "did you mean 'pretrain_weights'"),
        (RFDETRNanoConfig, {"zzz": 1, "num_clases": 2}, "'zzz', 'num_clases' \\(did you mean 'num_classes'\\?\\)"),
        (RFDETRNanoConfig, {"zzz": 1}, "The options are: .*dec_layers, .*resolution"),
        (TrainConfig, {"dataset_dir": ".", "epoch": 3}, "did you mean 'epochs'"),
        (TrainConfig, {"dataset_dir": ".", "learning_rate": 3}, "no option 'learning_rate'"),
    ],
)
def test_unknown_options_are_refused_with_the_nearest_name(make, given, message):
    with pytest.raises(ValueError, match=message):
        make(**given)


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (RFDETRNanoConfig, {"num_classes": 0}),
        (RFDETRNanoConfig, {"num_queries": 0}),
        (RFDETRNanoConfig, {"dec_layers": 0}),
        (RFDETRNanoConfig, {"num_channels": 0}),
        (RFDETRNanoConfig, {"encoder": "resnet50"}),
        (RFDETRNanoConfig, {"projector_scale": ["P7"]}),
        (RFDETRNanoConfig, {"two_stage": False}),
        (RFDETRNanoConfig, {"num_classes": "many"}),
        (RFDETRNanoConfig, {"first_label": 2}),
        (RFDETRNanoConfig, {"out_feature_indexes": [3, 13]}),
        (RFDETRNanoConfig, {"out_feature_indexes": []}),
        (RFDETRNanoConfig, {"hidden_dim": 100}),
        (TrainConfig, {"epochs": 0}),
        (TrainConfig, {"batch_size": 0}),
        (TrainConfig, {"lr": 0}),
        (TrainConfig, {"lr": -1}),
        (TrainConfig, {"lr_scheduler": "linear"}),
        (TrainConfig, {"lr_min_factor": 1.5}),
        (TrainConfig, {"ema_decay": 1.0}),
        (TrainConfig, {"drop_path": 1.0}),
        (TrainConfig, {"num_workers": -1}),
        (TrainConfig, {"dataset_file": "voc"}),
        (TrainConfig, {"lr_scheduler_kwargs": {"gamma": 2}}),
    ],
)
def test_values_out_of_bounds_are_errors_that_name_the_option(make, given):
    with pytest.raises(ValueError, match=next(iter(given))):
        make(**given, **({"dataset_dir": "."} if make is TrainConfig else {}))


def test_an_assignment_is_checked_and_a_refused_one_changes_nothing():
    model = RFDETRNanoConfig()
    for name, value, message in (
        ("num_classes", 0, "num_classes"),
        ("resolution", 500, "480 and 512"),
        ("hidden_dim", 100, "divisible by sa_nheads"),
        ("resolutoin", 384, "resolutoin"),
    ):
        before = model.model_dump()
        with pytest.raises(ValueError, match=message):
            setattr(model, name, value)
        assert model.model_dump() == before
    model.num_classes = 7
    assert model.num_classes == 7


def test_the_train_config_needs_a_data_set():
    with pytest.raises(ValueError, match="dataset_dir"):
        TrainConfig()
    home = TrainConfig(dataset_dir="~/data", output_dir=Path("out"))
    assert (home.dataset_dir, home.output_dir) == (str(Path.home() / "data"), str(Path("out").absolute()))


# The resolution rule


@pytest.mark.parametrize("build", ["constructor", "assignment"])
@pytest.mark.parametrize(
    ("make", "value", "legal"),
    [
        (RFDETRNanoConfig, 384, 384),
        (RFDETRNanoConfig, 32, 32),
        (RFDETRNanoConfig, np.int64(416), 416),
        (RFDETRMediumConfig, 560, 576),  # a multiple of 14, which older guides allow
        (RFDETRMediumConfig, 784, 800),
        (RFDETRMediumConfig, 672, 672),
        (RFDETRBaseConfig, 672, 672),
        (RFDETRBaseConfig, 574, 616),
        (RFDETRNanoConfig, 500, r"resolution=500 is not divisible by 32 .*the nearest are 480 and 512"),
        (RFDETRNanoConfig, 100, r"the nearest are 96 and 128"),
        (RFDETRNanoConfig, 31, r"the nearest are 32"),
        (RFDETRBaseConfig, 576, r"not divisible by 56 .*560 and 616"),
        (RFDETRNanoConfig, 0, "positive"),
        (RFDETRNanoConfig, -384, "positive"),
        (RFDETRNanoConfig, 384.0, "whole number"),
        (RFDETRNanoConfig, "384", "whole number"),
        (RFDETRNanoConfig, True, "whole number"),
        (RFDETRNanoConfig, None, "whole number"),
    ],
)
def test_the_resolution_rule(build, make, value, legal):
    def built() -> ModelConfig:
        if build == "constructor":
            return make(resolution=value)
        made = make()
        made.resolution = value
        return made

    if isinstance(legal, str):
        with pytest.raises(ValueError, match=legal):
            built()
    elif legal == value:
        assert built().resolution == legal
        assert type(built().resolution) is int
    else:
        with pytest.warns(UserWarning, match=f"resolution={value} is not a multiple.*; using {legal}"):
            assert built().resolution == legal


def test_the_position_table_follows_the_resolution_where_the_size_does():
    assert RFDETRNanoConfig(resolution=512).positional_encoding_size == 32
    assert RFDETRNanoConfig(resolution=512, positional_encoding_size=24).positional_encoding_size == 24
    assert RFDETRBaseConfig(resolution=672).positional_encoding_size == 37
    assert ModelConfig(resolution=512).positional_encoding_size == 32


# Explicitness, copies, spellings


def test_what_the_user_set_is_known_also_when_it_equals_the_default():
    model = RFDETRNanoConfig(num_classes=90)
    assert model.is_explicit("num_classes")
    assert not model.is_explicit("resolution")
    assert not RFDETRNanoConfig().is_explicit("num_classes")
    assert not RFDETRNanoConfig(num_classes=None).is_explicit("num_classes")
    for again in (model.with_values({"num_queries": 5}), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.is_explicit("num_classes")
        assert not again.is_explicit("num_queries")
        assert type(again) is RFDETRNanoConfig


def test_the_class_of_a_model_is_its_name():
    assert RFDETRNano.get_model_config(num_classes=3).model_name == "RFDETRNano"
    assert (
        RFDETRNano(pretrain_weights=None, device="cpu", num_queries=5).get_train_config(dataset_dir=".").epochs == 100
    )


@pytest.mark.parametrize("given", ["cpu", torch.device("cpu"), "cuda:1", torch.device("cuda", 1)])
def test_devices_are_texts_or_objects(given):
    assert RFDETRNanoConfig(device=given).device == str(given)
    assert TrainConfig(dataset_dir=".", device=given).device == str(given)


@pytest.mark.parametrize("wrong", ["gpu", "cuda:99", "tpu"])
def test_a_device_that_is_not_here_is_an_error_at_construction(wrong):
    with pytest.raises(ValueError, match=f"device='{wrong}' does not exist here"):
        RFDETRNano(pretrain_weights=None, device=wrong)


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"group_detr": 13}, "group_detr", 13),
        ({"segmentation_head": False}, "segmentation_head", False),
        ({"ia_bce_loss": False}, "ia_bce_loss", False),
        ({"num_select": 100}, "num_select", 100),
        ({"lr_scheduler_kwargs": {"min_factor": 0.1}}, "lr_min_factor", 0.1),
        ({"lr_scheduler_kwargs": {"lr_drop": 7}}, "lr_drop", 7),
    ],
)
def test_retired_spellings_work_and_warn(given, name, value):
    original = copy.deepcopy(given)
    with pytest.warns(DeprecationWarning, match=next(iter(given))):
        assert getattr(TrainConfig(dataset_dir=".", **given), name) == value
    assert given == original


@pytest.mark.parametrize(("given", "bar"), [(True, "tqdm"), (False, None), (None, None), ("tqdm", "tqdm")])
def test_the_progress_bar_is_named_or_switched(given, bar):
    assert TrainConfig(dataset_dir=".", progress_bar=given).progress_bar == bar


def test_the_defaults_of_training_are_the_documented_ones():
    found = TrainConfig(dataset_dir=".")
    documented = {
        "epochs": 100,
        "batch_size": 4,
        "grad_accum_steps": 4,
        "lr": 1e-4,
        "lr_encoder": 1.5e-4,
        "lr_scheduler": "step",
        "lr_min_factor": 0.0,
        "warmup_epochs": 0.0,
        "weight_decay": 1e-4,
        "clip_max_norm": 0.1,
        "drop_path": 0.0,
        "use_ema": True,
        "ema_decay": 0.993,
        "ema_tau": 100,
        "checkpoint_interval": 10,
        "early_stopping": False,
        "early_stopping_patience": 10,
        "early_stopping_min_delta": 0.001,
        "early_stopping_use_ema": False,
        "tensorboard": True,
        "wandb": False,
        "eval_max_dets": 500,
        "eval_interval": 1,
        "log_per_class_metrics": True,
        "num_workers": 2,
        "run_test": True,
        "compute_val_loss": True,
        "compute_test_loss": True,
        "fp16_eval": False,
        "dataset_file": "roboflow",
    }
    assert {name: getattr(found, name) for name in documented} == documented
