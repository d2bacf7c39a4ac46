"""Order of the pictures, batches, and that everything drawn depends on its place in the run alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import tiny_data
from tests.vectors import DATA

from rfdetr.datasets.batch import NestedTensor, collate, split
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.loader import Draw, EvalOrder, Pictures, TrainOrder, make_loader
from rfdetr.datasets.transforms import TrainTransform


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return Pictures(read_split(tiny_data(tmp_path_factory.mktemp("data")), "train"), TrainTransform((64,)), seed=3)


@pytest.mark.parametrize(
    ("size", "effective", "world", "length"),
    [(100, 16, 1, 112), (96, 16, 1, 96), (10, 4, 1, 20), (1, 2, 1, 10), (100, 8, 2, 56), (3, 2, 4, 10)],
)
def test_an_epoch_is_whole_steps_and_covers_everything(size: int, effective: int, world: int, length: int) -> None:
    orders = [TrainOrder(size, effective, seed=1, world=world, rank=rank) for rank in range(world)]
    draws = [list(order) for order in orders]
    assert all(len(part) == len(order) == length for part, order in zip(draws, orders, strict=True))
    positions = sorted(draw.position for part in draws for draw in part)
    assert positions == list(range(length * world))
    if size >= 5 * effective * world:
        assert {draw.index for part in draws for draw in part} == set(range(size))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    order = TrainOrder(100, 4, seed=1)
    first = list(order)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - the global generator must not matter
    assert list(order) == first
    order.set_epoch(1)
    assert [draw.index for draw in order] != [draw.index for draw in first]
    assert [d.index for d in TrainOrder(100, 4, seed=2)] != [draw.index for draw in first]


def test_a_picture_drawn_twice_is_augmented_twice_and_repeatably(pictures: Pictures) -> None:
    sides = {pictures[Draw(0, position, 4)][0].tobytes() for position in range(12)}
    assert len(sides) > 1
    assert np.array_equal(pictures[Draw(2, 5, 4)][0], pictures[Draw(2, 5, 4)][0])


def test_loading_does_not_move_the_global_generator(pictures: Pictures) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(make_loader(pictures, batch_size=4, order=TrainOrder(len(pictures), 4, 0), num_workers=0))
    assert torch.equal(before, torch.get_rng_state())


def test_pictures_of_one_size_are_stacked_without_a_mask() -> None:
    samples, targets = collate(
        [(np.full((8, 12, 3), i, np.uint8), {"labels": np.arange(i)}) for i in range(3)], block=4
    )
    assert samples.mask is None
    assert samples.tensors.shape == (3, 3, 8, 12)
    assert [len(target["labels"]) for target in targets] == [0, 1, 2]


def test_pictures_of_different_size_are_padded_to_the_block() -> None:
    images = [np.ones((5, 9, 3), np.uint8), np.ones((7, 3, 3), np.uint8)]
    samples, _ = collate([(image, {}) for image in images], block=4)
    assert samples.tensors.shape == (2, 3, 8, 12)
    for image, tensor, mask in zip(images, samples.tensors, samples.mask, strict=True):
        height, width = image.shape[:2]
        assert int((~mask).sum()) == height * width
        assert not mask[:height, :width].any()
        assert int(tensor.sum()) == image.size


def test_micro_batches_keep_the_order_and_refuse_a_remainder() -> None:
    batch = (NestedTensor(torch.arange(6.0).view(6, 1, 1, 1), None), [{"i": torch.tensor(i)} for i in range(6)])
    parts = list(split(batch, 3))
    assert [part[0].tensors.flatten().tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert [[int(t["i"]) for t in part[1]] for part in parts] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match="6 pictures cannot be split into 4"):
        list(split(batch, 4))


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    victim = data / "train" / "train_00003.jpg"
    victim.write_bytes(victim.read_bytes()[:300])
    broken = Pictures(read_split(data, "train"), TrainTransform((64,)))
    with pytest.raises(ValueError, match=r"train_00003\.jpg"):
        broken[3]


@pytest.mark.filterwarnings("ignore:.*left out:UserWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_S060_masks_arrive_packed_and_padded_like_their_pictures(workers: int) -> None:
    annotations = read_split(DATA / "datasets" / "coco", "train", masks=True)
    transform = TrainTransform((48,), square=False, jitter=False)
    order = EvalOrder(len(annotations))
    loader = make_loader(Pictures(annotations, transform), batch_size=4, order=order, block=32, num_workers=workers)
    for number, (samples, targets) in enumerate(loader):
        for place, target in enumerate(targets):
            height, width = target["size"].tolist()
            alone = Pictures(annotations, transform)[4 * number + place][1]["masks"]
            assert isinstance(target["masks"], np.ndarray)
            assert target["masks"].shape == (-(-len(target["labels"]) // 8), *samples.tensors.shape[2:])
            assert np.array_equal(target["masks"][:, :height, :width], alone)
            assert not target["masks"][:, height:].any()
            assert not target["masks"][:, :, width:].any()
