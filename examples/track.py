"""Follow objects through a video, and draw them with their numbers.

pip install "rfdetr[track]"
python examples/track.py street.mp4 --output tracked.mp4
"""

from __future__ import annotations

import argparse

import supervision as sv
from trackers import ByteTrackTracker

import rfdetr

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("video")
parser.add_argument("--weights", help="checkpoint or exported file; default RF-DETR nano")
parser.add_argument("--threshold", type=float, default=0.4)
parser.add_argument("--output", default="tracked.mp4")
options = parser.parse_args()

model = rfdetr.load(options.weights) if options.weights else rfdetr.RFDETRNano()
info = sv.VideoInfo.from_video_path(options.video)
tracker = ByteTrackTracker(frame_rate=info.fps)
boxes = sv.BoxAnnotator(color_lookup=sv.ColorLookup.TRACK)
labels = sv.LabelAnnotator(color_lookup=sv.ColorLookup.TRACK)
seen: set[int] = set()
with sv.VideoSink(options.output, info) as video:
    for found in model.predict_stream(options.video, threshold=options.threshold, progress=True):
        tracked = tracker.update(found.result)
        # An object has no number before it was seen often enough.
        tracked = tracked[tracked.tracker_id >= 0]
        texts = [f"#{n} {name}" for n, name in zip(tracked.tracker_id, tracked.data["class_name"], strict=True)]
        # The model sees RGB; supervision draws and writes BGR.
        frame = found.picture[..., ::-1].copy()
        video.write_frame(labels.annotate(boxes.annotate(frame, tracked), tracked, texts))
        seen.update(tracked.tracker_id.tolist())
print(f"{len(seen)} objects, drawn in {options.output}")
