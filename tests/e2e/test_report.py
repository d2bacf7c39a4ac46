"""The page of an evaluation: drawn pictures, their labels slightly perturbed as detections."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfdetr.datasets.layout import read_split
from rfdetr.datasets.synthetic import draw_dataset
from rfdetr.evaluation.analysis import Analysis, Outcome, analyse
from rfdetr.evaluation.coco import CocoEvaluator, GroundTruth
from rfdetr.evaluation.plots import COLOURS, WorstPicture, draw_errors
from rfdetr.evaluation.report import describe, write_report
from rfdetr.evaluation.split import SplitEvaluation, ground_truth

NAMES = ["<script>alert(1)</script>", 'a "quoted" & $name', "_hidden", "star"]
HW = (120, 160)
Found = dict[str, np.ndarray]


def perturb(boxes: np.ndarray, labels: np.ndarray, index: int) -> Found:
    """Most objects where they are, some missed, doubled, of another class, and some of nothing."""
    rng = np.random.default_rng(index)
    boxes, labels = boxes + rng.normal(0, 2, boxes.shape), labels.copy()
    scores = rng.uniform(0.4, 1, len(labels))
    keep = rng.random(len(labels)) < 0.85
    other = rng.random(len(labels)) < 0.15
    labels[other] = (labels[other] + 1) % len(NAMES)
    again = keep & (rng.random(len(labels)) < 0.2)
    corner = rng.uniform(0, 80, (3, 2))
    nothing = np.concatenate((corner, corner + rng.uniform(8, 40, (3, 2))), axis=1)
    return {
        "boxes": np.concatenate((boxes[keep], boxes[again] + 1, nothing)),
        "labels": np.concatenate((labels[keep], labels[again], rng.integers(0, len(NAMES), 3))),
        "scores": np.concatenate((scores[keep], scores[again] * 0.9, rng.uniform(0, 0.7, 3))),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, Analysis, list[WorstPicture]]:
    folder = tmp_path_factory.mktemp("report")
    draw_dataset(folder / "data", {"train": 1, "valid": 30}, hw=HW)
    for split in ("train", "valid"):
        file = folder / "data" / split / "_annotations.coco.json"
        document = json.loads(file.read_text())
        for category, name in zip(document["categories"], NAMES, strict=True):
            category["name"] = name
        file.write_text(json.dumps(document))
    annotations = read_split(folder / "data", "valid")
    evaluation = SplitEvaluation(annotations, ground_truth(annotations), across_classes=True)
    found = []
    for index in range(len(annotations)):
        rows = annotations.rows(index)
        found.append(perturb(annotations.boxes_xyxy[rows], annotations.labels[rows], index))
        evaluation.boxes.update(index, found[-1]["scores"], found[-1]["labels"], found[-1]["boxes"])
    analysis = analyse(evaluation.boxes)
    pictures = [picture_of(annotations, analysis, one.image_index, found) for one in analysis.worst(6)]
    target = folder / "out"
    target.mkdir()
    facts = {"model": "nano", "data set": "/data/<b>shapes</b>", "pictures": 30, "confidence": 0.123456}
    path = write_report(target, {"boxes": analysis, "masks": analysis}, facts, iter(pictures), "{}.jpg".format)
    assert path == target / "report.html"
    return target, analysis, pictures


def picture_of(annotations, analysis: Analysis, index: int, found: list[Found]) -> WorstPicture:
    one, rows = found[index], annotations.rows(index)
    outcome, objects = analysis.outcome(index, one["scores"], one["labels"])
    return WorstPicture(
        name=f"valid/<i>{index}</i>.jpg",
        pixels=np.asarray(Image.open(annotations.path(index))),
        truth_boxes_xyxy_px=annotations.boxes_xyxy[rows],
        truth_labels=annotations.labels[rows],
        truth_outcome=objects,
        boxes_xyxy_px=one["boxes"],
        labels=one["labels"],
        scores=one["scores"],
        outcome=outcome,
    )


class Page(HTMLParser):
    """Collects tags, what they refer to, and the text outside scripts and styles."""

    VOID = frozenset({"meta", "img", "source", "link", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.images: list[dict] = []
        self.text = ""
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.links += [values[key] for key in ("src", "href", "srcset", "data", "poster", "action") if key in values]
        if tag == "img":
            self.images.append(values)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def test_page_is_whole_and_nothing_leaves_it(written):
    folder, analysis, pictures = written
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?:|@import|url\(|//cdn", text)
    assert page.links
    for link in page.links:
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", link).groups()
        assert Image.open(io.BytesIO(base64.b64decode(data))).format == kind.upper()
    assert all(image["alt"] for image in page.images)
    assert len(page.images) == 2 * 3 + len(pictures)
    assert (page.tags.count("script"), page.tags.count("i"), page.tags.count("section")) == (1, 0, 3)
    for name in NAMES:
        assert name in page.text, "names stay text"
    assert "/data/<b>shapes</b>" in page.text
    assert "0.1235" in page.text
    for picture in pictures:
        assert picture.name in page.text
        assert describe(picture, NAMES) in page.text
    true, predicted, number = analysis.confusions(1)[0]
    assert f"{true} taken for {predicted}: {number} time" in page.text
    assert f"{analysis.result.stats[0]:.3f}" in page.text


def test_numbers_and_pictures_lie_beside_the_page(written):
    folder, analysis, pictures = written
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert content["facts"]["pictures"] == 30
    expected = analysis.as_dict()
    expected["worst_pictures"] = [{"picture": f"{one['image_index']}.jpg", **one} for one in expected["worst_pictures"]]
    assert content["boxes"] == expected
    assert {key: content[key] for key in content["boxes"]} == content["boxes"], "masks come first where there are any"
    plots = {
        f"{kind}{name}.png"
        for kind in ("", "boxes_")
        for name in ("confusion_matrix", "precision_recall", "f1_confidence")
    }
    assert {path.name for path in folder.iterdir()} == plots | {"results.json", "report.html", "worst"}
    assert len(list((folder / "worst").iterdir())) == len(pictures)
    for path in (folder / "worst").iterdir():
        assert Image.open(io.BytesIO(path.read_bytes())).size == (480, 360)


def test_every_error_is_named(written):
    _, analysis, pictures = written
    for picture, counts in zip(pictures, analysis.worst(6), strict=True):
        assert (picture.truth_outcome >= Outcome.CONFUSED).sum() == counts.missed
        assert (picture.outcome >= Outcome.WRONG).sum() == counts.wrong
        assert describe(picture, NAMES)


@pytest.mark.parametrize(
    ("hw", "size"),
    [((1200, 1920), (960, 600)), ((500, 700), (700, 500)), ((10, 20), (480, 240)), ((3000, 2), (1, 960))],
)
def test_boxes_are_drawn_in_the_colour_of_their_outcome(hw, size):
    height, width = hw
    pixels = np.zeros((height, width, 3), np.uint8)
    box = np.array([[0.25, 0.4, 0.75, 0.8]]) * [width, height, width, height]
    none = {
        "boxes_xyxy_px": np.zeros((0, 4)),
        "labels": np.zeros(0, int),
        "scores": np.zeros(0),
        "outcome": np.zeros(0, int),
    }
    for truth, found, colour in (
        (Outcome.RIGHT, None, "object"),
        (Outcome.MISSED, None, "missed"),
        (Outcome.IGNORED, Outcome.RIGHT, "right"),
        (Outcome.IGNORED, Outcome.DUPLICATE, "wrong"),
        (Outcome.IGNORED, Outcome.IGNORED, None),
    ):
        one = {"boxes_xyxy_px": box, "labels": np.array([0]), "scores": np.array([0.5]), "outcome": np.array([found])}
        picture = WorstPicture(
            "a.jpg", pixels, box, np.array([0]), np.array([truth]), **(none if found is None else one)
        )
        drawn = draw_errors(picture, ["cat"])
        assert drawn.size == size
        if size[0] > 9:
            shade = np.asarray(drawn)[int(size[1] * 0.6), round(size[0] * 0.75)]
            expected = [0, 0, 0] if colour is None else [int(COLOURS[colour][n : n + 2], 16) for n in (1, 3, 5)]
            assert shade.tolist() == expected


@pytest.mark.parametrize("num_classes", [0, 1, 120])
def test_nothing_at_all_gives_a_page_too(tmp_path, num_classes):
    none = np.zeros(0, np.int64)
    names = [f"class {n} ü 猫" for n in range(num_classes)]
    truth = GroundTruth(none, none, np.zeros((0, 4)), np.zeros(0), none.astype(bool), none, 2, names)
    path = write_report(tmp_path, {"boxes": analyse(CocoEvaluator(truth))}, {}, [], str)
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.images) == 3
    assert "No object is taken for one of another class." in page.text
    assert {path.name for path in tmp_path.iterdir()} >= {"results.json", "confusion_matrix.png"}
    assert not (tmp_path / "worst").exists()


CLICKS = """<script>
const table = document.querySelector(".sortable"), heads = table.tHead.rows[0].cells, orders = [];
for (const column of [0, 2, 2]) {
  heads[column].querySelector("button").click();
  orders.push([...table.tBodies[0].rows].map(row => row.cells[column].textContent));
}
document.querySelector(".gallery button").click();
document.body.dataset.orders = JSON.stringify(orders);
</script></body>"""


def test_page_works_in_a_browser(written, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    text = (written[0] / "report.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(text.replace("</body>", CLICKS), encoding="utf-8")
    command = [
        *(
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
        ),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--dump-dom", (tmp_path / "page.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # One of two kinds is shown, and all of the heads are buttons.
    assert 'aria-pressed="true">masks</button>' in done.stdout
    assert re.search(r'<section data-kind="boxes"[^>]* hidden', done.stdout)
    assert done.stdout.count('title="confidence with the best F1"><button type="button">') == 2
    names, falling, rising = json.loads(unescape(re.search(r'data-orders="(.*?)"', done.stdout)[1]))
    assert sorted(names) == sorted(NAMES)
    averages = [f"{value:.3f}" for value in sorted(written[1].result.ap)]
    assert (falling, rising) == (averages[::-1], averages)
    assert '<figure class="wide"><button type="button" aria-expanded="true"' in done.stdout
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in done.stdout
