"""Results as plain objects for JSON: what `rfdetr predict --json` prints and `rfdetr serve` answers."""

from __future__ import annotations

from typing import Any


def to_objects(result: Any) -> list[dict[str, Any]]:
    """A dict per detection of one picture, in the order of the result.

    Args:
        result: what `predict` returns for it.

    Returns:
        `class_id`, `class_name`, `confidence`, `box` [x1, y1, x2, y2] in pixels, and where there are any `keypoints`
        [[x, y, confidence], ...], `mask` (COCO's {"size": [H, W], "counts": text}) or `polygons` [[[x, y], ...], ...].
    """
    has_points = "xyxy" in result.data
    boxes = result.data["xyxy"] if has_points else result.xyxy
    scores = result.detection_confidence if has_points else result.confidence
    columns: dict[str, Any] = {
        "class_id": result.class_id.tolist(),
        "class_name": list(result.data["class_name"]),
        "confidence": scores.tolist(),
        "box": boxes.tolist(),
    }
    if has_points:
        triples = zip(result.xy.tolist(), result.keypoint_confidence.tolist(), strict=True)
        columns["keypoints"] = [[[*xy, score] for xy, score in zip(*one, strict=True)] for one in triples]
    if "rle" in result.data:
        columns["mask"] = list(result.data["rle"])
    if "polygons" in result.data:
        columns["polygons"] = [[polygon.tolist() for polygon in one] for one in result.data["polygons"]]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
