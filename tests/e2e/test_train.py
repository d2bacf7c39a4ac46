"""A whole run: the files it leaves, what they hold, going on after a break, and what the model knows afterwards."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import TRAINING, tiny_data, tiny_model

import rfdetr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


def train(data: Path, out: Path, model: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    model = model or tiny_model()
    model.train(dataset_dir=data, output_dir=out, **{**TRAINING, **options})
    return model


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    out = tmp_path_factory.mktemp("run")
    return train(data, out, epochs=2, checkpoint_interval=1, run_test=True), out


def test_a_run_leaves_the_documented_files(finished: tuple[Any, Path]) -> None:
    names = {path.name for path in finished[1].iterdir()}
    assert names == {
        "checkpoint.pth",
        "checkpoint_0.pth",
        "checkpoint_1.pth",
        "checkpoint_best_regular.pth",
        "checkpoint_best_ema.pth",
        "checkpoint_best_total.pth",
        "dataset_check.json",
        "log.txt",
        "metrics.csv",
        "metrics_plot.png",
        "results.json",
        "training_config.json",
    }


def test_checkpoints_hold_what_they_should(finished: tuple[Any, Path]) -> None:
    last, total = load(finished[1] / "checkpoint.pth"), load(finished[1] / "checkpoint_best_total.pth")
    assert {"model", "optimizer", "lr_scheduler", "epoch", "ema_model", "args", "rng", "best"} <= set(last)
    about = {"args", "model_name", "model_config", "rfdetr_version", "best_total_source", "thresholds"}
    assert set(total) == {"model", *about}
    assert last["epoch"] == 1
    assert last["lr_scheduler"]["last_epoch"] == last["global_step"] == 10
    assert total["args"]["class_names"] == ["circle", "square", "triangle", "star"]
    assert "backbone.0.encoder.encoder.embeddings.cls_token" in total["model"]
    weights = sum(t.numel() * t.element_size() for t in total["model"].values())
    assert (finished[1] / "checkpoint_best_total.pth").stat().st_size < 1.05 * weights


def test_logs_have_one_valid_line_and_row_per_epoch(finished: tuple[Any, Path]) -> None:
    lines = [json.loads(line) for line in (finished[1] / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    expected = {"train_loss", "train_loss_ce_enc", "train_loss_bbox_0_unscaled", "train_class_error", "train_lr"}
    expected |= {"test_loss", "test_coco_eval_bbox", "ema_test_coco_eval_bbox", "n_parameters", "all_best_res"}
    assert expected <= set(lines[0])
    rows = (finished[1] / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4  # names, two epochs, the test
    assert {"train/loss", "val/mAP_50_95", "val/ema_mAP_50", "val/F1", "test/mAP_50"} <= set(rows[0].split(","))
    results = json.loads((finished[1] / "results.json").read_text())
    assert set(results["class_map"]) == {"valid", "test"}
    assert results["class_map"]["valid"][-1]["class"] == "all"


def test_afterwards_the_model_holds_the_best_weights_and_the_names(finished: tuple[Any, Path]) -> None:
    model, out = finished
    best = rfdetr.from_checkpoint(out / "checkpoint_best_total.pth")
    assert type(best) is rfdetr.RFDETRNano
    assert model.class_names == best.class_names == ["circle", "square", "triangle", "star"]
    assert best.model_config.resolution == 64
    assert best.model_config.encoder == "dinov2_windowed_tiny"
    mine, theirs = model.model.model.state_dict(), best.model.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_interrupted_and_resumed_equals_uninterrupted(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "whole", epochs=4, lr_scheduler="cosine", drop_path=0.1)
    # The interruption: the schedule of four epochs, ended after two.
    broken = tiny_model_with_stop(after=2)
    train(data, tmp_path / "parts", broken, epochs=4, lr_scheduler="cosine", drop_path=0.1)
    assert load(tmp_path / "parts" / "checkpoint.pth")["epoch"] == 1
    train(
        data,
        tmp_path / "parts",
        epochs=4,
        lr_scheduler="cosine",
        drop_path=0.1,
        resume=tmp_path / "parts" / "checkpoint.pth",
    )
    whole, parts = load(tmp_path / "whole" / "checkpoint.pth"), load(tmp_path / "parts" / "checkpoint.pth")
    for kind in ("model", "ema_model"):
        assert all(torch.equal(whole[kind][name], parts[kind][name]) for name in whole[kind])
    for slot, state in whole["optimizer"]["state"].items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(parts["optimizer"]["state"][slot][k]))
            for k, v in state.items()
        )
    assert whole["lr_scheduler"] == parts["lr_scheduler"]
    assert whole["best"] == parts["best"]
    assert torch.equal(whole["rng"][0]["torch"], parts["rng"][0]["torch"])
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "parts")
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "parts" / "metrics.csv").read_text()


def tiny_model_with_stop(after: int) -> Any:
    torch.manual_seed(0)
    model = tiny_model()

    def stop(stats: dict[str, Any]) -> None:
        if stats["epoch"] + 1 == after:
            model.model.request_early_stop()

    model.callbacks["on_fit_epoch_end"].append(stop)
    return model


def without_times(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("time")} for line in lines]


def test_the_number_of_loading_processes_changes_nothing(data: Path, tmp_path: Path) -> None:
    augmented = {"HorizontalFlip": {"p": 0.5}, "Rotate": {"limit": 30, "p": 0.5}, "ColorJitter": {"p": 0.5}}
    for workers in (0, 1, 2):
        train(data, tmp_path / str(workers), epochs=1, num_workers=workers, aug_config=augmented)
    none, one, two = (load(tmp_path / str(workers) / "checkpoint.pth")["model"] for workers in (0, 1, 2))
    assert all(torch.equal(none[name], one[name]) and torch.equal(none[name], two[name]) for name in none)


def test_accumulated_gradients_equal_one_larger_batch(data: Path, tmp_path: Path) -> None:
    # One object per picture: each micro-batch divides by its own count, so only then is the sum the same.
    one_object = tmp_path / "data"
    for split in ("train", "valid"):
        (one_object / split).mkdir(parents=True)
        document = json.loads((data / split / "_annotations.coco.json").read_text())
        first = {a["image_id"]: a for a in reversed(document["annotations"])}
        document["annotations"] = list(first.values())
        (one_object / split / "_annotations.coco.json").write_text(json.dumps(document))
        for image in document["images"]:
            (one_object / split / image["file_name"]).symlink_to(data / split / image["file_name"])
    states = []
    for batch, parts in ((4, 1), (2, 2)):
        out = tmp_path / f"{batch}x{parts}"
        train(
            one_object,
            out,
            epochs=1,
            batch_size=batch,
            grad_accum_steps=parts,
            use_ema=False,
            lr=1e-12,
            lr_encoder=1e-12,
        )
        states.append(load(out / "checkpoint.pth")["optimizer"]["state"])
    for slot in states[0]:
        # The weights all but stand still, so the first moment compares the gradients alone.
        a, b = states[0][slot]["exp_avg"], states[1][slot]["exp_avg"]
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


def test_a_second_run_neither_takes_nor_loses_files_of_the_first(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, epochs=1, checkpoint_interval=1)
    (tmp_path / "mine.txt").write_text("kept")
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "mine.txt"}
    train(data, tmp_path, epochs=1, seed=7, use_ema=False)
    assert not (tmp_path / "checkpoint_best_ema.pth").exists()
    assert (tmp_path / "checkpoint_best_total.pth").read_bytes() != first["checkpoint_best_total.pth"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "earlier_1").iterdir()} == first
    assert (tmp_path / "mine.txt").read_text() == "kept"
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 1


def test_resuming_a_finished_run_says_so_and_changes_nothing(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(data, tmp_path, epochs=1)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    train(data, tmp_path, epochs=1, resume=tmp_path / "checkpoint.pth")
    assert "is finished" in caplog.text
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_early_stopping_ends_the_run(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, epochs=9, early_stopping=True, early_stopping_patience=1, early_stopping_min_delta=1.0)
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2
    assert (tmp_path / "checkpoint_best_total.pth").is_file()


def test_callbacks_are_called(data: Path, tmp_path: Path) -> None:
    model, seen = tiny_model(), []
    model.callbacks["on_train_batch_start"].append(lambda info: seen.append(info["step"]))
    model.callbacks["on_fit_epoch_end"].append(lambda stats: seen.append(json.dumps(stats)[:1]))
    model.callbacks["on_train_end"].append(lambda: seen.append("end"))
    train(data, tmp_path, model, epochs=1)
    assert seen == [0, 1, 2, 3, 4, "{", "end"]
    model.callbacks["on_epoch"].append(print)
    with pytest.raises(ValueError, match="on_fit_epoch_end"):
        train(data, tmp_path, model, epochs=1)


def test_a_split_without_objects_trains_and_evaluates(data: Path, tmp_path: Path) -> None:
    empty = tmp_path / "data"
    for split in ("train", "valid"):
        (empty / split).mkdir(parents=True)
        document = json.loads((data / split / "_annotations.coco.json").read_text())
        document["annotations"] = []
        (empty / split / "_annotations.coco.json").write_text(json.dumps(document))
        for image in document["images"]:
            (empty / split / image["file_name"]).symlink_to(data / split / image["file_name"])
    with (
        pytest.warns(UserWarning, match="without any object"),
        pytest.warns(UserWarning, match="no evaluation gave a score; the final weights become"),
    ):
        model = train(empty, tmp_path / "out", epochs=1)
    assert len(model.predict(np.zeros((40, 40, 3), np.uint8), threshold=0.99)) == 0


def test_category_ids_as_labels_stay_what_they_are(data: Path, tmp_path: Path) -> None:
    tree = tmp_path / "coco"
    (tree / "annotations").mkdir(parents=True)
    for split, name in (("train", "train2017"), ("valid", "val2017")):
        (tree / name).symlink_to(data / split)
        document = json.loads((data / split / "_annotations.coco.json").read_text())
        for entry in document["categories"]:
            entry["id"] *= 3
        for entry in document["annotations"]:
            entry["category_id"] *= 3
        (tree / "annotations" / f"instances_{name}.json").write_text(json.dumps(document))
    train(tree, tmp_path / "out", epochs=1, dataset_file="coco")
    model = rfdetr.from_checkpoint(tmp_path / "out" / "checkpoint_best_total.pth")
    assert model.model_config.num_classes == 12
    assert model.model.class_labels == [3, 6, 9, 12]
    named = {i: name for i, name in enumerate(model.model.name_of_label()) if name}
    assert named == {3: "circle", 6: "square", 9: "triangle", 12: "star"}


def test_a_second_train_starts_again(data: Path, tmp_path: Path) -> None:
    model = train(data, tmp_path / "first", epochs=1)
    with pytest.warns(UserWarning, match="starts again from pretrain_weights"):
        train(data, tmp_path / "second", model, epochs=1)
    assert (tmp_path / "second" / "checkpoint_best_total.pth").is_file()


def test_a_refused_option_changes_nothing(data: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        train(data, tmp_path / "out", model, epoch=1, resolution=128, gradient_checkpointing=True)
    assert model.model_config.resolution == 64
    assert not model.model.model.encoder.checkpointing
    assert not (tmp_path / "out").exists()


def test_S034_a_second_run_has_the_resolution_it_was_given(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "start", epochs=1)
    model = rfdetr.from_checkpoint(tmp_path / "start" / "checkpoint_best_total.pth", device="cpu")
    train(data, tmp_path / "first", model, epochs=1, resolution=128)
    with pytest.warns(UserWarning, match="starts again"):
        train(data, tmp_path / "second", model, epochs=1, resolution=128)
    assert load(tmp_path / "second" / "checkpoint.pth")["args"]["resolution"] == 128
    assert model.model_config.resolution == 128


def test_a_second_run_never_starts_from_a_file_that_the_first_replaced(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, epochs=1)
    model = rfdetr.from_checkpoint(tmp_path / "checkpoint_best_total.pth", device="cpu")
    train(data, tmp_path, model, epochs=1)
    with pytest.raises(ValueError, match="has changed since the model was built"):
        train(data, tmp_path, model, epochs=1)


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"dataset_dir": "/nowhere"}, {"devices": 2, "num_nodes": 2}])
def test_a_refused_run_leaves_the_model_as_it_was(wrong: dict[str, Any], data: Path, tmp_path: Path) -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.model.model.state_dict().items()}
    with pytest.raises((ValueError, FileNotFoundError)):
        model.train(**{"dataset_dir": data, **TRAINING, "resolution": 128, "gradient_checkpointing": True, **wrong})
    assert (model.model_config.resolution, model.model_config.gradient_checkpointing) == (64, False)
    after = model.model.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_an_exception_in_a_run_leaves_head_and_names_in_agreement(data: Path, tmp_path: Path) -> None:
    model = tiny_model()

    def fail(info: dict[str, Any]) -> None:
        raise ZeroDivisionError

    model.callbacks["on_train_batch_start"].append(fail)
    with pytest.raises(ZeroDivisionError):
        train(data, tmp_path, model, epochs=1)
    assert model.class_names == ["circle", "square", "triangle", "star"]
    assert model.model_config.num_classes == 4
    assert not model.model.model.training


def test_N018_a_class_as_optimiser_goes_to_files_and_services(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, epochs=1, optimizer=torch.optim.SGD, mlflow=True)
    recorded = json.loads((tmp_path / "training_config.json").read_text())["train_config"]["optimizer"]
    assert recorded == load(tmp_path / "checkpoint.pth")["args"]["optimizer"] == "torch.optim.sgd.SGD"


def test_a_gradient_that_is_not_finite_moves_nothing(data: Path, tmp_path: Path) -> None:
    model, seen = tiny_model(), []
    parameter = model.model.model.decoder.norm.weight
    handle = parameter.register_hook(lambda grad: grad * (float("nan") if len(seen) == 3 else 1.0))
    model.callbacks["on_train_batch_start"].append(lambda info: seen.append(parameter.detach().clone()))
    train(data, tmp_path, model, epochs=1)
    handle.remove()
    # The third step is left out, the others move the weights.
    moved = [not torch.equal(one, other) for one, other in itertools.pairwise(seen)]
    assert moved == [True, True, False, True]
    found = json.loads((tmp_path / "broken_batches" / "step_2.json").read_text())
    assert found["not_finite"] == ["gradient"]
    assert all(torch.isfinite(tensor).all() for tensor in load(tmp_path / "checkpoint.pth")["model"].values())
