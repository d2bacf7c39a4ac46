"""A geometric change of a picture as one matrix, applied to its pixels and to everything of its target.

A change is a projective (3, 3) matrix and the new (height, width). Coordinates are continuous: pixel i covers i to i+1.
Boxes are such coordinates; a keypoint (x, y) counts pixels and lies in the middle of one, at (x + 0.5, y + 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Arrays, but for masks, which are a `MaskStack`.
Target = dict[str, Any]

# Fields of a target with one entry per object.
PER_OBJECT = ("boxes", "labels", "area", "iscrowd", "masks", "keypoints")

Fill = tuple[int, ...]
BLACK: Fill = (0, 0, 0)


def shift_and_scale(x: float = 0, y: float = 0, scale_x: float = 1, scale_y: float = 1) -> np.ndarray:
    """Matrix that scales along the axes (a negative factor mirrors), then shifts by (x, y)."""
    return np.array([[scale_x, 0, x], [0, scale_y, y], [0, 0, 1]], np.float64)


def about_centre(hw: tuple[int, int], linear: np.ndarray, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Matrix of a (2, 2) linear map about the centre of a picture, followed by a shift (x, y)."""
    centre = np.array([hw[1] / 2, hw[0] / 2])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = centre + shift - linear @ centre
    return matrix


def rotation(degrees: float) -> np.ndarray:
    """(2, 2) anticlockwise rotation as seen on the screen, where y points down."""
    # Rounded, so that a quarter turn moves whole pixels.
    cos, sin = np.round((np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))), 12)
    return np.array([[cos, sin], [-sin, cos]])


def from_corners(corners: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Matrix that takes four points (4, 2) to the corners of a picture, from the upper left clockwise."""
    height, width = hw
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, ((0, 0), (width, 0), (width, height), (0, height)), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1).reshape(3, 3)


def shows_whole(matrix: np.ndarray, hw: tuple[int, int], new_hw: tuple[int, int]) -> bool:
    """Whether a change only mirrors, turns by quarters or rescales: the picture fills the new one exactly."""
    whole = np.array([[0, 0], hw[::-1]], np.float32)
    straight = (matrix[0, 0] == matrix[1, 1] == 0 or matrix[0, 1] == matrix[1, 0] == 0) and not matrix[2, :2].any()
    return bool(straight) and np.array_equal(np.sort(_project(whole, matrix), axis=0), [[0, 0], new_hw[::-1]])


def warp_image(image: np.ndarray, matrix: np.ndarray, hw: tuple[int, int], fill: Fill = BLACK) -> np.ndarray:
    """Pixels (H, W, 3) uint8 after a change, bilinear; copied where whole pixels move. `fill` is what lies outside."""
    if _moves_whole_pixels(matrix):
        # NumPy copies reversed pixels one by one, fifty times slower than PyTorch.
        return _copy(torch.from_numpy(image).permute(2, 0, 1), matrix, hw, fill).permute(1, 2, 0).numpy()
    picture = Image.fromarray(torch.from_numpy(image).contiguous().numpy())
    return np.array(_resample(picture, np.linalg.inv(matrix), hw, Image.Resampling.BILINEAR, fill))


def warp_target(
    target: Target,
    matrix: np.ndarray,
    hw: tuple[int, int],
    *,
    whole: bool = False,
    sample: float = 0.5,
    flip_pairs: Sequence[int] = (),
) -> Target:
    """Move everything of a target: the enclosing boxes, masks, keypoints; objects whose box ends empty are dropped.

    Args:
        whole: nothing is cut off (see `shows_whole`): no box is clipped, and areas scale instead of being box areas.
        sample: where in a new pixel the mask is asked: 0.5, its middle; 0, its upper left corner.
        flip_pairs: keypoint indices [a, b, c, d, ...] that a mirroring change swaps: a with b, c with d.
    """
    height, width = hw
    x0, y0, x1, y1 = target["boxes"].T
    corners = _project(np.stack((x0, y0, x1, y0, x1, y1, x0, y1), axis=1).reshape(-1, 4, 2), matrix)
    boxes = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
    if not whole:
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    size = boxes[:, 2:] - boxes[:, :2]
    scale = abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0])
    area = target["area"] * np.float32(scale) if whole else size.prod(1).astype(np.float32)
    moved: Target = {**target, "boxes": boxes, "area": area, "size": np.array(hw, np.int64)}
    if not whole and not (keep := (size > 0).all(1)).all():
        moved = {key: value[keep] if key in PER_OBJECT else value for key, value in moved.items()}
    if "masks" in moved:
        moved["masks"] = moved["masks"].warped(matrix, hw, sample)
    if "keypoints" in moved:
        # A resize scales keypoints as it does boxes, so that they stay inside.
        half = np.float32(0 if np.array_equal(matrix, np.diag(np.diag(matrix))) else 0.5)
        keypoints = moved["keypoints"].copy()
        keypoints[..., :2] = _project(keypoints[..., :2] + half, matrix) - half
        swapped = flip_pairs if np.linalg.det(matrix) < 0 else ()
        # A mirror takes the last fraction of a pixel to just before the first pixel.
        moved["keypoints"] = settle_keypoints(keypoints, hw, swapped, first=-2 * float(half) if whole else 0)
    return moved


def settle_keypoints(
    keypoints: np.ndarray, hw: tuple[int, int], swapped: Sequence[int], first: float = 0
) -> np.ndarray:
    """Moved keypoints (N, K, 3) with zeros for the invisible and those outside first..hw, and pairs exchanged."""
    order = np.arange(keypoints.shape[1])
    order[list(swapped)] = np.reshape(swapped, (-1, 2))[:, ::-1].ravel()
    xy = keypoints[..., :2]
    seen = ((xy >= first) & (xy < np.array(hw[::-1]))).all(axis=-1) & (keypoints[..., 2] > 0)
    return np.where(seen[..., None], keypoints, 0)[:, order]


def _project(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (..., 2) float32 after a change, as float32."""
    (a, b, c), (d, e, f), (g, h, i) = matrix.astype(np.float32)
    x, y = points[..., 0], points[..., 1]
    return np.stack((a * x + b * y + c, d * x + e * y + f), axis=-1) / (g * x + h * y + i)[..., None]


def _moves_whole_pixels(matrix: np.ndarray) -> bool:
    """Whether each pixel lands on a pixel: mirrors, quarter turns, and shifts by integers."""
    turns = np.abs(matrix[:2, :2])
    straight = np.array_equal(turns, np.eye(2)) or np.array_equal(turns, np.eye(2)[::-1])
    return straight and not matrix[2, :2].any() and np.array_equal(matrix[:2, 2], np.round(matrix[:2, 2]))


def _copy(planes: Tensor, matrix: np.ndarray, hw: tuple[int, int], fill: Fill) -> Tensor:
    """Planes (C, H, W) after a change that moves whole pixels."""
    if matrix[0, 0] == 0:
        planes = planes.transpose(1, 2)
    mirrored = matrix[:2, :2].sum(axis=1) < 0  # x, y
    if mirrored.any():
        planes = planes.flip([2 - axis for axis in (0, 1) if mirrored[axis]])
    left, top = (int(matrix[axis, 2]) - (planes.shape[2 - axis] if mirrored[axis] else 0) for axis in (0, 1))
    part = planes[:, max(-top, 0) : max(hw[0] - top, 0), max(-left, 0) : max(hw[1] - left, 0)]
    if part.shape[1:] == hw:
        return part
    moved = planes.new_empty(len(planes), *hw)
    moved[:] = torch.tensor(fill, dtype=planes.dtype).reshape(-1, 1, 1)
    top, left = max(top, 0), max(left, 0)
    moved[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    return moved


def _resample(
    picture: Image.Image, inverse: np.ndarray, hw: tuple[int, int], mode: Image.Resampling, fill: Fill | None
) -> Image.Image:
    """Pillow's transform by the matrix from new to old positions."""
    numbers = (inverse / inverse[2, 2]).ravel()[:8].tolist()
    if numbers[6] == numbers[7] == 0:
        # Half the work where nothing is divided.
        return picture.transform(hw[::-1], Image.Transform.AFFINE, numbers[:6], mode, fillcolor=fill)
    return picture.transform(hw[::-1], Image.Transform.PERSPECTIVE, numbers, mode, fillcolor=fill)
