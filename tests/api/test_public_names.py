"""The public interface: removing or renaming something fails here until the inventory is edited."""

from __future__ import annotations

import importlib
import inspect
import pickle

import pytest

import rfdetr
from rfdetr import detr, engine
from rfdetr.variants import VARIANTS

SIZES = [
    "RFDETR2XLarge",
    "RFDETRBase",
    "RFDETRKeypointPreview",
    "RFDETRLarge",
    "RFDETRLargeDeprecated",
    "RFDETRMedium",
    "RFDETRNano",
    "RFDETRSeg2XLarge",
    "RFDETRSegLarge",
    "RFDETRSegMedium",
    "RFDETRSegNano",
    "RFDETRSegPreview",
    "RFDETRSegSmall",
    "RFDETRSegXLarge",
    "RFDETRSmall",
    "RFDETRXLarge",
]
INVENTORY = {
    "rfdetr": ["RFDETR", *SIZES, "__version__", "from_checkpoint", "load"],
    "rfdetr.detr": ["RFDETR", *SIZES, "from_checkpoint"],
    "rfdetr.config": [
        "KeypointTrainConfig",
        "ModelConfig",
        "PretrainWeightsCompatibilityWarning",
        "SegmentationTrainConfig",
        "TrainConfig",
        *(f"{size}Config" for size in SIZES),
    ],
    "rfdetr.util.coco_classes": ["COCO_CLASSES"],
    "rfdetr.assets.coco_classes": ["COCO_CLASSES", "COCO_CLASS_NAMES"],
    "rfdetr.main": ["Model"],
    "rfdetr.engine": ["evaluate", "train_one_epoch"],
    "rfdetr.cli": ["main"],
}
METHODS = {
    # method of RFDETR: its parameters
    "predict": "images threshold shape patch_size include_source_image resolution mask_format batch_size nms "
    "one_label_per_box tile overlap",
    "predict_stream": "source batch_size stride progress options",
    "inference": "compile batch_size dtype inplace compile_backend",
    "optimize_for_inference": "compile batch_size dtype",
    "remove_optimized_model": "",
    "train": "options",
    "evaluate": "dataset_dir split report_dir options",
    "from_checkpoint": "path trust_checkpoint options",
    "save_pretrained": "save_directory",
    "from_pretrained": "name revision token cache_dir local_files_only options",
    "push_to_hub": "repo_id private options",
    "export_for_roboflow": "output_dir",
    "deploy_to_roboflow": "workspace project_id version api_key size",
    "eval": "",
    "to": "device",
    "parameters": "",
    "get_model_config": "options",
    "get_train_config": "options",
}


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in INVENTORY.items() for n in names])
def test_a_documented_name_is_at_its_path(module, name):
    assert getattr(importlib.import_module(module), name) is not None


def test_the_package_exports_its_inventory_and_nothing_else():
    assert sorted(rfdetr.__all__) == sorted(INVENTORY["rfdetr"])
    assert set(rfdetr.__all__) <= set(dir(rfdetr))
    namespace: dict = {}
    exec("from rfdetr import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(rfdetr.__all__)


def test_a_name_is_the_same_object_at_both_paths():
    for name in (*SIZES, "RFDETR", "from_checkpoint"):
        assert getattr(rfdetr, name) is getattr(detr, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="RFDETRHuge"):
        _ = rfdetr.RFDETRHuge
    with pytest.raises(ImportError):
        exec("from rfdetr import RFDETRHuge")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_documented_parameters(name):
    found = list(inspect.signature(getattr(rfdetr.RFDETR, name)).parameters)
    assert [p for p in found if p != "self"] == METHODS[name].split()


def test_the_documented_defaults_of_predict():
    found = {name: p.default for name, p in inspect.signature(rfdetr.RFDETR.predict).parameters.items()}
    documented = {"threshold": 0.5, "shape": None, "patch_size": None, "include_source_image": True}
    assert {name: found[name] for name in documented} == documented


@pytest.mark.parametrize(
    ("function", "documented"),
    [
        (
            engine.train_one_epoch,
            "model criterion lr_scheduler data_loader optimizer device epoch batch_size max_norm ema_m schedules "
            "num_training_steps_per_epoch vit_encoder_num_layers args callbacks",
        ),
        (engine.evaluate, "model criterion postprocess data_loader base_ds device args"),
    ],
)
def test_the_loops_take_exactly_the_documented_positional_parameters(function, documented):
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    assert [p.name for p in parameters if p.kind in kinds] == documented.split()
    # What is ours beyond that has a default, so that documented calls keep working.
    assert all(p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY)


def test_the_documented_defaults_of_the_training_loop():
    found = {name: p.default for name, p in inspect.signature(engine.train_one_epoch).parameters.items()}
    documented = {
        "max_norm": 0,
        "ema_m": None,
        "schedules": {},
        "num_training_steps_per_epoch": None,
        "vit_encoder_num_layers": None,
        "args": None,
        "callbacks": None,
    }
    assert {name: found[name] for name in documented} == documented


@pytest.mark.parametrize("name", SIZES)
def test_a_size_has_its_name_and_its_configuration(name):
    size = getattr(rfdetr, name)
    assert size.size == VARIANTS[size.get_model_config().variant].size
    assert type(size.get_model_config()).__name__ == f"{name}Config"
    assert (size.means, size.stds) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert pickle.loads(pickle.dumps(size)) is size


def test_the_base_class_is_no_size():
    with pytest.raises(TypeError, match="RFDETRNano"):
        rfdetr.RFDETR()


def test_coco_names_by_category_id():
    from rfdetr.assets.coco_classes import COCO_CLASS_NAMES, COCO_CLASSES
    from rfdetr.util.coco_classes import COCO_CLASSES as OLDER

    assert OLDER is COCO_CLASSES
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert list(COCO_CLASSES) == [i for i in range(1, 91) if i not in unused]
    assert list(COCO_CLASSES.values()) == COCO_CLASS_NAMES
    assert (COCO_CLASSES[1], COCO_CLASSES[13], COCO_CLASSES[90]) == ("person", "stop sign", "toothbrush")
    assert len(set(COCO_CLASS_NAMES)) == 80
