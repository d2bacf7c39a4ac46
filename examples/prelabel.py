"""Label pictures with a model, for a label tool to correct: the folder is a data set in the layout of COCO or YOLO.

python examples/prelabel.py path/to/pictures --output prelabelled
(load the folder into your label tool, correct it, export it in the same layout)
rfdetr train prelabelled
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import supervision as sv

import rfdetr

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("pictures", help="folder of pictures")
parser.add_argument("--weights", help="checkpoint or exported file; default RF-DETR nano")
parser.add_argument("--threshold", type=float, default=0.4)
parser.add_argument("--format", choices=("coco", "yolo"), default="coco")
parser.add_argument("--valid", type=float, default=0.2, help="part of the pictures to validate on")
parser.add_argument("--output", default="prelabelled", help="folder of the data set")
options = parser.parse_args()

model = rfdetr.load(options.weights) if options.weights else rfdetr.RFDETRNano()
paths = [str(path) for path in sorted(Path(options.pictures).iterdir()) if path.suffix.lower() in (".jpg", ".png")]
found = {}
for path, one in zip(paths, model.predict_stream(paths, threshold=options.threshold, progress=True), strict=True):
    names = one.result.data["class_name"]
    # The labels of COCO's models are category ids; a data set numbers its classes from 0.
    one.result.class_id = np.array([model.class_names.index(name) for name in names], int)
    found[path] = sv.Detections(one.result.xyxy, one.result.mask, class_id=one.result.class_id)

dataset, output = sv.DetectionDataset(list(model.class_names), paths, found), Path(options.output)
splits = dict(zip(("valid", "train"), dataset.split(options.valid, random_state=0), strict=True))
for split, part in splits.items():
    folder = output / split
    if options.format == "coco":
        part.as_coco(str(folder), str(folder / "_annotations.coco.json"))
    else:
        part.as_yolo(str(folder / "images"), str(folder / "labels"), str(output / "data.yaml"))
print(f"{sum(map(len, found.values()))} objects in {len(paths)} pictures, written to {output}")
