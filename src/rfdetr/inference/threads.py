"""How many threads a forward pass takes on a machine that others use at the same time."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_LOAD, _TASKS = Path("/proc/loadavg"), Path("/proc/self/task")
# What the last looks saw: a moment's burst of another program is no reason to give way.
_seen: deque[int] = deque(maxlen=3)


@contextmanager
def polite_threads() -> Iterator[None]:
    """Inside, PyTorch takes as many threads as there are cores that nothing else runs on, and at least one.

    A team of threads waits for its slowest member: two on a core that is shared are slower than one. Nothing outlasts
    the block, and nothing happens where Linux does not tell what is running, or where results have to be deterministic:
    their last bits can depend on the number of threads.
    """
    wanted = torch.get_num_threads()
    fair = wanted
    if wanted > 1 and not torch.are_deterministic_algorithms_enabled():
        fair = max(1, min(wanted, (os.cpu_count() or 1) - _others()))
    if fair == wanted:
        yield
        return
    torch.set_num_threads(fair)
    # Threads that use PyTorch for the first time meanwhile would take this number over for good. What another thread
    # sets is theirs, and leaves this one alone.
    teller = threading.Thread(target=torch.set_num_threads, args=(wanted,))
    teller.start()
    teller.join()
    try:
        yield
    finally:
        torch.set_num_threads(wanted)


def _others() -> int:
    """Threads of other programs that run or could run now, and did so at the last looks."""
    if not _LOAD.is_file():
        return 0
    if not _seen:
        for _ in range(2):
            _seen.append(_look())
            time.sleep(0.001)
    _seen.append(_look())
    return min(_seen)


def _look() -> int:
    running = int(_LOAD.read_text().split()[3].partition("/")[0])
    return max(0, running - _own(running))


def _own(most: int) -> int:
    """How many of the running threads are of this process; this one is."""
    if most <= 1:
        return 1
    count = 0
    for task in _TASKS.iterdir():
        with suppress(OSError):  # a thread that has just ended
            count += (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    return max(1, count)
