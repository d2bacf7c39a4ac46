"""Going on with a run: after Ctrl-C, SIGTERM or a kill, inside an epoch, with other settings, from other folders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import TRAINING, tiny_data, tiny_model

from rfdetr.training import run
from rfdetr.training.state import newest

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {"epochs": 3, "lr_scheduler": "cosine", "drop_path": 0.1, "grad_accum_steps": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


def train(data: Path, out: Path, model: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    model = model or tiny_model(**options.pop("model", {}))
    model.train(dataset_dir=data, output_dir=out, **{**TRAINING, **OPTIONS, **options})
    return model


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    train(data, out)
    return out


def at_step(step: int, what: Callable[[], None]) -> Any:
    """A model with the weights that `train` starts from, which does something before one of its steps."""
    torch.manual_seed(0)
    model = tiny_model()
    model.callbacks["on_train_batch_start"].append(lambda info: what() if info["step"] == step else None)
    return model


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def assert_same_run(one: Path, other: Path) -> None:
    """Everything that a checkpoint holds and the logs say, but for the time."""
    for name in ("checkpoint.pth", "checkpoint_best_total.pth"):
        a, b = load(one / name), load(other / name)
        for kind in ("model", "ema_model"):
            assert all(torch.equal(tensor, b[kind][key]) for key, tensor in a.get(kind, {}).items())
    a, b = load(one / "checkpoint.pth"), load(other / "checkpoint.pth")
    for slot, state in a["optimizer"]["state"].items():
        assert all(torch.equal(value, b["optimizer"]["state"][slot][key]) for key, value in state.items())
    for key in ("lr_scheduler", "best", "early_stopping", "position", "global_step", "ema_updates", "averages"):
        assert a[key] == b[key], key
    assert torch.equal(a["rng"][0]["torch"], b["rng"][0]["torch"])
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    assert without_times(one) == without_times(other)


def without_times(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("time")} for line in lines]


@pytest.mark.parametrize(
    ("step", "workers"),
    [
        pytest.param(0, 0, id="S021-first-step"),
        pytest.param(7, 0, id="S012-inside-an-epoch"),
        pytest.param(9, 2, id="S012-last-step-of-an-epoch-two-loaders", marks=pytest.mark.slow),
        pytest.param(12, 1, id="S012-last-epoch-one-loader", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_finishes_the_step_and_the_resumed_run_ends_like_a_straight_one(
    step: int, workers: int, data: Path, straight: Path, tmp_path: Path
) -> None:
    model = at_step(step, send(signal.SIGINT))
    train(data, tmp_path, model, num_workers=workers)
    place = load(tmp_path / "checkpoint.pth")["position"]
    assert (place["epoch"], place["step"], place["judged"]) == (step // 5, step % 5 + 1, False)
    assert not (tmp_path / "checkpoint_best_total.pth").exists()
    # The model holds the weights of that moment, and can be used.
    weights = load(tmp_path / "checkpoint.pth")["model"]["bbox_embed.layers.0.weight"]
    assert torch.equal(model.model.model.box_head.layers[0].weight, weights)
    train(data, tmp_path, num_workers=workers, resume=True)
    assert_same_run(tmp_path, straight)


def test_sigterm_saves_and_ends_the_program(data: Path, straight: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        train(data, tmp_path, at_step(3, send(signal.SIGTERM)))
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    train(data, tmp_path, resume=tmp_path / "checkpoint.pth")
    assert_same_run(tmp_path, straight)


def test_a_second_ctrl_c_stops_at_once(data: Path, straight: Path, tmp_path: Path) -> None:
    def twice() -> None:
        # Two that the system delivers at once would be one; these are handled one after the other.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    # A program that was started in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path, at_step(6, twice))
    finally:
        signal.signal(signal.SIGINT, before)
    # The run goes on from the end of the epoch before.
    assert load(tmp_path / "checkpoint.pth")["position"]["judged"]
    train(data, tmp_path, resume=True)
    assert_same_run(tmp_path, straight)


def test_ctrl_c_in_an_evaluation_leaves_it_and_the_resumed_run_makes_up_for_it(
    data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = run.evaluate, []

    def interrupted(*parts: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*parts, **options)

    monkeypatch.setattr(run, "evaluate", interrupted)
    train(data, tmp_path)
    assert len(calls) == 4
    place = load(tmp_path / "checkpoint.pth")["position"]
    assert (place["epoch"], place["step"], place["judged"]) == (1, 5, False)
    monkeypatch.undo()
    train(data, tmp_path, resume=True)
    assert_same_run(tmp_path, straight)


def test_resume_true_finds_the_newest_or_starts_a_run(data: Path, straight: Path, tmp_path: Path) -> None:
    train(data, tmp_path, resume=True, epochs=3)
    assert_same_run(tmp_path, straight)
    folder = tmp_path / "several"
    folder.mkdir()
    for name in ("checkpoint_9.pth", "checkpoint_19.pth", "checkpoint_best_ema.pth"):
        (folder / name).touch()
    assert newest(folder) == folder / "checkpoint_19.pth"
    (folder / "checkpoint.pth").touch()
    assert newest(folder) == folder / "checkpoint.pth"
    assert newest(tmp_path / "nothing") is None


def test_the_file_alone_is_enough(data: Path, straight: Path, tmp_path: Path) -> None:
    """A checkpoint that was copied elsewhere brings its logs; only the files of earlier bests are missed."""
    train(data, tmp_path / "first", at_step(7, send(signal.SIGINT)))
    (tmp_path / "moved").mkdir()
    shutil.copy(tmp_path / "first" / "checkpoint.pth", tmp_path / "moved")
    train(data, tmp_path / "second", resume=tmp_path / "moved" / "checkpoint.pth")
    assert (tmp_path / "second" / "metrics.csv").read_text() == (straight / "metrics.csv").read_text()
    one, other = (load(folder / "checkpoint.pth")["model"] for folder in (tmp_path / "second", straight))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_S013_more_epochs_go_on_where_the_run_ended(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "short", epochs=1, lr_scheduler="step")
    train(data, tmp_path / "short", epochs=3, lr_scheduler="step", resume=True)
    train(data, tmp_path / "long", epochs=3, lr_scheduler="step")
    one, other = (load(tmp_path / name / "checkpoint.pth") for name in ("short", "long"))
    assert all(torch.equal(tensor, other["model"][key]) for key, tensor in one["model"].items())


def test_a_finished_run_gives_its_best_weights(data: Path, straight: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in straight.iterdir()}
    model = train(data, straight, resume=True)
    assert "is finished" in caplog.text
    assert before == {path.name: path.stat().st_mtime_ns for path in straight.iterdir()}
    best = load(straight / "checkpoint_best_total.pth")["model"]["bbox_embed.layers.0.weight"]
    assert torch.equal(model.model.model.box_head.layers[0].weight, best)


def test_another_batch_size_goes_on_at_the_same_place(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = tiny_data(tmp_path / "data")
    for copy in range(2):
        document = json.loads((more / "train" / "_annotations.coco.json").read_text())
        for image in list(document["images"]):
            name = f"copy{copy}_{image['file_name']}"
            shutil.copy(more / "train" / image["file_name"], more / "train" / name)
            document["images"].append({**image, "id": image["id"] + 1000 * (copy + 1), "file_name": name})
        (more / "train" / "_annotations.coco.json").write_text(json.dumps(document))
    train(more, tmp_path / "out", at_step(5, send(signal.SIGINT)), batch_size=2, grad_accum_steps=1, epochs=1)
    train(more, tmp_path / "out", batch_size=4, grad_accum_steps=1, epochs=1, resume=True)
    assert "an epoch has 10 steps now and had 20; it goes on at step 3 of epoch 1" in caplog.text
    end = load(tmp_path / "out" / "checkpoint.pth")
    assert end["global_step"] == end["lr_scheduler"]["last_epoch"] == 10


def test_other_trained_parameters_start_fresh_and_say_so(data: Path, straight: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="optimiser and schedule \\(other parameters are trained now\\)"):
        train(
            data, tmp_path, model=tiny_model(freeze_encoder=True), resume=straight / "checkpoint.pth", epochs=4
        )  # fmt: skip


def test_S086_S118_an_adapted_run_resumes_its_adapters(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    lora = {"backbone_lora": True, "gradient_checkpointing": True}
    train(data, tmp_path / "straight", model=tiny_model(**lora))
    torch.manual_seed(0)
    model = tiny_model(**lora)
    model.callbacks["on_train_batch_start"].append(
        lambda info: os.kill(os.getpid(), signal.SIGINT) if info["step"] == 7 else None
    )
    train(data, tmp_path / "parts", model=model)
    torch.manual_seed(0)
    train(data, tmp_path / "parts", model=tiny_model(**lora), resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_kill_at_any_moment_leaves_a_checkpoint_to_go_on_from(seed: int, data: Path, tmp_path: Path) -> None:
    """Three times ten kills (SIGKILL) at random moments of a run, each resumed to its end."""
    command = [sys.executable, str(ROOT / "tests" / "kill_script.py"), str(data), str(tmp_path), "10", str(seed)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == 10
    assert all(same for *_, same in outcomes)
    # Most kills hit a run that was still going on, in different places.
    assert sum(killed for killed, *_ in outcomes) >= 6
    assert len({json.dumps(place) for killed, _, place, _ in outcomes if killed}) >= 2


def test_a_run_of_another_resolution_is_refused_before_anything_changes(
    data: Path, straight: Path, tmp_path: Path
) -> None:
    shutil.copytree(straight, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="written with another resolution"):
        train(data, tmp_path / "out", resolution=128, resume=True, epochs=9, use_ema=False)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_going_on_in_the_folder_of_another_run_sets_that_aside(data: Path, straight: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train(data, other, epochs=1, seed=7)
    theirs = {path.name: path.read_bytes() for path in other.iterdir()}
    train(data, tmp_path / "first", at_step(7, send(signal.SIGINT)))
    train(data, other, resume=tmp_path / "first" / "checkpoint.pth")
    assert {path.name: path.read_bytes() for path in (other / "earlier_1").iterdir()} == theirs
    assert_same_run(other, straight)


def test_weights_alone_start_a_run_that_loses_nothing_of_the_folder(data: Path, straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight, tmp_path / "out")
    with pytest.warns(UserWarning, match="holds no state of"):
        train(data, tmp_path / "out", resume=tmp_path / "out" / "checkpoint_best_total.pth", epochs=1, lr=5e-4)
    assert len((tmp_path / "out" / "earlier_1" / "log.txt").read_text().splitlines()) == 3
    assert load(tmp_path / "out" / "checkpoint.pth")["lr_scheduler"]["base_lrs"][0] == 5e-4


def test_a_lengthened_run_that_was_killed_before_its_end_is_not_finished(
    data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(data, tmp_path, epochs=1, lr_scheduler="step")

    def killed(this: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(run, "finish", killed)
        train(data, tmp_path, epochs=2, lr_scheduler="step", resume=True)
    train(data, tmp_path, epochs=2, lr_scheduler="step", resume=True)
    assert (tmp_path / "results.json").is_file()
    kind = load(tmp_path / "checkpoint_best_total.pth")["best_total_source"]
    total, best = (load(tmp_path / f"checkpoint_best_{name}.pth")["model"] for name in ("total", kind))
    assert all(torch.equal(tensor, best[name]) for name, tensor in total.items())


def test_resuming_a_finished_adapted_run_succeeds(data: Path, tmp_path: Path) -> None:
    for resume in (None, True):
        train(data, tmp_path, model=tiny_model(backbone_lora=True), epochs=1, resume=resume)


def test_a_run_that_stopped_early_goes_on_without_early_stopping(data: Path, tmp_path: Path) -> None:
    stop = {"early_stopping": True, "early_stopping_patience": 1, "early_stopping_min_delta": 1.0}
    train(data, tmp_path, epochs=4, **stop)
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2
    train(data, tmp_path, epochs=4, resume=True, **stop)
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2
    train(data, tmp_path, epochs=3, resume=True)
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 3


def test_an_option_that_a_resumed_run_keeps_is_named(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, epochs=1)
    with pytest.warns(UserWarning, match="lr=0.5 has no effect: a resumed run keeps 0.0001"):
        train(data, tmp_path, epochs=2, resume=True, lr=0.5)
