"""COCO files to arrays: names, ids, the mapping of the train split, repairs and what is refused."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from rfdetr.datasets.annotations import Categories, pack_names
from rfdetr.datasets.coco import read_coco

CATEGORIES = [{"id": 3, "name": "a"}, {"id": 9, "name": "b"}]


def box(image_id=1, category_id=3, bbox=(10, 10, 20, 20), **more):
    return {"id": 5, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


def read(tmp_path, images=None, annotations=(), entries=CATEGORIES, pictures=("a.png",), **options):
    for name in pictures:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60)).save(tmp_path / name)
    file = tmp_path / "instances.json"
    images = images or [{"id": 1, "file_name": "a.png"}]
    document = {"images": images, "categories": entries, "annotations": list(annotations)}
    file.write_text(json.dumps(document), encoding="utf-8")
    return read_coco(file, tmp_path, **options)


@pytest.mark.parametrize("name", ["a.png", "sub/deep/a.png", "Bäume/鳥 1.png", "a..b.png", "sub/../a.png"])
def test_picture_names_survive(tmp_path, name):
    annotations = read(tmp_path, [{"id": 1, "file_name": name}], pictures=["sub/x.png", name])
    assert annotations.path(0) == tmp_path / name
    assert annotations.path(0).is_file()


def test_names_that_are_not_utf8_survive_packing():
    names = ["a", "", "\udcff.png", "鳥"]
    packed, offsets = pack_names(names)
    texts = [packed[a:b].tobytes().decode("utf-8", "surrogatepass") for a, b in pairwise(offsets)]
    assert texts == names


@pytest.mark.parametrize("name", ["../outside.png", "sub/../../outside.png", "/outside.png"])
def test_picture_outside_of_the_data_set_is_refused(tmp_path, name):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    with pytest.raises(ValueError, match=rf"instances.json: file_name '{name}' leads out"):
        read(folder, [{"id": 1, "file_name": name}])


def test_picture_may_lie_elsewhere_in_the_data_set(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "shared.png")
    annotations = read(folder, [{"id": 1, "file_name": "../shared.png"}], data_root=tmp_path)
    assert annotations.path(0).is_file()


def test_all_missing_pictures_are_counted_and_the_first_is_named(tmp_path):
    images = [{"id": i, "file_name": name} for i, name in enumerate(["a.png", "x/b.png", "c.png"])]
    with pytest.raises(FileNotFoundError, match=r"instances.json: 2 of 3 pictures are missing, the first is .*x/b.png"):
        read(tmp_path, images)


# Ids of two pictures in the file; the ids in the result; the position of the first picture in the result.
IMAGE_IDS = [
    ((20, 10), [10, 20], 1),
    (("20", "10"), [10, 20], 1),
    ((2.0, 1.0), [1, 2], 1),
    (("frame-b", "frame-a"), [0, 1], 0),  # texts: position in the file
    (("7", "frame-a"), [0, 1], 0),
]


@pytest.mark.parametrize(("ids", "expected", "position"), IMAGE_IDS)
def test_image_ids(tmp_path, ids, expected, position):
    images = [{"id": ids[0], "file_name": "a.png"}, {"id": ids[1], "file_name": "b.png"}]
    annotations = read(tmp_path, images, [box(image_id=ids[0])], pictures=["a.png", "b.png"])
    assert annotations.image_ids.tolist() == expected
    assert annotations.path(position).name == "a.png"
    assert len(annotations.target(position, 60, 80)["boxes"]) == 1
    assert len(annotations.target(1 - position, 60, 80)["boxes"]) == 0


def test_valid_split_takes_the_labels_of_the_train_split(tmp_path):
    objects = [box(category_id=9), box(category_id=3)]
    assert read(tmp_path, annotations=objects).labels.tolist() == [1, 0]
    trained = Categories((3, 5, 9), ("a", "c", "b"))
    annotations = read(tmp_path, annotations=objects, categories=trained)
    assert annotations.labels.tolist() == [2, 0]
    assert annotations.class_names == ["a", "c", "b"]


def test_category_that_is_no_class_of_the_train_split_is_refused_with_its_place(tmp_path):
    with pytest.raises(ValueError, match=r"instances.json: annotation 5 of image 1 has category_id 9 .*3 'a'"):
        read(tmp_path, annotations=[box(category_id=9)], categories=Categories((3,), ("a",)))


def test_splits_that_swap_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"category 3 is 'a', but in the train split it is 'b'"):
        read(tmp_path, categories=Categories((3, 9), ("b", "a")))


def test_split_with_other_spelling_of_a_name_is_mended(tmp_path):
    annotations = read(tmp_path, categories=Categories((3, 9), ("A", "b")))
    assert annotations.class_names == ["A", "b"]
    assert [repair.count for repair in annotations.repairs] == [1]


def test_grouping_categories_alone_all_stay(tmp_path):
    entries = [{"id": 1, "name": "a", "supercategory": "b"}, {"id": 2, "name": "b", "supercategory": "a"}]
    assert read(tmp_path, entries=entries).class_names == ["a", "b"]


def test_category_that_is_its_own_supercategory_stays(tmp_path):
    entries = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 2, "name": "cat", "supercategory": "x"}]
    assert read(tmp_path, entries=entries).class_names == ["person", "cat"]


def test_repairs_become_one_warning_with_counts_and_examples(tmp_path):
    objects = [box(bbox=(0, 0, 0, 5)), box(bbox=(0, 0, 5, -1)), box(bbox=(90, 0, 5, 5)), box(image_id=7)]
    annotations = read(tmp_path, annotations=objects)
    with pytest.warns(UserWarning) as caught:
        annotations.warn_about_repairs()
    text = str(caught.pop().message)
    assert not caught.list
    assert "annotations of unknown images, ignored: 1 (first: annotation 5 of image 7)" in text
    assert "boxes without width or height, left out: 2 (first: annotation 5 of image 1)" in text
    assert "boxes fully outside the picture, left out: 1" in text


def test_only_suspect_pictures_are_opened(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("rfdetr.datasets.coco.picture_size", lambda path: opened.append(path.name) or (60, 80))
    images = [{"id": i, "file_name": name, "width": 80, "height": 60} for i, name in enumerate(["a.png", "b.png"])]
    read(tmp_path, images, [box(image_id=0), box(image_id=1, bbox=(99, 0, 5, 5))], pictures=["a.png", "b.png"])
    assert opened == ["b.png"]


def test_damaged_picture_is_left_to_the_decoder(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    annotations = read(tmp_path, annotations=[box()], pictures=())
    assert annotations.repairs == ()


def test_broken_crowd_regions_are_no_repair(tmp_path):
    assert read(tmp_path, annotations=[box(bbox=(0, 0, 0, 5), iscrowd=1)]).repairs == ()


# Box, size in the file, whether it counts as outside of the 80 x 60 picture.
OUTSIDE = [
    ((70, 0, 5, 5), (10, 10), False),  # the file is wrong, the picture decides
    ((90, 0, 5, 5), (80, 60), True),
    ((90, 0, 5, 5), (None, None), True),
    ((70, 0, 5, 5), (None, "80"), False),
    ((-9, 0, 5, 5), (80, 60), True),
]


@pytest.mark.parametrize(("bbox", "size", "outside"), OUTSIDE)
def test_boxes_outside_are_found_by_the_size_of_the_picture(tmp_path, bbox, size, outside):
    images = [{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}]
    annotations = read(tmp_path, images, [box(bbox=bbox)])
    assert bool(annotations.repairs) is outside
    assert len(annotations.target(0, 60, 80)["boxes"]) == (not outside)


# Broken part of the file and what the message has to say.
BROKEN = [
    ({"annotations": [box(bbox=(1, 2, 3, "x"))]}, r"annotation 5 of image 1 has bbox"),
    ({"annotations": [box(bbox=(1, 2, 3, float("inf")))]}, r"annotation 5 of image 1 has bbox"),
    ({"annotations": [{**box(), "bbox": {"x": 1, "y": 2, "w": 3, "h": 4}}]}, r"annotation 5 .* has bbox"),
    ({"annotations": [{**box(), "bbox": None}]}, r"annotation 5 of image 1 has bbox None"),
    ({"annotations": [box(area="big")]}, r"annotation 5 of image 1 has area 'big'"),
    ({"annotations": [box(category_id=None)]}, r"annotation 5 of image 1 has category_id None"),
    ({"annotations": [box(category_id="a")]}, r"annotation 5 of image 1 has category_id 'a'"),
    ({"annotations": [box(category_id=[3])]}, r"annotation 5 of image 1 has category_id \[3\]"),
    ({"annotations": ["text"]}, r"entry 0 of 'annotations' is 'text'"),
    ({"entries": {"a": 1}}, r"'categories' is a dict"),
    ({"entries": [{"id": "x", "name": "a"}]}, r"entry 0 of 'categories' has id 'x'"),
    ({"images": [{"file_name": "a.png"}]}, r"entry 0 of 'images' has no usable 'id'"),
    ({"images": [{"id": 1, "file_name": None}]}, r"image id 1 has file_name None"),
    ({"images": [{"id": 1, "file_name": "a.png"}, {"id": "1", "file_name": "a.png"}]}, r"2 entries .* id 1"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN)
def test_broken_files_are_refused_with_file_and_place(tmp_path, broken, message):
    with pytest.raises(ValueError, match=rf"instances.json: {message}"):
        read(tmp_path, **broken)


def test_file_that_is_not_utf8_is_refused_with_its_path(tmp_path):
    file = tmp_path / "instances.json"
    file.write_bytes(b'{"images": "\xff"}')
    with pytest.raises(ValueError, match=r"instances.json is not valid JSON in UTF-8"):
        read_coco(file, tmp_path)


def test_negative_area_counts_as_none(tmp_path):
    annotations = read(tmp_path, annotations=[box(bbox=(70, 0, 20, 5), area=-1)])
    assert annotations.target(0, 60, 80)["area"].tolist() == [50]


def test_outlines_and_keypoints_are_ignored_for_boxes(tmp_path):
    annotations = read(tmp_path, annotations=[box(segmentation=[[1, 2]], keypoints=[1, 2, 2], num_keypoints=1)])
    assert annotations.boxes_xyxy.tolist() == [[10, 10, 30, 30]]


def test_targets_do_not_share_memory_with_the_set(tmp_path):
    annotations = read(tmp_path, annotations=[box()])
    target = annotations.target(0, 60, 80)
    assert not any(np.shares_memory(value, annotations.boxes_xyxy) for value in target.values())
    target["labels"][:] = 7
    target["image_id"][:] = 7
    assert annotations.labels.tolist() == [0]
    assert annotations.image_ids.tolist() == [1]


def test_set_travels_to_a_worker(tmp_path):
    annotations = read(tmp_path, annotations=[box()])
    copy = pickle.loads(pickle.dumps(annotations))
    assert copy.path(0) == annotations.path(0)
    assert copy.target(0, 60, 80)["boxes"].tolist() == [[10, 10, 30, 30]]
