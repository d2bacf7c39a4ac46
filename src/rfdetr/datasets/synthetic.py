"""Drawn data: pictures of coloured shapes with exact labels in COCO form, for the demo, the tests and benchmarks."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star")
# Middle of the hues of each shape, in turns: as with road signs, colour and outline go together.
HUES = {"circle": 0.0, "square": 0.6, "triangle": 0.15, "star": 0.35, "dart": 0.6}
# Shapes whose corners are keypoints: their names in the order of the outline, and the lines between them from 1 on.
KEYPOINTS = {"dart": (("nose", "right_wing", "tail", "left_wing"), ((1, 2), (2, 3), (3, 4), (4, 1)))}
# Corners of a dart that points upwards: their angles in turns, and their distances from the middle.
_DART = np.array([0.75, 0.11, 0.25, 0.39]), np.array([1.0, 0.9, 0.5, 0.9])
# How far shapes with keypoints lean to either side at most: their ends have to be told apart, as those of people are.
_LEAN = np.deg2rad(25)
# Pictures are drawn larger and reduced, which smooths the edges.
_OVERSAMPLE = 3


def outline(shape: str, centre: tuple[float, float], radius: float, angle: float) -> np.ndarray:
    """Corner points (n, 2) in pixels of a shape whose points lie at most `radius` from its centre."""
    if shape == "dart":
        turn, reach = angle + 2 * np.pi * _DART[0], _DART[1]
    else:
        corners = {"circle": 32, "square": 4, "triangle": 3, "star": 10}[shape]
        turn = angle + np.arange(corners) * (2 * np.pi / corners)
        reach = np.where(np.arange(corners) % 2, 0.45, 1.0) if shape == "star" else np.ones(corners)
    return np.array(centre) + radius * reach[:, None] * np.stack((np.cos(turn), np.sin(turn)), axis=1)


def draw_picture(
    rng: np.random.Generator, hw: tuple[int, int], max_objects: int, shapes: Sequence[str] = SHAPES
) -> tuple[Image.Image, list[tuple[int, np.ndarray]]]:
    """A picture of size (height, width) and its objects, each a label and the corner points (n, 2) of its outline."""
    height, width = hw
    canvas = _background(rng, height, width)
    pen = ImageDraw.Draw(canvas)
    objects: list[tuple[int, np.ndarray]] = []
    boxes = np.zeros((0, 4))
    for _ in range(int(rng.integers(1, max_objects + 1))):
        label = int(rng.integers(len(shapes)))
        radius = float(rng.uniform(0.12, 0.28)) * min(hw)
        centre = (float(rng.uniform(radius, width - radius)), float(rng.uniform(radius, height - radius)))
        turn = _LEAN if shapes[label] in KEYPOINTS else np.pi
        points = outline(shapes[label], centre, radius, float(rng.uniform(-turn, turn)))
        box = np.concatenate((points.min(0), points.max(0)))
        # Later shapes lie on top, so one that would hide another is left out.
        if len(boxes) and _covered(boxes, box).max() > 0.3:
            continue
        pen.polygon([tuple(point * _OVERSAMPLE) for point in points], fill=_colour(rng, shapes[label]))
        boxes = np.concatenate((boxes, box[None]))
        objects.append((label, points))
    small = canvas.resize((width, height), Image.Resampling.BOX)
    noise = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(small) + noise, 0, 255).astype(np.uint8)), objects


def _colour(rng: np.random.Generator, shape: str) -> tuple[int, int, int]:
    """A colour near the hue of a shape, from dull to bright."""
    hue = (HUES[shape] + rng.uniform(-0.05, 0.05)) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def _background(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Soft patches of random colour."""
    patches = rng.integers(40, 216, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width * _OVERSAMPLE, height * _OVERSAMPLE), Image.Resampling.BICUBIC)


def _covered(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Share of the smaller of two boxes that the other one covers, for each of `boxes` (n, 4) xyxy."""
    size = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = size.clip(min=0).prod(1)
    return shared / np.minimum((boxes[:, 2:] - boxes[:, :2]).prod(1), (box[2:] - box[:2]).prod())


def draw_dataset(
    folder: Path,
    splits: Mapping[str, int],
    *,
    hw: tuple[int, int] = (160, 160),
    max_objects: int = 5,
    seed: int = 0,
    shapes: Sequence[str] = SHAPES,
    suffix: str = ".jpg",
) -> Path:
    """Draw a data set in the Roboflow COCO layout: `<split>/_annotations.coco.json` beside its pictures.

    Args:
        splits: number of pictures by split name, such as `{"train": 320, "valid": 48}`.
        hw: height and width of the pictures.
    """
    for number, (split, count) in enumerate(splits.items()):
        target = folder / split
        target.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for index in range(count):
            rng = np.random.default_rng((seed, number, index))
            picture, objects = draw_picture(rng, hw, max_objects, shapes)
            name = f"{split}_{index:05d}{suffix}"
            picture.save(target / name, quality=92)
            images.append({"id": index + 1, "file_name": name, "height": hw[0], "width": hw[1]})
            annotations += [
                _annotation(index + 1, label, points, shapes[label] in KEYPOINTS) for label, points in objects
            ]
        for annotation_id, annotation in enumerate(annotations, 1):
            annotation["id"] = annotation_id
        categories = [_category(i, name) for i, name in enumerate(shapes, 1)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (target / "_annotations.coco.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def _category(category_id: int, name: str) -> dict[str, object]:
    names, lines = KEYPOINTS.get(name, ((), ()))
    keypoints = {"keypoints": names, "skeleton": lines} if names else {}
    return {"id": category_id, "name": name, "supercategory": "shape", **keypoints}


def _annotation(image_id: int, label: int, points: np.ndarray, has_keypoints: bool) -> dict[str, object]:
    low, high = points.min(0), points.max(0)
    x, y = points.T
    area = 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
    seen = [round(float(v), 2) for x, y in points for v in (x, y, 2)]
    keypoints = {"keypoints": seen, "num_keypoints": len(points)} if has_keypoints else {}
    return {
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": [round(float(v), 3) for v in (*low, *(high - low))],
        "area": round(area, 3),
        "iscrowd": 0,
        "segmentation": [[round(float(v), 2) for v in points.reshape(-1)]],
        **keypoints,
    }
