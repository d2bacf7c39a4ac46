"""The progress bar: it shows what it should, times every pass, and changes nothing about the iteration."""

from __future__ import annotations

import re
import sys
import threading
import time

import pytest
import torch
from tqdm import TMonitor, tqdm

from rfdetr.training import progress as module
from rfdetr.training.progress import Progress

KINDS = [None, "tqdm", "rich"]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Rich draws for a terminal of 200 columns, although the output is captured."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(text: str) -> str:
    """Text without the escape sequences of a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("kind", KINDS)
def test_S049_all_batches_come_in_order_and_none_is_asked_for_ahead(kind):
    happened = []

    def loader():
        for i in range(3):
            happened.append(f"load {i}")
            yield i
        happened.append("end")

    for i in Progress(kind).over(loader(), "epoch 1", total=3):
        happened += [f"use {i}"]
    assert happened == ["load 0", "use 0", "load 1", "use 1", "load 2", "use 2", "end"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batches", [[], [1]])
def test_S049_empty_and_short_passes(kind, batches):
    progress = Progress(kind)
    assert list(progress.over(batches, "evaluate")) == batches
    assert not progress.live
    assert 0 <= progress.waited <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_time_and_the_share_of_waiting_are_those_of_the_last_pass(kind, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", clock)
    progress = Progress(kind)
    assert progress.waited == 0.0

    def loader(seconds: float):
        for i in range(4):
            clock.now += seconds
            yield i

    for wait, use, share in ((1.0, 3.0, 0.25), (3.0, 1.0, 0.75), (0.0, 2.0, 0.0)):
        for _ in progress.over(loader(wait), "epoch"):
            clock.now += use
        assert progress.waited == pytest.approx(share)


def test_the_start_of_the_loader_counts_as_waiting(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", clock)

    class Loader:
        def __iter__(self):
            clock.now += 6.0
            return iter([1])

    progress = Progress()
    for _ in progress.over(Loader(), "epoch"):
        clock.now += 2.0
    assert progress.waited == pytest.approx(0.75)


@pytest.mark.parametrize("kind", ["tqdm", "rich"])
@pytest.mark.parametrize("end", ["exhausted", "break", "error in the loop", "error in the data"])
def test_S049_the_bar_is_closed_however_a_pass_ends(kind, end):
    def loader():
        yield 1
        if end == "error in the data":
            raise OSError("a picture is broken")
        yield 2

    def use() -> None:
        for _ in progress.over(loader(), "epoch 1", total=2):
            assert progress.live
            if end == "break":
                break
            if end == "error in the loop":
                raise ValueError("the loss is nan")

    progress, threads = Progress(kind), set(threading.enumerate())
    if end.startswith("error"):
        with pytest.raises((OSError, ValueError)):
            use()
    else:
        use()
    assert not progress.live
    assert not list(tqdm._instances)
    for thread in set(threading.enumerate()) - threads:
        if not isinstance(thread, TMonitor):  # one for all bars; it stays
            thread.join(5)
            assert not thread.is_alive()


@pytest.mark.parametrize("kind", ["tqdm", "rich"])
def test_S049_the_bar_shows_title_place_speed_values_memory_and_waiting(kind, capsys):
    progress = Progress(kind)
    for _ in progress.over(range(4), "epoch 7", start=3):
        progress.show(loss="1.25", lr="1.0e-04")
        time.sleep(0.15)
    printed = capsys.readouterr()
    assert printed.out == ""
    drawn = plain(printed.err)
    assert "epoch 7" in drawn
    assert re.search(r"\b3/7\b", drawn)
    assert re.search(r"\b[56]/7\b", drawn)
    assert re.search(r"\d\.\d+ ?it/s", drawn)
    assert re.search(r"loss 1\.25, lr 1\.0e-04, memory \d+\.\d+G, data \d+%", drawn)


def test_S049_without_a_bar_nothing_is_printed(capsys):
    progress = Progress()
    for _ in progress.over(range(3), "epoch 1"):
        progress.show(loss="1")
        assert not progress.live
    assert capsys.readouterr() == ("", "")


def test_values_of_an_earlier_pass_are_forgotten():
    progress = Progress("tqdm")
    for _ in progress.over(range(1), "epoch 1"):
        progress.show(loss="1.25")
    for _ in progress.over(range(1), "evaluate"):
        assert "loss" not in progress._text()


def test_N033_the_bar_shows_the_memory_of_the_gpu_when_one_is_used(monkeypatch):
    assert re.fullmatch(r"\d+\.\dG", module._memory())
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 5 * 2**29)
    assert module._memory() == "2.5G"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_N033_without_a_gpu_it_is_that_of_the_process():
    assert 0.05 < float(module._memory()[:-1]) < 100


def test_S049_a_missing_rich_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r'rich: pip install "rfdetr\[rich\]"'):
        Progress("rich")


def test_a_loader_without_a_length_is_fine():
    class Stream:
        def __iter__(self):
            return iter("ab")

        def __len__(self):
            raise TypeError("a stream has no length")

    for batches in (iter("ab"), Stream(), (letter for letter in "ab")):
        assert list(Progress("tqdm").over(batches, "epoch")) == ["a", "b"]
