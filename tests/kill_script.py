"""Kill a training process at random moments, and compare what its resumed run ends with to an undisturbed one.

Run as a script of its own: it forks, which a process with threads must not. Arguments: data, folder, kills, seed. It
prints one JSON list per kill: when it came, where the newest checkpoint stood, and whether the end was the same.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from rfdetr.datasets.loader import TrainOrder
from rfdetr.training import finish
from rfdetr.training.state import newest
from tests.tiny import TRAINING, tiny_model

OPTIONS: dict[str, Any] = {"epochs": 3, "checkpoint_interval": 2, "drop_path": 0.1, "resume": True, "batch_size": 5}


def train(data: Path, out: Path) -> int:
    """Start a training process and return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.manual_seed(0)
        tiny_model(dec_layers=2).train(dataset_dir=data, output_dir=out, **{**TRAINING, **OPTIONS})
        code = 0
    finally:
        os._exit(code)


def end_of(child: int) -> int:
    """Wait for a process; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def same_end(one: Path, other: Path) -> bool:
    """Whether two runs left the same last and best weights, optimiser state and metrics, bit for bit."""
    for name in ("checkpoint.pth", "checkpoint_best_total.pth", "checkpoint_best_ema.pth", "checkpoint_1.pth"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        if not all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"]):
            return False
        slots = a.get("optimizer", {"state": {}})["state"]
        if not all(torch.equal(v, b["optimizer"]["state"][i][k]) for i, slot in slots.items() for k, v in slot.items()):
            return False
    return (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()


def main(data: Path, folder: Path, kills: int, seed: int) -> None:
    """Print the outcome of every kill."""
    torch.set_num_threads(1)
    TrainOrder.min_steps = 2
    # The picture of the curves takes a third of such a short run.
    finish.plot_history = lambda history, path: None
    rng = random.Random(seed)
    # Of the second run, since the first one finds nothing in the caches of the machine.
    for name in ("first", "undisturbed"):
        started = time.monotonic()
        assert end_of(train(data, folder / name)) == 0
        whole = time.monotonic() - started
    assert same_end(folder / "first", folder / "undisturbed")
    for number in range(kills):
        out = folder / f"killed_{number}"
        moment = rng.uniform(0.05, 1.0) * whole
        child = train(data, out)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        killed = end_of(child) == -signal.SIGKILL
        left = newest(out)
        place = torch.load(left, weights_only=True)["position"] if left else None
        resumed = end_of(train(data, out))
        print(json.dumps([killed, round(moment, 2), place, resumed == 0 and same_end(folder / "undisturbed", out)]))
        shutil.rmtree(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
