"""Pictures of an analysis: confusion matrix, curves over recall and confidence, and what went wrong in a picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rfdetr.evaluation.analysis import BACKGROUND, Analysis, Outcome
from rfdetr.evaluation.coco import RECALL_POINTS
from rfdetr.evaluation.f1 import CONFIDENCES
from rfdetr.extras import require

# Most classes whose counts are printed in the matrix, whose names stand beside it, and that a legend lists.
_COUNTED, _NAMED, _LISTED = 25, 100, 10
_LONGEST_NAME = 22
# Ink, background, grid, and the colour that stands for 1.
_LIGHT, _DARK = ("#1b2430", "#ffffff", "#d5dbe3", "#1d5fbf"), ("#dbe2ea", "#171c23", "#36404c", "#5aa2ff")
_LINES = (
    *("#1f77d0", "#e8710a", "#1a9850", "#d73a49", "#8957e5"),
    *("#9a6700", "#d63384", "#0aa2b5", "#8fa31e", "#6c7a89"),
)
# Sides of the pictures of errors in pixels: larger ones are reduced, smaller ones enlarged until text fits in.
_LONGEST, _SHORTEST = 960, 480
COLOURS = {"object": "#4aa8ff", "missed": "#ffb020", "right": "#2fbf71", "wrong": "#ff4d5e"}


@dataclass(frozen=True)
class WorstPicture:
    """A picture with errors, what it shows and what was found; boxes are xyxy in pixels of the picture.

    Args:
        name: what the reader knows it by, such as its path.
        pixels: (H, W, 3) uint8.
        truth_boxes_xyxy_px: (G, 4); truth_labels: (G,), positions in the class names; truth_outcome: (G,) of `Outcome`.
        boxes_xyxy_px: (D, 4); labels, scores: (D,); outcome: (D,) of `Outcome`; ignored ones are not drawn.
    """

    name: str
    pixels: np.ndarray
    truth_boxes_xyxy_px: np.ndarray
    truth_labels: np.ndarray
    truth_outcome: np.ndarray
    boxes_xyxy_px: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    outcome: np.ndarray


def plot_all(analysis: Analysis, *, dark: bool = False) -> dict[str, bytes]:
    """PNG files by name: `confusion_matrix`, `precision_recall` and `f1_confidence`."""
    plots: dict[str, Callable[[Any, Analysis, tuple[str, ...]], None]] = {
        "confusion_matrix": _draw_confusion,
        "precision_recall": _draw_precision_recall,
        "f1_confidence": _draw_f1,
    }
    figures, colours = require("matplotlib.figure"), _DARK if dark else _LIGHT
    files = {}
    for name, draw in plots.items():
        figure = figures.Figure(figsize=(11, 4.4), facecolor=colours[1], layout="constrained")
        draw(figure, analysis, colours)
        file = io.BytesIO()
        with warnings.catch_warnings():
            # Names in scripts that the font does not know are drawn as boxes.
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            figure.savefig(file, format="png", dpi=130)
        files[name] = file.getvalue()
    return files


def _axes_style(axes: Any, colours: tuple[str, ...], **labels: Any) -> None:
    ink, paper, grid, _ = colours
    axes.set(facecolor=paper, **labels)
    axes.tick_params(colors=ink, labelsize=8, length=0)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set(color=ink, fontsize=9)
    for spine in axes.spines.values():
        spine.set_color(grid)


def _draw_confusion(figure: Any, analysis: Analysis, colours: tuple[str, ...]) -> None:
    counts = analysis.confusion
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.42 * len(counts) + 2.4, 5, 15))
    figure.set_size_inches(side + 0.8, side)
    axes, palettes = figure.subplots(), require("matplotlib.colors")
    palette = palettes.LinearSegmentedColormap.from_list("share", [colours[1], colours[3]])
    # The root shows rare confusions beside a strong diagonal.
    shown = axes.imshow(share, cmap=palette, norm=palettes.PowerNorm(0.5, 0, 1))
    _axes_style(axes, colours, xlabel="predicted", ylabel="truth")
    names = [_short(name) for name in (*analysis.class_names, BACKGROUND)] if len(counts) <= _NAMED else []
    size = min(8, 600 / len(counts))
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False, fontsize=size)
    axes.set_yticks(range(len(names)), names, parse_math=False, fontsize=size)
    if len(counts) - 1 <= _COUNTED:
        for row, column in np.argwhere(counts).tolist():
            colour = "#ffffff" if share[row, column] > 0.3 else colours[0]
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(shown, ax=axes, shrink=0.7, label="share of the row")
    _axes_style(bar.ax, colours)
    bar.outline.set_visible(False)


def _draw_precision_recall(figure: Any, analysis: Analysis, colours: tuple[str, ...]) -> None:
    titles = ("at overlap 0.5", "mean over overlaps from 0.5 to 0.95")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, curves, title in zip((left, right), analysis.precision_recall, titles, strict=True):
        defined = ~np.isnan(curves[:, :1]).any(axis=1)
        mean = curves[defined].mean(axis=0) if defined.any() else np.full(len(RECALL_POINTS), np.nan)
        _draw_lines(axes, analysis, RECALL_POINTS, curves, mean, colours)
        _axes_style(axes, colours, title=title, xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
    left.set_ylabel("precision", color=colours[0], fontsize=9)
    _legend(right, colours)


def _draw_f1(figure: Any, analysis: Analysis, colours: tuple[str, ...]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    macro = analysis.sweep.macro
    for values, name, colour in zip(macro.T, ("precision", "recall", "F1"), (*_LINES[:2], colours[0]), strict=True):
        left.plot(CONFIDENCES, values, color=colour, label=name, linewidth=2.6 if name == "F1" else 1.6)
    _draw_lines(right, analysis, CONFIDENCES, analysis.sweep.per_class[:, :, 2].T, macro[:, 2], colours)
    for axes, title in ((left, "mean over the classes"), (right, "F1 of each class")):
        axes.axvline(analysis.threshold, color=colours[0], linestyle=":", linewidth=1)
        _axes_style(axes, colours, title=title, xlabel="confidence", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(color=colours[2], linewidth=0.6)
    left.legend(frameon=False, fontsize=8, labelcolor=colours[0])
    _legend(right, colours)


def _draw_lines(
    axes: Any, analysis: Analysis, x: np.ndarray, curves: np.ndarray, mean: np.ndarray, colours: tuple[str, ...]
) -> None:
    """A line for each class with objects, those with the most in colour, and a bold one for their mean."""
    objects = analysis.sweep.num_truth
    order = np.argsort(-objects, kind="stable")
    for place, label in reversed(list(enumerate(order[objects[order] > 0].tolist()))):
        if place < _LISTED:
            style = {"color": _LINES[place], "linewidth": 1.4, "label": _short(analysis.class_names[label])}
        else:
            style = {"color": colours[2], "linewidth": 0.8}
        axes.plot(x, curves[label], **style)
    axes.plot(x, mean, color=colours[0], linewidth=2.8, label="all classes")
    axes.grid(color=colours[2], linewidth=0.6)


def _legend(axes: Any, colours: tuple[str, ...]) -> None:
    """The lines that have a name, beside the axes, the boldest first."""
    lines = [line for line in axes.lines if not line.get_label().startswith("_")][::-1]
    place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
    legend = axes.legend(handles=lines, **place, frameon=False, fontsize=8, labelcolor=colours[0])
    for text in legend.get_texts():
        text.set_parse_math(False)


def _short(name: str) -> str:
    """A name fit for a plot: of limited length, and without the underscore that hides a label."""
    short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    return f" {short}" if short.startswith("_") else short


def draw_errors(picture: WorstPicture, class_names: Sequence[str]) -> Image.Image:
    """The picture with its objects and what was found, at most 960 pixels on the longer side.

    Objects that were found are thin blue, missed ones filled in orange, right detections green, wrong ones red.
    """
    height, width = picture.pixels.shape[:2]
    longer = max(height, width)
    scale = min(max(longer, _SHORTEST), _LONGEST) / longer
    image = Image.fromarray(picture.pixels)
    if scale != 1:
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)
    pen, longer = _Pen(image), max(image.size)
    line = max(2, longer // 320)
    for box, label, outcome in zip(
        picture.truth_boxes_xyxy_px * scale, picture.truth_labels, picture.truth_outcome, strict=True
    ):
        if outcome == Outcome.RIGHT:
            pen.box(box, COLOURS["object"], line // 2)
        elif outcome != Outcome.IGNORED:
            words = "is" if outcome == Outcome.CONFUSED else "missed"
            pen.box(box, COLOURS["missed"], line + 1, f"{words} {class_names[label]}", filled=True)
    found = zip(picture.boxes_xyxy_px * scale, picture.labels, picture.scores, picture.outcome, strict=True)
    # The best ones come last and lie on top.
    for box, label, score, outcome in sorted(found, key=lambda one: one[2]):
        if outcome != Outcome.IGNORED:
            colour = COLOURS["right" if outcome == Outcome.RIGHT else "wrong"]
            again = " again" if outcome == Outcome.DUPLICATE else ""
            pen.box(box, colour, line, f"{class_names[label]} {score:.2f}{again}", above=True)
    return image


class _Pen:
    """Draws boxes with labels that stay inside the picture."""

    def __init__(self, image: Image.Image) -> None:
        self.size, self.pen = image.size, ImageDraw.Draw(image, "RGBA")
        size = max(12, max(image.size) // 56)
        try:
            self.font = ImageFont.load_default(size)
        except TypeError:  # Pillow 10.0 has one size.
            self.font = ImageFont.load_default()

    def box(
        self,
        box_xyxy: np.ndarray,
        colour: str,
        line: int,
        text: str = "",
        *,
        filled: bool = False,
        above: bool = False,
    ) -> None:
        """A box with a label at its upper or lower left corner."""
        limits = np.array([*self.size] * 2) - 1
        left, top, right, bottom = np.clip(box_xyxy, 0, limits).round().tolist()
        corners = (left, top, max(left, right), max(top, bottom))
        self.pen.rectangle(corners, outline=colour, width=max(1, line), fill=f"{colour}38" if filled else None)
        if not text:
            return
        if not isinstance(self.font, ImageFont.FreeTypeFont):
            text = text.encode("latin-1", "replace").decode("latin-1")
        width, height = (round(value) for value in self.pen.textbbox((0, 0), text, font=self.font)[2:])
        x = max(0, min(left, self.size[0] - width - 7))
        y = top - height - 5 if above else bottom
        y = max(0, min(y, self.size[1] - height - 6))
        self.pen.rectangle((x, y, x + width + 6, y + height + 5), fill=f"{colour}e6")
        self.pen.text((x + 3, y + 2), text, font=self.font, fill="#10151b")
