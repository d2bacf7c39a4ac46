"""Logs and services: nothing is lost, nothing stands twice, and no service can stop a run."""

from __future__ import annotations

import csv
import json
import math
import os
import struct
import sys
import time
import types
from pathlib import Path

import pytest

from rfdetr.config import TrainConfig
from rfdetr.training.loggers import Guarded, TextLog, finite, mlflow_name, open_sinks, plot_history, require_services

ROWS = [{"step": 5 * i, "train/loss": 1 / (i + 3), "val/mAP_50": math.nan if i == 1 else 0.1 * i} for i in range(4)]


def config(**options) -> TrainConfig:
    return TrainConfig(dataset_dir="data", **{"tensorboard": False, **options})


class Recorder:
    """A sink that remembers its calls, or fails at all of them."""

    def __init__(self, fails: bool = False) -> None:
        self.calls, self.fails = [], fails

    def _take(self, *call) -> None:
        self.calls.append(call)
        if self.fails:
            raise OSError("the server is away")

    def log(self, epoch, metrics):
        self._take("log", epoch, metrics)

    def log_step(self, step, metrics):
        self._take("log_step", step, metrics)

    def close(self):
        self._take("close")


# log.txt and metrics.csv


def write_run(text: TextLog, epochs: range) -> TextLog:
    for epoch in epochs:
        text.write_stats({"epoch": epoch, "loss": ROWS[epoch]["train/loss"], "ap": ROWS[epoch]["val/mAP_50"]})
        text.log_step(epoch, {"train/loss_step": 1.0})
        text.log(epoch, ROWS[epoch])
    return text


def test_S082_log_txt_has_one_json_object_per_epoch_and_metrics_csv_one_row(tmp_path):
    text = write_run(TextLog(tmp_path), range(4))
    text.log(3, {"step": 20, "test/loss": 0.5})
    text.close()
    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert lines[1]["ap"] is None
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["epoch", "step", "train/loss", "val/mAP_50", "test/loss"]
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3", "3"]
    assert [float(row["train/loss"]) for row in rows[:4]] == [row["train/loss"] for row in ROWS]
    assert (rows[4]["train/loss"], rows[4]["test/loss"]) == ("", "0.5")


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_S082_a_resumed_run_writes_the_files_of_one_that_was_not_interrupted(kept, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    write_run(TextLog(whole), range(4))
    state = write_run(TextLog(broken), range(kept))
    saved = json.loads(json.dumps([state.history, state.lines]))
    # The run went on for an epoch after its checkpoint, and that epoch is done again.
    write_run(state, range(kept, min(4, kept + 1)))
    write_run(TextLog(broken, *saved), range(kept, 4))
    for name in ("log.txt", "metrics.csv"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_a_resumed_text_log_writes_what_it_knows_at_once_and_a_new_one_nothing(tmp_path):
    TextLog(tmp_path)
    assert not list(tmp_path.iterdir())
    TextLog(tmp_path, [{"epoch": 0, "step": 2}], ['{"epoch": 0}'])
    assert (tmp_path / "metrics.csv").read_text(encoding="utf-8") == "epoch,step\n0,2\n"
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == '{"epoch": 0}\n'
    assert len(list(tmp_path.iterdir())) == 2


def test_rows_are_plain_numbers_and_not_shared_with_who_gave_them(tmp_path):
    import numpy as np

    given = [{"epoch": 0, "step": 1}]
    text = TextLog(tmp_path, given)
    text.log(1, {"step": 2, "val/F1": np.float32(0.5), "val/loss": np.float64(0.1)})
    assert [type(value) for value in text.history[1].values()] == [int, int, float, float]
    assert given == [{"epoch": 0, "step": 1}]


def test_finite_replaces_what_json_cannot_hold():
    assert finite({"a": (math.nan, 1, [math.inf]), "b": "x"}) == {"a": [None, 1, [None]], "b": "x"}


# The plot


def test_S085_the_plot_survives_rows_with_missing_empty_and_nan_values(tmp_path):
    rows = [
        {"epoch": 0, "train/loss": 2.0},
        {"epoch": 1, "train/loss": math.nan, "val/mAP_50": None},
        {"epoch": 2, "train/loss": 1.0, "val/mAP_50": 0.5},
        {"epoch": 2, "step": 9, "test/loss": 1.0},
    ]
    for history in (rows, []):
        plot_history(history, tmp_path / "metrics_plot.png")
        assert (tmp_path / "metrics_plot.png").read_bytes().startswith(b"\x89PNG")


def test_S085_without_matplotlib_a_warning_takes_the_place_of_the_plot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(UserWarning, match=r"metrics_plot.png is not drawn: .* needs matplotlib"):
        plot_history(ROWS, tmp_path / "metrics_plot.png")
    assert not list(tmp_path.iterdir())


# Services in general


def test_a_failing_service_warns_once_and_is_off_then():
    sink = Recorder(fails=True)
    guarded = Guarded("MLflow", sink)
    with pytest.warns(UserWarning, match=r"MLflow failed .* OSError\('the server is away'\)") as caught:
        guarded.log(0, {"a": 1.0})
        guarded.log_step(5, {"a": 1.0})
        guarded.close()
    assert (len(caught), len(sink.calls)) == (1, 1)


@pytest.mark.parametrize("call", [("log_step", 5, {"a": 1.0}), ("close",)])
def test_every_call_is_guarded(call):
    guarded = Guarded("W&B", Recorder(fails=True))
    with pytest.warns(UserWarning, match="W&B failed"):
        getattr(guarded, call[0])(*call[1:])


def test_an_interruption_by_the_user_is_no_failure_of_a_service():
    sink = Recorder()
    sink.log = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        Guarded("W&B", sink).log(0, {})


def test_a_working_service_gets_everything():
    sink = Recorder()
    guarded = Guarded("W&B", sink)
    guarded.log(0, {"a": 1.0})
    guarded.log_step(7, {"b": 2.0})
    guarded.close()
    assert sink.calls == [("log", 0, {"a": 1.0}), ("log_step", 7, {"b": 2.0}), ("close",)]


def test_no_service_is_opened_unless_asked_for(tmp_path):
    assert open_sinks(tmp_path, config()) == []


@pytest.mark.parametrize(("name", "extra"), [("wandb", "loggers"), ("mlflow", "loggers"), ("clearml", "clearml")])
def test_S059_a_service_that_is_asked_for_and_not_installed_stops_with_the_pip_command(
    name, extra, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, name, None)
    for call in (
        lambda: open_sinks(tmp_path, config(**{name: True})),
        lambda: require_services(config(**{name: True})),
    ):
        with pytest.raises(ImportError, match=rf'{name}: pip install "rfdetr\[{extra}\]"'):
            call()


# TensorBoard


def test_S042_without_tensorboard_training_goes_on_with_a_warning(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.warns(UserWarning, match=r'TensorBoard is not installed.*pip install "rfdetr\[loggers\]"'):
        assert open_sinks(tmp_path, config(tensorboard=True)) == []


def test_S042_a_tensorboard_that_cannot_be_used_is_a_warning_with_the_reason(tmp_path, monkeypatch):
    broken = types.ModuleType("torch.utils.tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", broken)
    with pytest.warns(UserWarning, match="TensorBoard cannot be opened .*no attribute 'SummaryWriter'"):
        assert open_sinks(tmp_path, config(tensorboard=True)) == []


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_S083_S122_epochs_and_steps_are_in_tensorboard_and_redone_ones_only_once(tmp_path):
    def go(first: int, last: int, value: float) -> None:
        (sink,) = open_sinks(tmp_path, config(tensorboard=True), first_epoch=first)
        for epoch in range(first, last):
            for step in range(10 * epoch, 10 * epoch + 10, 5):
                sink.log_step(step, {"train/loss_step": value})
            sink.log(epoch, {"val/loss": value})
        sink.log(last - 1, {"test/loss": value})
        sink.close()

    go(0, 3, 1.0)
    # TensorBoard orders its files by the second in their names.
    time.sleep(1.1)
    # The checkpoint was that of epoch 0; epochs 1 and 2 are done again.
    go(1, 4, 2.0)
    shown = scalars(tmp_path)
    assert shown == {"val/loss": [(0, 1.0), (1, 2.0), (2, 2.0), (3, 2.0)], "test/loss": [(3, 2.0)]}
    steps = [(0, 1.0), (5, 1.0), *((step, 2.0) for step in range(10, 40, 5))]
    assert scalars(tmp_path / "train_steps") == {"train/loss_step": steps}


# Weights & Biases


def offline_records(folder: Path) -> list:
    """Records of the file that an offline run of W&B writes: a header of 7 bytes, then length-prefixed records."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.rglob("*.wandb")
    data, at, records = path.read_bytes(), 7, []
    assert len(data) < 2**15, "records of more than one block are not read here"
    while at < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        assert kind == 1
        records.append(wandb_internal_pb2.Record.FromString(data[at + 7 : at + 7 + length]))
        at += 7 + length
    return records


@pytest.mark.parametrize(("project", "run"), [("boats", "first try"), (None, None)])
def test_S043_S045_S083_S123_everything_logged_is_in_the_offline_run_of_wandb(project, run, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (sink,) = open_sinks(tmp_path, config(wandb=True, project=project, run=run, lr=0.25))
    try:
        sink.log_step(1, {"train/loss_step": 9.0})
        sink.log(0, {"step": 2, "val/loss": 1.0})
        sink.log_step(3, {"train/loss_step": 8.0})
        sink.log(1, {"step": 4, "val/loss": 0.5})
        # The test comes with the epoch before it, and a run that goes on from an older checkpoint steps back.
        sink.log(1, {"step": 4, "test/loss": 0.75})
        sink.log(0, {"step": 2, "val/loss": 0.875})
        sink.close()
    finally:
        wandb.teardown()
    records = offline_records(tmp_path)
    (start,) = [record.run for record in records if record.HasField("run")]
    assert (start.project, start.display_name) == (project or start.project, run or "")
    settings = {item.key: json.loads(item.value_json) for item in start.config.update}
    assert settings["lr"] == 0.25
    rows = [record.history.item for record in records if record.HasField("history")]
    rows = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in row} for row in rows]
    assert [(r.get("step_index"), r["train/loss_step"]) for r in rows if "train/loss_step" in r] == [(1, 9.0), (3, 8.0)]
    assert [(r["epoch"], r["val/loss"]) for r in rows if "val/loss" in r] == [(0, 1.0), (1, 0.5), (0, 0.875)]
    assert [(r["epoch"], r["test/loss"]) for r in rows if "test/loss" in r] == [(1, 0.75)]
    axes = {r.metric.name or r.metric.glob_name: r.metric.step_metric for r in records if r.HasField("metric")}
    assert axes == {"*": "epoch", "train/loss_step": "step_index"}


def test_S043_wandb_that_cannot_start_is_a_warning(tmp_path, monkeypatch):
    away = types.ModuleType("wandb")
    away.init = lambda **_: (_ for _ in ()).throw(RuntimeError("api_key not configured"))
    monkeypatch.setitem(sys.modules, "wandb", away)
    with pytest.warns(UserWarning, match="Weights & Biases cannot be opened .*api_key not configured"):
        assert open_sinks(tmp_path, config(wandb=True)) == []


# MLflow


@pytest.fixture
def mlflow(monkeypatch):
    """MLflow without a server chosen by the environment."""
    import mlflow as package

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    return package


def read_runs(mlflow, folder: Path, project: str, monkeypatch) -> tuple:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(folder.absolute().as_uri())
    return client, client.search_runs([client.get_experiment_by_name(project).experiment_id])


@pytest.mark.parametrize(("project", "run"), [("boats", "first try"), (None, None)])
def test_S044_S045_mlflow_keeps_a_run_in_the_output_folder(project, run, mlflow, tmp_path, monkeypatch):
    folder = tmp_path / "output of ä run"
    folder.mkdir()
    names = [f"class {i}" * 60 for i in range(40)]
    (sink,) = open_sinks(folder, config(mlflow=True, project=project, run=run, lr=0.25, class_names=names))
    sink.log_step(3, {"train/loss_step": 9.0})
    sink.log(0, {"step": 2, "val/loss": 1.0, "val/AP/a/b (c)": 0.5, "val/AP/..": math.nan})
    sink.log(1, {"step": 4, "val/loss": 0.5, "val/AP/a": 0.25})
    sink.log(1, {"step": 4, "test/loss": 0.75})
    sink.close()
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ
    client, (found,) = read_runs(mlflow, folder / "mlruns", project or "rfdetr", monkeypatch)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == run if run else found.info.run_name
    assert (found.data.params["lr"], len(found.data.params["class_names"])) == ("0.25", 500)
    assert set(found.data.params) == set(config().model_dump())
    values = {
        name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }
    assert math.isnan(values.pop("val/AP/_")[0][1])
    assert values == {
        "train/loss_step": [(3, 9.0)],
        "step": [(0, 2), (1, 4), (1, 4)],
        "val/loss": [(0, 1.0), (1, 0.5)],
        "val/AP/a_b _c_": [(0, 0.5)],
        "val/AP/a": [(1, 0.25)],
        "test/loss": [(1, 0.75)],
    }


def test_S044_mlflow_goes_where_the_environment_says_and_a_second_run_joins_the_experiment(
    mlflow, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "server").as_uri())
    for _ in range(2):
        (sink,) = open_sinks(tmp_path / "output", config(mlflow=True))
        sink.close()
    assert not (tmp_path / "output").exists()
    assert len(read_runs(mlflow, tmp_path / "server", "rfdetr", monkeypatch)[1]) == 2


def test_S044_an_mlflow_that_is_away_is_a_warning(mlflow, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.warns(UserWarning, match="MLflow cannot be opened"):
        assert open_sinks(tmp_path, config(mlflow=True)) == []


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("val/loss", "val/loss"),
        ("val/AP/café 2.0", "val/AP/café 2.0"),
        ("val/AP/a:b", "val/AP/a_b"),  # refused on Windows only
        ("val/AP//a/", "val/AP/_a_"),
        ("val/AP/", "val/AP/_"),
        ("val/AP/" + "x" * 300, "val/AP/" + "x" * 243),
    ],
)
def test_S044_names_that_mlflow_refuses_are_made_legal(name, legal):
    assert mlflow_name(name) == legal


# ClearML


class Task:
    """Stands in for ClearML's."""

    def __init__(self, **options) -> None:
        self.options, self.reported, self.settings, self.closed = options, [], {}, False

    def connect(self, settings, name):
        self.settings[name] = settings

    def get_logger(self):
        return types.SimpleNamespace(report_scalar=lambda **scalar: self.reported.append(tuple(scalar.values())))

    def close(self):
        self.closed = True


@pytest.fixture
def clearml(monkeypatch):
    """A module in place of ClearML; `opened` holds its tasks, `current` the one of the user's script."""
    package = types.ModuleType("clearml")
    package.opened, package.current = [], None

    def init(**options):
        package.opened.append(Task(**options))
        return package.opened[-1]

    package.Task = types.SimpleNamespace(init=init, current_task=lambda: package.current)
    monkeypatch.setitem(sys.modules, "clearml", package)
    return package


@pytest.mark.parametrize(("project", "run"), [("boats", "first try"), (None, None)])
def test_N032_S045_clearml_gets_every_finite_value(project, run, clearml, tmp_path):
    (sink,) = open_sinks(tmp_path, config(clearml=True, project=project, run=run, lr=0.25))
    sink.log_step(3, {"train/loss_step": 9.0})
    sink.log(0, {"step": 2, "val/loss": 1.0, "val/AP/a": math.nan, "val/AP/b/c": 0.5})
    sink.close()
    (task,) = clearml.opened
    assert (task.options["project_name"], task.options["task_name"]) == (project or "rfdetr", run)
    assert task.settings["train_config"]["lr"] == 0.25
    assert task.reported == [
        ("loss_step", "train", 9.0, 3),
        ("step", "step", 2, 0),
        ("loss", "val", 1.0, 0),
        ("AP/b/c", "val", 0.5, 0),
    ]
    assert task.closed


def test_N032_the_task_that_the_script_has_opened_is_used_and_stays_open(clearml, tmp_path):
    clearml.current = Task()
    (sink,) = open_sinks(tmp_path, config(clearml=True))
    sink.log(0, {"val/loss": 1.0})
    sink.close()
    assert (clearml.opened, clearml.current.closed) == ([], False)
    assert clearml.current.reported == [("loss", "val", 1.0, 0)]
