"""The loss of every step of a short run on drawn pictures, to see whether a change of the code changes what is learned.

    python benchmarks/loss_curve.py --write before.json     # on the old commit
    python benchmarks/loss_curve.py --compare before.json   # on the new one

Everything is drawn from one seed, so that two commits that compute the same have the same curve but for rounding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

import rfdetr
from rfdetr.datasets.synthetic import draw_dataset
from rfdetr.training.watch import RunWatch

CLASSES = {"detect": "RFDETRNano", "segment": "RFDETRSegNano"}


def curve(task: str, steps: int, resolution: int, folder: Path) -> list[float]:
    """Losses of the optimiser steps of one epoch, two pictures each, without augmentation."""
    losses: list[float] = []
    RunWatch.sound = lambda self, step, loss, lr: losses.append(loss)
    draw_dataset(folder / "data", {"train": 2 * steps, "valid": 2, "test": 2}, hw=(resolution, resolution))
    torch.manual_seed(0)
    model = getattr(rfdetr, CLASSES[task])(pretrain_weights=None, resolution=resolution, num_classes=4, device="cpu")
    model.train(
        dataset_dir=str(folder / "data"),
        output_dir=str(folder / "run"),
        epochs=1,
        batch_size=2,
        grad_accum_steps=1,
        num_workers=0,
        seed=1,
        multi_scale=False,
        aug_config={},
        run_test=False,
        tensorboard=False,
        progress_bar=None,
        dont_save_weights=True,
    )
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=CLASSES, default="detect")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--resolution", type=int, default=192)
    parser.add_argument("--write", type=Path, help="file for the losses")
    parser.add_argument("--compare", type=Path, help="file of another commit")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        losses = curve(options.task, options.steps, options.resolution, Path(folder))
    print(f"{len(losses)} steps, loss from {losses[0]:.4f} to {losses[-1]:.4f}")
    if options.write:
        options.write.write_text(json.dumps(losses))
    if options.compare:
        others = json.loads(options.compare.read_text())
        gaps = [abs(a - b) / abs(b) for a, b in zip(losses, others, strict=True)]
        print(f"largest relative difference {max(gaps):.1e}, at step {gaps.index(max(gaps)) + 1}; last {gaps[-1]:.1e}")


if __name__ == "__main__":
    main()
