"""Files for phones: Core ML, LiteRT and ExecuTorch. What needs one of their packages is collected where it is there."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.mil import Computed
from tests.tiny import decided_model

from rfdetr.export import coreml, executorch, litert
from rfdetr.export.files import Request
from rfdetr.export.graph import BackboneGraph, ExportGraph, FinalGraph, Graph
from rfdetr.export.program import SIMPLER, trace

REQUEST = Request("model", batch_size=1)
# The package that writes each format, and those that run what has been written.
WRITERS = {"coreml": "coremltools", "litert": "litert_torch", "executorch": "executorch"}
RUNNERS = {"litert": "ai_edge_litert", "executorch": "executorch"}
MODULES = {"coreml": coreml, "litert": litert, "executorch": executorch}
# task, part, pictures, height and width: every task and part, one and two pictures, squares and others
CASES = [
    ("detect", "raw", 1, (64, 64)),
    ("detect", "final", 2, (64, 96)),
    ("detect", "backbone", 1, (64, 64)),
    ("segment", "raw", 2, (48, 72)),
    ("segment", "final", 1, (48, 48)),
    ("keypoints", "raw", 1, (48, 72)),
    ("keypoints", "final", 2, (48, 48)),
]
# The formats that can be written here, and what is written.
INSTALLED = [name for name, package in WRITERS.items() if find_spec(package)]
WRITTEN = [(name, "float32", *case) for name in INSTALLED for case in CASES]
WRITTEN += [("coreml", "float16", *case) for case in CASES if "coreml" in INSTALLED and case[1] == "raw"]


def graph_of(task: str, part: str, hw: tuple[int, int]) -> Graph:
    """A graph of a network; one that has keypoints has them of one class in raw graphs, and of two in final ones."""
    schema = {"num_keypoints_per_class": [4]} if (task, part) == ("keypoints", "raw") else {}
    model = decided_model(task, **schema).model
    network = model.ready()
    if part == "backbone":
        return BackboneGraph(network, hw)
    graph = ExportGraph(network, hw)
    return graph if part == "raw" else FinalGraph(graph, model.postprocess, model.hidden_labels())


def pictures(count: int, hw: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, *hw), np.float32)


def assert_the_same(graph: Graph, images: np.ndarray, found: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    """Every output is the graph's, but of detections that share the score 0, whose order is anyone's."""
    with torch.no_grad():
        wanted = dict(zip(graph.names, graph(torch.from_numpy(images)), strict=True))
    assert set(found) == set(wanted)
    rows = wanted["scores"].numpy() > 0 if "scores" in wanted else ...
    for name, expected in wanted.items():
        assert found[name].shape == expected.shape
        np.testing.assert_allclose(found[name][rows], expected.numpy()[rows], rtol=0, atol=tolerance, err_msg=name)


def take_away(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package were not installed."""
    for known in {package, *(name for name in sys.modules if name.startswith(f"{package}."))}:
        monkeypatch.setitem(sys.modules, known, None)


@pytest.mark.parametrize("name", WRITERS)
def test_writing_names_the_package_that_is_missing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_away(WRITERS[name], monkeypatch)
    with pytest.raises(ImportError, match=rf'needs {WRITERS[name]}: pip install "rfdetr\[{name}\]"'):
        MODULES[name].write(None, tmp_path, REQUEST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", RUNNERS)
def test_running_names_the_package_that_is_missing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_away(RUNNERS[name], monkeypatch)
    with pytest.raises(ImportError, match=rf'needs {RUNNERS[name]}: pip install "rfdetr\[{name}\]"'):
        MODULES[name].Runtime(tmp_path / "model")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("options", [{"batch_size": None}, {"max_batch_size": 4}])
def test_the_number_of_pictures_is_fixed(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="files take one number of pictures"):
        MODULES[name].write(None, tmp_path, replace(REQUEST, **options))


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (litert, {"precision": "float16"}, "written in float32 alone"),
        (executorch, {"precision": "float16"}, "the backend 'xnnpack' has float32"),
        (executorch, {"backend": "cuda"}, "must be one of xnnpack, coreml, qnn"),
        (executorch, {"backend": "qnn"}, "needs a chip"),
        (executorch, {"soc": "SM8750"}, "no other takes one"),
    ],
)
def test_options_that_a_format_does_not_have_are_refused(
    module: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        module.write(None, tmp_path, replace(REQUEST, **options))
    assert not list(tmp_path.iterdir())


def test_core_ml_files_run_on_macos_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(RuntimeError, match="Core ML files run on macOS only"):
        coreml.Runtime(tmp_path / "model.mlpackage")


def test_texts_are_kept_in_a_litert_file_behind_the_model(tmp_path: Path) -> None:
    path, model = tmp_path / "model.tflite", b"\x1c\x00\x00\x00TFL3" + bytes(range(256))
    path.write_bytes(model)
    assert litert.texts_of(path) == {}
    litert.annotate(path, {"a": "1", "b": "2"})
    litert.annotate(path, {"b": "ü"})
    assert litert.texts_of(path) == {"a": "1", "b": "ü"}
    assert path.read_bytes().startswith(model)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="no LiteRT file"):
        litert.texts_of(path)


def test_texts_of_an_executorch_file_are_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "model_xnnpack.pte"
    with pytest.raises(FileNotFoundError, match="keep both together"):
        executorch.texts_of(path)
    executorch.write_beside(path, {"outputs": json.dumps(["dets"])})
    executorch.annotate(path, {"a": "1"})
    assert executorch.texts_of(path) == {"outputs": '["dets"]', "a": "1"}


@pytest.mark.parametrize(("task", "part", "count", "hw"), [CASES[3], CASES[6]])
def test_a_traced_program_computes_the_same_with_fewer_operators(
    task: str, part: str, count: int, hw: tuple[int, int]
) -> None:
    graph = graph_of(task, part, hw)
    program = trace(graph, count)
    images = pictures(count, hw)
    with torch.no_grad():
        outputs = program.module()(torch.from_numpy(images))
    assert_the_same(graph, images, {name: one.numpy() for name, one in zip(graph.names, outputs, strict=True)})
    used = {node.target for node in program.graph.nodes}
    assert not used & (set(SIMPLER) - {torch.ops.aten.clamp.default})
    assert not [one for one in used if "bicubic" in str(one)]


def opened(module: Any, path: Path) -> Any:
    """What runs a file; of Core ML's elsewhere than on a Mac what computes them."""
    return module.Runtime(path) if module is not coreml or sys.platform == "darwin" else Computed(path)


@pytest.mark.filterwarnings("ignore")  # the packages use much that is deprecated
class TestInstalled:
    """What needs the packages."""

    __test__ = bool(INSTALLED)

    @pytest.mark.slow
    @pytest.mark.timeout(900)
    @pytest.mark.parametrize(("name", "precision", "task", "part", "count", "hw"), WRITTEN)
    def test_a_written_file_computes_what_the_network_does(
        self, name: str, precision: str, task: str, part: str, count: int, hw: tuple[int, int], tmp_path: Path
    ) -> None:
        module, graph = MODULES[name], graph_of(task, part, hw)
        path = module.write(graph, tmp_path, replace(REQUEST, batch_size=count, precision=precision))
        module.annotate(path, {"a": "1"})
        module.annotate(path, {"b": "ü"})
        runtime = opened(module, path)
        assert runtime.texts.items() >= {("a", "1"), ("b", "ü")}
        assert runtime.shape == (count, 3, *hw)
        images = pictures(count, hw)
        found = runtime.run(images)
        assert runtime.outputs == {name: one.shape for name, one in found.items()}
        # What has been given out is not written over by the next run.
        runtime.run(images + 1)
        assert_the_same(graph, images, found, tolerance=1e-4 if precision == "float32" else 0.1)

    @pytest.mark.parametrize("name", INSTALLED)
    def test_files_of_something_else_are_refused(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "model"
        path.write_bytes(b"no model, whatever its name is" * 10)
        executorch.write_beside(path, {"outputs": "[]"})
        read = coreml.texts_of if name == "coreml" else MODULES[name].Runtime
        with pytest.raises(ValueError, match="is no"):
            read(path)


@pytest.mark.filterwarnings("ignore")  # the packages use much that is deprecated
class TestCoreMLInExecuTorch:
    """What needs both packages, and no Mac."""

    __test__ = {"coreml", "executorch"} <= set(INSTALLED) and sys.platform != "darwin"

    @pytest.mark.slow
    @pytest.mark.timeout(900)
    @pytest.mark.parametrize(("part", "precision"), [("raw", "float32"), ("final", "float16")])
    def test_the_file_says_why_it_does_not_run_here(self, part: str, precision: str, tmp_path: Path) -> None:
        request = replace(REQUEST, backend="coreml", precision=precision)
        path = executorch.write(graph_of("detect", part, (64, 64)), tmp_path, request)
        assert path.name == "model_coreml.pte"
        with pytest.raises(NotImplementedError, match="cannot load the file"):
            executorch.Runtime(path)
