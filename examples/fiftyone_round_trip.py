"""Look at predictions in FiftyOne, correct and tag them there, and train on what it exports.

pip install fiftyone
python examples/fiftyone_round_trip.py path/to/pictures --output from_fiftyone
rfdetr train --dataset-dir from_fiftyone
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fiftyone as fo
from fiftyone.utils.random import random_split

import rfdetr

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("pictures", help="folder of pictures")
parser.add_argument("--weights", help="checkpoint or exported file; default RF-DETR nano")
parser.add_argument("--threshold", type=float, default=0.4)
parser.add_argument("--show", action="store_true", help="open the app, and go on when it is closed")
parser.add_argument("--output", default="from_fiftyone", help="folder of the data set")
options = parser.parse_args()

model = rfdetr.load(options.weights) if options.weights else rfdetr.RFDETRNano()
dataset = fo.Dataset.from_images_dir(options.pictures)
for sample in dataset.iter_samples(autosave=True, progress=True):
    found = model.predict(sample.filepath, threshold=options.threshold)
    height, width = found.metadata["source_image"].shape[:2]
    objects = []
    for (x0, y0, x1, y1), score, name in zip(found.xyxy, found.confidence, found.data["class_name"], strict=True):
        # FiftyOne has the corner and the size, relative to the picture.
        box = [float(x0 / width), float(y0 / height), float((x1 - x0) / width), float((y1 - y0) / height)]
        objects.append(fo.Detection(label=str(name), bounding_box=box, confidence=float(score)))
    sample["rfdetr"] = fo.Detections(detections=objects)
if options.show:
    fo.launch_app(dataset).wait()

random_split(dataset, {"train": 0.8, "valid": 0.2}, seed=0)
classes = dataset.distinct("rfdetr.detections.label")
for split in ("train", "valid"):
    dataset.match_tags(split).export(
        export_dir=str(Path(options.output) / split),
        dataset_type=fo.types.COCODetectionDataset,
        label_field="rfdetr",
        classes=classes,
    )
print(f"{len(dataset)} pictures written to {options.output}")
