"""What `aug_config` may say: the presets, and the transforms with their parameters. Knows nothing of pixels."""

from __future__ import annotations

import difflib
import math
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rfdetr.extras import require

AUG_CONFIG = {"HorizontalFlip": {"p": 0.5}}
"""The default."""

AUG_CONSERVATIVE = {
    "HorizontalFlip": {"p": 0.5},
    "RandomBrightnessContrast": {"brightness_limit": 0.1, "contrast_limit": 0.1, "p": 0.3},
}

AUG_AGGRESSIVE = {
    "HorizontalFlip": {"p": 0.5},
    "VerticalFlip": {"p": 0.5},
    "Rotate": {"limit": 45, "p": 0.5},
    "Affine": {"scale": (0.8, 1.2), "translate_percent": (-0.1, 0.1), "rotate": (-15, 15), "shear": (-5, 5), "p": 0.5},
    "ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1, "p": 0.5},
}

AUG_AERIAL = {
    "HorizontalFlip": {"p": 0.5},
    "VerticalFlip": {"p": 0.5},
    "Rotate": {"limit": (90, 90), "p": 0.5},
    "RandomBrightnessContrast": {"brightness_limit": 0.15, "contrast_limit": 0.15, "p": 0.4},
}

AUG_INDUSTRIAL = {
    "HorizontalFlip": {"p": 0.3},
    "RandomBrightnessContrast": {"brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.5},
    "GaussianBlur": {"blur_limit": 3, "p": 0.3},
    "GaussNoise": {"std_range": (0.01, 0.05), "p": 0.3},
}

PRESETS = {
    "AUG_CONFIG": AUG_CONFIG,
    "AUG_CONSERVATIVE": AUG_CONSERVATIVE,
    "AUG_AGGRESSIVE": AUG_AGGRESSIVE,
    "AUG_AERIAL": AUG_AERIAL,
    "AUG_INDUSTRIAL": AUG_INDUSTRIAL,
}

Config = dict[str, Any] | list[dict[str, Any]] | str | None
CONTAINERS = ("OneOf", "SomeOf", "Sequential")
REQUIRED = object()
INF = math.inf


@dataclass(frozen=True)
class Parameter:
    """An option of a transform: its default, the reader that completes a value, and in words what it takes."""

    default: Any
    read: Callable[[Any], Any]
    """Raises TypeError or ValueError for what is not allowed."""
    allowed: str


@dataclass(frozen=True)
class Entry:
    """One transform of a configuration: its complete parameters, and what a container holds."""

    name: str
    params: dict[str, Any]
    p: float
    children: tuple[Entry, ...] = ()
    foreign: Any = None
    """Of a class of Albumentations that is not built in: its `Compose`, and whether it moves boxes."""

    def __str__(self) -> str:
        held = [f"[{', '.join(map(str, self.children))}]"] if self.children else []
        return f"{self.name}({', '.join([*held, *(f'{k}={v!r}' for k, v in self.params.items()), f'p={self.p!r}'])})"


def number(default: Any, low: float, high: float, whole: bool = False) -> Parameter:
    """One number."""

    def read(value: Any) -> Any:
        if isinstance(value, bool) or not math.isfinite(value) or not low <= value <= high:
            raise ValueError
        if whole and value != int(value):
            raise ValueError
        return int(value) if whole else value

    bounds = f"from {low:g} to {high:g}" if high < INF else f"of at least {low:g}"
    return Parameter(default, read, f"a {'whole ' if whole else ''}number {bounds}")


def span(default: Any, low: float, high: float, one: Callable[[Any], Any] | None = None, whole=False) -> Parameter:
    """A range (low, high) to draw from; `one` says what a single number means, if it may be given."""
    each = number(None, low, high, whole)

    def read(value: Any) -> tuple[Any, Any]:
        first, last = value if isinstance(value, tuple | list) or one is None else one(value)
        if first > last:
            raise ValueError
        return each.read(first), each.read(last)

    single = ", or one number that stands for such a pair" if one else ""
    return Parameter(default, read, f"a pair (low, high), each {each.allowed}{single}")


def per_axis(default: Any, low: float, high: float, whole: bool = False) -> Parameter:
    """Ranges for x and y: one for both, or a dictionary with one for each."""
    each = span(default, low, high, lambda v: (v, v), whole)

    def read(value: Any) -> tuple[Any, Any]:
        axes = value if isinstance(value, dict) else {"x": value, "y": value}
        if axes.keys() - {"x", "y"}:
            raise ValueError
        return each.read(axes.get("x", default)), each.read(axes.get("y", default))

    return Parameter((default, default), read, f"{each.allowed}; or {{'x': ..., 'y': ...}} of such")


def several(default: Any, names: tuple[str, ...], low: float, high: float = INF) -> Parameter:
    """As many whole numbers as there are names."""
    each = number(None, low, high, whole=True)

    def read(value: Any) -> tuple[int, ...]:
        if len(value) != len(names):
            raise ValueError
        return tuple(each.read(part) for part in value)

    return Parameter(default, read, f"({', '.join(names)}), each {each.allowed}")


def colour(default: Any) -> Parameter:
    """Red, green and blue, or one level for all."""
    each = several(None, ("red", "green", "blue"), 0, 255)
    return Parameter(
        default,
        lambda value: each.read(value if isinstance(value, tuple | list) else (value,) * 3),
        f"a level from 0 to 255 or {each.allowed}",
    )


def flag(default: bool) -> Parameter:
    """A switch."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Parameter(default, read, "True or False")


def _around_zero(value: Any) -> tuple[Any, Any]:
    return -value, value


_fill = colour((0, 0, 0))
_side = number(REQUIRED, 1, INF, whole=True)
_size = several(REQUIRED, ("height", "width"), 1)
_kernel = span((3, 7), 3, 99, lambda v: (3, v), whole=True)
_factor = span((0.8, 1.2), 0, INF, lambda v: (max(0, 1 - v), 1 + v))
_tilt = span((-0.2, 0.2), -1, 1, _around_zero)

# name: parameters as in Albumentations 2.0; `p` comes on top.
TRANSFORMS: dict[str, dict[str, Parameter]] = {
    "HorizontalFlip": {},
    "VerticalFlip": {},
    "Transpose": {},
    "RandomRotate90": {},
    "Rotate": {"limit": span((-90, 90), -360, 360, _around_zero), "fill": _fill},
    "Affine": {
        "scale": per_axis((1.0, 1.0), 0.01, 100),
        "translate_percent": per_axis((0.0, 0.0), -1, 1),
        "translate_px": per_axis((0, 0), -INF, INF, whole=True),
        "rotate": span((0.0, 0.0), -360, 360, lambda v: (v, v)),
        "shear": per_axis((0.0, 0.0), -40, 40),
        "keep_ratio": flag(False),
        "fill": _fill,
    },
    "ShiftScaleRotate": {
        "shift_limit": span((-0.0625, 0.0625), -1, 1, _around_zero),
        "scale_limit": span((-0.1, 0.1), -0.99, 99, _around_zero),
        "rotate_limit": span((-45, 45), -360, 360, _around_zero),
        "fill": _fill,
    },
    "Perspective": {"scale": span((0.05, 0.1), 0, 1, lambda v: (0, v)), "fill": _fill},
    "RandomCrop": {"height": _side, "width": _side},
    "CenterCrop": {"height": _side, "width": _side},
    "RandomSizedCrop": {
        "min_max_height": span(REQUIRED, 1, INF, whole=True),
        "size": _size,
        "w2h_ratio": number(1.0, 0.01, 100),
    },
    "RandomResizedCrop": {"size": _size, "scale": span((0.08, 1.0), 1e-4, 1), "ratio": span((0.75, 1.3333), 0.01, 100)},
    "ColorJitter": {
        "brightness": _factor,
        "contrast": _factor,
        "saturation": _factor,
        "hue": span((-0.5, 0.5), -0.5, 0.5, _around_zero),
    },
    "HueSaturationValue": {
        "hue_shift_limit": span((-20, 20), -180, 180, _around_zero),
        "sat_shift_limit": span((-30, 30), -255, 255, _around_zero),
        "val_shift_limit": span((-20, 20), -255, 255, _around_zero),
    },
    "RandomBrightnessContrast": {"brightness_limit": _tilt, "contrast_limit": _tilt, "brightness_by_max": flag(True)},
    "ToGray": {},
    "Blur": {"blur_limit": _kernel},
    "GaussianBlur": {
        # 0: the kernel is as large as the deviation needs.
        "blur_limit": span((0, 0), 0, 99, lambda v: (min(v, 3), v), whole=True),
        "sigma_limit": span((0.5, 3.0), 0, 14, lambda v: (0, v)),
    },
    "MotionBlur": {"blur_limit": _kernel, "angle_range": span((0, 360), 0, 360)},
    "GaussNoise": {
        "std_range": span((0.2, 0.44), 0, 1),
        "mean_range": span((0.0, 0.0), -1, 1),
        "per_channel": flag(True),
    },
    "CLAHE": {
        "clip_limit": span((1, 4), 1, INF, lambda v: (1, v)),
        "tile_grid_size": several((8, 8), ("rows", "columns"), 1, 64),
    },
    "Sharpen": {"alpha": span((0.2, 0.5), 0, 1), "lightness": span((0.5, 1.0), 0, INF)},
    "Equalize": {},
    "RandomGamma": {"gamma_limit": span((80, 120), 1, INF, lambda v: (1, v))},
    "OneOf": {},
    "SomeOf": {"n": number(1, 1, INF, whole=True), "replace": flag(False)},
    "Sequential": {},
}

# All others: 0.5.
_always = ("RandomCrop", "CenterCrop", "RandomSizedCrop", "RandomResizedCrop", *CONTAINERS)


def read_config(config: Config) -> tuple[Entry, ...]:
    """The transforms of an `aug_config` in order, with every parameter filled in.

    Raises:
        ValueError: a name, a parameter or the form is wrong; the message says what is allowed.
    """
    if isinstance(config, str):
        found = [preset for name, preset in PRESETS.items() if config.upper() in (name, name.removeprefix("AUG_"))]
        if not found:
            raise ValueError(
                f"aug_config={config!r} is no preset; there are {', '.join(PRESETS)}{_nearest(config, PRESETS)}"
            )
        return _read_entries(found[0], "aug_config")
    return _read_entries(AUG_CONFIG if config is None else config, "aug_config")


def _read_entries(config: Any, where: str) -> tuple[Entry, ...]:
    form = "{name: {parameters}, ...} or a list of {name: {parameters}}"
    if isinstance(config, dict):
        return tuple(_read_entry(name, params) for name, params in config.items())
    if not isinstance(config, list | tuple):
        raise ValueError(f"{where} is {config!r}, but takes {form}")
    for one in config:
        if not isinstance(one, dict) or len(one) != 1:
            raise ValueError(f"{where} holds {one!r}, but takes {form}, one name each")
    return tuple(_read_entry(name, params) for one in config for name, params in one.items())


def _read_entry(name: Any, params: Any) -> Entry:
    if name in CONTAINERS and isinstance(params, list | tuple):
        params = {"transforms": params}
    if not isinstance(params, dict):
        raise ValueError(f"{name} has {params!r} for its parameters, but takes a dictionary, {{}} for the defaults")
    p = _read_params(name, {"p": number(1.0 if name in _always else 0.5, 0, 1)}, {"p": params.get("p")})["p"]
    params = {key: value for key, value in params.items() if key != "p"}
    if name not in TRANSFORMS:
        return Entry(str(name), params, p, foreign=_build_foreign(str(name), params))
    children = _read_children(name, params.pop("transforms", None)) if name in CONTAINERS else ()
    # Height and width may stand apart, as in older releases of Albumentations.
    if "size" in TRANSFORMS[name] and {"height", "width"} <= params.keys():
        params["size"] = params.pop("height"), params.pop("width")
    read = _read_params(name, TRANSFORMS[name], params)
    if name == "SomeOf" and read["n"] > len(children) and not read["replace"]:
        raise ValueError(f"SomeOf has n={read['n']}, but only {len(children)} transforms; n is at most their number")
    return Entry(name, read, p, children)


def _read_children(name: str, transforms: Any) -> tuple[Entry, ...]:
    children = _read_entries(transforms, f"{name}: transforms")
    if not children:
        raise ValueError(f"{name}: transforms is empty; name at least one")
    if name == "OneOf" and not any(child.p for child in children):
        raise ValueError("OneOf: every transform has p=0, so none can be chosen; give one of them p > 0")
    return children


def _read_params(name: str, table: dict[str, Parameter], params: dict[str, Any]) -> dict[str, Any]:
    """All parameters of a transform, in the order of the table; None stands for the default."""
    for key in params.keys() - table.keys():
        allowed = ", ".join([*table, "p"])
        raise ValueError(f"{name} has no parameter {key!r}{_nearest(key, table)}; it takes {allowed}")
    read = {}
    for key, parameter in table.items():
        value = params.get(key)
        if value is None:
            if parameter.default is REQUIRED:
                raise ValueError(f"{name} needs {key}: {parameter.allowed}")
            read[key] = parameter.default
            continue
        try:
            read[key] = parameter.read(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name}: {key}={value!r} is not allowed; it takes {parameter.allowed}") from None
    return read


def _nearest(name: Any, names: Iterable[str]) -> str:
    by_lower = {one.lower(): one for one in names}
    close = difflib.get_close_matches(str(name).lower(), by_lower, 1, 0.5)
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""


def _build_foreign(name: str, params: dict[str, Any]) -> tuple[Any, bool]:
    """A class of Albumentations as a `Compose` of its own that also moves boxes and keypoints."""
    # Without this it asks the package index for news at every import.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        albumentations = require("albumentations")
    except ImportError:
        albumentations = None
    found = getattr(albumentations, name, None)
    if albumentations is None or not isinstance(found, type) or not issubclass(found, albumentations.BasicTransform):
        other = "" if albumentations else '; other classes of Albumentations need pip install "rfdetr[aug]"'
        known = ", ".join(TRANSFORMS)
        raise ValueError(f"unknown augmentation {name!r}{_nearest(name, TRANSFORMS)}; built in are {known}{other}")
    try:
        with warnings.catch_warnings():
            # It warns of parameters that it does not know, and goes on without them.
            warnings.simplefilter("error", UserWarning)
            transform = found(**params, p=1.0)
    except (TypeError, ValueError, UserWarning) as error:
        raise ValueError(f"{name}: Albumentations does not take {params}: {error}") from error
    if issubclass(found, albumentations.ImageOnlyTransform):
        return albumentations.Compose([transform]), False
    boxes = albumentations.BboxParams(format="pascal_voc", label_fields=["rows"], clip=True)
    points = albumentations.KeypointParams(format="xy", label_fields=["marks"], remove_invisible=False)
    return albumentations.Compose([transform], bbox_params=boxes, keypoint_params=points), True
