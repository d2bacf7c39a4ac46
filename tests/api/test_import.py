"""What an import loads: little, and nothing that is optional or only needed later."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LATER = {
    *("torchvision", "transformers", "pytorch_lightning", "lightning", "scipy", "cv2", "supervision", "matplotlib"),
    *("pycocotools", "albumentations", "onnx", "onnxruntime", "tensorboard", "wandb", "mlflow", "pandas", "yaml"),
}


def loaded_by(code: str) -> set[str]:
    """Top-level packages in a fresh interpreter after some code."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_not_even_torch():
    assert not loaded_by("import rfdetr; rfdetr.__version__; dir(rfdetr)") & {"torch", "numpy", "PIL", *LATER}


@pytest.mark.parametrize(
    "code",
    [
        "from rfdetr import RFDETRNano",
        "import rfdetr.detr, rfdetr.main, rfdetr.engine, rfdetr.config, rfdetr.cli",
        "from rfdetr import RFDETRNano; "
        "RFDETRNano(pretrain_weights=None, encoder='dinov2_windowed_tiny', out_feature_indexes=[2, 4])",
    ],
)
def test_a_model_class_loads_torch_and_nothing_optional(code):
    found = loaded_by(code)
    assert "torch" in found
    assert not found & LATER


def test_importing_and_constructing_leaves_the_root_logger_and_cuda_alone():
    loaded_by(
        "import logging, torch; before = list(logging.getLogger().handlers), logging.getLogger().level\n"
        "from rfdetr import RFDETRNano\n"
        "RFDETRNano(pretrain_weights=None, encoder='dinov2_windowed_tiny', out_feature_indexes=[2, 4])\n"
        "assert (list(logging.getLogger().handlers), logging.getLogger().level) == before\n"
        "assert not torch.cuda.is_initialized()"
    )


def test_coco_names_load_next_to_nothing():
    assert not loaded_by("from rfdetr.util.coco_classes import COCO_CLASSES") & {"torch", "numpy", *LATER}


def test_an_optional_package_that_is_absent_is_an_error_with_the_command(monkeypatch):
    from rfdetr.extras import EXTRAS, require

    for package, (extra, purpose) in EXTRAS.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf'{purpose} needs {package}: pip install "rfdetr\[{extra}\]"'):
            require(package)


def test_a_module_of_an_installed_package_names_the_optional_one_it_needs(monkeypatch):
    from rfdetr.extras import require

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ImportError, match=r"rfdetr\[loggers\]"):
        require("torch.utils.tensorboard")
    with pytest.raises(ModuleNotFoundError, match="rfdetr_nothing"):
        require("rfdetr_nothing")


def test_every_extra_that_an_error_names_exists():
    from importlib.metadata import metadata

    from rfdetr.extras import EXTRAS

    assert {extra for extra, _ in EXTRAS.values()} <= set(metadata("rfdetr").get_all("Provides-Extra"))
