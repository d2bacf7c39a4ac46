"""Files of every release, and files that are none, into models."""

from __future__ import annotations

import argparse
import copy
import json
import os
import pathlib
import pickle
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import MODEL, tiny_model

import rfdetr
from rfdetr.assets.coco_classes import COCO_CLASS_NAMES
from rfdetr.checkpoints.identify import class_name, identify
from rfdetr.checkpoints.load import fit, read_checkpoint
from rfdetr.checkpoints.save import description, published_weights, save_checkpoint
from rfdetr.config import PretrainWeightsCompatibilityWarning, RFDETRNanoConfig
from rfdetr.main import Model
from rfdetr.models.build import build_model
from rfdetr.variants import VARIANTS

NAMES = ["cat", "dog", "owl"]
BLOCK = "backbone.0.encoder.encoder.encoder.layer.0"
POSITIONS = "backbone.0.encoder.encoder.embeddings.position_embeddings"


@pytest.fixture(scope="module")
def tiny() -> Any:
    """A model of three classes whose tensors are all different."""
    torch.manual_seed(7)
    model = tiny_model(num_classes=3)
    with torch.no_grad():
        for tensor in model.model.model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.01)
    return model


@pytest.fixture(scope="module")
def weights(tiny) -> dict[str, torch.Tensor]:
    return published_weights(tiny.model.model.state_dict())


@pytest.fixture
def file(tmp_path, tiny, weights) -> Callable[..., Path]:
    """Writes a checkpoint as this package does, with some entries replaced; None takes one out."""

    def write(**entries: Any) -> Path:
        content = {"model": weights, **description(tiny.model_config, NAMES), **entries}
        torch.save({name: value for name, value in content.items() if value is not None}, tmp_path / "own.pth")
        return tmp_path / "own.pth"

    return write


def old_args(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"class_names": NAMES, "num_queries": 10, "group_detr": 2, "resolution": 64, **values})


def opened(path: Path, **options: Any) -> Any:
    """The file in the class of the tiny model, with the settings that older files do not carry."""
    return rfdetr.RFDETRNano(**{**MODEL, "num_select": 300, **options, "pretrain_weights": str(path)})


def same_weights(model: Any, weights: dict[str, torch.Tensor]) -> bool:
    found = published_weights(model.model.model.state_dict())
    return found.keys() == weights.keys() and all(
        found[name].dtype == weights[name].dtype and torch.equal(found[name], weights[name]) for name in found
    )


# Layouts


def _windows_path(_: Any) -> tuple:
    return pathlib.PurePosixPath, ("C:\\", "runs", "rf-detr-nano.pth")


LAYOUTS: dict[str, Callable[[dict], dict]] = {
    "published": lambda w: {"model": w, "args": old_args()},
    "args dict": lambda w: {"model": w, "args": vars(old_args())},
    "args SimpleNamespace": lambda w: {"model": w, "args": types.SimpleNamespace(**vars(old_args()))},
    "args with a path": lambda w: {"model": w, "args": old_args(output_dir=pathlib.PurePosixPath("/runs/a"))},
    "training file": lambda w: {"model": w, "ema_model": w, "args": old_args(), "optimizer": {}, "epoch": 3},
    "lightning": lambda w: {
        "state_dict": {**{f"model.{n}": t for n, t in w.items()}, "criterion.weight": torch.ones(2)},
        "hyper_parameters": vars(old_args()),
    },
    "lightning, compiled": lambda w: {
        "state_dict": {f"model._orig_mod.{n}": t for n, t in w.items()},
        "hyper_parameters": vars(old_args()),
    },
    "data parallel": lambda w: {"model": {f"module.{n}": t for n, t in w.items()}, "args": old_args()},
    "double precision": lambda w: {"model": {n: t.double() for n, t in w.items()}, "args": old_args()},
    "without the keypoint mask": lambda w: {
        "model": {n: t for n, t in w.items() if n != "_kp_active_mask"},
        "args": old_args(),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_layout_gives_the_same_model(layout, zipped, weights, tmp_path):
    path = tmp_path / "any.pth"
    torch.save(LAYOUTS[layout](weights), path, _use_new_zipfile_serialization=zipped)
    before = path.read_bytes(), path.stat().st_mtime_ns
    model = opened(path, first_label=0)
    assert same_weights(model, weights)
    assert model.class_names == NAMES
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [one.name for one in tmp_path.iterdir()] == ["any.pth"]


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize(
    ("kind", "parts"), [("WindowsPath", ("C:\\", "runs", "best.pth")), ("PosixPath", ("/", "runs", "best.pth"))]
)
def test_a_path_of_another_system_in_args_becomes_text(module, kind, parts, weights, tmp_path, monkeypatch):
    # A class with the name that such a file carries, whatever system this test runs on.
    foreign = type(kind, (), {"__reduce__": lambda self: (type(self), parts), "__init__": lambda self, *a: None})
    foreign.__module__ = module
    home = types.ModuleType(module)
    setattr(home, kind, foreign)
    with monkeypatch.context() as patched:
        patched.setitem(__import__("sys").modules, module, home)
        torch.save({"model": weights, "args": old_args(pretrain_weights=foreign())}, tmp_path / "x.pth")
    origin = read_checkpoint(tmp_path / "x.pth").args["pretrain_weights"]
    assert origin == ("C:/runs/best.pth" if kind == "WindowsPath" else "/runs/best.pth")


def test_every_file_we_write_is_read_by_the_safe_reader_under_published_names(file):
    content = torch.load(file(), weights_only=True)
    assert {tensor.dtype for name, tensor in content["model"].items() if name != "_kp_active_mask"} == {torch.float32}
    assert content["model"][f"{BLOCK}.attention.attention.query.weight"].shape == (192, 192)
    assert content["args"]["class_names"] == NAMES
    assert content["model_name"] == "RFDETRNano"
    json.dumps([content["args"], content["model_config"]])


# Files that are none


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, (f"touch {os.environ['EVIL_MARK']}",)


class Odd:
    """A class that only a trusted file may bring."""


@pytest.mark.parametrize("writer", ["zip", "old torch format", "plain pickle"])
def test_code_in_a_file_is_named_and_not_run(writer, weights, tmp_path, monkeypatch):
    mark, path = tmp_path / "ran", tmp_path / "bad.pth"
    monkeypatch.setenv("EVIL_MARK", str(mark))
    content = {"model": weights, "args": old_args(), "extra": Evil()}
    if writer == "plain pickle":
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "zip")
    for read in (opened, rfdetr.from_checkpoint):
        with pytest.raises(ValueError, match=rf"{path}.* (posix|os|nt)\.system and was not loaded.*trust_checkpoint"):
            read(path)
    assert not mark.exists()


def test_an_odd_class_is_loaded_only_when_the_file_is_trusted(file):
    path = file(extra=Odd())
    with pytest.raises(ValueError, match=r"asks to run \S*test_checkpoints_load\.Odd and"):
        opened(path)
    assert opened(path, trust_checkpoint=True).class_names == NAMES
    assert rfdetr.from_checkpoint(path, trust_checkpoint=True, device="cpu").class_names == NAMES


def _truncated(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[:-2000])


def _npz(path: Path, good: Path) -> None:
    with path.open("wb") as handle:
        np.savez(handle, a=np.ones(3))


def _zip_of_text(path: Path, good: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


NO_CHECKPOINTS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "text": (lambda path, good: path.write_text("<html>404 not found</html>"), "not a readable checkpoint"),
    "empty": (lambda path, good: path.write_bytes(b""), "not a readable checkpoint"),
    "truncated": (_truncated, "not a readable checkpoint"),
    "npz": (_npz, "not a readable checkpoint"),
    "zip of text": (_zip_of_text, "not a readable checkpoint"),
    "a list": (lambda path, good: torch.save([1, 2], path), "holds a list"),
    "a tensor": (lambda path, good: torch.save(torch.ones(2), path), "holds a Tensor"),
    "an empty dict": (lambda path, good: torch.save({}, path), "neither 'model' nor 'state_dict'"),
    "other entries": (lambda path, good: torch.save({"a": 1, 2: 3}, path), r"its entries are \['2', 'a'\]"),
    "lightning of others": (
        lambda path, good: torch.save({"state_dict": {"net.weight": torch.ones(1)}}, path),
        "starts with 'model.'",
    ),
    "another network": (
        lambda path, good: torch.save({"model": {"fc.weight": torch.ones(1)}}, path),
        "holds no RF-DETR: it has no tensor class_embed.weight",
    ),
    "no tensors": (lambda path, good: torch.save({"model": {"class_embed.bias": 3}}, path), "holds no RF-DETR"),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_refused_by_name(kind, file, tmp_path):
    path = tmp_path / "broken.pth"
    write, message = NO_CHECKPOINTS[kind]
    write(path, file())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message) as raised:
        opened(path)
    assert str(path) in str(raised.value)
    assert path.read_bytes() == before


def test_random_bytes_are_refused_whatever_the_unpickler_makes_of_them(tmp_path):
    drawn = np.random.default_rng(0)
    for start in (b"", b"\x80\x02", b"PK\x03\x04", b"\x80\x04\x95"):
        for size in (3, 50, 4000):
            path = tmp_path / "noise.pth"
            path.write_bytes(start + drawn.bytes(size))
            with pytest.raises(ValueError, match=r"noise\.pth"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch says of odd pickles
                read_checkpoint(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        opened(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        rfdetr.from_checkpoint(tmp_path / "nowhere.pth")


# Accounting


@pytest.mark.parametrize(
    "lost",
    [
        "class_embed.weight",
        "bbox_embed.layers.2.bias",
        POSITIONS,
        f"{BLOCK}.attention.attention.key.bias",  # one of three that are joined in ours
        "transformer.enc_output.1.weight",  # one of the stacked query groups
        "transformer.decoder.layers.1.norm2.weight",
    ],
)
def test_a_missing_tensor_is_an_error_that_names_it(lost, file, weights):
    path = file(model={name: tensor for name, tensor in weights.items() if name != lost})
    with pytest.raises(ValueError, match=lost.replace(".", r"\.")) as raised:
        opened(path)
    assert str(path) in str(raised.value)
    assert "key.weight" not in str(raised.value)


def test_a_tensor_of_another_shape_is_an_error_that_names_both(file, weights):
    path = file(model={**weights, "bbox_embed.layers.2.bias": torch.zeros(8)})
    with pytest.raises(ValueError, match=r"bbox_embed\.layers\.2\.bias is \(8,\) instead of \(4,\)"):
        opened(path)


@pytest.mark.parametrize("name", ["extra.weight", "backbone.0.projector.stages.0.0.m.7.cv1.conv.weight"])
def test_an_unknown_tensor_is_one_warning(name, file, weights):
    path = file(model={**weights, name: torch.zeros(8)})
    with pytest.warns(UserWarning, match=f"1 tensors this model does not use: {name}$") as caught:
        model = opened(path)
    assert [one.filename for one in caught] == [__file__]  # where the user built the model
    assert same_weights(model, weights)


# Class counts


def test_without_num_classes_the_count_of_the_file_is_adopted(file, weights):
    more = {n: t.repeat(30, *[1] * (t.dim() - 1)) if "class_embed" in n else t for n, t in weights.items()}
    for tensors, count in ((weights, 3), (more, 119)):
        model = opened(file(model=tensors, args=None))
        assert (model.model_config.num_classes, len(model.model.model.class_head.bias)) == (count, count + 1)
        assert torch.equal(model.model.model.class_head.bias, tensors["class_embed.bias"])
        assert not model.model_config.is_explicit("num_classes")


@pytest.mark.parametrize("wanted", [1, 2, 6, 90])
def test_an_explicit_num_classes_cuts_or_repeats_the_rows_with_a_warning(wanted, file, weights):
    with pytest.warns(UserWarning, match=f"has 3 classes; the class head is resized to num_classes={wanted}"):
        model = opened(file(), num_classes=wanted)
    index = torch.arange(wanted + 1) % 4
    assert torch.equal(model.model.model.class_head.weight, weights["class_embed.weight"][index])
    first = model.model.model.proposals.classes.weight[1]
    assert torch.equal(first, weights["transformer.enc_out_class_embed.1.weight"][index])


def test_an_explicit_num_classes_equal_to_the_file_says_nothing(file):
    assert opened(file(), num_classes=3).model_config.is_explicit("num_classes")


def test_num_classes_none_means_whatever_the_file_has(file):
    assert opened(file(), num_classes=None).model_config.num_classes == 3


# Queries and positions


def test_fewer_queries_and_groups_keep_the_first_of_each_group(file, weights):
    model = opened(file(), num_queries=4, group_detr=1).model.model
    assert torch.equal(model.query_boxes, weights["refpoint_embed.weight"][:4])
    model = opened(file(), num_queries=4, group_detr=2).model.model
    assert torch.equal(model.query_features, weights["query_feat.weight"].view(2, 10, -1)[:, :4].flatten(0, 1))


def test_queries_of_an_unknown_layout_are_cut_flat_with_one_warning(file, weights):
    path = file(args=None, model_config=None)
    with pytest.warns(UserWarning, match="does not say how its queries are grouped") as caught:
        model = opened(path, num_queries=4).model.model
    assert len(caught) == 1
    assert torch.equal(model.query_boxes, weights["refpoint_embed.weight"][:8])


@pytest.mark.parametrize(
    ("options", "entries", "message"),
    [
        ({"group_detr": 3}, {}, "group_detr=3 is more than the 2 of the file"),
        (
            {"num_queries": 12},
            {"args": None, "model_config": None},
            "num_queries=12 x group_detr=2 is more than its 20",
        ),
    ],
)
def test_more_groups_than_the_file_or_queries_of_unknown_groups_is_an_error_with_both_numbers(
    options, entries, message, file
):
    with pytest.raises(ValueError, match=message):
        opened(file(**entries), **options)


def test_the_position_table_is_resampled_to_an_explicit_resolution(file, weights):
    model = opened(file(), resolution=96)
    assert (model.model.resolution, model.model_config.positional_encoding_size) == (96, 6)
    table = weights[POSITIONS]
    grid = table[:, 1:].view(1, 4, 4, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", antialias=True, align_corners=False)
    expected = torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    assert torch.equal(model.model.model.encoder.positions, expected)


def test_fitting_a_file_to_its_own_configuration_changes_nothing(file, tiny):
    fitted = fit(read_checkpoint(file()), tiny.model_config)
    state = tiny.model.model.state_dict()
    assert fitted.keys() == state.keys()
    assert all(torch.equal(fitted[name], tensor) for name, tensor in state.items())


def test_adapters_of_the_encoder_are_merged(file, weights):
    torch.manual_seed(3)
    linear, adapted = f"{BLOCK}.attention.attention.value", {}
    for name, tensor in weights.items():
        name = name.replace("backbone.0.encoder.", "backbone.0.encoder.base_model.model.", 1)
        for part in (".weight", ".bias"):
            if name.endswith(f"attention.value{part}"):
                name = name.removesuffix(part) + ".base_layer" + part
        adapted[name] = tensor
    for layer in range(6):
        stem = linear.replace("layer.0", f"layer.{layer}")
        there = stem.replace("backbone.0.encoder.", "backbone.0.encoder.base_model.model.", 1)
        adapted[f"{there}.lora_A.default.weight"] = torch.randn(16, 192)
        adapted[f"{there}.lora_B.default.weight"] = torch.randn(192, 16) if layer == 0 else torch.zeros(192, 16)
        adapted[f"{there}.lora_magnitude_vector.default.weight"] = weights[f"{stem}.weight"].norm(dim=1)
    merged = published_weights(opened(file(model=adapted)).model.model.state_dict())
    there = linear.replace("backbone.0.encoder.", "backbone.0.encoder.base_model.model.", 1)
    down, up = (adapted[f"{there}.lora_{part}.default.weight"] for part in "AB")
    expected = weights[f"{linear}.weight"] + up @ down
    for row, before in zip(expected, weights[f"{linear}.weight"], strict=True):
        row.mul_(before.norm() / row.norm())
    with pytest.raises(ValueError, match=r"own\.pth: an adapter is incomplete: .*layer\.2\."):
        opened(file(model={name: t for name, t in adapted.items() if "layer.2" not in name or "lora_B" not in name}))
    assert merged.keys() == weights.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected if name == f"{linear}.weight" else weights[name], rtol=0, atol=1e-6)


# What the file restores


def test_the_file_restores_what_the_user_did_not_set(file, tiny, weights):
    model = rfdetr.RFDETRNano(pretrain_weights=file(), device="cpu")
    assert same_weights(model, weights)
    unlike = {"pretrain_weights", "device"}
    assert model.model_config.model_dump(exclude=unlike) == tiny.model_config.model_dump(exclude=unlike)
    assert rfdetr.from_checkpoint(file(), device="cpu").model_config == model.model_config


def test_the_resolution_of_an_older_fine_tuned_file_is_restored_and_an_explicit_one_wins(file):
    args = {"class_names": NAMES, "resolution": 128, "num_queries": 10, "group_detr": 2, "num_select": 20}
    path = file(args=args, model_config=None)
    free = {name: value for name, value in MODEL.items() if name != "resolution"} | {"pretrain_weights": path}
    model = rfdetr.RFDETRNano(**free)
    assert (model.model.resolution, model.model_config.positional_encoding_size) == (128, 8)
    assert rfdetr.RFDETRNano(**free, resolution=96).model.resolution == 96


def test_an_architecture_changed_on_purpose_starts_fresh_where_nothing_fits(file, weights):
    with pytest.warns(PretrainWeightsCompatibilityWarning, match=r"dec_layers=2 \(the model has 4\)"):
        model = opened(file(), dec_layers=4).model.model
    assert len(model.decoder.layers) == 4
    assert torch.equal(model.class_head.weight, weights["class_embed.weight"])
    with pytest.warns(PretrainWeightsCompatibilityWarning, match=r"hidden_dim=32 \(the model has 64\)"):
        model = opened(file(), hidden_dim=64).model.model
    assert torch.equal(model.encoder.positions, weights[POSITIONS])
    assert model.class_head.weight.isfinite().all()


def test_the_low_level_model_takes_its_architecture_from_the_file(file, weights):
    model = Model(pretrain_weights=str(file()), device="cpu", unknown_setting=1)
    assert torch.equal(model.model.query_features, weights["query_feat.weight"])
    assert (model.resolution, model.class_names) == (64, NAMES)


# Labels


@pytest.mark.parametrize(
    ("entries", "options", "first"),
    [
        ({"args": old_args(), "model_name": None, "model_config": None}, {}, 1),
        ({"args": old_args(), "model_name": None, "model_config": None}, {"first_label": 0}, 0),
        ({"args": vars(old_args()), "model_name": None, "model_config": None}, {}, 0),  # a dict: 1.6 and newer
        ({"args": old_args()}, {}, 0),  # says its class: 1.7 and newer
        ({"args": old_args(class_names=["a", "b", "c", "d"]), "model_name": None, "model_config": None}, {}, 0),
        ({}, {"first_label": 1}, 1),
    ],
)
def test_labels_of_older_files_start_at_one_and_names_follow(entries, options, first, file):
    model = opened(file(**{"rfdetr_version": None, **entries}), **options).model
    assert model.first_label == first
    names = model.name_of_label()
    assert [names[first + i] for i in range(3)] == model.class_names[:3]
    assert model.hidden_labels() == [0 if first else 3]
    assert names[model.hidden_labels()[0]] in ("__background__", "d")


def test_stored_names_are_read_leniently(file):
    for stored, names in (("cat", ["cat"]), ({1: "a", 2: "b"}, ["a", "b"]), (["a", None, "b"], ["a", "b"])):
        assert read_checkpoint(file(args={"class_names": stored})).class_names == names
    assert opened(file(args={"class_names": None}, model_config=None)).class_names == ["0", "1", "2"]


def test_ninety_classes_without_names_are_coco(tmp_path, weights):
    rows = {n: t[torch.arange(91) % 4] if "class_embed" in n else t for n, t in weights.items()}
    torch.save({"model": rows, "args": argparse.Namespace(num_queries=10, group_detr=2)}, tmp_path / "coco.pth")
    model = opened(tmp_path / "coco.pth").model
    assert (model.class_names, model.first_label, model.hidden_labels()) == (COCO_CLASS_NAMES, 0, [])
    assert (model.name_of_label()[1], model.name_of_label()[12], model.name_of_label()[90]) == (
        "person",
        "",
        "toothbrush",
    )


# Which size


def variant_file(key: str, path: Path, **entries: Any) -> Path:
    """A file with the shapes of a published size and next to no bytes: every tensor repeats one number."""
    config = getattr(rfdetr.config, f"{class_name(key)}Config")(pretrain_weights=None)
    state = {n: torch.zeros(()).expand(t.shape) for n, t in build_model(config).state_dict().items()}
    weights = rfdetr.checkpoints.names.to_published(state)
    args = argparse.Namespace(num_queries=config.num_queries, group_detr=config.group_detr)
    torch.save({"model": weights, "args": args, **entries}, path)
    return path


@pytest.fixture(scope="module")
def variant_files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("variants")
    return {key: variant_file(key, folder / f"{i}.pth") for i, key in enumerate(VARIANTS)}


@pytest.mark.parametrize("key", VARIANTS)
def test_a_size_is_known_by_its_structure_alone(key, variant_files):
    # Nothing but the position table tells Medium from Large.
    assert identify(read_checkpoint(variant_files[key])) == key


def test_a_size_is_known_by_its_stored_name_and_by_its_origin(variant_files):
    checkpoint = read_checkpoint(variant_files["medium"])
    for origin in ("rf-detr-large-2026.pth", "/home/x/rf-detr-large-2026.pth", "C:\\w\\rf-detr-large-2026.pth"):
        checkpoint.args["pretrain_weights"] = origin
        assert identify(checkpoint) == "large"
    checkpoint.args["pretrain_weights"] = "mine.pth"
    assert identify(checkpoint) == "medium"
    for name in ("RFDETRLarge", "RFDETRLargeConfig"):
        checkpoint.model_name = name
        assert identify(checkpoint) == "large"


@pytest.mark.parametrize(
    ("cls", "key", "right"),
    [
        ("RFDETRNano", "small", "RFDETRSmall"),
        ("RFDETRNano", "base", "RFDETRBase"),
        ("RFDETRMedium", "nano", "RFDETRNano"),
        ("RFDETRBase", "large-deprecated", "RFDETRLargeDeprecated"),
        ("RFDETRLarge", "xlarge", "RFDETRXLarge"),
    ],
)
def test_a_file_of_another_size_is_an_error_that_names_its_class(cls, key, right, variant_files):
    with pytest.raises(ValueError, match=rf"does not hold {cls}: .*It holds {right}: use rfdetr\.{right}\("):
        getattr(rfdetr, cls)(pretrain_weights=variant_files[key], device="cpu")


def test_a_stored_name_contradicts_a_class_of_equal_structure_unless_the_resolution_is_given(file):
    path = file(model_name="RFDETRSmall")
    with pytest.raises(ValueError, match=r"does not hold RFDETRNano\. It holds RFDETRSmall"):
        rfdetr.RFDETRNano(pretrain_weights=path, device="cpu")
    assert opened(path, resolution=64).model_config.model_name == "RFDETRNano"


def test_large_with_a_file_of_the_first_large_builds_that(variant_files):
    with pytest.warns(PretrainWeightsCompatibilityWarning, match="first Large"):
        model = rfdetr.RFDETRLarge(pretrain_weights=variant_files["large-deprecated"], device="cpu", group_detr=1)
    config = model.model_config
    assert (config.variant, config.model_name, config.resolution) == ("large-deprecated", "RFDETRLargeDeprecated", 560)
    assert (config.hidden_dim, config.projector_scale, config.group_detr) == (384, ["P3", "P5"], 1)
    assert model.model.model.class_head.in_features == 384


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"segmentation_head.bias": torch.zeros(1)}, r"does not hold RFDETRNano: segmentation_head=True"),
        (
            {"keypoint_embed.layers.0.weight": torch.zeros(4, 4)},
            r"does not hold RFDETRNano: use_grouppose_keypoints=True",
        ),
    ],
)
@pytest.mark.parametrize("name", ["RFDETRNano", None, "RFDETRSegNano"])
def test_a_file_of_another_task_is_refused(extra, message, name, file, weights):
    path = file(model={**weights, **extra}, model_name=name)
    with pytest.raises(ValueError, match=message):
        opened(path)


def test_from_checkpoint_finds_class_names_and_options(file, weights):
    for read in (rfdetr.from_checkpoint, rfdetr.RFDETR.from_checkpoint, rfdetr.RFDETRBase.from_checkpoint):
        model = read(str(file()), device="cpu", num_queries=5)
        assert type(model) is rfdetr.RFDETRNano
        assert (model.class_names, model.model_config.num_queries) == (NAMES, 5)
    # A file that says nothing but its tensors, of a size that no class has.
    path = file(model_name=None, model_config=None, args=None)
    with pytest.raises(ValueError, match=r"fits no published size \(encoder=dinov2_windowed_tiny, patch_size=16"):
        rfdetr.from_checkpoint(path)


# Copies and devices


def test_a_model_survives_pickle_and_deepcopy(tiny):
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    expected = tiny.predict(picture, threshold=0.0)
    for again in (pickle.loads(pickle.dumps(tiny)), copy.deepcopy(tiny)):
        assert again.model_config == tiny.model_config
        assert again.model_config.is_explicit("num_queries")
        found = again.predict(picture, threshold=0.0)
        assert np.array_equal(found.xyxy, expected.xyxy)
        again.model.reinitialize_detection_head(8)
    assert tiny.model_config.num_classes == 3


def test_construction_never_starts_cuda(monkeypatch, file):
    def started(*_: object) -> None:
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "_lazy_init", started)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    model = opened(file(), device="cuda")
    assert (model.model.device.type, next(model.model.model.parameters()).device.type) == ("cuda", "cpu")
    assert not torch.cuda.is_initialized()


def test_saving_then_opening_gives_the_same_detections(tiny, tmp_path):
    content = {"model": published_weights(tiny.model.model.state_dict()), **description(tiny.model_config, NAMES)}
    save_checkpoint(tmp_path / "a.pth", content)
    picture = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)
    one, two = (m.predict(picture, threshold=0.0) for m in (tiny, rfdetr.from_checkpoint(tmp_path / "a.pth")))
    assert np.array_equal(one.xyxy, two.xyxy)
    assert np.array_equal(one.confidence, two.confidence)


def test_the_configuration_class_is_the_one_of_the_size(file):
    assert type(opened(file()).model_config) is RFDETRNanoConfig


def test_large_takes_a_file_of_the_first_large_whatever_name_it_carries(tmp_path):
    path = variant_file("large-deprecated", tmp_path / "old.pth", model_name="RFDETRLarge")
    with pytest.warns(PretrainWeightsCompatibilityWarning, match="first Large"):
        assert rfdetr.RFDETRLarge(pretrain_weights=path, group_detr=1).model_config.hidden_dim == 384


def test_a_configuration_without_a_class_name_still_refuses_another_size(variant_files):
    with pytest.raises(ValueError, match="It holds RFDETRSmall"):
        Model(RFDETRNanoConfig(pretrain_weights=str(variant_files["small"])))
