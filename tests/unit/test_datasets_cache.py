"""Decoded pictures that are kept: the same bits, really kept, and nothing left behind however a process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import TRAINING, tiny_data, tiny_model
from tests.unit.test_datasets_shards import pack_by_hand

from rfdetr.datasets import cache as module
from rfdetr.datasets import decode
from rfdetr.datasets.annotations import AnnotationSet
from rfdetr.datasets.cache import SHARED_MEMORY, PictureCache, cache_folder
from rfdetr.datasets.decode import reduced
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.loader import Pictures, TrainOrder, make_loader
from rfdetr.datasets.transforms import TrainTransform

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="files without a name")


def left_behind(*folders: Path) -> list[Path]:
    return [file for folder in folders if folder.is_dir() for file in folder.glob(".rfdetr_*.cache")]


def make_cache(annotations: AnnotationSet, transform: TrainTransform, file: Path) -> PictureCache:
    sizes = [reduced((h, w), transform.reduction((h, w))) for h, w in annotations.sizes.tolist()]
    return PictureCache(np.array(sizes), file)


def batches(pictures: Pictures, epochs: int = 2, workers: int = 0, context: str | None = None) -> list[list[bytes]]:
    """Everything in the batches of some epochs."""
    order, found = TrainOrder(len(pictures), 2, 3), []
    loader = make_loader(pictures, batch_size=2, order=order, num_workers=workers)
    loader.multiprocessing_context = context
    for epoch in range(epochs):
        order.set_epoch(epoch)
        for samples, targets in loader:
            found.append([samples.tensors.numpy().tobytes()])
            found[-1] += [np.asarray(value).tobytes() for target in targets for _, value in sorted(target.items())]
    return found


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Small and large pictures in two formats; the large ones are decoded at a part of their odd sizes."""
    data = tiny_data(tmp_path / "mixed")
    for number, hw in ((0, (601, 803)), (3, (403, 401)), (4, (1200, 900))):
        file = data / "train" / f"train_{number:05d}.jpg"
        noise = np.random.default_rng(number).integers(0, 256, (hw[0] // 8, hw[1] // 8, 3), np.uint8)
        Image.fromarray(noise).resize(hw[::-1]).save(file, "PNG" if number == 3 else "JPEG")
    return data


@LINUX
@pytest.mark.parametrize("turbo", [True, False])
def test_a_cache_changes_no_bit_and_is_used(
    mixed: Path, turbo: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = batches(Pictures(read_split(mixed, "train", masks=True), TrainTransform((64,), jitter=False), seed=1))
    if not turbo:
        monkeypatch.setattr(decode, "_turbo", lambda: None)
    annotations, transform = read_split(mixed, "train", masks=True), TrainTransform((64,), jitter=False)
    whole = batches(Pictures(annotations, transform, seed=1))
    assert whole == plain
    reducing = {"seed": 1, "reduction": transform.reduction}
    small = batches(Pictures(annotations, transform, **reducing))
    assert small != plain
    cache = make_cache(annotations, transform, tmp_path / "a.cache")
    assert sorted(set(cache.sizes[:, 0].tolist())) == [64, 76, 101, 150]
    cache.all_have_opened()
    assert not (tmp_path / "a.cache").exists()
    kept = Pictures(annotations, transform, **reducing, cache=cache)
    assert batches(kept) == small
    # What was seen in these epochs is read no more.
    for index in range(len(annotations)):
        annotations.path(index).unlink()
    assert batches(kept) == small


@LINUX
def test_forked_processes_fill_one_cache(mixed: Path, tmp_path: Path) -> None:
    annotations, transform = read_split(mixed, "train"), TrainTransform((64,), jitter=False)
    expected = batches(Pictures(annotations, transform, reduction=transform.reduction))
    cache = make_cache(annotations, transform, tmp_path / "a.cache")
    cache.all_have_opened()
    kept = Pictures(annotations, transform, reduction=transform.reduction, cache=cache)
    assert batches(kept, workers=2) == expected
    for index in {draw.index for epoch in (0, 1) for draw in order_of(annotations, epoch)}:
        assert cache.get(index) is not None
        annotations.path(index).unlink()
    assert batches(kept, workers=2) == expected


def order_of(annotations: AnnotationSet, epoch: int) -> list:
    order = TrainOrder(len(annotations), 2, 3)
    order.set_epoch(epoch)
    return list(order)


@LINUX
def test_spawned_processes_share_arrays_shards_and_cache(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "plain")
    annotations, transform = (
        read_split(pack_by_hand(data, tmp_path / "packed"), "train", masks=True),
        TrainTransform((64,)),
    )
    expected = batches(Pictures(annotations, transform), epochs=1)
    cache = make_cache(annotations, transform, tmp_path / "a.cache")
    cache.all_have_opened()
    kept = Pictures(annotations, transform, cache=cache)
    assert batches(kept, epochs=1, workers=1, context="spawn") == expected
    drawn = {draw.index for draw in order_of(annotations, 0)}
    assert all((cache.get(index) is not None) == (index in drawn) for index in range(len(annotations)))


def test_a_picture_of_another_size_is_not_kept(tmp_path: Path) -> None:
    cache = PictureCache(np.array([[4, 5], [0, 0], [2, 3]]), tmp_path / "a.cache")
    assert cache.num_bytes == 3 + 3 * (20 + 6)
    one, other = (np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8) for hw in ((4, 5), (5, 4)))
    cache.put(0, other)
    cache.put(1, one)
    assert [cache.get(index) for index in range(3)] == [None] * 3
    cache.put(0, one)
    again = PictureCache(cache.sizes, cache.file, create=False)
    found = again.get(0)
    assert np.array_equal(found, one)
    found[:] = 0  # what is handed out belongs to the caller
    assert np.array_equal(cache.get(0), one)
    assert cache.get(2) is None
    cache.close()
    cache.close()
    assert not (tmp_path / "a.cache").exists()


def test_no_room_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = np.full((10_000, 2), 20_000)
    with pytest.raises(OSError, match=r"take 12000\.0 GB, but .* has room for .* GB; set cache=None"):
        PictureCache(sizes, tmp_path / "a.cache")
    assert not (tmp_path / "a.cache").exists()
    monkeypatch.setattr(module, "_free_memory", lambda: 1000)
    if cache_folder("ram", tmp_path) == SHARED_MEMORY:
        file = SHARED_MEMORY / f".rfdetr_test_{os.getpid()}.cache"
        with pytest.raises(OSError, match=r"has room for 0\.0 GB"):
            PictureCache(np.full((1, 2), 100), file)
        assert not file.exists()


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_run_with_a_cache_learns_the_same_and_leaves_no_file(kind: str, tmp_path: Path) -> None:
    data, weights = tiny_data(tmp_path / "data"), []
    for cache in (None, kind):
        torch.manual_seed(0)
        model = tiny_model()
        model.train(dataset_dir=data, output_dir=tmp_path / str(cache), epochs=1, cache=cache, **TRAINING)
        weights.append(model.model.model.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert not left_behind(SHARED_MEMORY, tmp_path / kind)


def test_a_run_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_FILES", tmp_path / "nowhere")  # as where files keep their names
    data, seen = tiny_data(tmp_path / "data"), []
    before = left_behind(SHARED_MEMORY)
    model = tiny_model()

    def fail(*_: object) -> None:
        seen.extend(left_behind(tmp_path / "out"))
        raise RuntimeError("the callback failed")

    model.callbacks["on_fit_epoch_end"].append(fail)
    with pytest.raises(RuntimeError, match="the callback failed"):
        model.train(dataset_dir=data, output_dir=tmp_path / "out", epochs=1, cache="disk", **TRAINING)
    assert len(seen) == 2
    assert left_behind(SHARED_MEMORY, tmp_path / "out") == before


KILLED = """
import sys, time
import numpy as np
from pathlib import Path
from rfdetr.datasets.cache import PictureCache
cache = PictureCache(np.full((4, 2), 500), Path(sys.argv[1]))
cache.all_have_opened()
for index in range(4):
    cache.put(index, np.ones((500, 500, 3), np.uint8))
print("full", flush=True)
time.sleep(60)
"""


@LINUX
def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    file = SHARED_MEMORY / f".rfdetr_killed_{os.getpid()}.cache"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "full\n"
    held = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    assert f"{file} (deleted)" in held
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not file.exists()
