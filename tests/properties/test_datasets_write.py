"""Data sets that are read, written and read again are the same, in either format, and are what a loop would read."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rfdetr.datasets import rle
from rfdetr.datasets.annotations import AnnotationSet, Shards, pack_names
from rfdetr.datasets.coco import read_coco
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.write import write_coco, write_yolo
from rfdetr.datasets.yolo import read_yolo

EXAMPLES = settings(max_examples=40, deadline=None)
LETTERS = st.sampled_from(list("abzAZ09 _-.äß鳥é'%&#"))
WORDS = st.text(LETTERS, min_size=1, max_size=8).map(lambda word: f"n{word}n")
NAMES = st.lists(
    st.tuples(st.lists(WORDS, max_size=2), WORDS).map(lambda parts: "/".join((*parts[0], parts[1]))),
    min_size=1,
    max_size=4,
    unique_by=lambda name: name.casefold(),
)
CLASSES = [{"id": 2, "name": "ä b"}, {"id": 7, "name": "'1': c"}, {"id": 30, "name": "鳥"}]
KEYPOINTS = {"keypoints": ["left eye", "nose", "right eye"], "skeleton": [[1, 2], [2, 3]]}


@st.composite
def boxes(draw, width, height):
    """x, y, width, height in pixels, inside of the picture."""
    x0, x1 = sorted(draw(st.lists(st.floats(0, width), min_size=2, max_size=2)))
    y0, y1 = sorted(draw(st.lists(st.floats(0, height), min_size=2, max_size=2)))
    # Two decimals, as labelling tools write them.
    x, y = min(math.floor(100 * x0) / 100, width - 0.01), min(math.floor(100 * y0) / 100, height - 0.01)
    return [x, y, max(0.01, math.floor(100 * (x1 - x)) / 100), max(0.01, math.floor(100 * (y1 - y)) / 100)]


def polygons(width, height):
    """Corners that span an area, as one flat list."""
    coordinates = st.tuples(st.integers(0, 100 * width), st.integers(0, 100 * height))
    corners = st.lists(coordinates, min_size=3, max_size=7)
    spanning = corners.filter(lambda points: all(len(set(axis)) > 1 for axis in zip(*points, strict=True)))
    return spanning.map(lambda points: [value / 100 for point in points for value in point])


@st.composite
def documents(draw, kind="boxes"):
    """A COCO document; `kind` is "boxes", "polygon" (one each), "outlines" (of any kind) or "keypoints"."""
    images, annotations = [], []
    ids = draw(st.lists(st.integers(0, 10**6), min_size=4, max_size=4, unique=True))
    for image_id, name in zip(ids, draw(NAMES), strict=False):
        width, height = draw(st.integers(1, 300)), draw(st.integers(1, 300))
        images.append({"id": image_id, "file_name": f"{name}.png", "width": width, "height": height})
        for _ in range(draw(st.integers(0, 3))):
            entry = {"id": 5 + len(annotations), "image_id": image_id, "category_id": draw(st.sampled_from([2, 7, 30]))}
            annotations.append({**entry, **draw(objects(width, height, kind))})
    annotations = draw(st.permutations(annotations))
    categories = [{**entry, **(KEYPOINTS if kind == "keypoints" else {})} for entry in CLASSES]
    return {"images": images, "annotations": annotations, "categories": categories}


@st.composite
def objects(draw, width, height, kind):
    entry = {"bbox": draw(boxes(width, height))}
    if kind == "boxes":
        entry |= draw(st.sampled_from([{}, {"area": 12.5}, {"area": 0, "iscrowd": 0}]))
    if kind == "outlines" and draw(st.booleans()):
        mask = np.array(draw(st.lists(st.booleans(), min_size=12, max_size=12))).reshape(3, 4)
        mask = np.kron(mask, np.ones((height // 3 + 1, width // 4 + 1), bool))[:height, :width]
        counts = rle.encode(mask)
        return {**entry, "segmentation": {"size": [height, width], "counts": rle.to_text(counts)}}
    if kind in ("polygon", "outlines"):
        rings = draw(st.lists(polygons(width, height), min_size=1, max_size=1 if kind == "polygon" else 3))
        x, y = [value for ring in rings for value in ring[::2]], [value for ring in rings for value in ring[1::2]]
        return {"bbox": [min(x), min(y), max(x) - min(x), max(y) - min(y)], "segmentation": rings}
    if kind == "keypoints":
        point = st.tuples(st.integers(0, width), st.integers(0, height), st.sampled_from([0, 1, 2]))
        points = [value for _ in range(3) for value in draw(point)]
        return {**entry, "keypoints": points}
    return entry


@contextmanager
def written(document) -> Iterator[tuple[Path, Path]]:
    """A new folder, and in it one with the document and its pictures, no two of which are the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "given"
        for index, image in enumerate(document["images"]):
            file = folder / image["file_name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (image["width"], image["height"]), (index, 7, 7)).save(file)
        (folder / "a.json").write_text(json.dumps(document), encoding="utf-8")
        yield Path(name), folder


def by_content(annotations: AnnotationSet) -> dict[bytes, int]:
    return {annotations.read(i): i for i in range(len(annotations))}


def assert_same(one: AnnotationSet, two: AnnotationSet, tolerance: float, picture_names: bool = True) -> None:
    """Pictures, classes, labels, boxes, keypoints and single polygons, whatever the order of the pictures."""
    assert one.class_names == two.class_names
    theirs = by_content(two)
    assert len(theirs) == len(one) == len(two)
    for index in range(len(one)):
        other = theirs[one.read(index)]
        (height, width), here, there = one.sizes[index], one.rows(index), two.rows(other)
        if picture_names:
            assert str(one.path(index)).endswith(two.path(other).name)
        np.testing.assert_array_equal(one.labels[here], two.labels[there])
        found, wanted = two.boxes_xyxy_px(other, height, width), one.boxes_xyxy_px(index, height, width)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)
        if one.keypoints is not None:
            found, wanted = two.keypoints_px(other, height, width), one.keypoints_px(index, height, width)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)
        if one.outlines is not None:
            for row, partner in zip(range(here.start, here.stop), range(there.start, there.stop), strict=True):
                found, wanted = points_px(two, partner, height, width), points_px(one, row, height, width)
                np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


def points_px(annotations: AnnotationSet, row: int, height: int, width: int) -> np.ndarray:
    outlines = annotations.outlines
    assert outlines.row_rings[row + 1] - outlines.row_rings[row] == 1
    start, end = outlines.rings[outlines.row_rings[row] : outlines.row_rings[row] + 2]
    return outlines.points[start:end] * ((width, height) if outlines.normalized[row] else 1)


@EXAMPLES
@given(documents())
def test_flat_arrays_are_what_a_loop_reads(document):
    with written(document) as (_, folder):
        found = read_coco(folder / "a.json", folder)
        labels = {2: 0, 7: 1, 30: 2}
        row = 0
        for index, image in enumerate(sorted(document["images"], key=lambda image: image["id"])):
            assert found.path(index) == folder / image["file_name"]
            assert found.image_ids[index] == image["id"]
            for entry in document["annotations"]:
                if entry["image_id"] != image["id"]:
                    continue
                x, y, width, height = entry["bbox"]
                assert found.boxes_xyxy[row].tolist() == [x, y, x + width, y + height]
                assert found.labels[row] == labels[entry["category_id"]]
                assert found.annotation_ids[row] == entry["id"]
                assert found.areas[row] == entry["area"] if "area" in entry else np.isnan(found.areas[row])
                assert found.crowd[row] == entry.get("iscrowd", 0)
                assert found.image_index[row] == index
                row += 1
        assert row == len(found.labels) == found.offsets[-1]


@EXAMPLES
@pytest.mark.parametrize("kind", ["boxes", "polygon", "keypoints"])
@given(data=st.data())
def test_coco_to_yolo_and_back(kind, data):
    asked = {"masks": kind == "polygon", "keypoints": kind == "keypoints"}
    with written(data.draw(documents(kind))) as (place, folder):
        first = read_coco(folder / "a.json", folder, **asked)
        kinds = {repair.kind for repair in write_yolo({"valid": first}, place / "yolo")}
        assert kinds <= {"lines between keypoints, which YOLO does not have"}
        second = read_split(place / "yolo", "valid", **asked)
        assert_same(first, second, 1e-4)
        assert write_coco({"valid": second}, place / "coco") == []
        third = read_split(place / "coco", "valid", **asked)
        assert_same(first, third, 1e-4)
        assert third.repairs == second.repairs == ()
        if kind == "keypoints":
            assert third.schema.flip_pairs == second.schema.flip_pairs == first.schema.flip_pairs == (0, 2)
            assert third.schema.names == second.schema.names == first.schema.names


@EXAMPLES
@pytest.mark.parametrize("kind", ["boxes", "outlines", "keypoints"])
@given(data=st.data())
def test_coco_to_coco_keeps_everything(kind, data):
    asked = {"masks": kind == "outlines", "keypoints": kind == "keypoints"}
    with written(data.draw(documents(kind))) as (place, folder):
        first = read_coco(folder / "a.json", folder, **asked)
        assert write_coco({"valid": first}, place / "coco") == []
        second = read_split(place / "coco", "valid", **asked)
        for column in ("image_ids", "offsets", "labels", "crowd", "annotation_ids", "name_bytes", "name_offsets"):
            np.testing.assert_array_equal(getattr(first, column), getattr(second, column))
        np.testing.assert_allclose(second.boxes_xyxy, first.boxes_xyxy, rtol=1e-12)
        known = ~np.isnan(first.areas)
        np.testing.assert_array_equal(second.areas[known], first.areas[known])
        assert second.categories == first.categories
        assert second.schema == first.schema
        assert second.repairs == ()
        if kind == "keypoints":
            np.testing.assert_array_equal(second.keypoints, first.keypoints)
        if kind == "outlines":
            for column in ("points", "rings", "row_rings", "runs", "row_runs", "normalized"):
                np.testing.assert_array_equal(getattr(first.outlines, column), getattr(second.outlines, column))


@st.composite
def damaged(draw):
    """A document with boxes anywhere, crowd regions, and annotations of unknown pictures."""
    document = draw(documents())
    for annotation in document["annotations"]:
        if draw(st.booleans()):
            annotation["bbox"] = draw(st.lists(st.floats(-400, 400), min_size=4, max_size=4))
        if draw(st.integers(0, 4)) == 0:
            annotation["iscrowd"] = 1
    for entry in document["annotations"][:1]:
        document["annotations"].append({**entry, "image_id": 10**7, "id": 10**6})
    return document


@EXAMPLES
@given(damaged(), st.booleans())
def test_mended_data_trains_the_same_and_needs_no_repair(document, as_yolo):
    with written(document) as (place, folder):
        first = read_coco(folder / "a.json", folder)
        lost = (write_yolo if as_yolo else write_coco)({"valid": first}, place / "out")
        crowd = int(first.crowd.sum())
        assert all(repair.kind == "crowd regions, which YOLO does not have" for repair in lost)
        assert sum(repair.count for repair in lost) <= crowd * as_yolo
        second = read_split(place / "out", "valid")
        assert second.repairs == ()
        theirs = by_content(second)
        for index, (height, width) in enumerate(first.sizes.tolist()):
            wanted = first.target(index, height, width)
            found = second.target(theirs[first.read(index)], height, width)
            # A box thinner than a fraction has decimals for is no box in YOLO.
            thick = (wanted["boxes"][:, 2:] - wanted["boxes"][:, :2]).min(axis=1, initial=np.inf) > 1e-5
            if not thick.all():
                continue
            np.testing.assert_array_equal(found["labels"], wanted["labels"])
            np.testing.assert_allclose(found["boxes"], wanted["boxes"], rtol=0, atol=1e-4)
            if not as_yolo:
                np.testing.assert_allclose(found["area"], wanted["area"], rtol=1e-5, atol=1e-3)


def draw_pictures(folder, names):
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (index, 0, 0)).save(folder / name, format="PNG")


def one_box_each(folder, names, **more):
    draw_pictures(folder, names)
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    boxes = [{"id": i, "image_id": i, "category_id": 2, "bbox": [i, 1, 5, 6], **more} for i in range(len(names))]
    document = {"images": images, "annotations": boxes, "categories": CLASSES}
    (folder / "a.json").write_text(json.dumps(document), encoding="utf-8")
    return read_coco(folder / "a.json", folder, masks="segmentation" in more)


# Names in the data set, in the COCO folder and in the YOLO folder.
PLACES = [
    (["a.png", "b/ä 鳥.png"], ["a.png", "b/ä 鳥.png"], ["a.png", "b/ä 鳥.png"]),
    (["images/a.png", "b/images/a.png"], ["images/a.png", "b/images/a.png"], ["a.png", "2_a.png"]),
    (["x/a.png", "x/a.jpg", "x/b.png"], ["x/a.png", "x/a.jpg", "x/b.png"], ["x/a.png", "x/2_a.jpg", "x/b.png"]),
    (["A.png", "a.png", "2_a.png"], ["A.png", "2_a.png", "2_2_a.png"], ["A.png", "2_a.png", "2_2_a.png"]),
    (["frame", ".png"], ["frame", ".png"], ["frame.png", ".png"]),
]


@pytest.mark.parametrize(("names", "coco", "yolo"), PLACES)
def test_names_of_pictures(tmp_path, names, coco, yolo):
    annotations = one_box_each(tmp_path / "given", names)
    write_coco({"train": annotations}, tmp_path / "coco")
    write_yolo({"train": annotations}, tmp_path / "yolo")
    back = read_split(tmp_path / "coco", "train")
    assert [back.path(i).relative_to(tmp_path / "coco" / "train").as_posix() for i in range(len(names))] == coco
    back = read_split(tmp_path / "yolo", "train")
    images = tmp_path / "yolo" / "train" / "images"
    found = {back.path(i).relative_to(images).as_posix(): back.boxes_xyxy_px(i, 10, 20) for i in range(len(names))}
    assert set(found) == set(yolo)
    for i, name in enumerate(yolo):
        np.testing.assert_allclose(found[name], [[i, 1, i + 5, 7]], atol=1e-6)
        assert (images / name).samefile(annotations.path(i))


def test_pictures_elsewhere_come_into_the_folder(tmp_path):
    """As in merged data: absolute names, names that lead out, ids that are there twice."""
    annotations = one_box_each(tmp_path / "root", ["c.png", "b.png", "a.png"])
    draw_pictures(tmp_path, ["one/a.png", "two/a.png"])
    names = [str(tmp_path / "one" / "a.png"), "../two/a.png", "a.png"]
    name_bytes, name_offsets = pack_names(names)
    merged = replace(annotations, name_bytes=name_bytes, name_offsets=name_offsets, image_ids=np.array([4, 4, 5]))
    for write in (write_coco, write_yolo):
        write({"test": merged}, tmp_path / write.__name__)
        back = read_split(tmp_path / write.__name__, "test")
        assert len(back) == 3
        assert sorted(back.path(i).name for i in range(3)) == ["2_a.png", "3_a.png", "a.png"]
        assert_same(merged, back, 1e-4, picture_names=False)


def test_pictures_in_shards_are_written_out(tmp_path):
    annotations = one_box_each(tmp_path / "given", ["a.png", "b.png"])
    contents = [annotations.read(i) for i in range(2)]
    (tmp_path / "0.tar").write_bytes(b"".join(contents))
    start, length = np.array([0, len(contents[0])]), np.array(list(map(len, contents)))
    for i in range(2):
        annotations.path(i).unlink()
    shards = Shards((tmp_path / "0.tar",), np.zeros(2, np.int64), start, length)
    write_coco({"train": replace(annotations, shards=shards)}, tmp_path / "out")
    assert [(tmp_path / "out" / "train" / name).read_bytes() for name in ("a.png", "b.png")] == contents


@pytest.mark.parametrize("write", [write_coco, write_yolo])
def test_nothing_is_overwritten(tmp_path, write):
    annotations = one_box_each(tmp_path / "given", ["a.png"])
    (tmp_path / "empty").mkdir()
    write({"train": annotations}, tmp_path / "empty")
    for place in (tmp_path / "empty", tmp_path / "given" / "a.json"):
        with pytest.raises(FileExistsError, match=r"holds something already, and nothing is overwritten"):
            write({"train": annotations}, place)
    assert annotations.path(0).is_file()


@pytest.mark.parametrize("write", [write_coco, write_yolo])
def test_unreadable_pictures_and_splits_of_them_are_left_out(tmp_path, write):
    splits = {split: one_box_each(tmp_path / split, ["a.png", "b.png"]) for split in ("train", "valid")}
    for file in ("train/b.png", "valid/a.png", "valid/b.png"):
        (tmp_path / file).write_bytes(b"no picture")
    write(splits, tmp_path / "out")
    train = read_split(tmp_path / "out", "train")
    assert (len(train), train.path(0).name) == (1, "a.png")
    with pytest.raises(FileNotFoundError):
        read_split(tmp_path / "out", "valid")


@pytest.mark.parametrize("write", [write_coco, write_yolo])
def test_what_was_left_out_as_an_error_is_gone(tmp_path, write):
    one_box_each(tmp_path / "train", ["a.png", "b.png", "c.png"])
    document = json.loads((tmp_path / "train" / "a.json").read_text(encoding="utf-8"))
    document["annotations"][0]["bbox"][0] = float("nan")
    document["annotations"].append({"id": 9, "image_id": 1, "category_id": 99, "bbox": [1, 1, 2, 2]})
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(document), encoding="utf-8")
    (tmp_path / "train" / "c.png").unlink()
    lenient = read_split(tmp_path, "train", lenient=True)
    assert any(repair.fatal for repair in lenient.repairs)
    assert write({"train": lenient}, tmp_path / "out") == []
    back = read_split(tmp_path / "out", "train")
    assert back.repairs == ()
    assert [back.path(i).name for i in range(len(back))] == ["a.png", "b.png"]
    np.testing.assert_allclose(back.all_boxes_xyxy_px(), [[1, 1, 6, 7]], atol=1e-6)


@pytest.mark.parametrize("write", [write_coco, write_yolo])
def test_classes_of_the_same_name_are_numbered(tmp_path, write):
    annotations = one_box_each(tmp_path / "given", ["a.png"])
    same = replace(annotations.categories, names=("a", "a", "a_2"))
    write({"train": replace(annotations, categories=same)}, tmp_path / "out")
    back = read_split(tmp_path / "out", "train")
    assert back.class_names == ["a", "a_2", "a_2_2"]
    assert back.repairs == ()


def test_what_yolo_cannot_hold_is_counted(tmp_path):
    runs = {"size": [10, 20], "counts": [50, 30, 120]}
    (lost,) = write_yolo(
        {"train": one_box_each(tmp_path / "runs", ["a.png"], segmentation=runs)}, tmp_path / "yolo of runs"
    )
    assert (lost.kind, lost.count) == ("objects without polygon, of which YOLO gets the box", 1)
    lines = (tmp_path / "yolo of runs" / "train" / "labels" / "a.txt").read_text(encoding="utf-8")
    assert lines == "0 0.125 0.4 0.25 0.6\n"


def test_several_polygons_are_joined_by_lines(tmp_path):
    rings = [[1, 1, 5, 1, 5, 4, 1, 4], [12, 2, 19, 2, 19, 4], [8, 6, 10, 6, 10, 9, 8, 9]]
    annotations = one_box_each(tmp_path / "given", ["a.png", "b.png"], segmentation=rings)
    (lost,) = write_yolo({"train": annotations}, tmp_path / "yolo")
    assert (lost.kind, lost.count) == ("outlines of several polygons, which YOLO gets joined by lines", 2)
    assert lost.example == "train/a.png"
    back = read_yolo(tmp_path / "yolo", "train", masks=True)
    np.testing.assert_allclose(back.boxes_xyxy_px(1, 10, 20), [[1, 1, 19, 9]], atol=1e-6)

    def pixels(outlines):
        canvas, patch = np.zeros((10, 20), bool), outlines.patch(0, 10, 20)
        canvas[patch.top : patch.top + patch.mask.shape[0], patch.left : patch.left + patch.mask.shape[1]] = patch.mask
        return canvas

    # The same polygons, drawn one by one.
    own = annotations.outlines
    apart = replace(own, points=own.points / (20, 10), normalized=np.ones(2, bool))
    joined, union = pixels(back.outlines), pixels(apart)
    assert (joined | ~union).all()
    added = np.argwhere(joined & ~union)[:, ::-1]
    assert len(added)
    for place in added:
        assert min(distance(place, (1, 1), (12, 2)), distance(place, (12, 2), (8, 6))) < 1


def distance(place, start, end):
    """Of a point from a line between two others."""
    start, along = np.array(start), np.subtract(end, start)
    share = np.clip((place - start) @ along / (along @ along), 0, 1)
    return np.hypot(*(place - start - share * along))


def test_object_without_outline_gets_its_box(tmp_path):
    annotations = one_box_each(tmp_path / "given", ["a.png"], segmentation=[])
    assert [repair.count for repair in annotations.repairs] == [1]
    (lost,) = write_coco({"train": annotations}, tmp_path / "coco")
    assert (lost.kind, lost.example) == (
        "objects without outline, whose box is written as one",
        "annotation 0 of train/a.png",
    )
    back = read_split(tmp_path / "coco", "train", masks=True)
    assert back.repairs == ()
    assert points_px(back, 0, 10, 20).tolist() == [[0, 1], [5, 1], [5, 7], [0, 7]]


def test_keypoints_of_yolo_are_described_as_others_read_them(tmp_path):
    draw_pictures(tmp_path, ["a.png"])
    entries = [{**CLASSES[0], **KEYPOINTS}, CLASSES[1]]
    objects = [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 10, 5], "keypoints": [2, 1, 2, 4, 5, 1, 0, 0, 0]},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [10, 5, 10, 5]},
    ]
    document = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": objects, "categories": entries}
    (tmp_path / "a.json").write_text(json.dumps(document), encoding="utf-8")
    annotations = read_coco(tmp_path / "a.json", tmp_path, keypoints=True)
    lost = write_yolo({"train": annotations}, tmp_path / "yolo")
    assert [repair.kind for repair in lost] == [
        "classes with fewer keypoints than others, filled up with ones never seen",
        "lines between keypoints, which YOLO does not have",
    ]
    text = (tmp_path / "yolo" / "data.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {
        "train": "train/images",
        "nc": 2,
        "names": ["ä b", "'1': c"],
        "kpt_shape": [3, 3],
        "kpt_names": {0: ["left eye", "nose", "right eye"], 1: ["0", "1", "2"]},
        "flip_idx": [2, 1, 0],
    }
    lines = (tmp_path / "yolo" / "train" / "labels" / "a.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["0 0.25 0.25 0.5 0.5 0.1 0.1 2 0.2 0.5 1 0 0 0", "1 0.75 0.75 0.5 0.5 0 0 0 0 0 0 0 0 0"]
