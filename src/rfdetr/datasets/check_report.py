"""What the check of a data set found, as text for a terminal and as JSON. Knows no pictures and no arrays."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from textwrap import fill
from typing import Any

WIDTH = 100
SIDE_LIMITS_PX = (8, 16, 32, 96)
SIDE_NAMES = ("below 8 px", "8 to 16 px", "16 to 32 px", "32 to 96 px", "96 px and more")
SEVERITIES = {
    "fatal": "Errors: training would not start",
    "warning": "Warnings",
    "repair": "Mended while reading, for this run alone; `rfdetr check DATASET --fix OUT` writes it down",
    "advice": "Advice",
}


@dataclass(frozen=True)
class Finding:
    """One kind of trouble in one split."""

    severity: str
    """"fatal", "warning", "repair" or "advice"."""
    split: str
    """"" where it is about all splits."""
    kind: str
    count: int
    examples: tuple[str, ...] = ()
    """The first pictures, objects or classes; at most five."""
    advice: str = ""
    """What to do."""


@dataclass(frozen=True)
class SplitCounts:
    """Numbers of one split; objects are those that a model learns from."""

    pictures: int
    background: int
    """Readable pictures without objects and crowd regions."""
    objects: int
    crowd: int
    per_class: tuple[int, ...]
    """Objects by class, in the order of `Report.class_names`."""
    mean_objects: float
    median_objects: float
    max_objects: int
    side_shares: tuple[float, ...] | None
    """Share of objects by `SIDE_LIMITS_PX` at the model's resolution, side = sqrt(width * height)."""


@dataclass(frozen=True)
class Report:
    """The result of `check`."""

    class_names: tuple[str, ...]
    splits: dict[str, SplitCounts]
    findings: tuple[Finding, ...]
    resolution: int | None

    @property
    def fatal(self) -> list[Finding]:
        """What has to be corrected before training."""
        return [finding for finding in self.findings if finding.severity == "fatal"]

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON; classes as a list, since two may have the same name."""
        splits: dict[str, dict[str, Any]] = {name: {**asdict(counts)} for name, counts in self.splits.items()}
        for counts in splits.values():
            counts.pop("per_class")
        classes = [
            {"name": name, "objects": {split: counts.per_class[i] for split, counts in self.splits.items()}}
            for i, name in enumerate(self.class_names)
        ]
        findings = [asdict(finding) for finding in self.findings]
        return {"resolution": self.resolution, "splits": splits, "classes": classes, "findings": findings}

    def text(self, limit: int = 20) -> str:
        """Everything in at most 100 columns, with the `limit` most frequent classes."""
        sections = [_split_table(self.splits), self._class_table(limit)]
        if self.resolution is not None:
            sections.append(self._histogram())
        for severity, title in SEVERITIES.items():
            found = [finding for finding in self.findings if finding.severity == severity]
            if found:
                sections.append("\n".join((title, *map(_describe, found))))
        sections.append(self._summary())
        # A name that is not UTF-8 must not end the report.
        return "\n\n".join(sections).encode("utf-8", "backslashreplace").decode("utf-8")

    def _class_table(self, limit: int) -> str:
        columns = [counts.per_class for counts in self.splits.values()]
        rows = [(name, *counts) for name, *counts in zip(self.class_names, *columns, strict=True)]
        rows.sort(key=lambda row: -sum(row[1:]))
        more = [f"and {len(rows) - limit} more"] if len(rows) > limit else []
        return "\n".join((*_table(("class", *self.splits), rows[:limit]), *more))

    def _histogram(self) -> str:
        shares = [counts.side_shares or () for counts in self.splits.values()]
        rows = [(name, *map("{:.1%}".format, row)) for name, *row in zip(SIDE_NAMES, *shares, strict=True)]
        header, *lines = _table((f"objects at {self.resolution} x {self.resolution}", *self.splits), rows)
        bars = ["#" * round(30 * share) for share in shares[0]]
        return "\n".join((header, *(f"{line}   {bar}".rstrip() for line, bar in zip(lines, bars, strict=True))))

    def _summary(self) -> str:
        counts = [sum(finding.severity == severity for finding in self.findings) for severity in SEVERITIES]
        parts = [
            f"{count} {name}{'s' * (count > 1)}"
            for count, name in zip(counts, ("error", "warning", "repair", "hint"), strict=True)
            if count
        ]
        return ", ".join(parts) or "Nothing to complain about."


def _split_table(splits: dict[str, SplitCounts]) -> str:
    header = ("split", "pictures", "background", "objects", "crowd", "per picture: mean", "median", "max")
    rows = [
        (
            name,
            counts.pictures,
            counts.background,
            counts.objects,
            counts.crowd,
            f"{counts.mean_objects:.1f}",
            f"{counts.median_objects:g}",
            counts.max_objects,
        )
        for name, counts in splits.items()
    ]
    return "\n".join(_table(header, rows))


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else _cut(cell, 40) for cell in row] for row in (header, *rows)]
    widths = [max(map(_columns, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        numbers = "".join(cell.rjust(width + 3) for cell, width in zip(others, widths[1:], strict=True))
        yield first + " " * (widths[0] - _columns(first)) + numbers


def _cut(text: str, columns: int) -> str:
    """A text in one line of at most so many columns."""
    line = " ".join(text.split())
    cut = line
    while _columns(cut) > columns:
        cut = cut[:-1]
    return line if cut == line else f"{cut[:-3]}..."


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _describe(finding: Finding) -> str:
    """A finding in a few lines: how many of what, the first ones, and what to do."""
    place = f"[{finding.split}] " if finding.split else ""
    more = ["..."] if finding.count > len(finding.examples) else []
    lines = [_wrap(f"{place}{finding.kind}: {finding.count:,}", "  - ")]
    if finding.examples:
        lines.append(_wrap("; ".join((*finding.examples, *more)), "    "))
    if finding.advice:
        lines.append(_wrap(f"-> {finding.advice}", "    "))
    return "\n".join(lines)


def _wrap(text: str, indent: str) -> str:
    # A path that is cut in two cannot be copied.
    whole = {"break_on_hyphens": False, "break_long_words": False}
    return fill(text, WIDTH, initial_indent=indent, subsequent_indent="    ", **whole)
