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

from rfdetr.config import TrainConfig
from rfdetr.training.state import BEST_FILES, BEST_TOTAL, LAST
from rfdetr.variants import VARIANTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:TensorBoard is not installed")
@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README + GUIDE, re.DOTALL))
def test_the_code_of_readme_and_guide_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink("nano", tmp_path / "cache", monkeypatch)
    monkeypatch.chdir(tmp_path)
    tiny_data(tmp_path / "dataset")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save("picture.jpg")
    exec(compile(code, "README.md", "exec"), {})


def test_the_readme_names_the_sizes_as_they_are() -> None:
    for name, key in (("Nano", "nano"), ("Small", "small"), ("Medium", "medium"), ("Base", "base"), ("Large", "large")):
        row = VARIANTS[key]
        block = row.patch_size * row.num_windows
        line = next(line for line in README.splitlines() if line.startswith(f"| `RFDETR{name}` "))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert (cells[1], cells[3], cells[4]) == (str(row.resolution), str(row.dec_layers), str(block))


def test_the_readme_names_the_files_of_a_run() -> None:
    for name in (*BEST_FILES.values(), BEST_TOTAL, LAST, "log.txt", "metrics.csv", "results.json"):
        assert f"`{name}`" in README


def test_the_option_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGE.read_text(encoding="utf-8") == generate.page(), "run make docs"
    assert all(f"| `{name}` |" in generate.page() for name in TrainConfig.model_fields)
