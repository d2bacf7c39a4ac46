"""Writing checkpoints: whole or not at all, and of nothing but plain values."""

from __future__ import annotations

import enum
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model

from rfdetr.checkpoints.replacing import replacing
from rfdetr.checkpoints.save import description, plain, published_weights, save_checkpoint


class Level(str, enum.Enum):
    P4 = "P4"


def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"epoch": 1})
    before = path.read_bytes()
    for interruption in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(interruption), replacing(path) as handle:
            handle.write(b"half")
            raise interruption
    with pytest.raises(TypeError):
        save_checkpoint(path, {"epoch": 2, "lock": object()})
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


def test_the_old_file_is_there_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    with replacing(path, "w") as handle:
        handle.write("né")
        handle.flush()
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "né"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"args": {"lr": [1, object()]}}, r"args\.lr\[1\] is a object"),
        ({"callback": print}, "callback is a builtin_function_or_method"),
        ({"stats": np.zeros(2)}, "stats is a ndarray"),
        ({"flag": np.bool_(True)}, "flag is a bool"),
    ],
)
def test_other_values_are_refused_by_name(content, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        save_checkpoint(tmp_path / "a.pth", content)
    assert not list(tmp_path.iterdir())


def test_values_that_are_nearly_plain_become_what_the_safe_reader_reads(tmp_path):
    content = {
        "lr": np.float64(0.5),
        "name": np.str_("cat"),
        "level": Level.P4,
        "path": Path("a") / "b",
        "pair": (1, True, None),
        "weights": {"w": torch.ones(2)},
    }
    save_checkpoint(tmp_path / "a.pth", content)
    found = torch.load(tmp_path / "a.pth", weights_only=True)
    assert torch.equal(found.pop("weights")["w"], torch.ones(2))
    assert found == {"lr": 0.5, "name": "cat", "level": "P4", "path": str(Path("a") / "b"), "pair": [1, True, None]}
    assert [type(found[name]) for name in ("lr", "name", "level")] == [float, str, str]
    assert plain({}) == {}


def test_weights_in_a_file_are_independent_of_the_model_and_of_each_other():
    state = tiny_model(num_classes=2).model.model.state_dict()
    published = published_weights(state)
    key = "backbone.0.encoder.encoder.encoder.layer.0.attention.attention.query.weight"
    before = state["encoder.blocks.0.attention.qkv.weight"].clone()
    published[key].zero_()
    assert torch.equal(state["encoder.blocks.0.attention.qkv.weight"], before)
    # Each with a storage of its own size: a view would write the whole tensor behind it.
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in published.values())


def test_a_description_is_plain_and_says_what_other_tools_read():
    model = tiny_model(num_classes=2)
    told = plain(description(model.model_config, ["a", "b"], {"epochs": 3}))
    assert told["model_name"] == "RFDETRNano"
    args = told["args"]
    assert (args["class_names"], args["num_classes"], args["segmentation_head"]) == (["a", "b"], 2, False)
    assert (args["resolution"], args["patch_size"], args["positional_encoding_size"], args["epochs"]) == (64, 16, 4, 3)
    assert told["model_config"]["hidden_dim"] == 32
