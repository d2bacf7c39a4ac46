"""The bundle that Roboflow takes, and its upload to a server on this machine that answers as Roboflow does."""

from __future__ import annotations

import argparse
import importlib
import io
import re
import sys
import threading
import traceback
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.roboflow_service import KEY, Service
from tests.tiny import tiny_keypoints, tiny_model, tiny_segmenter

from rfdetr import RFDETR
from rfdetr.checkpoints.roboflow import BACKGROUND, deploy, write_bundle
from rfdetr.checkpoints.save import published_weights
from rfdetr.models.lora import add_adapters

PICTURE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def named(model: RFDETR, *names: str) -> RFDETR:
    model.model.class_names = list(names)
    return model


def values(result: Any) -> list[np.ndarray]:
    """Everything that a prediction holds but the picture."""
    fields = {**vars(result), **result.data}
    return [np.asarray(fields[name]) for name in sorted(set(fields) - {"data", "metadata", "source_image"})]


MODELS = [
    # build, args that tell the task, class names
    (tiny_model, {"segmentation_head": False, "num_keypoints_per_class": []}, ["cat", "große Katze"]),
    (tiny_segmenter, {"segmentation_head": True, "num_keypoints_per_class": []}, ["cat", "dog"]),
    (tiny_keypoints, {"segmentation_head": False, "num_keypoints_per_class": [5, 3]}, ["cat", "dog"]),
]


@pytest.mark.parametrize(("build", "task", "names"), MODELS)
def test_a_bundle_has_what_roboflow_reads_and_loads_again_to_the_same_predictions(tmp_path, build, task, names):
    model = named(build(num_classes=2, num_keypoints_per_class=task["num_keypoints_per_class"]), *names)
    folder = write_bundle(model.model, tmp_path / "new" / "bundle")
    assert sorted(path.name for path in folder.iterdir()) == ["class_names.txt", "weights.pt"]
    assert (folder / "class_names.txt").read_bytes() == "".join(f"{name}\n" for name in names).encode()

    found = torch.load(folder / "weights.pt", weights_only=False)
    args = vars(found["args"])
    assert (type(found["args"]), found["model_name"]) == (argparse.Namespace, type(model).__name__)
    expected = {"class_names": names, "num_classes": 2, "pretrain_weights": None, **task}
    expected |= {name: getattr(model.model_config, name) for name in ("resolution", "patch_size", "hidden_dim")}
    assert {name: args[name] for name in expected} == expected
    assert args["positional_encoding_size"] == args["resolution"] // args["patch_size"]
    assert not {"dataset_dir", "output_dir", "resume"} & set(args)
    assert found["model"]["class_embed.bias"].shape == (3,)

    again = RFDETR.from_checkpoint(folder / "weights.pt", device="cpu")
    assert (type(again), again.class_names) == (type(model), names)
    results = [one.predict(PICTURE, threshold=0.0) for one in (model, again)]
    assert len(results[0].class_id) > 5
    for before, after in zip(values(results[0]), values(results[1]), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_bundle_has_no_path_of_the_machine(tmp_path):
    first = write_bundle(named(tiny_model(num_classes=2), "a", "b").model, tmp_path / "first")
    model = tiny_model(pretrain_weights=str(first / "weights.pt"), num_classes=2)
    folder = write_bundle(model.model, tmp_path / "second")
    assert torch.load(folder / "weights.pt", weights_only=False)["args"].pretrain_weights == "weights.pt"
    with zipfile.ZipFile(folder / "weights.pt") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"hidden_dim" in content
    assert str(tmp_path).encode() not in content and str(Path.home()).encode() not in content


def test_labels_that_begin_at_1_do_so_after_loading_a_bundle(tmp_path):
    old = named(tiny_model(num_classes=2), "a", "b")
    old.model.first_label = 1
    path = write_bundle(old.model, tmp_path / "old") / "weights.pt"
    again = tiny_model(pretrain_weights=str(path))
    assert (again.class_names, again.model.class_labels, again.model.hidden_labels()) == (["a", "b"], [1, 2], [0])
    results = [one.predict(PICTURE, threshold=0.0) for one in (old, again)]
    for before, after in zip(*map(values, results), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_best_thresholds_and_category_ids_stay_with_a_bundle(tmp_path):
    model = named(tiny_model(num_classes=9), "a", "b")
    model.model.raw_labels, model.model.thresholds = [3, 7], {"a": 0.25, "b": 0.5}
    again = RFDETR.from_checkpoint(write_bundle(model.model, tmp_path) / "weights.pt", device="cpu")
    assert (again.model.class_labels, again.model.thresholds) == ([3, 7], {"a": 0.25, "b": 0.5})


def test_a_bundle_written_during_training_has_the_adapters_merged(tmp_path):
    model = tiny_model(num_classes=2).model
    before = published_weights(model.model.state_dict())
    add_adapters(model.model.encoder)
    found = torch.load(write_bundle(model, tmp_path) / "weights.pt", weights_only=False)["model"]
    assert set(found) == set(before)
    assert all(torch.allclose(found[name], before[name], atol=1e-6) for name in before)


def test_a_bundle_replaces_an_earlier_one_and_nothing_else(tmp_path):
    write_bundle(named(tiny_model(num_classes=2), "a", "b").model, tmp_path)
    write_bundle(named(tiny_model(num_classes=1), "new\nline").model, tmp_path)
    assert (tmp_path / "class_names.txt").read_text() == "new line\n"
    (tmp_path / "class_names.txt").unlink()
    before = (tmp_path / "weights.pt").read_bytes()
    with pytest.raises(FileExistsError, match=re.escape(str(tmp_path / "weights.pt"))):
        write_bundle(tiny_model().model, tmp_path)
    assert (tmp_path / "weights.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


# The package leaves the uploaded file to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def service(monkeypatch, tmp_path) -> Iterator[Service]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.delenv("ROBOFLOW_API_KEY", raising=False)
    with Service() as service, monkeypatch.context() as patch:
        threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        patch.setenv("API_URL", service.address)
        patch.setenv("ROBOFLOW_CONFIG_DIR", str(tmp_path / "none.json"))
        # The package has a format of warnings of its own, which it gives to the whole process.
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)
        settings: Any = importlib.import_module("roboflow.config")
        settings.refresh_region_urls()
        yield service
        service.shutdown()


def send(model: RFDETR, version: int | str | None = None, **options: Any) -> None:
    """What `RFDETR.deploy_to_roboflow` does."""
    deploy(model.model, model.size, "space", "shapes", version, **{"api_key": KEY, **options})


def test_a_model_goes_to_the_newest_version_with_a_name_for_every_row(service, capsys):
    model = named(tiny_model(num_classes=2), "a", "b")
    assert send(model) is None
    assert {path: query for _, path, query, _ in service.requests} == {
        "/": {"api_key": KEY},
        "/space": {"api_key": KEY},
        "/space/shapes": {"api_key": KEY},
        "/space/shapes/10/uploadModel": {"api_key": KEY, "modelType": "rfdetr-nano", "nocache": "true"},
        "/bucket/deploy.zip": {"signature": "1"},
    }
    assert (service.requests[0][0], service.requests[-1][0]) == ("POST", "PUT")
    with zipfile.ZipFile(io.BytesIO(service.requests[-1][3])) as archive:
        assert sorted(archive.namelist()) == ["class_names.txt", "weights.pt"]
        assert archive.read("class_names.txt").decode().splitlines() == ["a", "b", BACKGROUND]
        found = torch.load(io.BytesIO(archive.read("weights.pt")), weights_only=False)
    assert (found["args"].class_names, found["model_name"]) == (["a", "b"], "RFDETRNano")
    assert "View the status of your deployment" in capsys.readouterr().out


def test_version_size_and_key_can_be_given_and_rows_without_a_class_are_background(service, monkeypatch):
    monkeypatch.setenv("ROBOFLOW_API_KEY", KEY + "\n")
    with pytest.warns(UserWarning, match="size='rfdetr-small', but its class is 'rfdetr-nano'"):
        model = named(tiny_model(num_classes=4), "a", "b")
        model.model.raw_labels = [1, 3]
        send(model, "2", api_key=None, size="rfdetr-small")
    with zipfile.ZipFile(io.BytesIO(service.requests[-1][3])) as archive:
        names = archive.read("class_names.txt").decode().splitlines()
    assert names == [BACKGROUND, "a", BACKGROUND, "b", BACKGROUND]
    [query] = [query for _, path, query, _ in service.requests if path == "/space/shapes/2/uploadModel"]
    assert query["modelType"] == "rfdetr-small"


FAILURES = [
    # path, status and text of the answer; error and what its message says
    ("/", 401, "unknown key", ValueError, "unknown key"),
    ("/space", 404, '{\n "error": "no\n  workspace"}', ValueError, '"no workspace"'),
    ("/space/shapes", 404, f"no project for {KEY}", ValueError, "no project for ***"),
    ("/space/shapes/10/uploadModel", 429, "", ConnectionError, "already has a trained model"),
    ("/space/shapes/10/uploadModel", 403, "", ConnectionError, "api_key=***&modelType=rfdetr-nano"),
    ("/bucket/deploy.zip", 500, "", ConnectionError, "when uploading the model"),
]


@pytest.mark.parametrize(("path", "status", "text", "kind", "told"), FAILURES)
def test_a_failure_names_workspace_and_project_and_never_the_key(service, capsys, path, status, text, kind, told):
    service.failures[path] = (status, text)
    with pytest.raises(kind, match=re.escape(told)) as caught:
        send(tiny_model(num_classes=2))
    assert "project 'shapes' of workspace 'space'" in str(caught.value)
    output = capsys.readouterr()
    assert KEY not in "".join(traceback.format_exception(caught.value)) + output.out + output.err


def test_a_service_that_is_not_there_is_a_connection_error_without_the_key(service):
    service.shutdown()
    service.server_close()
    with pytest.raises(ConnectionError, match=r"of workspace 'space': .*api_key=\*\*\*"):
        send(tiny_model(num_classes=2))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"version": 3}, "has no version 3; it has 2, 9, 10"),
        ({"version": "last"}, "has no version 'last'; it has 2, 9, 10"),
        ({"api_key": ""}, "api_key=... or set ROBOFLOW_API_KEY"),
    ],
)
def test_wrong_arguments_are_refused(service, options, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        send(tiny_model(num_classes=2), **options)
    assert "PUT" not in [method for method, *_ in service.requests]


def test_a_project_without_versions_and_one_of_another_task_are_refused(service):
    service.replies["/space/shapes"]["project"]["type"] = "instance-segmentation"
    with pytest.raises(ValueError, match="is type 'instance-segmentation'"):
        send(tiny_model(num_classes=2))
    service.versions.clear()
    with pytest.raises(ValueError, match="project 'shapes' of workspace 'space' has no version to deploy to"):
        send(tiny_model(num_classes=2))


def test_a_question_of_the_package_without_anybody_to_answer_is_an_error(service, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(ValueError, match=r"matches 'rfdetr-small'.* continue anyway\?"):
        send(tiny_model(num_classes=2, resolution=512))


def test_a_class_without_size_needs_one_and_the_package_must_be_installed(monkeypatch):
    model = tiny_model(num_classes=2).model
    with pytest.raises(ValueError, match="size="):
        deploy(model, None, "space", "shapes", api_key=KEY)
    monkeypatch.setitem(sys.modules, "roboflow", None)
    with pytest.raises(ImportError, match="roboflow"):
        deploy(model, "rfdetr-nano", "space", "shapes", api_key=KEY)


def test_weights_that_were_given_up_are_neither_written_nor_sent(tmp_path):
    model = tiny_model(num_classes=2)
    model.model.is_optimised_inplace = True
    with pytest.raises(RuntimeError, match=r"export_for_roboflow\(\) needs the weights"):
        write_bundle(model.model, tmp_path)
    with pytest.raises(RuntimeError, match=r"deploy_to_roboflow\(\) needs the weights"):
        send(model)
