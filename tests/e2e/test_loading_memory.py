"""What annotations take in memory: read once, shared by all loading processes, and flat over the epochs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory as Linux counts it"),
]

SCRIPT = """
import json, re, sys
from itertools import islice
from pathlib import Path
import numpy as np
import torch
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.loader import Pictures, TrainOrder, make_loader
from rfdetr.datasets.transforms import TrainTransform

def memory(pid, key):
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(n) for n in re.findall(rf"^{key}: +(\\\\d+)", text, re.M)) / 1024

def children():
    import multiprocessing
    return [process.pid for process in multiprocessing.active_children()]

def main():
    root, context, workers, masks = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "masks"
    steps = 40
    Path("/proc/self/clear_refs").write_text("5")
    start, resident = memory("self", "Pss"), memory("self", "Rss")
    annotations = read_split(root, "train", masks=masks)
    peak = int(re.search(r"VmHWM:\\\\s+(\\\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    read = memory("self", "Pss")
    order = TrainOrder(len(annotations), 8, 0)
    loader = make_loader(Pictures(annotations, TrainTransform((32,))), batch_size=8, order=order, num_workers=workers)
    loader.multiprocessing_context = context
    rss, total, private = [], [], []
    for epoch in range(3):
        order.set_epoch(epoch, first_step=len(order) // 8 - steps)
        for _ in loader:
            pass
        rss.append([memory(pid, "Rss") for pid in children()])
        private.append([memory(pid, "Private_(?:Clean|Dirty)") for pid in children()])
        total.append(sum(memory(pid, "Pss") for pid in ["self", *children()]))
    arrays = [v for part in (annotations, annotations.outlines) if part is not None for v in vars(part).values()]
    size = sum(v.nbytes for v in arrays if isinstance(v, np.ndarray)) / 2**20
    print(json.dumps({"start": start, "peak": peak - resident, "read": read - start, "total": total, "rss": rss,
        "private": private, "arrays": size, "objects": len(annotations.labels)}))

if __name__ == "__main__":
    main()
"""


def draw(root: Path, objects: int, per_picture: int = 7) -> Path:
    """A data set of that many objects; its pictures are hard links to a few files."""
    pictures = objects // per_picture
    folder, rng = root / "train", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(pictures):
        source = folder / f"{i - i % 50_000:012d}.jpg"
        if i % 50_000 == 0:  # a file has a limited number of names
            Image.new("RGB", (64, 48)).save(source)
        else:
            os.link(source, folder / f"{i:012d}.jpg")
    boxes = rng.uniform(1, 20, (objects, 4)).round(2).tolist()
    document = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": 64, "height": 48} for i in range(pictures)],
        "annotations": [
            {
                "id": k,
                "image_id": k % pictures,
                "category_id": k % 80 + 1,
                "bbox": box,
                "area": k % 400 + 0.5,
                "iscrowd": 0,
                "segmentation": [[1.5, 2.5, 10.25, 3.5, 8.25, 9.5]],
            }
            for k, box in enumerate(boxes)
        ],
        "categories": [{"id": i + 1, "name": f"class {i}"} for i in range(80)],
    }
    (folder / "_annotations.coco.json").write_text(json.dumps(document))
    return root


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("million"), 1_000_000)


def measured(tmp_path: Path, root: Path, context: str, workers: int, task: str = "boxes") -> dict:
    script = tmp_path / "measure.py"
    script.write_text(SCRIPT.replace("\\\\", "\\"))
    command = [sys.executable, str(script), str(root), context, str(workers), task]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Polygons are copied once, into the order of the pictures.
@pytest.mark.parametrize(("task", "peak"), [("boxes", 300), ("masks", 480)])
def test_a_million_objects_and_eight_workers(million: Path, tmp_path: Path, task: str, peak: int) -> None:
    found = measured(tmp_path, million, "fork", 8, task)
    print(found)
    assert found["objects"] == 1_000_000
    assert found["peak"] < peak
    # Each process has pages of its own whatever it reads: those of a run on a few pictures are no part of it.
    few = measured(tmp_path, draw(tmp_path / "few", 5000), "fork", 8, task)
    for total, base in zip(found["total"], few["total"], strict=True):
        assert total - found["start"] - (base - few["start"]) < 300
    # The first epoch touches what the workers need.
    for before, after in zip(found["rss"][1], found["rss"][2], strict=True):
        assert after < 1.03 * before


def test_a_spawned_worker_has_no_copy_of_the_arrays(million: Path, tmp_path: Path) -> None:
    found = measured(tmp_path, million, "spawn", 1)
    few = measured(tmp_path, draw(tmp_path / "few", 5000), "spawn", 1)
    print(found, few)
    assert found["arrays"] > 40
    assert found["private"][2][0] - few["private"][2][0] < 0.1 * found["arrays"]
