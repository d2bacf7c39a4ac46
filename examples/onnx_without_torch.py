"""Find objects with an exported file, without PyTorch and this package: NumPy, ONNX Runtime, and Pillow to read.

rfdetr export nano            # where the package is; writes output/inference_model.onnx
python examples/onnx_without_torch.py output/inference_model.onnx path/to/pictures
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", help="what export() wrote with format='onnx'")
parser.add_argument("pictures", help="folder of pictures")
parser.add_argument("--threshold", type=float, default=0.5)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, without smoothing, as the network was trained: (H, W, 3) -> (height, width, 3)."""
    for axis, size in ((0, height), (1, width)):
        length = image.shape[axis]
        place = ((np.arange(size, dtype=np.float32) + 0.5) * np.float32(length / size) - 0.5).clip(0)
        first = np.minimum(place.astype(int), length - 1)
        share = (place - first).reshape(-1, *[1] * (2 - axis)).astype(np.float32)
        image = image.take(first, axis) * (1 - share) + image.take(np.minimum(first + 1, length - 1), axis) * share
    return image


options = parser.parse_args()
session = onnxruntime.InferenceSession(options.file)
told = session.get_modelmeta().custom_metadata_map
names = ("class_names", "class_labels", "hidden_labels", "num_select", "mean", "std")
about = {name: json.loads(told[name]) for name in names}
name_of = dict(zip(about["class_labels"], about["class_names"], strict=True))
height, width = session.get_inputs()[0].shape[2:]
for path in sorted(Path(options.pictures).glob("*.[jp][pn]g")):
    picture = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    image = (resize(picture, height, width) - np.float32(about["mean"])) / np.float32(about["std"])
    boxes, logits = session.run(["dets", "labels"], {"input": image.transpose(2, 0, 1)[None]})
    scores = 1 / (1 + np.exp(-logits[0]))
    best = sorted(np.argwhere(scores > options.threshold).tolist(), key=lambda pair: -scores[tuple(pair)])
    for query, label in best[: about["num_select"]]:
        if label not in about["hidden_labels"]:
            middle, sides = boxes[0, query, :2], boxes[0, query, 2:]
            corners = np.concatenate((middle - sides / 2, middle + sides / 2)).clip(0, 1)
            box = np.round(corners * [*picture.shape[1::-1], *picture.shape[1::-1]], 2).tolist()
            print(path.name, name_of.get(label, label), f"{scores[query, label]:.4f}", *box)
