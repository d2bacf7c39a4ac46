"""Memory of `predict` on a large picture with many masks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A stand-in for the network finds 300 discs of a diameter in pixels; the peak is measured above what a first prediction
# left behind.
PREDICT = """
import json, os, sys
import numpy as np
import torch
from torch import nn
from rfdetr import RFDETRSegNano
from tests.tiny import MODEL

mask_format, diameter = sys.argv[1], int(sys.argv[2])
HEIGHT, WIDTH, COUNT, CELLS = 3000, 4000, 300, 104

class Found(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        y, x = (torch.rand(2, COUNT, 1, 1) * 0.8 + 0.1)
        place = (torch.arange(CELLS) + 0.5) / CELLS
        away = ((place[:, None] - y) * HEIGHT) ** 2 + ((place - x) * WIDTH) ** 2
        self.masks = (1 - away / (diameter / 2) ** 2)[None]

    def forward(self, images, **_):
        return {"pred_logits": torch.full((1, COUNT, 2), 3.0), "pred_boxes": torch.rand(1, COUNT, 4),
                "pred_masks": self.masks}

torch.manual_seed(0)
model = RFDETRSegNano(**{**MODEL, "resolution": 72, "num_classes": 1, "num_select": 2 * COUNT})
model.model.model = Found()
model.predict(np.zeros((50, 60, 3), np.uint8), mask_format=mask_format)
picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
picture[:] = 1
before = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
found = model.predict(picture, mask_format=mask_format)
# Not ru_maxrss: that of a new process begins with what its parent had.
after = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
print(json.dumps({"count": len(found), "added": after / 1024 - before / 2**20}))
"""


# Discs in a picture of 4000 x 3000: ordinary objects, and large ones, up to a third of the picture.
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of the process from Linux")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask_format", "diameter"), [("dense", 240), ("rle", 240), ("rle", 2400), ("polygon", 240), ("polygon", 1200)]
)
def test_three_hundred_masks_in_twelve_megapixels_take_less_than_half_a_gigabyte(mask_format, diameter) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PREDICT, mask_format, str(diameter)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{mask_format}, {diameter} pixels: {result['added']:.0f} MB")
    assert result["count"] == 300
    assert result["added"] < 500
