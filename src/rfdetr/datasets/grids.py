"""One picture of a batch as the network gets it, with its boxes, masks and keypoints: to see what training sees."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rfdetr.checkpoints.replacing import replacing
from rfdetr.datasets.network_input import MEAN, STD

MAX_PICTURES = 16
MAX_SIDE = 320


def save_grid(samples: Tensor, targets: list[dict[str, Any]], class_names: dict[int, str], path: Path) -> None:
    """Write the first pictures of a batch, tiled nearly square, as PNG.

    Args:
        samples: (B, 3, H, W) normalised floats.
        targets: boxes (N, 4) relative cxcywh, labels (N,), and if present packed masks (ceil(N / 8), h, w) and relative
            keypoints (N, K, 3), as arrays or tensors.
        class_names: the name of each label; a label without one is written as its number.
    """
    count = min(len(samples), MAX_PICTURES)
    height, width = samples.shape[2:]
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    mean, deviation = (torch.tensor(value).view(-1, 1, 1) for value in (MEAN, STD))
    levels = samples[:count].detach().float().cpu() * deviation + mean
    pixels = (levels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    columns = math.ceil(math.sqrt(count))
    grid = Image.new("RGB", (columns * size[0], -(-count // columns) * size[1]))
    for index in range(count):
        tile = Image.fromarray(pixels[index]).resize(size, Image.Resampling.BILINEAR)
        _draw(tile, {key: torch.as_tensor(value).cpu().numpy() for key, value in targets[index].items()}, class_names)
        grid.paste(tile, (index % columns * size[0], index // columns * size[1]))
    with replacing(path) as handle:
        grid.save(handle, format="PNG")


def _draw(tile: Image.Image, target: dict[str, np.ndarray], class_names: dict[int, str]) -> None:
    pen = ImageDraw.Draw(tile)
    size = np.array(tile.size)
    for index, (box, label) in enumerate(zip(target["boxes"], target["labels"].tolist(), strict=True)):
        colour = _colour(label)
        if "masks" in target:
            mask = Image.fromarray((target["masks"][index // 8] >> index % 8 & 1) * np.uint8(100)).resize(tile.size)
            tile.paste(colour, mask=mask)
        centre, extent = box[:2] * size, box[2:] * size
        (left, top), (right, bottom) = (centre - extent / 2).tolist(), (centre + extent / 2).tolist()
        pen.rectangle((left, top, right, bottom), outline=colour, width=2)
        if "keypoints" in target:
            for x, y, visible in target["keypoints"][index].tolist():
                if visible:
                    pen.circle((x * size[0], y * size[1]), 2, fill=colour, outline="white")
        name = class_names.get(label, str(label))
        # Dark text on the class colour, kept inside the picture.
        text = pen.textbbox((0, 0), name)
        place = max(0, min(left, size[0] - text[2])), max(0, min(top, size[1] - text[3]))
        pen.rectangle(pen.textbbox(place, name), fill=colour)
        pen.text(place, name, fill="black")


def _colour(label: int) -> tuple[int, int, int]:
    """A bright colour far from those of the labels next to it."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.65, 1)
    return round(red * 255), round(green * 255), round(blue * 255)
