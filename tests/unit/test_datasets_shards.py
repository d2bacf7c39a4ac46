"""Tar shards: the same pictures and targets as the unpacked set, and errors that say what is wrong with a shard."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny import tiny_data

from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.layout import detect_format, read_split
from rfdetr.datasets.loader import EvalOrder, Pictures, make_loader
from rfdetr.datasets.transforms import EvalTransform


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def pack_by_hand(data: Path, folder: Path, split: str = "train", per_shard: int = 4, **index: Any) -> Path:
    """A Roboflow folder as shards, written here from the description of the format alone."""
    folder.mkdir(parents=True, exist_ok=True)
    document = json.loads((data / split / "_annotations.coco.json").read_text())
    names = []
    for start in range(0, len(document["images"]), per_shard):
        names.append(f"{split}-{len(names):06d}.tar")
        with tarfile.open(folder / names[-1], "w") as tar:
            for image in document["images"][start : start + per_shard]:
                own = [one for one in document["annotations"] if one["image_id"] == image["id"]]
                sample = {"image_id": image["id"], **{k: image[k] for k in ("width", "height", "file_name")}}
                members = [
                    (f"{image['id']:09d}.jpg", (data / split / image["file_name"]).read_bytes()),
                    (f"{image['id']:09d}.json", json.dumps({**sample, "annotations": own}).encode()),
                ]
                for name, content in members[:: 1 if image["id"] % 2 else -1]:
                    add_file(tar, name, content)
    content = {"shards": names, "num_samples": len(document["images"]), "categories": document["categories"], **index}
    (folder / f"{split}-index.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("plain"), shapes=("circle", "dart"))


@pytest.fixture(scope="module")
def packed(plain: Path) -> Path:
    return pack_by_hand(plain, plain.parent / "packed")


def assert_same(one: AnnotationSet, other: AnnotationSet) -> None:
    """Both sets hold the same pictures and objects in the same order."""
    assert len(one) == len(other)
    assert one.class_names == other.class_names
    assert np.array_equal(one.sizes, other.sizes)
    for index in range(len(one)):
        assert one.read(index) == other.read(index)
        height, width = one.sizes[index].tolist()
        targets = [annotations.target(index, height, width) for annotations in (one, other)]
        for key in targets[0]:
            values = [target[key].dense() if key == "masks" else target[key] for target in targets]
            assert np.array_equal(*values), key
        assert len(targets[0]["boxes"])


@pytest.mark.parametrize("task", [{}, {"masks": True}, {"keypoints": True}])
def test_shards_hold_what_the_unpacked_set_holds(plain: Path, packed: Path, task: dict[str, bool]) -> None:
    assert detect_format(packed) == "shards"
    one, other = read_split(plain, "train", **task), read_split(packed, "train", **task)
    assert len(other.shards.files) == 3
    assert_same(one, other)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("context", [None, pytest.param("spawn", marks=pytest.mark.slow)])
def test_loading_processes_read_shards(plain: Path, packed: Path, context: str | None) -> None:
    batches = []
    for folder, workers in ((plain, 0), (packed, 2)):
        pictures = Pictures(read_split(folder, "train"), EvalTransform(32))
        loader = make_loader(pictures, batch_size=3, order=EvalOrder(10), num_workers=workers)
        loader.multiprocessing_context = context if workers else None
        batches.append(list(loader))
    assert len(batches[0]) == 4
    for (own, targets), (other, others) in zip(*batches, strict=True):
        assert own.tensors.equal(other.tensors)
        for target, same in zip(targets, others, strict=True):
            assert all(np.array_equal(target[key], same[key]) for key in target)


def change(name: str, action: Any) -> Any:
    """A damage: `action` changes the bytes of a file; None removes it."""

    def damage(folder: Path) -> None:
        file = folder / name
        data = file.read_bytes()
        file.unlink()
        if action is not None:
            file.write_bytes(action(data))

    return damage


def more(name: str, content: bytes) -> Any:
    """A damage: another member of the second shard."""

    def damage(folder: Path) -> None:
        with tarfile.open(folder / "train-000001.tar", "a") as tar:
            add_file(tar, name, content)

    return damage


def index(**members: Any) -> Any:
    return change("train-index.json", lambda data: json.dumps({**json.loads(data), **members}).encode())


def compress(folder: Path) -> None:
    import gzip

    change("train-000001.tar", gzip.compress)(folder)


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (change("train-000001.tar", None), FileNotFoundError, r"train-000001\.tar: the shard does not exist"),
        (change("train-000001.tar", lambda data: data[:3000]), ValueError, r"train-000001\.tar is damaged"),
        (change("train-000001.tar", lambda data: data[:1024]), ValueError, r"train-000001\.tar is damaged"),
        (change("train-000001.tar", lambda data: b"garbage" * 999), ValueError, r"train-000001\.tar is damaged"),
        (change("train-000001.tar", lambda data: b""), ValueError, r"train-000001\.tar is damaged"),
        (compress, ValueError, r"train-000001\.tar is damaged or no tar file"),
        (more("x.jpg", b"1"), ValueError, r"train-000001\.tar .*x\.jpg has no partner"),
        (lambda f: [more("x.jpg", b"1")(f), more("x.json", b"{")(f)], ValueError, r"train-000001\.tar"),
        (lambda f: [more("x.jpg", b"1")(f), more("x.json", b"[" * 99999)(f)], ValueError, r"train-000001\.tar"),
        (lambda f: [more("x.jpg", b"1")(f), more("x.json", b"[]")(f)], ValueError, r"x\.json holds no object"),
        (
            lambda f: [more("x.jpg", b"1")(f), more("x.json", b'{"annotations": 5}')(f)],
            ValueError,
            r"x\.json .* annotations are no list",
        ),
        (
            lambda f: [more("x.jpg", b"1")(f), more("x.json", b'{"image_id": null}')(f)],
            ValueError,
            r"train-index\.json: entry 8 of the shards has no usable 'id'",
        ),
        (
            lambda f: [more("x.jpg", b"1")(f), more("x.json", b'{"image_id": 2}')(f)],
            ValueError,
            r"train-index\.json: 2 entries of the shards have the id 2",
        ),
        (index(num_samples=11), ValueError, r"train-index\.json: its shards hold 10 pictures, not 11; pack"),
        (index(shards=["../train-000000.tar"]), ValueError, r"'shards' is \['\.\./train-000000\.tar'\]; it has to"),
        (index(shards=["/etc/passwd"]), ValueError, r"'shards' is "),
        (index(shards=[".."]), ValueError, r"'shards' is "),
        (index(shards=[""]), ValueError, r"'shards' is "),
        (index(shards=["a\0.tar"]), ValueError, r"is damaged"),
        (index(shards=5), ValueError, r"'shards' is 5"),
        (index(shards=[], num_samples=0), ValueError, r"train-index\.json: its shards hold 0 pictures"),
        (index(categories=None), ValueError, r"train-index\.json: 'categories' is missing"),
        (change("train-index.json", lambda data: b"{"), ValueError, r"train-index\.json is not valid JSON"),
        (change("train-index.json", lambda data: b"\xff"), ValueError, r"train-index\.json is not valid JSON"),
        (change("train-index.json", lambda data: b"[" * 99999), ValueError, r"train-index\.json is not valid JSON"),
    ],
)
def test_damaged_shards_are_named(packed: Path, tmp_path: Path, damage: Any, error: type, said: str) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(error, match=said):
        read_split(folder, "train")


def test_a_shard_that_shrinks_after_it_was_read_is_a_bad_picture(packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    pictures = Pictures(read_split(folder, "train"), EvalTransform(32))
    shard = folder / "train-000002.tar"
    shard.write_bytes(shard.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"train-000002\.tar/train_\d+\.jpg cannot be decoded"):
        pictures[9]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000002\.tar"):
        pictures[9]
