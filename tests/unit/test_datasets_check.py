"""The check of a data set: every kind of trouble is found where it is, nothing is found where there is none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from rfdetr.datasets.annotations import AnnotationSet, Repair, Shards
from rfdetr.datasets.check import check
from rfdetr.datasets.check_report import WIDTH, Finding, Report, SplitCounts
from rfdetr.datasets.coco import read_coco
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.synthetic import draw_dataset
from rfdetr.datasets.yolo import read_yolo

HEIGHT, WIDTH_PX = 120, 160
OPTIONS = {"resolution": 384, "num_queries": 300}


def clean():
    """Twelve training pictures and two others, each with an object of both classes."""
    return {split: document(split, count) for split, count in (("train", 12), ("valid", 2))}


def document(split, count):
    images = [{"id": i, "file_name": f"{split}{i:03d}.png"} for i in range(1, count + 1)]
    boxes = {1: [10.0, 10.0, 40.0, 40.0], 2: [60.0, 20.0, 60.0, 50.0]}
    annotations = [
        {"id": 2 * i + label - 2, "image_id": i, "category_id": label, "bbox": list(box)}
        for i in range(1, count + 1)
        for label, box in boxes.items()
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }


def read(folder, documents):
    """Draw a picture for every entry, all different, write the files and read them."""
    splits: dict[str, AnnotationSet] = {}
    for number, (split, given) in enumerate(documents.items()):
        (folder / split).mkdir()
        for index, entry in enumerate(given["images"]):
            Image.new("RGB", (WIDTH_PX, HEIGHT), (number, index, 0)).save(folder / split / entry["file_name"])
        file = folder / split / "_annotations.coco.json"
        file.write_text(json.dumps(given), encoding="utf-8")
        trained = splits["train"].categories if splits else None
        splits[split] = read_coco(file, folder / split, trained)
    return splits


def only_finding(report):
    (finding,) = report.findings
    return finding


def test_clean_data_has_no_findings(tmp_path):
    report = check(read(tmp_path, clean()), **OPTIONS)
    assert report.findings == ()
    assert report.fatal == []
    assert report.splits["train"] == SplitCounts(12, 0, 24, 0, (12, 12), 2.0, 2.0, 2, (0, 0, 0, 0, 1))
    assert report.text().endswith("\n\nNothing to complain about.")


def move(split, row, *bbox):
    def change(documents):
        documents[split]["annotations"][row]["bbox"] = list(bbox)

    return change


def repeat_object(documents):
    documents["train"]["annotations"].append({**documents["train"]["annotations"][4], "id": 99})


def add_class(documents):
    for given in documents.values():
        given["categories"].append({"id": 5, "name": "c"})


def class_in(**counts):
    """A third class with some objects by split; objects of the second one stay."""

    def change(documents):
        add_class(documents)
        for split, count in counts.items():
            for annotation in documents[split]["annotations"][: 2 * count : 2]:
                extra = {**annotation, "id": annotation["id"] + 100, "category_id": 5}
                documents[split]["annotations"].append(extra)

    return change


def add_crowded(documents):
    for i in range(299):
        box = [i % 100, i // 10, 50, 50]
        documents["train"]["annotations"].append({"id": 100 + i, "image_id": 3, "category_id": 1, "bbox": box})


# What is changed, and the finding it makes: severity, split, kind, count, examples, part of the advice.
OBJECTS = [
    (
        move("train", 2, 10, 10, 0, 9),
        "repair",
        "train",
        "boxes without width or height, left out",
        1,
        "annotation 3",
        "",
    ),
    (
        move("train", 2, -1.5, 10, 40, 40),
        "warning",
        "train",
        "boxes that reach more than 1 px out of their picture",
        1,
        "annotation 3 of train002.png",
        "cut at the border",
    ),
    (
        repeat_object,
        "warning",
        "train",
        "objects labelled twice: same class, same box",
        1,
        "annotation 99 of train003.png",
        "remove one",
    ),
    (add_class, "warning", "", "classes without any object", 1, "c", "remove them"),
    (
        class_in(valid=2),
        "warning",
        "valid",
        "classes with objects here, but none in train",
        1,
        "c",
        "cannot be learnt",
    ),
    (class_in(train=10), "warning", "valid", "classes of train without an object here", 1, "c", "divide the pictures"),
    (class_in(train=9, valid=1), "advice", "train", "classes with fewer than 10 objects", 1, "c", "label more"),
    (
        add_crowded,
        "warning",
        "train",
        "pictures with more than 300 objects",
        1,
        "train003.png",
        # 323 objects in all, 301 in the picture.
        "0.31% of the objects cannot be found with num_queries=300; give num_queries=301",
    ),
]


@pytest.mark.parametrize(("change", "severity", "split", "kind", "count", "example", "advice"), OBJECTS)
def test_each_trouble_with_objects_is_the_only_finding(tmp_path, change, severity, split, kind, count, example, advice):
    documents = clean()
    change(documents)
    finding = only_finding(check(read(tmp_path, documents), **OPTIONS))
    assert (finding.severity, finding.split, finding.kind, finding.count) == (severity, split, kind, count)
    assert len(finding.examples) == 1
    assert finding.examples[0].startswith(example)
    assert advice in finding.advice


@pytest.mark.parametrize("reach", [0.0, 1.0])
def test_box_that_reaches_out_by_a_pixel_is_no_finding(tmp_path, reach):
    documents = clean()
    move("train", 2, 120 + reach, 80 + reach, 40, 40)(documents)
    assert check(read(tmp_path, documents), **OPTIONS).findings == ()


def test_crowd_region_is_counted_apart_and_never_a_finding(tmp_path):
    documents = clean()
    whole = {"id": 90, "image_id": 1, "category_id": 1, "bbox": [-9, -9, 300, 300], "iscrowd": 1}
    documents["valid"]["annotations"] += [whole, {**whole, "id": 91}]
    report = check(read(tmp_path, documents), **OPTIONS)
    assert report.findings == ()
    assert (report.splits["valid"].objects, report.splits["valid"].crowd) == (4, 2)


def test_background_pictures_are_counted(tmp_path):
    documents = clean()
    documents["train"]["images"].append({"id": 50, "file_name": "empty.png"})
    report = check(read(tmp_path, documents), **OPTIONS)
    counts = report.splits["train"]
    assert (counts.pictures, counts.background, counts.max_objects, counts.median_objects) == (13, 1, 2, 2.0)
    assert counts.mean_objects == 24 / 13
    assert report.findings == ()


@pytest.mark.parametrize(("pictures", "severity"), [(99, "fatal"), (100, "warning")])
def test_unreadable_pictures_are_fatal_above_one_in_a_hundred(tmp_path, pictures, severity):
    splits = read(tmp_path, {"train": document("train", pictures)})
    (tmp_path / "train" / "train007.png").write_bytes(b"no picture")
    report = check(splits, **OPTIONS)
    finding = only_finding(report)
    assert (finding.severity, finding.kind) == (severity, "pictures that cannot be read")
    assert (finding.count, finding.examples) == (1, ("train007.png",))
    assert report.splits["train"].objects == 2 * pictures - 2
    assert len(report.fatal) == (severity == "fatal")


def test_repairs_are_taken_over_and_fatal_ones_stop(tmp_path):
    splits = read(tmp_path, clean())
    repairs = (Repair("pictures that are missing", 3, "x.png", fatal=True), Repair("odd", 2, "y"))
    splits["valid"] = replace(splits["valid"], repairs=repairs)
    report = check(splits, **OPTIONS)
    fatal = Finding("fatal", "valid", "pictures that are missing", 3, ("x.png",))
    assert report.findings == (fatal, Finding("repair", "valid", "odd", 2, ("y",)))
    assert report.fatal == [fatal]


def copy_picture(folder, source, target):
    (folder / target).write_bytes((folder / source).read_bytes())


@pytest.mark.parametrize(
    ("target", "split", "kind", "example"),
    [
        ("train/train009.png", "train", "pictures that are there twice", "train009.png = train002.png"),
        ("valid/valid001.png", "valid", "pictures that are in train too", "valid001.png = train002.png"),
    ],
)
def test_pictures_with_the_same_content(tmp_path, target, split, kind, example):
    splits = read(tmp_path, clean())
    copy_picture(tmp_path, "train/train002.png", target)
    finding = only_finding(check(splits, **OPTIONS))
    assert (finding.severity, finding.split, finding.kind, finding.count) == ("warning", split, kind, 1)
    assert finding.examples == (example,)
    assert check(splits, contents=False, **OPTIONS).findings == ()


def test_same_content_is_found_in_shards(tmp_path):
    splits = read(tmp_path, {"train": document("train", 12)})
    contents = [(tmp_path / "train" / f"train{i:03d}.png").read_bytes() for i in (1, 2, 1, *range(4, 13))]
    (tmp_path / "0.tar").write_bytes(b"".join(contents))
    length = np.array(list(map(len, contents)))
    shards = Shards((tmp_path / "0.tar",), np.zeros(12, np.int64), np.cumsum(length) - length, length)
    for file in (tmp_path / "train").glob("*.png"):
        file.unlink()
    finding = only_finding(check({"train": replace(splits["train"], shards=shards)}))
    assert finding.kind == "pictures that are there twice"
    assert finding.examples == ("train003.png = train001.png",)


def test_broken_link_is_an_unreadable_picture(tmp_path):
    splits = read(tmp_path, clean())
    file = tmp_path / "train" / "train001.png"
    file.unlink()
    file.symlink_to("nowhere.png")
    assert only_finding(check(splits, **OPTIONS)).examples == ("train001.png",)


def sides(documents, resolution):
    """Sides of the training objects at a resolution, one by one."""
    boxes = [annotation["bbox"] for annotation in documents["train"]["annotations"]]
    return [((w * resolution / WIDTH_PX) * (h * resolution / HEIGHT)) ** 0.5 for _, _, w, h in boxes]


def with_small_objects(rng, low, high):
    documents = clean()
    for annotation in documents["train"]["annotations"]:
        annotation["bbox"][2:] = rng.uniform(low, high, 2).tolist()
    return documents


@pytest.mark.parametrize("block", [24, 56])
def test_advised_resolution_is_the_first_that_lifts_half_of_the_small_objects(tmp_path, block):
    documents = with_small_objects(np.random.default_rng(0), 1, 6)
    finding = only_finding(check(read(tmp_path, documents), resolution=336, block=block))
    small = np.array(sides(documents, 336)) < 10
    assert 0.2 < small.mean() < 1
    assert (finding.severity, finding.split, finding.count) == ("advice", "train", small.sum())
    assert finding.kind == f"objects below 10 px at resolution 336, {small.mean():.0%} of all"
    larger = int(re.search(r"resolution=(\d+)", finding.advice)[1])
    assert larger % block == 0
    assert larger <= 3 * 336
    assert np.median(np.array(sides(documents, larger))[small]) > 10
    assert np.median(np.array(sides(documents, larger - block))[small]) <= 10


def test_tiles_are_advised_where_no_reasonable_resolution_helps(tmp_path):
    documents = with_small_objects(np.random.default_rng(0), 0.4, 1.2)
    finding = only_finding(check(read(tmp_path, documents), resolution=336))
    parts, again = map(int, re.search(r"into (\d+) x (\d+) tiles", finding.advice).groups())
    assert parts == again > 3
    assert np.median(sides(documents, 336 * parts)) > 10 >= np.median(sides(documents, 336 * (parts - 1)))


def test_shares_of_object_sizes_equal_a_loop(tmp_path):
    documents = with_small_objects(np.random.default_rng(1), 1, 60)
    shares = check(read(tmp_path, documents), resolution=256).splits["train"].side_shares
    limits = [0, 8, 16, 32, 96, np.inf]
    found = sides(documents, 256)
    expected = [sum(a <= side < b for side in found) / len(found) for a, b in pairwise(limits)]
    assert shares == pytest.approx(expected, abs=1e-12)


def test_yolo_objects_are_named_by_their_line(tmp_path):
    (tmp_path / "train" / "images").mkdir(parents=True)
    (tmp_path / "train" / "labels").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "train" / "images" / "p.png")
    lines = ["0 0.5 0.5 0.2 0.2"] * 2 + [f"0 0.5 0.5 0.{i} 0.2" for i in range(3, 10)] + ["0 0.5 0.5 0.5 0.52"] * 1
    (tmp_path / "train" / "labels" / "p.txt").write_text("\n".join([*lines, "0 0.98 0.5 0.1 0.2"]), encoding="utf-8")
    (tmp_path / "data.yaml").write_text("names: [a]", encoding="utf-8")
    twice, out = sorted(check({"train": read_yolo(tmp_path, "train")}).findings, key=lambda found: found.kind)[::-1]
    assert twice.examples == ("object 2 of train/images/p.png",)
    assert out.examples == ("object 11 of train/images/p.png",)


def test_split_without_objects_is_counted(tmp_path):
    documents = {"train": {**document("train", 3), "annotations": []}}
    report = check(read(tmp_path, documents), **OPTIONS)
    assert [finding.kind for finding in report.findings] == ["classes without any object"]
    assert report.splits["train"].side_shares == (0, 0, 0, 0, 0)
    assert "Warnings" in report.text()


def test_split_of_missing_pictures_alone_is_reported(tmp_path):
    documents = clean()
    read(tmp_path, documents)
    for file in (tmp_path / "valid").glob("*.png"):
        file.unlink()
    train = read_split(tmp_path, "train")
    valid = read_split(tmp_path, "valid", categories=train.categories, lenient=True)
    report = check({"train": train, "valid": valid}, **OPTIONS)
    (missing,) = report.fatal
    assert (missing.split, missing.count) == ("valid", 2)
    assert report.splits["valid"].pictures == report.splits["valid"].max_objects == 0
    assert "Errors: training would not start" in report.text()


def many_findings():
    names = tuple(f"class {i}" for i in range(30))
    counts = SplitCounts(1234, 1, 435, 0, tuple(range(30)), 1.5, 1.0, 9, (0.5, 0.25, 0.25, 0, 0))
    findings = [
        Finding(severity, "train", f"{severity} kind", 7, ("one", "two"), "do this " * 30)
        for severity in ("advice", "repair", "fatal", "warning")
    ]
    return Report(names, {"train": counts, "valid": counts}, tuple(findings), 384)


def test_text_is_ordered_by_severity_and_fits_a_terminal():
    text = many_findings().text()
    assert max(map(len, text.splitlines())) <= WIDTH
    places = [text.index(f"[train] {severity} kind: 7") for severity in ("fatal", "warning", "repair", "advice")]
    assert places == sorted(places)
    assert text.endswith("1 error, 1 warning, 1 repair, 1 hint")
    assert "one; two; ..." in text
    assert re.search(r"^train +1,234 +1 +435 +0 +1\.5 +1 +9$", text, re.MULTILINE)
    assert re.search(r"^below 8 px +50\.0% +50\.0% +#{15}$", text, re.MULTILINE)


def test_text_shows_the_most_frequent_classes():
    lines = many_findings().text(limit=3).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("class "))
    assert [line.split() for line in lines[start + 1 : start + 4]] == [
        ["class", "29", "29", "29"],
        ["class", "28", "28", "28"],
        ["class", "27", "27", "27"],
    ]
    assert lines[start + 4] == "and 27 more"


def test_text_survives_any_name():
    counts = SplitCounts(1, 0, 2, 0, (1, 1), 2.0, 2.0, 2, None)
    finding = Finding("warning", "train", "kind", 1, ("\udcff.png",))
    text = Report(("歩行者" * 30, "two\nlines"), {"train": counts}, (finding,), None).text()
    text.encode("utf-8")
    assert "\\udcff.png" in text
    assert "two lines" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_dictionary_is_json_and_holds_everything():
    report = many_findings()
    given = json.loads(json.dumps(report.as_dict()))
    assert given["classes"][7] == {"name": "class 7", "objects": {"train": 7, "valid": 7}}
    assert given["splits"]["valid"]["pictures"] == 1234
    assert given["splits"]["train"]["side_shares"] == [0.5, 0.25, 0.25, 0, 0]
    assert given["findings"][0]["kind"] == "advice kind"
    assert given["findings"][0]["examples"] == ["one", "two"]
    assert given["resolution"] == 384


def test_pictures_of_another_size_than_the_file_says_are_told(tmp_path):
    root = draw_dataset(tmp_path / "d", {"train": 3}, hw=(64, 80))
    file = root / "train" / "_annotations.coco.json"
    document = json.loads(file.read_text())
    document["images"][1] |= {"width": 800, "height": 640}
    document["images"][2].pop("width")
    file.write_text(json.dumps(document))
    found = [f for f in check({"train": read_split(root, "train")}).findings if "another size" in f.kind]
    assert [(f.severity, f.count) for f in found] == [("warning", 1)]
    assert document["images"][1]["file_name"] in found[0].examples[0]
