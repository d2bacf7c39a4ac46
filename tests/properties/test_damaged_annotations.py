"""Files of annotations that are damaged at random: a clear error that names the file, or a listed repair."""

from __future__ import annotations

import copy
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.layout import read_split

WEIRD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2.5, -0.0, 1e300, -1e300, 10**30, -(2**63), 2**63, 1e20, float("nan"), float("inf"),
    -float("inf"), "", "x", "7", "7.0", "-3", "9" * 5000, "\u0663", "nan", "\0", "\ud800", "a" * 300, "../../x.jpg",
    "/etc", ".", [], [[]], [[[]]], [None], [1, 2, 3], [1, 2, 3, 4], ["1", "2", "3", "4"], [1e308] * 4, [10**400] * 4,
    [float("nan")] * 4, [0, 10**30], [[1, 2, 3, 4, 5]], [1, 2, 3, 4, 5, 6, "x"], {}, {"a": 1}, {"size": [4, 5]},
    {"size": [4, 5], "counts": [20]}, {"size": [4.0, 5.0], "counts": [20]}, {"size": [4, 5.0], "counts": [20]},
    {"size": [0, 10**30], "counts": []}, {"size": [24, 32], "counts": "~~"}, {"size": "ab", "counts": [1]},
    {"size": [24, 32], "counts": {"a": 1}}, {"size": [24, 32], "counts": [10**12]}, [5000, 3], [10**9, 3],
)  # fmt: skip
MODES = ({"masks": False, "keypoints": False}, {"masks": True, "keypoints": False}, {"masks": False, "keypoints": True})
SHOULD_NOT = (RuntimeWarning, DeprecationWarning, BytesWarning)


def coco_document() -> dict[str, Any]:
    outlines = ([[2, 2, 12, 3, 9, 11]], {"size": [24, 32], "counts": [100, 40, 628]}, [[1, 1, 8, 1, 8, 9, 2, 9]])
    return {
        "info": {"year": 2024.5},
        "images": [{"id": i + 1, "file_name": f"{i}.png", "width": 32, "height": 24} for i in range(3)],
        "annotations": [
            {
                "id": k + 1,
                "image_id": k % 3 + 1,
                "category_id": k % 2 + 1,
                "bbox": [1 + k, 2, 8, 6.5],
                "area": 52.0,
                "iscrowd": 0,
                "segmentation": outlines[k % 3],
                "keypoints": [3 + k, 4, 2, 5, 6, 1] if k % 2 else [],
            }
            for k in range(6)
        ],
        "categories": [
            {"id": 1, "name": "plain", "supercategory": "none"},
            {"id": 2, "name": "arrow", "keypoints": ["tail", "head"], "skeleton": [[1, 2]]},
        ],
    }


def draw_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (32, 24), (i, 0, 0)).save(folder / f"{i}.png")


def places(value: Any) -> list[tuple[Any, Any]]:
    """All containers with each of their keys."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def damage_value(document: dict[str, Any], rng: random.Random) -> None:
    holder, key = rng.choice(places(document))
    kind = rng.random()
    if kind < 0.6:
        holder[key] = copy.deepcopy(rng.choice(WEIRD))
    elif kind < 0.75:
        del holder[key]
    elif kind < 0.85:
        holder[key] = [holder[key]]
    else:
        other, other_key = rng.choice(places(document))
        holder[key] = copy.deepcopy(other[other_key])


def damage_bytes(data: bytes, rng: random.Random, depth: int = 100_000) -> bytes:
    at, kind = rng.randrange(len(data)), rng.randrange(7)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + data[at + rng.randrange(1, 30) :]
    if kind == 3:
        return data[:at] + rng.choice((b"[" * depth, b'{"a":' * depth, b"9" * 5000, b"\xff\xfe", b"\0")) + data[at:]
    if kind == 4:
        return data[:at] + data[rng.randrange(len(data)) :]
    if kind == 5:
        return data[:-1] + rng.choice((b', "images": []}', b', "annotations": 3}', b', "categories": []}', b"}}", b"x"))
    return rng.choice((b"\xef\xbb\xbf" + data, data.decode("latin-1").encode("utf-16"), b"", b"[]", b"null", data * 2))


def read(root: Path, **asked: Any) -> tuple[AnnotationSet | None, str, set[str]]:
    """What is read, or the error; and the kinds that the warning lists. Everything read is used once."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for kind in SHOULD_NOT:
            warnings.simplefilter("error", kind)
        try:
            found = read_split(root, "train", **asked)
        except (ValueError, FileNotFoundError) as error:
            assert not isinstance(error, UnicodeError)
            return None, str(error), set()
        for index in range(len(found)):
            target = found.target(index, 24, 32)
            assert np.isfinite(target["boxes"]).all()
            assert np.isfinite(target["area"]).all()
            if "masks" in target:
                target["masks"].packed()
            if "keypoints" in target:
                assert np.isfinite(target["keypoints"]).all()
    text = " ".join(str(one.message) for one in said)
    return found, "", {repair.kind for repair in found.repairs if repair.kind in text}


def check_outcomes(root: Path, file: Path) -> None:
    for mode in MODES:
        strict, error, listed = read(root, **mode)
        lenient, lenient_error, warned = read(root, lenient=True, **mode)
        if strict is None:
            assert str(file) in error, error
            assert "Error" not in error.partition(str(file))[0]
            assert lenient is not None or str(file) in lenient_error, lenient_error
            assert lenient is None or any(repair.fatal and repair.count > 0 for repair in lenient.repairs), error
        else:
            assert listed == {repair.kind for repair in strict.repairs}
            assert lenient is not None
            assert lenient.repairs == strict.repairs
            assert not warned
            assert not any(repair.fatal for repair in strict.repairs)


def damaged_coco(root: Path, seeds: range) -> int:
    """Reads a damaged COCO file for each seed; gives how many of them are an error."""
    draw_pictures(root / "train")
    file, errors = root / "train" / "_annotations.coco.json", 0
    for seed in seeds:
        rng, document = random.Random(seed), coco_document()
        for _ in range(rng.randrange(1, 4) if seed % 3 else 0):
            damage_value(document, rng)
        data = json.dumps(document).encode()
        file.write_bytes(data if seed % 3 else damage_bytes(data, rng))
        check_outcomes(root, file)
        errors += read(root, **MODES[0])[0] is None
    return errors


LINES = ["0 0.5 0.5 0.2 0.2", "1 0.4 0.5 0.2 0.3 0.4 0.5 2 0.5 0.6 1", "0 0.1 0.1 0.5 0.1 0.4 0.6"]
BAD_LINES = [
    "", "0", "x 0.5 0.5 0.2 0.2", "0 nan 0.5 0.2 0.2", "0 1e400 0 0 0", "-1 0.5 0.5 0.1 0.1", "7 0.5 0.5 0.1 0.1",
    "0 50 60 20 20", "0.5 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1", "0 0.5 0.5 0.2 0.2 9 9 2 9 9 1",
    "0 0.5 0.5 0.2 0.2 0.1 0.1 7 nan 0.1 1", "0 0.5 0.5 0.2 0.2 inf 0.1 0 0.1 0.1 1", "0 0.5 0.5 0 0", "1e30 0 0 0 0",
    "9" * 5000 + " 0 0 0 0", "0 0.1 0.1 0.5 0.1 0.4 0.6 0.7", "0 -0.5 0.5 0.1 0.1", "\ud800 1 2 3 4",
]  # fmt: skip
YAML_BITS = [
    "[" * 1500, "&a [*a]", "2020-13-45", "0b_", "!!python/object:os.system x", "{1: [}", "? [a]\n: b", "\t- x",
    "!!binary 3", "1:99:99", "0o9", ".inf", "*nowhere", "<<: 3", "\x07", "!!timestamp x", "!!int x", "!!float y",
]  # fmt: skip


def damaged_yolo(root: Path, seeds: range) -> int:
    """Reads a damaged YOLO data set for each seed; gives how many of them are an error."""
    draw_pictures(root / "train" / "images")
    labels, errors = root / "train" / "labels", 0
    for seed in seeds:
        rng = random.Random(seed)
        shutil.rmtree(labels, ignore_errors=True)
        labels.mkdir()
        settings = {"train": "train/images", "nc": 2, "names": ["a", "b"], "kpt_shape": [2, 3], "flip_idx": [1, 0]}
        files = {root / "data.yaml": yaml.safe_dump(settings).encode()}
        # A line with points is a polygon of another data set where there are none, so only one kind goes with both.
        files |= {labels / f"{i}.txt": f"{LINES[0]}\n{LINES[1]}\n".encode() for i in range(3)}
        if seed % 4 == 0:
            damage_value(settings, rng)
            text = yaml.safe_dump(settings, allow_unicode=False)
            files[root / "data.yaml"] = text.encode("utf-8", "surrogatepass")
        elif seed % 4 == 1:
            bit = f"\n{rng.choice(('names', 'train', 'x', 'kpt_shape', 'nc'))}: {rng.choice(YAML_BITS)}\n"
            files[root / "data.yaml"] += bit.encode()
        elif seed % 4 == 2:
            lines = [rng.choice(LINES[:2] + BAD_LINES) for _ in range(3)]
            files[labels / "1.txt"] = "\n".join(lines).encode("utf-8", "surrogatepass")
        else:
            victim = rng.choice(list(files))
            files[victim] = damage_bytes(files[victim], rng, depth=1500)
        for file, data in files.items():
            file.write_bytes(data)
        check_outcomes(root, root)
        errors += read(root, **MODES[0])[0] is None
    return errors


@pytest.mark.parametrize(("damaged", "files"), [(damaged_coco, 150), (damaged_yolo, 40)])
def test_damage_is_an_error_that_names_the_file_or_a_listed_repair(
    damaged: Callable[[Path, range], int], files: int, tmp_path: Path
) -> None:
    assert files / 5 < damaged(tmp_path, range(files)) < files * 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("damaged", "files"), [(damaged_coco, 1000), (damaged_yolo, 150)])
def test_a_thousand_damaged_files(damaged: Callable[[Path, range], int], files: int, tmp_path: Path) -> None:
    assert damaged(tmp_path, range(100, 100 + files)) > files / 5


def test_single_objects_and_missing_pictures_are_left_out_where_that_is_asked(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "train")
    document = coco_document()
    objects = document["annotations"]
    objects[0]["bbox"], objects[1]["category_id"], objects[3]["area"] = [1, 2, 3], "car", "large"
    (tmp_path / "train" / "2.png").unlink()
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(document))
    found = read_split(tmp_path, "train", lenient=True)
    assert found.annotation_ids.tolist() == [5]
    assert [str(found.path(i).name) for i in range(len(found))] == ["0.png", "1.png"]
    assert sorted((repair.count, repair.fatal) for repair in found.repairs) == [(1, True)] * 4
    assert found.categories.names == ("plain", "arrow")
