"""Exported files beside the model they were made of: detections as sets, alone and in batches.

    python benchmarks/exports.py CHECKPOINT PICTURES [--formats onnx,openvino] [--threshold 0.1]

PICTURES is a folder, such as the validation pictures of `make demo`. Prints, for each format and number of pictures at
once, how many detections above the threshold have a partner within 0.01 pixels and 0.0001 of the score, and the largest
differences among them.
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np

import rfdetr
from rfdetr.export.check import Tolerance, compare
from rfdetr.inference.images import load_images
from rfdetr.inference.results import select

PIXELS, SCORE, MASK = 1e-2, 1e-4, 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("pictures")
    parser.add_argument("--formats", default="onnx,openvino")
    parser.add_argument("--threshold", type=float, default=0.1)
    parser.add_argument("--most", type=int, default=48, help="pictures that are compared")
    options = parser.parse_args()
    model = rfdetr.load(options.checkpoint, device="cpu")
    pictures = [picture for picture, _ in zip(load_images(options.pictures)[0], range(options.most), strict=False)]
    tolerance = Tolerance(PIXELS / max(max(picture.shape[:2]) for picture in pictures), SCORE, MASK, 1.0)
    wanted = found_by(model, pictures, 1, options.threshold)
    print(f"{len(pictures)} pictures, detections above {options.threshold}")
    print(f"{'file':<24}{'at once':>8}{'detections':>12}{'matched':>10}{'px':>10}{'score':>10}{'mask':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.formats.split(","):
            exported = rfdetr.load(model.export(folder, format=name, verbose=False))
            for count in (1, 3, 8):
                parity = compare(
                    wanted,
                    found_by(exported, pictures, count, options.threshold),
                    pictures,
                    tolerance,
                    model.model_config.num_select,
                )
                print(
                    f"{exported.path.name:<24}{count:>8}{parity.detections:>12}{parity.matched:>10.2%}"
                    f"{parity.max_box_px:>10.5f}{parity.max_score:>10.6f}{parity.max_mask:>8.4f}"
                )


def found_by(model, pictures: list[np.ndarray], count: int, threshold: float) -> list[dict[str, np.ndarray]]:
    """What a model finds, `count` pictures at once."""
    runner = model._runner()
    found = []
    for start in range(0, len(pictures), count):
        found += runner.detect(pictures[start : start + count], runner.hw, threshold)
    return [select(one, threshold, runner.labels.hidden) for one in found]


if __name__ == "__main__":
    main()
