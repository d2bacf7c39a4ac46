"""Training with torch.compile, and what cannot be compiled."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.tiny import TRAINING, tiny_data, tiny_model
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.training.job import check_agreement
from rfdetr.training.runtime import Runtime, bare

compile = torch.compile


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"compile": True}, {"dynamic": False, "mode": None}),
        ({"cuda_graphs": True}, {"dynamic": False, "backend": "cudagraphs"}),
        ({"compile": True, "cuda_graphs": True}, {"dynamic": False, "mode": "reduce-overhead"}),
    ],
)
def test_N020_what_is_asked_of_the_compiler(options, expected, monkeypatch):
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda module, **settings: asked.append(settings) or module)
    config = ModelConfig(**options)
    module = torch.nn.Linear(1, 1)
    assert Runtime.compiled(module, config.compile, config.cuda_graphs) is module
    assert asked == ([] if expected is None else [expected])
    if expected:
        # As many as there are sizes in multi-scale training, which are 11.
        assert torch._dynamo.config.recompile_limit >= 64


def test_N020_a_compiled_run_learns_the_same(tmp_path, monkeypatch):
    """By the compiler's front end alone: what its back end generates is not ours, and takes minutes."""
    graphs = []

    def recorded(graph: torch.fx.GraphModule, inputs: list) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda module, dynamic, mode: compile(module, dynamic=dynamic, backend=recorded)
    )
    data = tiny_data(tmp_path / "data")
    losses, weights = [], []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        model = tiny_model(compile=is_compiled)
        folder = tmp_path / str(is_compiled)
        model.train(dataset_dir=data, output_dir=folder, epochs=2, multi_scale=False, **TRAINING)
        assert bool(graphs) == is_compiled
        losses.append([json.loads(line)["train_loss"] for line in (folder / "log.txt").read_text().splitlines()])
        weights.append(model.model.model.state_dict())
    # One graph of the whole forward pass: nothing in it waits for the device.
    assert len(graphs) == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert weights[0].keys() == weights[1].keys()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_network_is_found_in_what_compiles_it():
    module = torch.nn.Linear(1, 1)
    assert bare(compile(module)) is module


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        (
            {"compile": True},
            {"strategy": "fsdp"},
            "compile and cuda_graphs do not work with strategy='fsdp'; use 'ddp'",
        ),
        ({"cuda_graphs": True, "device": "cpu"}, {}, "cuda_graphs=True needs a CUDA device, and device='cpu' is none"),
    ],
)
def test_what_cannot_be_compiled_is_told_before_the_data_is_read(model, train, message):
    with pytest.raises(ValueError, match=message):
        check_agreement(TrainConfig(dataset_dir="nowhere", **train), ModelConfig(**model))


@pytest.mark.parametrize("fused", [True, False])
def test_N020_the_optimiser_is_fused_unless_it_is_not_wanted(fused, tmp_path):
    seen = []
    model = tiny_model(fused_optimizer=fused)
    hook = register_optimizer_step_pre_hook(lambda one, *_: seen.append(one.param_groups[0]["fused"]))
    model.train(
        dataset_dir=tiny_data(tmp_path / "data"),
        output_dir=tmp_path / "run",
        epochs=1,
        dont_save_weights=True,
        **TRAINING,
    )
    hook.remove()
    assert set(seen) == {fused}
