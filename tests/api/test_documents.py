"""What the documents say is true: the README's code runs, its tables and the option page follow from the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.small_world import shrink
from tests.tiny import tiny_data

import rfdetr
from rfdetr import config as configs
from rfdetr.checkpoints.identify import class_name
from rfdetr.config import TrainConfig
from rfdetr.models.build import build_model
from rfdetr.training.state import BEST_FILES, BEST_TOTAL, LAST
from rfdetr.variants import VARIANTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("predict.md", "export.md", "training.md", "tasks.md", "data.md", "evaluate.md", "migrate.md")
GUIDES = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in PAGES)


@pytest.mark.filterwarnings("ignore:TensorBoard is not installed")
@pytest.mark.filterwarnings("ignore:this CPU is slower in")
@pytest.mark.filterwarnings("ignore:the evaluation of 4 keypoints takes 0.05")
@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README + GUIDES, re.DOTALL))
def test_the_code_of_readme_and_guide_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("nano", "seg-nano", "keypoint-preview"):
        shrink(key, tmp_path / "cache", monkeypatch)
    monkeypatch.chdir(tmp_path)
    tiny_data(tmp_path / "dataset")
    tiny_data(tmp_path / "keypoints", shapes=("dart",))
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save("picture.jpg")
    if 'InferenceSession("inference_model.onnx")' in code:
        rfdetr.RFDETRNano().export(".")
    exec(compile(code, "README.md", "exec"), {})


def test_the_readme_names_the_sizes_as_they_are() -> None:
    lines = [line for line in README.splitlines() if line.startswith("| `RFDETR")]
    named = {}
    for line in lines:
        names, *cells = (cell.strip().split(", ") for cell in line.strip("|").split("|"))
        for position, name in enumerate(names):
            # What two sizes share is written once.
            named[name.strip("`")] = [cell[min(position, len(cell) - 1)] for cell in cells]
    assert set(named) == {class_name(key) for key in VARIANTS}
    for key, row in VARIANTS.items():
        config = getattr(configs, f"{class_name(key)}Config")(pretrain_weights=None)
        parameters = sum(p.numel() for p in build_model(config).parameters()) / 1e6
        block = str(row.patch_size * row.num_windows)
        assert named[class_name(key)] == [str(row.resolution), f"{parameters:.1f} M", str(row.dec_layers), block]


def test_the_readme_names_the_files_of_a_run() -> None:
    for name in (*BEST_FILES.values(), BEST_TOTAL, LAST, "log.txt", "metrics.csv", "results.json"):
        assert f"`{name}`" in README


def test_the_option_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGE.read_text(encoding="utf-8") == generate.page(), "run make docs"
    assert all(f"| `{name}` |" in generate.page() for name in TrainConfig.model_fields)
