"""However a COCO file numbers its categories and pictures: same classes, same labels, and the way back to its ids."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rfdetr.datasets.coco import read_coco

NAMES = ["zebra", "ant", "mole"]
OBJECTS = [(1, 2), (0, 0), (1, 1), (0, 2), (1, 0)]  # position of the picture, class

# Way of numbering: ids of the three classes, their supercategory (None: no such key), id of a root that groups them.
NUMBERINGS = {
    "from_0": ((0, 1, 2), "none", None),
    "from_1": ((1, 2, 3), "none", None),
    "sparse": ((3, 7, 100), "none", None),
    "no_supercategory": ((1, 2, 3), None, None),
    "empty_supercategory": ((1, 2, 3), "", None),
    "foreign_supercategory": ((1, 2, 3), "animals", None),
    "roboflow_placeholder": ((1, 2, 3), "animals", 0),
    "placeholder_in_the_middle": ((1, 2, 9), "animals", 5),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        Image.new("RGB", (40, 30)).save(folder / f"{index}.png")
    return folder


def read(folder, images, categories, annotations, **options):
    file = folder / "_annotations.coco.json"
    document = {"images": images, "categories": categories, "annotations": annotations}
    file.write_text(json.dumps(document), encoding="utf-8")
    return read_coco(file, folder, **options)


def document_of(ids, supercategory, root_id, num_classes=3):
    categories = [{"id": i, "name": name} for i, name in zip(ids[:num_classes], NAMES[:num_classes], strict=True)]
    if supercategory is not None:
        categories = [{**category, "supercategory": supercategory} for category in categories]
    if root_id is not None:
        categories.append({"id": root_id, "name": supercategory, "supercategory": "none"})
    annotations = [
        {"id": i, "image_id": image, "category_id": ids[label], "bbox": [i, 2, 3, 4], "area": 12, "iscrowd": 0}
        for i, (image, label) in enumerate(OBJECTS)
        if label < num_classes
    ]
    return categories, annotations


@settings(max_examples=5, deadline=None)
@given(shuffle=st.randoms(use_true_random=False), num_classes=st.sampled_from([3, 1]))
@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_numbering_of_categories_does_not_matter(pictures, numbering, shuffle, num_classes):
    ids, supercategory, root_id = NUMBERINGS[numbering]
    categories, annotations = document_of(ids, supercategory, root_id, num_classes)
    shuffle.shuffle(categories)
    images = [{"id": index, "file_name": f"{index}.png"} for index in range(3)]
    result = read(pictures, images, categories, annotations)

    expected = [(image, label) for image, label in sorted(OBJECTS, key=lambda pair: pair[0]) if label < num_classes]
    assert result.class_names == NAMES[:num_classes]
    assert result.categories.num_classes == num_classes
    assert result.labels.tolist() == [label for _, label in expected]
    original = {annotation["id"]: annotation["category_id"] for annotation in annotations}
    for annotation_id, label in zip(result.annotation_ids, result.labels, strict=True):
        assert result.category_ids[label] == original[annotation_id]


def test_a_used_root_is_a_class(pictures):
    categories, annotations = document_of((1, 2, 3), "animals", 0)
    annotations.append({"id": 9, "image_id": 0, "category_id": 0, "bbox": [1, 1, 2, 2]})
    result = read(pictures, [{"id": index, "file_name": f"{index}.png"} for index in range(3)], categories, annotations)
    assert result.class_names == ["animals", *NAMES]
    assert sorted(result.labels.tolist()) == sorted([0] + [label + 1 for _, label in OBJECTS])


def test_raw_ids_are_labels_as_written(pictures):
    categories, annotations = document_of((3, 7, 90), "animals", 0)
    images = [{"id": index, "file_name": f"{index}.png"} for index in range(3)]
    result = read(pictures, images, categories, annotations, raw_ids=True)
    assert sorted(set(result.labels.tolist())) == [3, 7, 90]
    assert result.class_names == ["animals", *NAMES]
    assert result.categories.labels == (0, 3, 7, 90)
    assert result.categories.num_classes == 90


numbers = st.floats(-50, 100, allow_nan=False).map(lambda value: round(value, 3))
annotation_entries = st.fixed_dictionaries(
    {
        "id": st.integers(0, 50),
        "image_id": st.sampled_from([4, 12, 30, 77]),  # 77 is no picture
        "category_id": st.sampled_from([3, 7, 100]),
        "bbox": st.lists(numbers, min_size=4, max_size=4),
    },
    optional={
        "area": st.one_of(st.none(), st.floats(0, 500)),
        "iscrowd": st.sampled_from([0, 1]),
        "segmentation": st.just([[1, 2, 3, 4, 5, 6]]),
    },
)


@settings(max_examples=60, deadline=None)
@given(entries=st.lists(annotation_entries, max_size=12), image_order=st.permutations([4, 12, 30]))
def test_arrays_equal_a_naive_loop(pictures, entries, image_order):
    image_names = {4: "0.png", 12: "1.png", 30: "2.png"}
    images = [{"id": i, "file_name": image_names[i]} for i in image_order]
    categories = [{"id": i, "name": name} for i, name in zip((100, 3, 7), NAMES, strict=True)]
    result = read(pictures, images, categories, entries)

    assert result.image_ids.tolist() == [4, 12, 30]
    for index, image_id in enumerate([4, 12, 30]):
        assert result.path(index) == pictures / image_names[image_id]
        check_picture(result, index, [entry for entry in entries if entry["image_id"] == image_id])


def check_picture(result, index, entries):
    rows = result.rows(index)
    corners = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in entries)]
    assert result.boxes_xyxy[rows].tolist() == corners
    assert result.labels[rows].tolist() == [[3, 7, 100].index(entry["category_id"]) for entry in entries]
    assert result.crowd[rows].tolist() == [entry.get("iscrowd") == 1 for entry in entries]
    assert result.annotation_ids[rows].tolist() == [entry["id"] for entry in entries]
    areas = [math.nan if entry.get("area") is None else entry["area"] for entry in entries]
    np.testing.assert_array_equal(result.areas[rows], areas)

    wanted = []
    for entry, (x0, y0, x1, y1), area in zip(entries, corners, areas, strict=True):
        x0, x1 = (np.float32(min(max(x, 0), 40)) for x in (x0, x1))
        y0, y1 = (np.float32(min(max(y, 0), 30)) for y in (y0, y1))
        if entry.get("iscrowd") != 1 and x1 > x0 and y1 > y0:
            wanted.append([x0, y0, x1, y1, np.float32((x1 - x0) * (y1 - y0) if math.isnan(area) else area)])
    target = result.target(index, 30, 40)
    got = np.concatenate([target["boxes"], target["area"][:, None]], axis=1)
    np.testing.assert_array_equal(got, np.array(wanted, np.float32).reshape(-1, 5))
