"""This package and the published one, measured in turn in one session; prints ratios (below 1: ours is faster).

    python benchmarks/compare.py --published /path/to/other/venv/bin/python

The other environment holds the published package (`pip install "rfdetr[train]"`), so that neither touches the other.
Each task runs alternately on both sides; the ratio is that of the fastest rounds, for wall and for CPU time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
IMPORT = """
import time, sys
start, cpu = time.perf_counter(), time.process_time()
sys.argv = ["worker", "1"]
sys.path.insert(0, {folder!r})
import torch
import worker
from rfdetr import RFDETRNano
import json
print(json.dumps({{"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}}))
"""
# name, request of one round, rounds
SIZES = {"480x640": (480, 640), "1080x1920": (1080, 1920), "2160x3840": (2160, 3840)}
# From the start of the process to the first detection, with weights that are on the disk.
START = {
    "ours": "import rfdetr; found = rfdetr.load({file!r}).predict(picture())",
    "published": "from worker import make_model; found = make_model('nano', {weights!r}).predict(picture())",
}
START_FRAME = """
import sys
sys.argv = ["worker", "{threads}"]
sys.path.insert(0, {folder!r})
def picture():
    import numpy
    return numpy.zeros((480, 640, 3), numpy.uint8)
{code}
assert len(found) >= 0
"""
SPIN = "while True: pass"


class Side:
    """One package in its own process."""

    def __init__(self, python: str, threads: int, device: str, precision: str) -> None:
        self.python, self.device = python, device
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), str(threads), device, precision],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.about = json.loads(self.process.stdout.readline())

    def ask(self, task: str, **request: object) -> dict:
        self.process.stdin.write(json.dumps({"task": task, **request}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise SystemExit(f"{self.python}: {task} failed: {answer['error']}")
        return answer


def import_time(python: str) -> dict:
    """A fresh process that imports the package and its first class."""
    code = IMPORT.format(folder=str(HERE))
    result = subprocess.run([python, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(result.stdout.strip().splitlines()[-1])


def show(name: str, cells: Sequence[str]) -> None:
    print(f"{name:36s}" + "".join(f"{cell:>12s}" for cell in cells), flush=True)


def rows(name: str, pairs: list[tuple[dict, dict]]) -> dict:
    best = {
        (side, clock): min(pair[i][clock] for pair in pairs)
        for i, side in enumerate(("ours", "published"))
        for clock in ("wall", "cpu")
    }
    row = {"task": name, **{f"{side}_{clock}": value for (side, clock), value in best.items()}}
    for clock in ("wall", "cpu"):
        row[f"ratio_{clock}"] = best["ours", clock] / best["published", clock]
    ours, published = ([best[side, clock] * 1e3 for clock in ("wall", "cpu")] for side in ("ours", "published"))
    cells = [ours[0], published[0], row["ratio_wall"], ours[1], published[1], row["ratio_cpu"]]
    if "peak" in pairs[0][0]:
        row |= {f"{side}_peak": max(pair[i]["peak"] for pair in pairs) for i, side in enumerate(("ours", "published"))}
        cells += [row["ours_peak"], row["published_peak"]]
    show(name, [f"{cell:.2f}" for cell in cells])
    return row


def in_turn(sides: tuple[Side, Side], name: str, rounds: int, task: str, compare: str | None = None, **request) -> dict:
    pairs = [tuple(side.ask(task, **request) for side in sides) for _ in range(rounds)]
    if compare:
        ours, theirs = (pairs[0][i][compare] for i in (0, 1))
        gap = (
            max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) if isinstance(ours, list) else abs(ours - theirs)
        )
        # Points of masks are drawn, so that losses of masks are never quite the same.
        allowed = 1e-2 if "seg" in name else 1e-3
        if gap > allowed * max(1.0, abs(ours) if not isinstance(ours, list) else 1.0):
            raise SystemExit(f"{name}: the outputs differ by {gap}; timing different work says nothing")
    return rows(name, pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", required=True, help="python of an environment with the published package")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of training steps")
    parser.add_argument("--only", default="", help="run only tasks whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    found = []

    def wanted(name: str) -> bool:
        return options.only in name

    settings = {name: getattr(options, name) for name in ("device", "precision", "threads", "rounds")}
    print(", ".join(f"{name} {value}" for name, value in settings.items()) + f", load {os.getloadavg()[0]:.1f}")
    show("task", ("ours ms", "publ. ms", "ratio", "ours cpu ms", "publ. cpu ms", "ratio", "ours MB", "publ. MB"))
    if wanted("import"):
        pythons = (sys.executable, options.published)
        found.append(rows("import", [tuple(import_time(python) for python in pythons) for _ in range(3)]))
    where = (options.threads, options.device, options.precision)
    sides = (Side(sys.executable, *where), Side(options.published, *where))
    with tempfile.TemporaryDirectory() as folder:
        found += measure(sides, Path(folder), options.rounds, wanted, options.threads)
    if options.json:
        options.json.write_text(
            json.dumps({**settings, "sides": [side.about for side in sides], "rows": found}, indent=2)
        )


def measure(sides: tuple[Side, Side], folder: Path, rounds: int, wanted, threads: int) -> list[dict]:
    found = []
    for size in ("nano", "base", "seg-nano", *(["medium"] if sides[0].device == "cuda" else [])):
        weights = str(folder / f"{size}.pth")
        sides[0].ask("save_weights", size=size, path=weights)
        if wanted(f"construction {size}"):
            found.append(in_turn(sides, f"construction {size}", 3, "construct", size=size, weights=weights))
        found += measure_predict(sides, size, weights, rounds, wanted)
        if size == "nano" and wanted("start"):
            found.append(measure_start(sides, folder, weights, threads, rounds))
        found += measure_steps(sides, size, weights, rounds, wanted)
    if wanted("epoch nano"):
        found.append(measure_epoch(sides, folder, "nano", *((16, 384) if sides[0].device == "cuda" else (2, 96))))
    if wanted("evaluate seg-nano"):
        found.append(measure_evaluation(sides, folder, "seg-nano", 2))
    if wanted("loader"):
        found += measure_loader(sides, folder)
    return found


def measure_steps(sides: tuple[Side, Side], size: str, weights: str, rounds: int, wanted) -> list[dict]:
    resolution, found = {"nano": 384, "medium": 576, "seg-nano": 312}.get(size), []
    batches = (4, 16) if sides[0].device == "cuda" else (2, 4)
    names = {batch: f"training step {size} batch {batch}" for batch in batches if resolution}
    if any(wanted(name) for name in (*names.values(), f"training step {size} operators")):
        for side in sides:
            side.ask("prepare_step", size=size, weights=weights)
    for batch, name in names.items():
        if wanted(name):
            request = {"size": size, "batch": batch, "resolution": resolution}
            found.append(in_turn(sides, name, rounds, "step", "loss", **request))
            if sides[0].device == "cuda":
                found += measure_best_steps(sides, name, weights, rounds, request)
    if resolution and wanted(f"training step {size} operators"):
        counts = [side.ask("operators", size=size, batch=2, resolution=resolution) for side in sides]
        ours, published = (sum(one.values()) for one in counts)
        print(f"  operators: ours {counts[0]}, published {counts[1]}, {ours} and {published}, {ours / published:.2f}")
    return found


def measure_best_steps(sides: tuple[Side, Side], name: str, weights: str, rounds: int, request: dict) -> list[dict]:
    """Both compiled: minutes at the first step."""
    for side in sides:
        side.ask("prepare_step", size=request["size"], weights=weights, best=True)
    return [in_turn(sides, f"{name} (both best)", rounds, "step", "loss", best=True, **request)]


def measure_epoch(sides: tuple[Side, Side], folder: Path, size: str, batch: int, resolution: int) -> dict:
    """What an epoch takes that comes second: the difference between runs of two epochs and of one."""
    from rfdetr.datasets.synthetic import draw_dataset

    draw_dataset(folder / "epoch", {"train": 10 * batch, "valid": 2 * batch, "test": 2}, hw=(480, 640))
    request = {"size": size, "weights": str(folder / f"{size}.pth"), "batch": batch, "resolution": resolution}
    taken = []
    for side in sides:
        one, two = (side.ask("epochs", folder=str(folder / "epoch"), count=count, **request) for count in (1, 2))
        taken.append({clock: two[clock] - one[clock] for clock in ("wall", "cpu")})
    return rows(f"epoch of {10 * batch} pictures, {size} {resolution}", [tuple(taken)])


def measure_evaluation(sides: tuple[Side, Side], folder: Path, size: str, rounds: int) -> dict:
    """A validation pass over 200 drawn pictures, everything that belongs to it included."""
    from rfdetr.datasets.synthetic import draw_dataset

    draw_dataset(folder / "judged", {"train": 4, "valid": 4, "test": 200}, hw=(480, 640))
    for side in sides:
        side.ask("prepare_evaluate", size=size, weights=str(folder / f"{size}.pth"))
    return in_turn(sides, f"evaluate {size} 200 pictures", rounds, "evaluate", size=size, folder=str(folder / "judged"))


def start_time(python: str, code: str, threads: int) -> dict:
    """A fresh process up to its first detection."""
    import resource
    import time

    script = START_FRAME.format(folder=str(HERE), code=code, threads=threads)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([python, "-W", "ignore", "-c", script], capture_output=True, check=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def measure_start(sides: tuple[Side, Side], folder: Path, weights: str, threads: int, rounds: int) -> dict:
    """Our exported file against the published package's checkpoint."""
    file = sides[0].ask("export", size="nano", weights=weights, folder=str(folder / "exported"))["path"]
    codes = (START["ours"].format(file=file), START["published"].format(weights=weights))
    pairs = [
        tuple(start_time(side.python, code, threads) for side, code in zip(sides, codes, strict=True))
        for _ in range(rounds)
    ]
    return rows("start to first detection (ours: ONNX)", pairs)


@contextlib.contextmanager
def spinning(count: int) -> Iterator[None]:
    """Other programs that keep cores busy."""
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure_predict(sides: tuple[Side, Side], size: str, weights: str, rounds: int, wanted) -> list[dict]:
    found = []
    if not wanted(f"predict {size}"):
        return found
    for side in sides:
        side.ask("prepare_predict", size=size, weights=weights)
    eight = {"size": size, "height": 480, "width": 640, "count": 8}
    for name, (height, width) in SIZES.items():
        request = {"size": size, "height": height, "width": width}
        found.append(in_turn(sides, f"predict {size} {name}", rounds, "predict", "scores", **request))
    found.append(in_turn(sides, f"predict {size} 480x640, list of 8", max(2, rounds // 2), "predict", **eight))
    for task in ("overhead",) if wanted(f"predict {size} overhead") else ():
        shares = [sides[0].ask(task, size=size) for _ in range(rounds)]
        predict, forward = (min(share[key] for share in shares) for key in ("predict", "forward"))
        print(
            f"  predict {size}: {predict * 1e3:.1f} ms, its forward pass {forward * 1e3:.1f}, {predict / forward:.3f}"
        )
    if wanted(f"predict {size} busy"):
        with spinning(2):
            request = {"size": size, "height": 480, "width": 640}
            found.append(in_turn(sides, f"predict {size} 480x640, two busy", rounds, "predict", **request))
    if wanted(f"predict {size} openvino"):
        sides[0].ask("prepare_predict", size=size, weights=weights, backend="openvino")
        for name, (height, width) in SIZES.items():
            request = {"size": size, "height": height, "width": width}
            pairs = [
                (sides[0].ask("predict", backend="openvino", **request), sides[1].ask("predict", **request))
                for _ in range(rounds)
            ]
            found.append(rows(f"predict {size} {name} (openvino)", pairs))
    sides[1].ask("prepare_predict", size=size, weights=weights, best=True)
    for name, (height, width) in SIZES.items():
        request = {"size": size, "height": height, "width": width}
        pairs = [
            (sides[0].ask("predict", **request), sides[1].ask("predict", best=True, **request)) for _ in range(rounds)
        ]
        found.append(rows(f"predict {size} {name} (publ. best)", pairs))
    return found


def measure_loader(sides: tuple[Side, Side], folder: Path) -> list[dict]:
    from rfdetr.datasets.synthetic import draw_dataset

    draw_dataset(folder / "data", {"train": 240, "valid": 4, "test": 4}, hw=(480, 640))
    found = []
    for workers in (0, 2):
        for side in sides:
            side.ask("prepare_loader", folder=str(folder / "data"), workers=workers)
            side.ask("loader", workers=workers)  # the start of the processes is no part of an epoch
        row = in_turn(sides, f"loader per picture, {workers} workers", 3, "loader", workers=workers)
        found.append(row)
        for clock in ("wall", "cpu"):
            ours, published = (1 / row[f"{side}_{clock}"] for side in ("ours", "published"))
            print(
                f"  pictures per {clock} second: {ours:.0f} and {published:.0f}, {ours / published:.2f} times as many"
            )
    return found


if __name__ == "__main__":
    main()
