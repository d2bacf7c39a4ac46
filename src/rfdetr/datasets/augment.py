"""What the transforms of `aug_config` do, by the names of Albumentations. The global random state is never touched."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from rfdetr.datasets import geometry
from rfdetr.datasets.aug_configs import Config, Entry, read_config
from rfdetr.datasets.geometry import PER_OBJECT, Target, about_centre, rotation, shift_and_scale
from rfdetr.datasets.masks import HW, MaskStack
from rfdetr.datasets.transforms import resize, resize_target

Pair = tuple[float, float]
Rng = np.random.Generator
Picture = Image.Image
Change = tuple[np.ndarray, HW]

# Geometry: what is drawn gives the matrix from old to new positions, and the new (height, width).


def _rotate90(hw: HW, rng: Rng) -> Change:
    turns = int(rng.integers(4))
    new_hw = hw[::-1] if turns % 2 else hw
    return about_centre(hw, rotation(90 * turns), ((new_hw[1] - hw[1]) / 2, (new_hw[0] - hw[0]) / 2)), new_hw


def _affine(hw: HW, rng: Rng, *, scale, translate_percent, translate_px, rotate, shear, keep_ratio: bool) -> Change:
    factors = [rng.uniform(*limits) for limits in scale]
    moves = [rng.uniform(*limits) * side for limits, side in zip(translate_percent, hw[::-1], strict=True)]
    moves = [move + rng.integers(*limits, endpoint=True) for move, limits in zip(moves, translate_px, strict=True)]
    turn = rotation(rng.uniform(*rotate))
    tilt = [-np.tan(np.deg2rad(rng.uniform(*limits))) for limits in shear]
    linear = np.array([[1, tilt[0]], [tilt[1], 1]]) @ turn @ np.diag(factors[:1] * 2 if keep_ratio else factors)
    return about_centre(hw, linear, (moves[0], moves[1])), hw


def _shift_scale_rotate(hw: HW, rng: Rng, *, shift_limit: Pair, scale_limit: Pair, rotate_limit: Pair) -> Change:
    shift = rng.uniform(*shift_limit) * hw[1], rng.uniform(*shift_limit) * hw[0]
    linear = rotation(rng.uniform(*rotate_limit)) * (1 + rng.uniform(*scale_limit))
    return about_centre(hw, linear, shift), hw


def _perspective(hw: HW, rng: Rng, *, scale: Pair) -> Change:
    # Within a fifth of the picture the horizon stays outside, whatever the corners.
    inward = np.abs(rng.normal(0, rng.uniform(*scale), (4, 2))).clip(max=0.2)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    return geometry.from_corners(np.abs(corners - inward) * hw[::-1], hw), hw


def _crop(hw: HW, size: tuple[float, float], place: tuple[float, float]) -> Change:
    """Cut out a size, at most the picture, from a place given as fractions 0..1 of the free space."""
    height, width = (max(1, min(round(part), side)) for part, side in zip(size, hw, strict=True))
    top, left = int(place[0] * (hw[0] - height + 1)), int(place[1] * (hw[1] - width + 1))
    return shift_and_scale(-left, -top), (height, width)


def _random_sized_crop(hw: HW, rng: Rng, *, min_max_height: tuple[int, int], w2h_ratio: float) -> Change:
    height = int(rng.integers(*min_max_height, endpoint=True))
    return _crop(hw, (height, height * w2h_ratio), (rng.random(), rng.random()))


def _random_resized_crop(hw: HW, rng: Rng, *, scale: Pair, ratio: Pair) -> Change:
    area = rng.uniform(*scale) * hw[0] * hw[1]
    shape = np.exp(rng.uniform(*np.log(ratio)))
    return _crop(hw, ((area / shape) ** 0.5, (area * shape) ** 0.5), (rng.random(), rng.random()))


# Colour: one picture to another of the same size.


def _color_jitter(picture: Picture, rng: Rng, *, brightness: Pair, contrast: Pair, saturation: Pair, hue: Pair):
    """All four in random order as one matrix, so that levels are rounded and clipped once, at the end."""
    mean = np.append(np.reshape(picture.histogram(), (3, 256)) @ np.arange(256) / picture.width / picture.height, 1)
    same, luma = np.eye(3), np.array([0.299, 0.587, 0.114])
    light, spread, chroma = (rng.uniform(*limits) for limits in (brightness, contrast, saturation))
    # A turn of the colours about the axis of the greys.
    turns = 2 * np.pi * (rng.uniform(*hue) + np.array([[0, 1, 2], [2, 0, 1], [1, 2, 0]]) / 3)
    linear = same * light, same * spread, same * chroma + (1 - chroma) * luma, (1 + 2 * np.cos(turns)) / 3
    whole = np.eye(4)
    for index in rng.permutation(4):
        step = np.eye(4)
        step[:3, :3] = linear[index]
        step[:3, 3] = (1 - spread) * (luma @ (whole @ mean)[:3]) if index == 1 else 0
        whole = step @ whole
    return picture.convert("RGB", tuple(whole[:3].ravel()))


def _hue_saturation_value(picture, rng: Rng, *, hue_shift_limit: Pair, sat_shift_limit: Pair, val_shift_limit: Pair):
    levels = np.arange(256)
    # Steps of two degrees, as in OpenCV; Pillow's circle has 256 parts.
    hue = (levels + round(rng.uniform(*hue_shift_limit) * 256 / 180)) % 256
    others = [np.clip(levels + round(rng.uniform(*limit)), 0, 255) for limit in (sat_shift_limit, val_shift_limit)]
    return picture.convert("HSV").point(np.concatenate((hue, *others)).tolist()).convert("RGB")


def _look_up(picture: Picture, table: np.ndarray) -> Picture:
    """Each level replaced by its entry in a table (256,) of levels, rounded and clipped."""
    return picture.point(np.clip(np.round(table), 0, 255).astype(int).tolist() * 3)


def _brightness_contrast(picture, rng: Rng, *, brightness_limit: Pair, contrast_limit: Pair, brightness_by_max: bool):
    bright, factor = rng.uniform(*brightness_limit), 1 + rng.uniform(*contrast_limit)
    return _look_up(picture, np.arange(256) * factor + bright * (255 if brightness_by_max else np.mean(picture)))


def _radius(rng: Rng, blur_limit: tuple[int, int]) -> int:
    """Half of an odd kernel size between two sizes; even ones are rounded up."""
    return int(rng.integers(blur_limit[0] // 2, blur_limit[1] // 2, endpoint=True))


def _gaussian_blur(picture: Picture, rng: Rng, *, blur_limit: tuple[int, int], sigma_limit: Pair) -> Picture:
    # Imported here because it takes a third of a second.
    from scipy.ndimage import gaussian_filter

    sigma = max(rng.uniform(*sigma_limit), 0.1)
    radius = _radius(rng, (max(blur_limit[0], 3), blur_limit[1])) if blur_limit[1] else int(3.5 * sigma)
    blurred = gaussian_filter(np.asarray(picture), (sigma, sigma, 0), output=np.float32, radius=(radius, radius, 0))
    return Image.fromarray((blurred + 0.5).astype(np.uint8))


def _motion_blur(picture: Picture, rng: Rng, *, blur_limit: tuple[int, int], angle_range: Pair) -> Picture:
    """The mean of the picture along a line."""
    radius = _radius(rng, blur_limit)
    angle = np.deg2rad(rng.uniform(*angle_range))
    steps = np.arange(-radius, radius + 1)[:, None] * (np.sin(angle), np.cos(angle))
    padded = np.pad(np.asarray(picture), ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    total = np.full((picture.height, picture.width, 3), radius, np.uint16)
    for top, left in np.round(steps).astype(int) + radius:
        total += padded[top : top + picture.height, left : left + picture.width]
    return Image.fromarray((total // (2 * radius + 1)).astype(np.uint8))


@functools.cache
def _normal_table() -> np.ndarray:
    """Standard normal values (65536,) float32 of equal probability."""
    from scipy.special import ndtri

    return ndtri((np.arange(65536) + 0.5) / 65536).astype(np.float32)


def _gauss_noise(picture: Picture, rng: Rng, *, std_range: Pair, mean_range: Pair, per_channel: bool) -> Picture:
    deviation, mean = rng.uniform(*std_range), rng.uniform(*mean_range)
    # A third of the time that normal draws take, and the same to a level.
    noise = np.round(255 * (_normal_table() * deviation + mean)).astype(np.int16)
    drawn = rng.integers(65536, size=(picture.height, picture.width, 3 if per_channel else 1), dtype=np.uint16)
    return Image.fromarray(np.clip(np.asarray(picture) + noise.take(drawn), 0, 255).astype(np.uint8))


def _sharpen(picture: Picture, rng: Rng, *, alpha: Pair, lightness: Pair) -> Picture:
    share, light = rng.uniform(*alpha), rng.uniform(*lightness)
    kernel = [-share] * 4 + [1 - share + share * (8 + light)] + [-share] * 4
    return picture.filter(ImageFilter.Kernel((3, 3), kernel, scale=1))


def _clahe(picture: Picture, rng: Rng, *, clip_limit: Pair, tile_grid_size: tuple[int, int]) -> Picture:
    """Equalise the luminance by tiles, with clipped histograms; between their centres the tables are mixed."""
    luma, *chroma = picture.convert("YCbCr").split()
    levels = np.array(luma)
    tile = [-(-side // count) for side, count in zip(levels.shape, tile_grid_size, strict=True)]
    rest = [(0, count * part - side) for side, count, part in zip(levels.shape, tile_grid_size, tile, strict=True)]
    tiles = np.pad(levels, rest, mode="symmetric").reshape(tile_grid_size[0], tile[0], tile_grid_size[1], tile[1])
    tiles = tiles.swapaxes(1, 2).reshape(-1, tile[0] * tile[1])
    numbered = tiles + 256 * np.arange(len(tiles))[:, None]
    counts = np.bincount(numbered.ravel(), minlength=256 * len(tiles)).reshape(-1, 256)
    limit = max(rng.uniform(*clip_limit) * tiles.shape[1] / 256, 1)
    counts = np.minimum(counts, limit) + np.maximum(counts - limit, 0).sum(axis=1, keepdims=True) / 256
    tables = (counts.cumsum(axis=1) * (255 / tiles.shape[1])).astype(np.float32).ravel()
    mixed = np.full(levels.shape, 0.5, np.float32)
    rows, columns = (_neighbours(*one) for one in zip(levels.shape, tile, tile_grid_size, strict=True))
    for row, share in rows:
        for column, part in columns:
            mixed += tables.take(levels + 256 * (row[:, None] * tile_grid_size[1] + column)) * (share[:, None] * part)
    return Image.merge("YCbCr", (Image.fromarray(mixed.astype(np.uint8)), *chroma)).convert("RGB")


def _neighbours(length: int, tile: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two tiles whose centres are nearest to every position along an axis, each with its share."""
    place = (np.arange(length, dtype=np.float32) + 0.5) / tile - 0.5
    share, before = np.modf(place + 1)
    first, second = ((before.astype(int) + offset).clip(0, count - 1) for offset in (-1, 0))
    return [(first, 1 - share), (second, share)]


GEOMETRY: dict[str, Callable[..., Change]] = {
    "HorizontalFlip": lambda hw, rng: (shift_and_scale(hw[1], 0, -1, 1), hw),
    "VerticalFlip": lambda hw, rng: (shift_and_scale(0, hw[0], 1, -1), hw),
    "Transpose": lambda hw, rng: (np.eye(3)[[1, 0, 2]], hw[::-1]),
    "RandomRotate90": _rotate90,
    "Rotate": lambda hw, rng, limit: (about_centre(hw, rotation(rng.uniform(*limit))), hw),
    "Affine": _affine,
    "ShiftScaleRotate": _shift_scale_rotate,
    "Perspective": _perspective,
    "RandomCrop": lambda hw, rng, height, width: _crop(hw, (height, width), rng.random(2)),
    "CenterCrop": lambda hw, rng, height, width: _crop(hw, (height, width), (0.5, 0.5)),
    "RandomSizedCrop": _random_sized_crop,
    "RandomResizedCrop": _random_resized_crop,
}
COLOUR: dict[str, Callable[..., Picture]] = {
    "ColorJitter": _color_jitter,
    "HueSaturationValue": _hue_saturation_value,
    "RandomBrightnessContrast": _brightness_contrast,
    "RandomGamma": lambda picture, rng, gamma_limit: _look_up(
        picture, 255 * (np.arange(256) / 255) ** (rng.uniform(*gamma_limit) / 100)
    ),
    "ToGray": lambda picture, rng: picture.convert("L").convert("RGB"),
    "Blur": lambda picture, rng, blur_limit: picture.filter(ImageFilter.BoxBlur(_radius(rng, blur_limit))),
    "GaussianBlur": _gaussian_blur,
    "MotionBlur": _motion_blur,
    "GaussNoise": _gauss_noise,
    "Sharpen": _sharpen,
    "Equalize": lambda picture, rng: ImageOps.equalize(picture),
    "CLAHE": _clahe,
}
# The mirroring ones, also of Albumentations: they need to know which keypoints to swap.
MIRRORS = ("HorizontalFlip", "VerticalFlip", "Transpose", "D4", "SquareSymmetry", "TimeReverse")


@dataclass(frozen=True)
class Augment:
    """Applies the transforms of a configuration in order, and gives the picture back in the size it came in.

    Every transform draws one number against its `p` before its own values; a choice of `OneOf` draws none.
    """

    entries: tuple[Entry, ...]
    flip_pairs: tuple[int, ...] = ()

    def __call__(self, image: np.ndarray, target: Target, rng: Rng) -> tuple[np.ndarray, Target]:
        """Change a picture (H, W, 3) uint8 and its target with boxes xyxy in pixels."""
        hw = image.shape[:2]
        image, target = self._each(self.entries, image, target, rng)
        if image.shape[:2] != hw:
            image, target = resize(image, hw), resize_target(target, image.shape[:2], hw, sample=0.5)
        return image, target

    def describe(self) -> list[str]:
        """One text per transform, with all its parameters."""
        return [str(entry) for entry in self.entries]

    def _each(self, entries: Sequence[Entry], image: np.ndarray, target: Target, rng: Rng):
        for entry in entries:
            if rng.random() < entry.p:
                image, target = self._apply(entry, image, target, rng)
        return image, target

    def _apply(self, entry: Entry, image: np.ndarray, target: Target, rng: Rng) -> tuple[np.ndarray, Target]:
        held = entry.children
        if entry.name == "OneOf":
            weights = np.array([child.p for child in held])
            return self._apply(held[rng.choice(len(held), p=weights / weights.sum())], image, target, rng)
        if entry.name == "SomeOf":
            chosen = np.sort(rng.choice(len(held), entry.params["n"], entry.params["replace"]))
            return self._each([held[index] for index in chosen], image, target, rng)
        if entry.name == "Sequential":
            return self._each(held, image, target, rng)
        if entry.name in GEOMETRY:
            return self._move(entry, image, target, rng)
        image = torch.from_numpy(image).contiguous().numpy()
        if entry.name in COLOUR:
            return np.array(COLOUR[entry.name](Image.fromarray(image), rng, **entry.params)), target
        return _apply_foreign(entry, image, target, rng, self.flip_pairs)

    def _move(self, entry: Entry, image: np.ndarray, target: Target, rng: Rng) -> tuple[np.ndarray, Target]:
        hw, params = image.shape[:2], dict(entry.params)
        fill, size = params.pop("fill", geometry.BLACK), params.pop("size", None)
        matrix, new_hw = GEOMETRY[entry.name](hw, rng, **params)
        whole = geometry.shows_whole(matrix, hw, new_hw)
        target = geometry.warp_target(target, matrix, new_hw, whole=whole, flip_pairs=self.flip_pairs)
        image = geometry.warp_image(image, matrix, new_hw, fill)
        if size is not None:
            image, target = resize(image, size), resize_target(target, new_hw, size, sample=0.5)
        return image, target


def _apply_foreign(entry: Entry, image: np.ndarray, target: Target, rng: Rng, flip_pairs: Sequence[int]):
    """A class of Albumentations, seeded from our generator."""
    compose, moves = entry.foreign
    compose.set_random_seed(int(rng.integers(2**31)))
    if not moves:
        return compose(image=image)["image"], target
    (height, width), count = image.shape[:2], len(target["boxes"])
    points = target["keypoints"][..., :2].reshape(-1, 2) if "keypoints" in target else np.zeros((0, 2))
    # Three corners more tell afterwards whether the picture was mirrored.
    points = np.concatenate((points, [[0, 0], [width - 1, 0], [0, height - 1]]))
    masks = {"masks": list(target["masks"].dense().view(np.uint8))} if "masks" in target and count else {}
    rows, marks = list(range(count)), list(range(len(points)))
    out = compose(image=image, bboxes=target["boxes"], rows=rows, keypoints=points, marks=marks, **masks)
    rows, boxes = np.array(out["rows"], int), np.array(out["bboxes"], np.float32).reshape(-1, 4)
    moved = {key: value[rows] if key in PER_OBJECT else value for key, value in target.items()}
    unmoved = np.isclose(boxes, moved["boxes"], atol=1e-3).all(axis=1)
    area = np.where(unmoved, moved["area"], (boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    new_hw = out["image"].shape[:2]
    moved |= {"boxes": boxes, "area": area.astype(np.float32), "size": np.array(new_hw, np.int64)}
    if "masks" in target:
        moved["masks"] = MaskStack.of(np.reshape(out.get("masks", ()), (-1, *new_hw))[rows].astype(bool))
    if "keypoints" in target:
        # Some classes lose points; those are nowhere.
        xy = np.full((len(points), 2), np.nan, np.float32)
        xy[np.array(out["marks"], int)] = np.array(out["keypoints"], np.float32).reshape(-1, 2)
        moved["keypoints"][..., :2] = xy[:-3].reshape(*target["keypoints"].shape[:2], 2)[rows]
        right, down = xy[-2:] - xy[-3]
        mirrored = right[0] * down[1] < right[1] * down[0]
        moved["keypoints"] = geometry.settle_keypoints(moved["keypoints"], new_hw, flip_pairs if mirrored else ())
    return out["image"], moved


def build_augmentations(
    config: Config, flip_pairs: Sequence[int] | None = None, has_keypoints: bool = False
) -> Augment:
    """The augmentations of an `aug_config`; None is the default, `{}` nothing.

    Args:
        flip_pairs: keypoint indices [a, b, c, d, ...]: a mirror swaps a with b, c with d. None: unknown.
        has_keypoints: leave out every transform that can mirror, with a warning, if the pairs are unknown.

    Raises:
        ValueError: something in the configuration is wrong; the message says what is allowed.
    """
    entries, pairs = read_config(config), tuple(flip_pairs or ())
    if len(pairs) % 2 or len(set(pairs)) < len(pairs):
        raise ValueError(f"flip_pairs={list(pairs)} is not a flat list [a, b, c, d, ...] of pairs a-b, c-d, ...")
    if has_keypoints and flip_pairs is None:
        removed: list[str] = []
        entries = _without_mirrors(entries, removed)
        if removed:
            why = "which keypoints change places in a mirrored picture is not known; give keypoint_flip_pairs"
            warnings.warn(f"left out of the augmentations: {', '.join(dict.fromkeys(removed))}; {why}", stacklevel=2)
    return Augment(entries, pairs)


def _without_mirrors(entries: tuple[Entry, ...], removed: list[str]) -> tuple[Entry, ...]:
    kept = []
    for entry in entries:
        if entry.name in MIRRORS:
            removed.append(entry.name)
            continue
        children = _without_mirrors(entry.children, removed)
        if any(child.p for child in children):
            fewer = {"n": min(entry.params["n"], len(children))} if entry.name == "SomeOf" else {}
            kept.append(replace(entry, children=children, params=entry.params | fewer))
        elif not entry.children:
            kept.append(entry)
    return tuple(kept)
