"""One process that trains again and again, and a session in which no warning is seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny import tiny_data

FIVE = """
import gc, json, sys
from tests.tiny import TRAINING, tiny_model

def resident():
    gc.collect()
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

used = []
for run in range(5):
    model = tiny_model()
    model.train(dataset_dir="data", output_dir=f"run{run}", epochs=1, **TRAINING)
    model.predict("data/valid/valid_00000.jpg", threshold=0.0)
    del model
    used.append(resident())
print(json.dumps(used))
"""
# What a person does in a first session; model and data are small.
SESSION = """
import json
import rfdetr
from tests.tiny import TRAINING, tiny_model

model = tiny_model(num_classes=4)
model.train(dataset_dir="data", output_dir="run", epochs=1, **{**TRAINING, "run_test": True})
model = rfdetr.from_checkpoint("run/checkpoint_best_total.pth", device="cpu")
model.train(dataset_dir="data", output_dir="run", epochs=2, resume=True, **TRAINING)
print(sorted(model.evaluate("data", split="test", report_dir="report", num_workers=0))[:1])
for found in model.predict_stream("data/test", threshold=0.01):
    print(found.name, len(found.result))
exported = rfdetr.load(model.export("exported"))
print(len(exported.predict("data/test/test_00000.jpg", threshold=0.01)))
"""


def run(code: str, folder: Path, *options: str) -> str:
    """What code prints in a fresh interpreter."""
    root = Path(__file__).parents[2]
    setup = f"import sys; sys.path.insert(0, {str(root)!r})\n"
    command = [sys.executable, *options, "-c", setup + code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_five_trainings_in_one_process_take_the_memory_of_one(tmp_path: Path) -> None:
    tiny_data(tmp_path / "data")
    used = json.loads(run(FIVE, tmp_path))
    print("resident MB after each run:", [round(one) for one in used])
    # The first runs bring what is loaded once. A run that kept its network alone would add 20 MB each time.
    assert used[4] - used[2] < 8
    assert used[4] - used[0] < 20


def test_a_first_session_warns_of_nothing(tmp_path: Path) -> None:
    tiny_data(tmp_path / "data")
    # Warnings of others while they are imported are theirs: supervision tells that OpenCV is missing.
    said = run(SESSION, tmp_path, "-W", "error", "-W", "ignore:OpenCV:UserWarning")
    assert "test_00001.jpg" in said
