"""The streaming JSON reader against `json.loads`, and the columns made of it against naive loops."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rfdetr.datasets import json_stream
from rfdetr.datasets.categories import as_key
from rfdetr.datasets.coco_columns import Ids
from rfdetr.datasets.json_stream import read_object
from rfdetr.datasets.layout import read_split

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["images", "annotations", "info"]) | st.text(max_size=5)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "file.json"


def streamed(file: Path, data: bytes, chunk: int) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The members, and the entries that were handed to the consumers, when the file is read in such chunks."""
    file.write_bytes(data)
    taken: dict[str, list[Any]] = {"images": [], "annotations": []}

    def consumer(key: str):
        def take(position: int, entry: Any) -> None:
            assert position == len(taken[key])
            taken[key].append(entry)

        return take

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        return read_object(file, {key: consumer(key) for key in taken}), taken


@settings(max_examples=150, deadline=None)
@given(
    document=st.dictionaries(KEYS, VALUES, max_size=5),
    chunk=st.integers(1, 50),
    style=st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}]),
    mark=st.booleans(),
)
def test_the_stream_holds_what_json_loads_gives(
    file: Path, document: dict[str, Any], chunk: int, style: dict[str, Any], mark: bool
) -> None:
    text = json.dumps(document, **style)
    found, taken = streamed(file, (b"\xef\xbb\xbf" * mark) + text.encode("utf-8", "surrogatepass"), chunk)
    expected = json.loads(text)
    for key, entries in taken.items():
        if isinstance(expected.get(key), list):
            assert repr(entries) == repr(expected[key])
            expected[key] = len(entries)
    assert repr(found) == repr(expected)


@pytest.mark.parametrize("number", ["1.5", "-0", "12e+3", "1E-2", "123456", "-1.25e10", "NaN", "-Infinity"])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_numbers_are_never_cut(file: Path, number: str, chunk: int) -> None:
    found, taken = streamed(file, f'{{"a":{number},"images":[{number},{number}]}}'.encode(), chunk)
    assert repr([found["a"], *taken["images"]]) == repr([json.loads(number)] * 3)


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "Expecting value at character 0"),
        (b'{"images": [{"id": 1}, {"id": ]}', "Expecting value at character 30"),
        (b'{"images": [1 2]}', ", or ] should stand at character 14"),
        (b'{"images": [1], "a": 2', "should stand at character 22"),
        (b'{"images": [], "images": []}', "'images' is given twice, a second time at character 24"),
        (b'{"a" 1}', "should stand at character 5"),
        (b"{1: 2}", "a key in double quotes should stand at character 1"),
        (b'{"a": 1,}', "a key in double quotes should stand at character 8"),
        (b'{"a": 1} x', "nothing should follow, but something does at character 9"),
        (b'{"a": "\xff"}', "invalid start byte at byte 7"),
        ('{"a": "ä"}'.encode("latin-1"), "at byte 7"),
        (b'{"a": "b\xc3', "unexpected end of data at byte 8"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply at character 6"),
        (b'{"a": ' + b"9" * 5000 + b"}", "at character 6"),
        (b"\x1f\x8b\x08\x00", "at byte 1"),
    ],
)
def test_errors_name_the_file_and_the_position(file: Path, data: bytes, said: str, chunk: int) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        streamed(file, data, chunk)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(("data", "kind"), [(b"[1, 2]", "list"), (b"3", "int"), (b"null", "NoneType"), (b'"x"', "str")])
def test_anything_but_an_object_is_refused(file: Path, data: bytes, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}: the top level is a {kind};"):
        streamed(file, data, 3)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        read_object(tmp_path / "nowhere.json", {})


IDS = st.one_of(
    st.integers(-5, 5), st.integers(-5, 5).map(float), st.integers(-5, 5).map(str), st.sampled_from("ab"),
    st.sampled_from([None, True, 2.5, 2**63, -(2**63), "9" * 5000, 1e30, float("nan"), [1]]),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(own=st.lists(IDS, max_size=12), asked=st.lists(IDS, max_size=12))
def test_ids_meet_as_in_a_naive_loop(own: list[Any], asked: list[Any]) -> None:
    columns = Ids(), Ids()
    for column, values in zip(columns, (own, asked), strict=True):
        for value in values:
            column.append(value)
    keys = [as_key(value) for value in own]
    expected = [keys.index(key) if (key := as_key(value)) is not None and key in keys else -1 for value in asked]
    found = columns[0].rows(columns[1]).tolist()
    # Of several with one id any is meant: that is refused before.
    unique = [key for key, count in Counter(keys).items() if count == 1]
    for value, row, wanted in zip(asked, found, expected, strict=True):
        assert row == wanted or as_key(value) not in unique
        assert (row < 0) == (wanted < 0)
    counts = Counter(keys)
    twice = columns[0].twice()
    assert (twice is None) == (max(counts.values(), default=0) < 2)
    assert twice is None or (counts[twice[0]] == twice[1] > 1)
    assert [columns[0].of(row) for row in range(len(own))] == [
        value if key is None else key for value, key in zip(own, keys, strict=True)
    ] or any(value != value for value in own)


@pytest.mark.parametrize("spell", [int, str, float, lambda i: f"img-{i}"])
def test_the_arrays_equal_the_document(spell: Any, tmp_path: Path) -> None:
    rng, folder = random.Random(4), tmp_path / "train"
    folder.mkdir()
    ids = rng.sample(range(100), 12)
    for i in ids:
        Image.new("RGB", (32, 24)).save(folder / f"{i}.png")
    objects = [
        {
            "id": spell(k),
            "image_id": spell(rng.choice(ids)),
            "category_id": rng.choice([3, 9, 4]),
            "bbox": [rng.uniform(0, 9), rng.uniform(0, 9), rng.uniform(1, 9), rng.uniform(1, 9)],
            **({"area": rng.uniform(1, 50)} if rng.random() < 0.5 else {}),
            **({"iscrowd": 1} if rng.random() < 0.2 else {}),
        }
        for k in rng.sample(range(1000), 60)
    ]
    document = {
        "images": [{"id": spell(i), "file_name": f"{i}.png"} for i in ids],
        "annotations": objects,
        "categories": [{"id": i, "name": f"c{i}"} for i in (9, 3, 4)],
    }
    (folder / "_annotations.coco.json").write_text(json.dumps(document))
    found = read_split(tmp_path, "train")
    assert sorted(found.path(i).name for i in range(len(found))) == sorted(f"{i}.png" for i in ids)
    if spell in (int, str, float):
        assert found.image_ids.tolist() == sorted(ids)
    for index in range(len(found)):
        own = [one for one in objects if one["image_id"] == spell(int(found.path(index).stem))]
        rows = found.rows(index)
        x, y, w, h = np.array([one["bbox"] for one in own]).reshape(-1, 4).T
        assert np.array_equal(found.boxes_xyxy[rows], np.stack((x, y, x + w, y + h), axis=1))
        assert found.labels[rows].tolist() == [(3, 4, 9).index(one["category_id"]) for one in own]
        assert found.crowd[rows].tolist() == ["iscrowd" in one for one in own]
        areas = [one.get("area", math.nan) for one in own]
        assert np.array_equal(found.areas[rows], areas, equal_nan=True)
        if spell in (int, str, float):
            assert found.annotation_ids[rows].tolist() == [int(one["id"]) for one in own]
