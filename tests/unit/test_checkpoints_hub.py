"""Folders and repositories of the Hugging Face Hub, PyTorch Hub, and the model as the torch module that it holds."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub import PyTorchModelHubMixin
from tests.small_world import shrink
from tests.tiny import decided_model, tiny_keypoints, tiny_model, tiny_segmenter
from torch import nn

import rfdetr
from rfdetr import RFDETR, RFDETRNano
from rfdetr.checkpoints.download import PUBLISHED
from rfdetr.checkpoints.save import published_weights
from rfdetr.models.lora import add_adapters
from rfdetr.variants import VARIANTS

ROOT = Path(__file__).parents[2]
PICTURE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    states = [published_weights(one.state_dict()) for one in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("build", [tiny_model, tiny_segmenter, tiny_keypoints])
def test_a_saved_folder_gives_the_same_model_again(build: Any, tmp_path: Path) -> None:
    schema = {"num_keypoints_per_class": [5, 3]} if build is tiny_keypoints else {}
    model = build(num_classes=2, **schema)
    model.model.class_names, model.model.thresholds = ["cat", "große Katze"], {"cat": 0.25}
    folder = model.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = RFDETR.from_pretrained(folder, device="cpu")
    assert type(again) is type(model)
    assert (again.class_names, again.model.thresholds) == (model.class_names, {"cat": 0.25})
    assert again.model_config.resolution == model.model_config.resolution
    assert_same_weights(model.module, again.module)
    for other in (type(model).from_pretrained(str(folder)), rfdetr.load(folder / "model.safetensors")):
        assert_same_weights(model.module, other.module)


def test_the_category_ids_of_coco_stay_labels(tmp_path: Path) -> None:
    model = decided_model(num_classes=90)
    again = RFDETRNano.from_pretrained(model.save_pretrained(tmp_path), device="cpu")
    assert again.model.class_labels == model.model.class_labels
    found, expected = (one.predict(PICTURE, threshold=0.3) for one in (again, model))
    assert len(expected) > 5
    assert found.class_id.max() > 80
    np.testing.assert_array_equal(found.xyxy, expected.xyxy)
    assert found.data["class_name"].tolist() == expected.data["class_name"].tolist()


def test_options_win_over_the_folder_and_another_size_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(num_classes=2).save_pretrained(tmp_path)
    assert RFDETRNano.from_pretrained(folder, resolution=128).model_config.resolution == 128
    with pytest.raises(ValueError, match="It holds RFDETRNano"):
        rfdetr.RFDETRSegNano.from_pretrained(folder)


def test_the_files_have_no_path_of_the_machine_and_the_names_that_the_hub_reads(tmp_path: Path) -> None:
    first = tiny_model(num_classes=2).save_pretrained(tmp_path / "first")
    folder = RFDETRNano.from_pretrained(first).save_pretrained(tmp_path / "second")
    assert str(tmp_path).encode() not in b"".join(path.read_bytes() for path in folder.iterdir())
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert about["library_name"] == "rfdetr"
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    told = card.data.to_dict()
    assert told == {"library_name": "rfdetr", "license": "apache-2.0", "pipeline_tag": "object-detection"}


def test_adapters_are_saved_merged(tmp_path: Path) -> None:
    model = tiny_model(num_classes=2)
    before = published_weights(model.module.state_dict())
    add_adapters(model.module.encoder)
    saved = safetensors.torch.load_file(model.save_pretrained(tmp_path) / "model.safetensors")
    assert saved.keys() == before.keys()
    assert all(torch.allclose(saved[name], before[name], atol=1e-6) for name in before)


def test_an_earlier_save_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    tiny_model(num_classes=2).save_pretrained(tmp_path)
    tiny_model(num_classes=1).save_pretrained(tmp_path)
    assert RFDETR.from_pretrained(tmp_path).model_config.num_classes == 1
    for config in ('{"library_name": "other"}', "[]", "{"):
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(FileExistsError, match="files of another model"):
            tiny_model().save_pretrained(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_that_were_given_up_are_not_saved(tmp_path: Path) -> None:
    model = tiny_model()
    model.model.is_optimised_inplace = True
    with pytest.raises(RuntimeError, match=r"save_pretrained\(\) needs the weights"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", "cut"])
def test_a_damaged_file_is_a_value_error_that_names_it(content: Any, tmp_path: Path) -> None:
    path = tiny_model(num_classes=2).save_pretrained(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000] if content == "cut" else content)
    with pytest.raises(ValueError, match=r"model\.safetensors is no readable safetensors file"):
        RFDETR.from_pretrained(tmp_path)


def test_a_folder_without_weights_and_a_package_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors; a folder that save_pretrained\(\) wrote"):
        RFDETR.from_pretrained(tmp_path)
    for name in ("safetensors", "safetensors.torch", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"safetensors files needs safetensors: pip install \"rfdetr\[hub\]\""):
        tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ImportError, match=r"rfdetr\[hub\]"):
        RFDETR.from_pretrained("owner/name")


def test_a_repository_is_fetched_with_the_given_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(num_classes=2)
    path, asked = model.save_pretrained(tmp_path) / "model.safetensors", []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *args, **options: asked.append((args, options)) or str(path)
    )
    given = {"revision": "v2", "token": "secret", "cache_dir": tmp_path / "cache", "local_files_only": True}
    again = RFDETR.from_pretrained("owner/name", **given, resolution=128)
    assert asked == [(("owner/name", "model.safetensors"), given)]
    assert again.model_config.resolution == 128
    assert torch.equal(model.module.class_head.weight, again.module.class_head.weight)


def test_a_model_is_pushed_as_the_folder_that_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", token))

        def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
            calls.append(("create", repo_id, private, exist_ok))
            return huggingface_hub.RepoUrl("https://huggingface.co/me/mine")

        def file_exists(self, repo_id: str, name: str) -> bool:
            return (repo_id, name) == ("me/mine", "README.md") and has_card

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> None:
            calls.append(("upload", repo_id, options))
            calls.append({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})

    has_card = False
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = tiny_model(num_classes=2)
    address = model.push_to_hub("mine", private=True, token="secret", commit_message="First")
    assert address == "https://huggingface.co/me/mine"
    *asked, uploaded = calls
    assert asked == [
        ("token", "secret"),
        ("create", "mine", True, True),
        ("upload", "me/mine", {"token": "secret", "commit_message": "First"}),
    ]
    saved = {path.name: path.read_bytes() for path in model.save_pretrained(tmp_path).iterdir()}
    # The metadata in a safetensors file have no order.
    weights = [safetensors.torch.load(files.pop("model.safetensors")) for files in (uploaded, saved)]
    assert uploaded == saved
    assert all(torch.equal(weights[0].pop(name), tensor) for name, tensor in weights[1].items())
    assert not weights[0]


class Net(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="rfdetr",
    repo_url="https://github.com/roboflow/rf-detr",
):
    """A network of somebody who uses the mixin of the Hub."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.model = RFDETRNano(pretrain_weights=None, num_classes=num_classes, device="cpu").module

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        return self.model(images)


def test_a_module_with_the_mixin_of_the_hub_and_our_classes_read_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink("nano", tmp_path / "cache", monkeypatch)
    net = Net(num_classes=3)
    net.save_pretrained(tmp_path / "net")
    again = Net.from_pretrained(tmp_path / "net")
    assert_same_weights(net.model, again.model)
    for ours in (RFDETRNano.from_pretrained(tmp_path / "net"), rfdetr.load(tmp_path / "net" / "model.safetensors")):
        assert ours.model_config.num_classes == 3
        assert_same_weights(net.model, ours.module)


def test_a_saved_file_fits_the_network_under_its_published_names(tmp_path: Path) -> None:
    model, other = tiny_model(num_classes=2), tiny_model(num_classes=2)
    folder = model.save_pretrained(tmp_path)
    assert safetensors.torch.load_model(other.module, folder / "model.safetensors") == (set(), [])
    assert_same_weights(model.module, other.module)


def test_pytorch_hub_has_an_entry_for_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    # As `torch.hub.list` does, which knows repositories alone.
    names = runpy.run_path(str(ROOT / "hubconf.py"))
    entries = {name: entry for name, entry in names.items() if callable(entry) and not name.startswith("_")}
    assert sorted(entries) == sorted("x2xlarge" if key == "2xlarge" else key.replace("-", "_") for key in VARIANTS)
    assert str(entries["seg_nano"].__doc__).startswith("RF-DETR seg-nano; options are")
    shrink("nano", tmp_path, monkeypatch)
    drawn = torch.hub.load(str(ROOT), "nano", source="local", pretrained=False, num_classes=4)
    assert (type(drawn).__name__, drawn.model_config.num_classes) == ("RFDETRNano", 4)
    loaded = torch.hub.load(str(ROOT), "nano", source="local", device="cpu")
    assert loaded.model_config.pretrain_weights in PUBLISHED
    assert len(loaded.predict(PICTURE, threshold=0.0)) > 0
    with pytest.raises(ValueError, match="Platform Model License"):
        torch.hub.load(str(ROOT), "x2xlarge", source="local")


def test_the_model_passes_on_what_a_torch_module_does() -> None:
    model = tiny_model(num_classes=2)
    model.module.train()
    assert model.to("cpu").eval() is model
    assert not model.module.training
    assert [id(one) for one in model.parameters()] == [id(one) for one in model.module.parameters()]
    outputs = model.module(torch.zeros(2, 3, 64, 64))
    assert (outputs["pred_boxes"].shape, outputs["pred_logits"].shape) == ((2, 10, 4), (2, 10, 3))


def test_a_model_that_is_moved_stays_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny_model(), []
    monkeypatch.setattr(type(model.module), "to", lambda self, device: asked.append(device))
    monkeypatch.setattr("rfdetr.detr.select_device", lambda name: SimpleNamespace(type=name))
    model.to(torch.device("cuda"))
    assert [one.type for one in asked] == ["cuda"]
    assert model.model.device.type == "cuda"


def test_a_card_that_somebody_has_written_stays(tmp_path: Path) -> None:
    model = tiny_model(num_classes=2)
    card = model.save_pretrained(tmp_path) / "README.md"
    card.write_text("mine", encoding="utf-8")
    model.save_pretrained(tmp_path)
    assert card.read_text(encoding="utf-8") == "mine"
    # The folder is a model like any file.
    assert rfdetr.load(tmp_path).class_names == model.class_names
