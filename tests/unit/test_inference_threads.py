"""How many threads `predict` takes beside other programs: what Linux tells is made up, PyTorch's threads are real."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model

from rfdetr.inference import threads
from rfdetr.inference.threads import polite_threads

Machine = Callable[..., None]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Makes a machine of some cores, on which some threads run, some of them of this process."""
    before = torch.get_num_threads()
    load, tasks = tmp_path / "loadavg", tmp_path / "task"
    for name, value in {"_LOAD": load, "_TASKS": tasks}.items():
        monkeypatch.setattr(threads, name, value)
    threads._seen.clear()

    def make(running: int, own: int = 1, cores: int = 4, wanted: int = 4) -> None:
        load.write_text(f"0.42 0.35 0.30 {running}/817 4711\n")
        for number in range(own + 2):
            (tasks / str(number)).mkdir(parents=True, exist_ok=True)
            # A name can hold what looks like the end of it.
            state = "R" if number < own else "S"
            (tasks / str(number) / "stat").write_text(f"{number} (py) R (thon) {state} 1 2 3\n")
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        torch.set_num_threads(wanted)

    yield make
    threads._seen.clear()
    torch.set_num_threads(before)


def inside() -> int:
    """PyTorch's threads in the block; afterwards they are what they were."""
    before = torch.get_num_threads()
    with polite_threads():
        found = torch.get_num_threads()
    assert torch.get_num_threads() == before
    return found


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"running": 1}, 4),  # nothing else
        ({"running": 2}, 3),
        ({"running": 4}, 1),
        ({"running": 5}, 1),  # at least one
        ({"running": 400}, 1),
        ({"running": 0}, 4),  # a container that hides even this process
        ({"running": 4, "own": 4}, 4),  # all of them its own
        ({"running": 5, "own": 3}, 2),
        ({"running": 2, "own": 4}, 4),  # some of its own have begun in between
        ({"running": 3, "own": 0}, 2),  # this thread runs, whatever the list says
        ({"running": 3, "cores": 16}, 4),  # never more than the user wants
        ({"running": 3, "cores": 16, "wanted": 2}, 2),
        ({"running": 15, "cores": 16}, 2),
        ({"running": 9, "wanted": 1}, 1),
        ({"running": 3, "cores": 1, "wanted": 2}, 1),
    ],
)
def test_threads_are_those_that_others_leave(machine: Machine, state: dict[str, int], expected: int) -> None:
    machine(**state)
    assert inside() == expected


def test_a_machine_of_unknown_size_gets_one_thread_only_when_shared(machine, monkeypatch):
    machine(running=1)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert inside() == 1


def test_a_moment_of_work_elsewhere_changes_nothing(machine):
    machine(running=1)
    assert inside() == 4
    machine(running=4)
    assert [inside() for _ in range(4)] == [4, 4, 1, 1]
    machine(running=1)
    assert inside() == 4


def test_the_number_is_restored_after_an_error_and_in_nested_blocks(machine):
    machine(running=3)
    with pytest.raises(KeyError, match="own"), polite_threads():
        assert torch.get_num_threads() == 2
        with polite_threads():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
        raise KeyError("own")
    assert torch.get_num_threads() == 4


def test_nothing_happens_where_results_have_to_be_deterministic(machine):
    machine(running=4)
    torch.use_deterministic_algorithms(True)
    try:
        assert inside() == 4
    finally:
        torch.use_deterministic_algorithms(False)
    assert inside() == 1


def test_nothing_happens_where_linux_does_not_tell(machine, monkeypatch, tmp_path):
    machine(running=4)
    monkeypatch.setattr(threads, "_LOAD", tmp_path / "nowhere")
    assert inside() == 4


def test_a_thread_that_ends_while_it_is_counted_is_left_out(machine, tmp_path):
    machine(running=3, own=2)
    (tmp_path / "task" / "0" / "stat").unlink()
    assert inside() == 2


def test_real_files_are_understood(monkeypatch):
    monkeypatch.undo()
    if not threads._LOAD.is_file():
        pytest.skip("no Linux")
    threads._seen.clear()
    assert 0 <= threads._others() < 10_000
    assert len(threads._seen) == 3
    assert threads._own(1000) >= 1


def test_threads_that_begin_meanwhile_keep_the_users_number(machine):
    """PyTorch gives a new thread the number that was set last, by whomever, and never asks again."""
    machine(running=4)
    with ThreadPoolExecutor(1) as pool:
        with polite_threads():
            assert torch.get_num_threads() == 1
            assert pool.submit(torch.get_num_threads).result() == 4
            assert torch.get_num_threads() == 1
        assert pool.submit(torch.get_num_threads).result() == 4
        assert pool.submit(inside).result() == 1
        assert pool.submit(torch.get_num_threads).result() == 4
    assert torch.get_num_threads() == 4


def test_predict_gives_way_for_the_time_of_the_call_alone(machine, monkeypatch):
    model, picture = tiny_model(num_classes=3), np.zeros((48, 64, 3), np.uint8)
    machine(running=1)
    expected = model.predict(picture, threshold=0.0)
    machine(running=3)
    threads._seen.clear()
    seen = []
    hook = model.model.model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    found = model.predict(picture, threshold=0.0)
    hook.remove()
    assert seen == [2]
    assert torch.get_num_threads() == 4
    np.testing.assert_allclose(found.xyxy, expected.xyxy, rtol=0, atol=1e-3)
    monkeypatch.setattr(model.model, "for_prediction", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.predict(picture)
    assert torch.get_num_threads() == 4
