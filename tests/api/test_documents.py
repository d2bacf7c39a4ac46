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
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES)}
BLOCKS = [
    pytest.param(code, id=f"{path.name}-{number}")
    for path, text in TEXTS.items()
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples find: weights, data sets, a picture."""
    folder = tmp_path_factory.mktemp("world")
    tiny_data(folder / "dataset")
    tiny_data(folder / "keypoints", shapes=("dart",))
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "picture.jpg")
    return folder


@pytest.mark.filterwarnings("ignore:TensorBoard is not installed")
@pytest.mark.filterwarnings("ignore:this CPU is slower in")
@pytest.mark.filterwarnings("ignore:the evaluation of 4 keypoints takes 0.05")
@pytest.mark.filterwarnings("ignore:skip_best_epochs=10 leaves none")
@pytest.mark.parametrize("code", BLOCKS)
def test_the_code_of_the_documents_runs(
    code: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("nano", "seg-nano", "keypoint-preview"):
        shrink(key, world / "cache", monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in ("dataset", "keypoints", "picture.jpg"):
        Path(name).symlink_to(world / name)
    if 'InferenceSession("inference_model.onnx")' in code:
        rfdetr.RFDETRNano().export(".")
    # One epoch shows that it runs.
    code = re.sub(r"epochs=\d+", "epochs=1", code)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[path]):
        if target.startswith(("https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        assert place.exists(), f"{path.name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in known, f"{path.name}: {target}"


def test_every_page_is_in_the_navigation_and_small_examples_are_small() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in PAGES:
        assert f" {path.name}\n" in navigation, path.name
        for code in re.findall(r"```\w*\n(.*?)```", TEXTS[path], re.DOTALL):
            assert path.name in ("cli.md", "tutorial.md") or code.count("\n") <= 40, path.name


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


@pytest.mark.parametrize("page", ["options.md", "cli.md", "reference.md"])
def test_a_generated_page_is_up_to_date(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The generator fixes the width.
    monkeypatch.setenv("COLUMNS", "100")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == generate.PAGES[page](), "run make docs"
    if page == "options.md":
        assert all(f"| `{name}` |" in generate.options() for name in TrainConfig.model_fields)
