"""The files of an evaluation: `results.json`, plots, pictures with errors, and one page that holds all of them."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from rfdetr.evaluation.analysis import Analysis, Outcome
from rfdetr.evaluation.plots import COLOURS, WorstPicture, draw_errors, plot_all
from rfdetr.extras import require

_TEMPLATE = Path(__file__).with_name("report.html")
_TITLE = "Evaluation report"
# Column of the class table: key of `class_rows`, head, what it means.
_COLUMNS = (
    ("objects", "objects", "annotated objects without crowd regions"),
    ("AP", "AP", "average precision, mean over overlaps from 0.50 to 0.95"),
    ("AP50", "AP50", "average precision at overlap 0.50"),
    ("AR", "AR", "average recall, mean over overlaps from 0.50 to 0.95"),
    ("AP_small", "AP small", "average precision of objects below 32 x 32 pixels"),
    ("AP_medium", "AP medium", "average precision of objects from 32 x 32 to 96 x 96 pixels"),
    ("AP_large", "AP large", "average precision of objects above 96 x 96 pixels"),
    ("precision", "precision", "share of the detections that are right, at the threshold and overlap 0.50"),
    ("recall", "recall", "share of the objects that are found, at the threshold and overlap 0.50"),
    ("f1", "F1", "harmonic mean of precision and recall"),
    ("threshold", "threshold", "confidence with the best F1"),
)
_PLOTS = {
    "precision_recall": (
        "Precision and recall",
        "Precision of each class over its recall, at two demands on the overlap.",
    ),
    "f1_confidence": (
        "Confidence",
        "F1 over the confidence; the dotted line is the best one for all classes together.",
    ),
    "confusion_matrix": (
        "Confusion matrix",
        "Objects by row, what they were detected as by column; colours are shares of the row.",
    ),
}
_ADVICE = (
    (0.02, "Hardly any object is found twice."),
    (0.08, "Some objects are found twice; a higher threshold removes part of that."),
    (1.01, "Many objects are found twice: <code>detections.with_nms(0.7)</code> keeps the best where boxes overlap."),
)


def write_report(
    folder: Path,
    analyses: Mapping[str, Analysis],
    facts: Mapping[str, str | float],
    pictures: Iterable[WorstPicture],
    picture_name: Callable[[int], str],
) -> Path:
    """Write `results.json`, plots, `worst/*.jpg` and `report.html` into an empty folder; returns the page.

    Args:
        analyses: "boxes", and of models that have them "masks" or "keypoints".
        facts: what was judged on what, in the order in which it is shown.
        pictures: the worst ones, worst first; taken one by one.
        picture_name: what the reader knows a picture of the split by.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require("matplotlib.figure")
    main = "masks" if "masks" in analyses else "boxes"
    results = {name: analysis.as_dict() for name, analysis in analyses.items()}
    for found in results.values():
        found["worst_pictures"] = [
            {"picture": picture_name(one["image_index"]), **one} for one in found["worst_pictures"]
        ]
    content = {**results.pop(main), "facts": dict(facts), **results}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    sections = []
    # What is special about a model comes last, and is read first.
    for name, analysis in reversed(list(analyses.items())):
        light, dark = plot_all(analysis), plot_all(analysis, dark=True)
        for plot, data in light.items():
            (folder / f"{plot if name == main else f'{name}_{plot}'}.png").write_bytes(data)
        sections.append(_section(name, analysis, {plot: (light[plot], dark[plot]) for plot in light}))
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_TITLE,
        facts="".join(_term(name, _number(value, 4)) for name, value in facts.items()),
        sections="\n".join(sections),
        gallery=_gallery(folder / "worst", pictures, analyses[main].result.class_names),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _section(name: str, analysis: Analysis, plots: Mapping[str, tuple[bytes, bytes]]) -> str:
    figures = {plot: _plot(plot, *data) for plot, data in plots.items()}
    confusions = f'<div class="card"><h3>Most frequent confusions</h3>{_confusions(analysis)}</div>'
    return f"""<section data-kind="{escape(name)}" aria-label="{escape(name)}">
<h2>{escape(name.capitalize())}</h2>
<dl class="numbers">{_headline(analysis, "OKS" if name == "keypoints" else "IoU")}</dl>
<div class="pair"><div class="card"><h3>By size of the object</h3>{_sizes(analysis)}</div>
<div class="card"><h3>What becomes of them</h3>{_balance(analysis)}</div></div>
<div class="card"><h3>Classes</h3>
<p class="soft">Precision, recall and F1 at the threshold of the class, which
<code>predict(threshold="auto")</code> takes. Click a head to sort.</p>{_class_table(analysis)}</div>
{figures["precision_recall"]}{figures["f1_confidence"]}{figures["confusion_matrix"]}{confusions}
</section>"""


def _headline(analysis: Analysis, overlap: str) -> str:
    stats, macro = analysis.result.as_dict(), analysis.sweep.best_macro.tolist()
    at = f"at confidence {analysis.threshold:.2f}"
    cells = (
        ("AP", stats["AP"], f"{overlap} 0.50 to 0.95"),
        ("AP50", stats["AP50"], f"{overlap} 0.50"),
        ("AP75", stats["AP75"], f"{overlap} 0.75"),
        ("AR", stats["AR"], f"{analysis.evaluator.max_dets} per picture"),
        *((name, value, at) for name, value in zip(("Precision", "Recall", "F1"), macro, strict=True)),
    )
    shown = [_term(name, _share(value), small, first=name == "AP") for name, value, small in cells]
    return "".join(shown) + _term("Duplicates", f"{analysis.duplicate_rate:.1%}", "of the detections")


def _term(name: str, value: str, small: str = "", *, first: bool = False) -> str:
    note = f"<small>{escape(small)}</small>" if small else ""
    kind = ' class="first"' if first else ""
    return f"<div{kind}><dt>{escape(name)}</dt><dd>{escape(value)}{note}</dd></div>"


def _sizes(analysis: Analysis) -> str:
    areas = {"small": "below 32 x 32 pixels", "medium": "to 96 x 96 pixels", "large": "above 96 x 96 pixels"}
    rows = "".join(
        f'<tr><th scope="row">{row["size"]} <span class="soft">{areas[row["size"]]}</span></th>'
        f"{_cell(row['objects'], 0)}{_cell(row['AP'])}{_cell(row['AR'])}</tr>"
        for row in analysis.sizes()
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("size", "objects", "AP", "AR"))
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _balance(analysis: Analysis) -> str:
    """Objects and detections in words."""
    objects = Counter(analysis.object_outcome.tolist())
    found = Counter(analysis.detection_outcome.tolist())
    right, confused = objects[Outcome.RIGHT], objects[Outcome.CONFUSED]
    advice = next(text for limit, text in _ADVICE if analysis.duplicate_rate < limit)
    return (
        f"<p>Of <b>{_count(analysis.objects, 'object')}</b>, <b>{right:,}</b> are found, <b>{confused:,}</b> are taken "
        f"for another class and <b>{objects[Outcome.MISSED]:,}</b> are missed.</p>"
        f"<p>Of <b>{_count(analysis.detections, 'detection')}</b> at or above the threshold of their class, "
        f"<b>{analysis.detections - found[Outcome.RIGHT]:,}</b> are wrong: <b>{confused:,}</b> name another class, "
        f"<b>{found[Outcome.DUPLICATE]:,}</b> repeat an object and <b>{found[Outcome.WRONG]:,}</b> lie where nothing "
        "is, or too far off.</p>"
        f'<p class="soft">{advice}</p>'
    )


def _class_table(analysis: Analysis) -> str:
    heads = '<th scope="col">class</th>' + "".join(
        f'<th scope="col" title="{meaning}">{head}</th>' for _, head, meaning in _COLUMNS
    )
    rows = []
    for row in analysis.class_rows():
        cells = "".join(
            _cell(row[key], 0 if key == "objects" else 2 if key == "threshold" else 3) for key, *_ in _COLUMNS
        )
        name = escape(row["class"])
        rows.append(f'<tr><th scope="row" title="{name}">{name}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of classes"><table class="sortable"><thead>'
        f"<tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(value: float | None, digits: int = 3) -> str:
    """A number for people and for sorting; shares get a bar."""
    if value is None:
        return '<td data-value="" class="soft">-</td>'
    bar = f' class="bar" style="--v:{value:.3f}"' if digits == 3 else ""
    return f'<td data-value="{value:.6g}"{bar}>{value:.{digits}f}</td>'


def _confusions(analysis: Analysis) -> str:
    counts = dict(zip(analysis.class_names, analysis.sweep.num_truth.tolist(), strict=True))
    pairs = analysis.confusions(10)
    if not pairs:
        return "<p>No object is taken for one of another class.</p>"
    rows = (
        f"<li><b>{escape(true)}</b> taken for <b>{escape(predicted)}</b>: {_count(number, 'time')}, "
        f"{number / max(counts[true], 1):.1%} of its objects</li>"
        for true, predicted, number in pairs
    )
    return f"<ol>{''.join(rows)}</ol>"


def _plot(name: str, light: bytes, dark: bytes) -> str:
    title, caption = _PLOTS[name]
    square = " square" if name == "confusion_matrix" else ""
    return (
        f'<div class="card"><h3>{title}</h3><figure class="plot{square}"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data(dark, "png")}">'
        f'<img alt="{caption}" src="{_data(light, "png")}"></picture><figcaption>{caption}</figcaption></figure></div>'
    )


def _gallery(folder: Path, pictures: Iterable[WorstPicture], class_names: Sequence[str]) -> str:
    figures = []
    for number, picture in enumerate(pictures, 1):
        folder.mkdir(exist_ok=True)
        stem = re.sub(r"[^\w.-]+", "_", Path(picture.name).stem)[:60]
        path = folder / f"{number:02d}_{stem}.jpg"
        draw_errors(picture, class_names).save(path, quality=88)
        name, words = escape(picture.name), escape(describe(picture, class_names))
        figures.append(
            f'<figure><button type="button" aria-expanded="false" aria-label="Enlarge {name}">'
            f'<img loading="lazy" alt="{name}: {words}" src="{_data(path.read_bytes(), "jpeg")}"></button>'
            f"<figcaption><strong>{name}</strong>{words}</figcaption></figure>"
        )
    if not figures:
        return ""
    meanings = {
        "object": "object that is found",
        "missed": "missed",
        "right": "right detection",
        "wrong": "wrong detection",
    }
    key = "".join(f'<span style="--c:{COLOURS[name]}">{text}</span>' for name, text in meanings.items())
    return (
        f'<section aria-label="Worst pictures"><h2>Worst pictures</h2><p class="key soft">{key}</p>'
        f'<div class="gallery">{"".join(figures)}</div></section>'
    )


def describe(picture: WorstPicture, class_names: Sequence[str]) -> str:
    """What went wrong in a picture, in words."""
    kinds = (
        ("missed", picture.truth_labels, picture.truth_outcome, Outcome.MISSED),
        ("taken for another class", picture.truth_labels, picture.truth_outcome, Outcome.CONFUSED),
        ("found twice", picture.labels, picture.outcome, Outcome.DUPLICATE),
        ("found where there is none", picture.labels, picture.outcome, Outcome.WRONG),
    )
    parts = []
    for words, labels, outcomes, wanted in kinds:
        counts = Counter(class_names[label] for label in labels[outcomes == wanted].tolist())
        if counts:
            named = ", ".join(name if number == 1 else f"{number} x {name}" for name, number in counts.most_common(4))
            parts.append(f"{words}: {named}{' and others' if len(counts) > 4 else ''}")
    return "; ".join(parts)


def _data(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _share(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
