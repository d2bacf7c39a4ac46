"""The loss of every step of a short run on drawn pictures, to see whether a change of the code changes what is learned.

    python benchmarks/loss_curve.py --weights demo/run/checkpoint_best_total.pth --write before.json   # the old commit
    python benchmarks/loss_curve.py --weights demo/run/checkpoint_best_total.pth --compare before.json # the new one

Everything is drawn from one seed, so that two commits that compute the same have the same curve but for rounding. AdamW
makes full steps of rounding where a gradient is zero, so that its curves part sooner than those of `--optimizer sgd`;
how much a commit differs from itself, a run with another number of `--threads` shows, or one whose first weights are
moved by as much as rounding does (`--perturb 1e-7`).
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


def curve(options: argparse.Namespace, folder: Path) -> list[float]:
    """Losses of the optimiser steps of one epoch, two pictures each, without augmentation."""
    losses: list[float] = []
    RunWatch.sound = lambda self, step, loss, lr: losses.append(loss)
    torch.manual_seed(0)
    if options.weights:
        model = rfdetr.from_checkpoint(options.weights, device="cpu")
    else:
        sizes = {"resolution": options.resolution, "num_classes": 4}
        model = getattr(rfdetr, CLASSES[options.task])(pretrain_weights=None, device="cpu", **sizes)
    with torch.no_grad():
        for parameter in model.model.ready().parameters():
            parameter.mul_(1 + options.perturb * torch.randn_like(parameter))
    hw = (model.model.resolution,) * 2
    draw_dataset(folder / "data", {"train": 2 * options.steps, "valid": 2, "test": 2}, hw=hw)
    model.train(
        dataset_dir=str(folder / "data"),
        output_dir=str(folder / "run"),
        epochs=1,
        batch_size=2,
        grad_accum_steps=1,
        num_workers=0,
        seed=options.seed,
        multi_scale=False,
        optimizer=options.optimizer,
        lr=1e-4 if options.optimizer == "adamw" else 1e-2,
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
    parser.add_argument("--weights", help="checkpoint to start from, such as the demo's; else random weights")
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--perturb", type=float, default=0.0, help="relative noise on the first weights")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        losses = curve(options, Path(folder))
    print(f"{len(losses)} steps, loss from {losses[0]:.4f} to {losses[-1]:.4f}")
    if options.write:
        options.write.write_text(json.dumps(losses))
    if options.compare:
        others = json.loads(options.compare.read_text())
        gaps = [abs(a - b) / abs(b) for a, b in zip(losses, others, strict=True)]
        print(f"largest relative difference {max(gaps):.1e}, at step {gaps.index(max(gaps)) + 1}; last {gaps[-1]:.1e}")


if __name__ == "__main__":
    main()
