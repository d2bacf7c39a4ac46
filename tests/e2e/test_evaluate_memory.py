"""The memory of an evaluation does not grow with the size of the pictures, but for the one that is being decoded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, torch
from tests.tiny import tiny_segmenter

def peak():
    # Not ru_maxrss: that of a new process begins with what its parent had.
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

torch.manual_seed(0)
model = tiny_segmenter(num_classes=3, num_queries=40, num_select=40)
with torch.no_grad():
    model.model.model.mask_head.bias.fill_(-0.5)
small, folder = sys.argv[1:]
model.evaluate(small, split="val", num_workers=0)
before = peak()
metrics = model.evaluate(folder, split="val", num_workers=0)
print((peak() - before) / 2**10)
"""


def draw(folder: Path, side: int, pictures: int = 4, objects: int = 40) -> Path:
    """Large discs, which a dense mask each would be 16 MB at 4096 pixels."""
    (folder / "valid").mkdir(parents=True)
    rng, images, annotations = np.random.default_rng(0), [], []
    circle = np.stack((np.cos(np.arange(60) / 9.55), np.sin(np.arange(60) / 9.55)), axis=1)
    for i in range(pictures):
        noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        noise.resize((side, side)).save(folder / "valid" / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "width": side, "height": side})
        for _ in range(objects):
            points = circle * rng.uniform(0.05, 0.2) * side + rng.uniform(0.25, 0.75, 2) * side
            (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
            one = {"id": len(annotations), "image_id": i, "category_id": 1 + len(annotations) % 3, "iscrowd": 0}
            one |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0) * 0.785}
            annotations.append({**one, "segmentation": [points.ravel().tolist()]})
    document = {"images": images, "annotations": annotations}
    document["categories"] = [{"id": 1 + k, "name": name} for k, name in enumerate("abc")]
    (folder / "valid" / "_annotations.coco.json").write_text(json.dumps(document))
    return folder


@pytest.mark.slow
def test_large_pictures_need_no_more_memory(tmp_path: Path) -> None:
    small, large = draw(tmp_path / "512", 512), draw(tmp_path / "4096", 4096)
    command = [sys.executable, "-c", SCRIPT, str(small), str(large)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    # One decoded picture has 48 MiB; 160 dense masks would have 2560.
    assert float(done.stdout) < 160
