"""Draw a YOLO data set of coins and bolts, and a video of them: `python examples/draw_yolo.py parts`."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, NAMES = 320, 240, ("coin", "bolt")
rng = np.random.default_rng(0)


def draw(things: list[tuple[int, float, float, float]]) -> Image.Image:
    """A picture of (class, centre x, centre y, radius) in pixels on a workbench."""
    grain = rng.integers(0, 30, (HEIGHT, 1, 1)) + rng.integers(0, 25, (HEIGHT, WIDTH, 1))
    picture = Image.fromarray((np.array([96, 72, 52]) + grain).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for kind, x, y, radius in things:
        sides, colour = (60, (200, 170, 60)) if kind == 0 else (6, (150, 155, 165))
        pen.regular_polygon((x, y, radius), sides, rotation=int(x), fill=colour, outline=(40, 35, 30))
        pen.ellipse((x - radius / 2, y - radius / 2, x + radius / 2, y + radius / 2), outline=(70, 60, 50))
    return picture


def some(count: int) -> list[tuple[int, float, float, float]]:
    """Things at random places, far enough from the border and in columns of their own."""
    columns = rng.permutation(5)[:count] * 56 + 48
    return [(int(rng.integers(2)), x + rng.uniform(-8, 8), rng.uniform(40, 200), rng.uniform(16, 26)) for x in columns]


root = Path(sys.argv[1])
for split, count in {"train": 160, "valid": 24, "test": 24}.items():
    for i in range(count):
        things = some(int(rng.integers(1, 5)))
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        draw(things).save(root / "images" / split / f"{i:03}.jpg", quality=92)
        rows = [f"{k} {x / WIDTH} {y / HEIGHT} {2 * r / WIDTH} {2 * r / HEIGHT}\n" for k, x, y, r in things]
        (root / "labels" / split / f"{i:03}.txt").write_text("".join(rows))
splits = "".join(f"{split}: images/{split}\n" for split in ("train", "valid", "test"))
(root / "data.yaml").write_text(f"{splits.replace('valid:', 'val:', 1)}names: [{', '.join(NAMES)}]\n")
with av.open(root / "belt.mp4", "w") as video:
    stream = video.add_stream("mpeg4", rate=10, width=WIDTH, height=HEIGHT, pix_fmt="yuv420p")
    for shift in range(40):
        moving = [(k, (x + 8 * shift) % 416 - 48, 70 + 50 * k, 22) for k, x in ((0, 60), (1, 150), (0, 240), (1, 330))]
        video.mux(stream.encode(av.VideoFrame.from_image(draw(moving))))
    video.mux(stream.encode())
