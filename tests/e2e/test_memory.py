"""Memory of a training step: crowded pictures cost hardly more than others."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# Nano as it is published, two pictures; the peak is that of the whole process, above what it had before the step.
STEP = """
import json, sys
import torch
from rfdetr import RFDETRNano
from rfdetr.models.criterion import Criterion, loss_weights
from rfdetr.training.auto_batch import worst_step
from rfdetr.training.runtime import Runtime

torch.manual_seed(0)
model = RFDETRNano(pretrain_weights=None, device="cpu")
criterion = Criterion(loss_weights(model.model_config.dec_layers))
def peak():
    # Not ru_maxrss: that of a new process begins with what its parent had.
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

before = peak()
worst_step(model.model.model, criterion, Runtime(torch.device("cpu")), 2, 384, int(sys.argv[1]))
after = peak()
print(json.dumps({"peak": after, "before": before}))
"""


@pytest.mark.slow
def test_a_thousand_objects_per_picture_take_at_most_a_third_more_memory_than_twenty() -> None:
    peaks = {}
    for objects in (20, 1000):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", STEP, str(objects)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks[objects] = json.loads(done.stdout)["peak"]
    print(f"peak with 20 objects {peaks[20] / 1024:.0f} MB, with 1000 {peaks[1000] / 1024:.0f} MB")
    assert peaks[1000] <= 1.3 * peaks[20]
