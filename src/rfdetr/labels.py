"""What the outputs of a class head are called, and above which scores they count. Knows neither PyTorch nor files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

# The score above which `predict` returns detections of classes that nobody said anything about.
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Labels:
    """The classes of a model.

    Args:
        class_names: what they are called.
        class_labels: the output of the class head that belongs to each name.
        count: outputs of the class head.
        hidden: outputs that are no class and never reported.
        thresholds: best threshold of each class that something has measured, by unique name.
    """

    class_names: Sequence[str]
    class_labels: Sequence[int]
    count: int
    hidden: Sequence[int] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def names(self) -> list[str]:
        """A name for every output: "" where there is none."""
        named = dict(zip(self.class_labels, self.class_names, strict=False))
        for hidden in self.hidden:
            named.setdefault(hidden, "__background__")
        return [named.get(label, "") for label in range(self.count)]

    def limits(self, threshold: float | str | Mapping[str, float]) -> float | list[float]:
        """What `predict` was given as its threshold, as one number or one for every output.

        Raises:
            ValueError: "auto" without an evaluation before, a class that is not known, or another kind of value.
        """
        if isinstance(threshold, Real) and threshold == threshold:
            return float(threshold)
        names = unique_names(self.class_names)
        if isinstance(threshold, str) and threshold == "auto":
            threshold = {name: value for name, value in self.thresholds.items() if name in names}
            if not threshold:
                raise ValueError(
                    "threshold='auto' takes the best threshold of each class, which nothing has measured for these "
                    "weights and classes: call evaluate() first, or load a checkpoint_best_total.pth of train()"
                )
        if not isinstance(threshold, Mapping) or not all(_is_number(value) for value in threshold.values()):
            raise ValueError(f"threshold={threshold!r} must be a number, 'auto', or a dict of numbers by class name")
        if unknown := [name for name in threshold if name not in names]:
            raise ValueError(f"threshold has {unknown}; the model's classes are {', '.join(names)}")
        limits = [DEFAULT_THRESHOLD] * self.count
        for name, label in zip(names, self.class_labels, strict=False):
            limits[label] = float(threshold.get(name, DEFAULT_THRESHOLD))
        return limits


def unique_names(names: Sequence[str]) -> list[str]:
    """Names fit for keys: one that occurred before gets its index appended."""
    unique: list[str] = []
    for index, name in enumerate(names):
        while name in unique:
            name = f"{name}_{index}"
        unique.append(name)
    return unique


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and value == value
