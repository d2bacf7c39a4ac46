"""Order of the pictures, batches, and that everything drawn depends on its place in the run alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import tiny_data
from tests.vectors import DATA

from rfdetr.datasets.batch import NestedTensor, collate, split
from rfdetr.datasets.layout import read_split
from rfdetr.datasets.loader import Draw, EvalOrder, Loader, Pictures, TrainOrder, make_loader
from rfdetr.datasets.synthetic import draw_dataset
from rfdetr.datasets.transforms import EvalTransform, TrainTransform


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


def damage(data: Path, split: str, kinds: dict[int, str]) -> None:
    """Make pictures of a split unreadable."""
    for index, kind in kinds.items():
        file = data / split / f"{split}_{index:05d}.jpg"
        if kind == "missing":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:400] if kind == "cut" else b"no picture")


def everything(loader: Loader) -> list[tuple[bytes, list[dict[str, list]]]]:
    return [
        (samples.tensors.numpy().tobytes(), [{k: np.asarray(v).tolist() for k, v in one.items()} for one in targets])
        for samples, targets in loader
    ]


def loaded(pictures: Pictures, order: TrainOrder | EvalOrder, workers: int = 0) -> tuple[list, dict[int, str]]:
    """All batches, and the pictures that were left out."""
    loader = make_loader(pictures, batch_size=4, order=order, num_workers=workers)
    loader.bad.limit = 1
    return everything(loader), loader.bad.found


KINDS = {2: "cut", 5: "text", 7: "missing"}


@pytest.mark.parametrize("task", [{}, {"masks": True}, {"keypoints": True}])
def test_a_bad_picture_is_replaced_and_changes_no_other_draw(task: dict[str, bool], tmp_path: Path) -> None:
    data = tiny_data(tmp_path, shapes=("dart", "circle"))
    annotations, transform = read_split(data, "train", **task), TrainTransform((64,))
    order = TrainOrder(len(annotations), 4, seed=5)
    draws, sound = list(order), loaded(Pictures(annotations, transform, 5, skip=True), order)[0]
    damage(data, "train", KINDS)
    found, bad = loaded(Pictures(annotations, transform, 5, skip=True), order)
    again, bad_again = loaded(Pictures(annotations, transform, 5, skip=True), order, workers=2)
    assert found == again
    assert bad.keys() == bad_again.keys() == KINDS.keys() & {draw.index for draw in draws}
    assert len(bad) > 1
    for index, reason in bad.items():
        assert f"train_{index:05d}.jpg" in reason
    for draw, (own, before) in zip(
        draws, zip(*(flat(batches) for batches in (found, sound)), strict=True), strict=True
    ):
        if draw.index not in KINDS:
            assert own == before
            continue
        shown = [int(i) for i in own[1]["unreadable"]]
        assert shown[0] == draw.index
        assert set(shown) <= KINDS.keys()
        replaced = own[1]["image_id"][0] - 1  # ids of the drawn data count from 1
        assert replaced not in KINDS
        # The picture in its place is augmented as any other at that place of the run.
        alone = Pictures(annotations, transform, 5)[Draw(draw.epoch, draw.position, replaced)]
        assert np.ascontiguousarray(alone[0].transpose(2, 0, 1)).tobytes() == own[0]


def flat(batches: list) -> list[tuple[bytes, dict]]:
    """Picture and target of every place of an epoch."""
    return [
        (pixels[i * len(pixels) // len(targets) : (i + 1) * len(pixels) // len(targets)], target)
        for pixels, targets in batches
        for i, target in enumerate(targets)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_sees_a_black_picture_without_objects(workers: int, tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    annotations = read_split(data, "train", masks=True)
    before = flat(loaded(Pictures(annotations, EvalTransform(32)), EvalOrder(10))[0])
    damage(data, "train", KINDS)
    found, bad = loaded(Pictures(annotations, EvalTransform(32), skip=True), EvalOrder(10), workers)
    assert list(bad) == [2, 5, 7]
    for index, (own, sound) in enumerate(zip(flat(found), before, strict=True)):
        if index not in KINDS:
            assert own == sound
        else:
            assert not any(own[0])
            assert own[1]["unreadable"] == [index]
            assert own[1]["labels"] == own[1]["boxes"] == []
            assert own[1]["image_id"] == sound[1]["image_id"]


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_one_in_a_hundred_is_an_error(workers: int, tmp_path: Path) -> None:
    data = draw_dataset(tmp_path, {"train": 100}, hw=(16, 16), max_objects=1)
    annotations = read_split(data, "train")
    damage(data, "train", {3: "cut"})
    pictures = Pictures(annotations, EvalTransform(32), skip=True)
    assert len(list(make_loader(pictures, batch_size=4, order=EvalOrder(100), num_workers=workers))) == 25
    damage(data, "train", {8: "missing"})
    with pytest.raises(
        ValueError,
        match=r"2 of the 100 pictures of .*_annotations\.coco\.json .* more than 1%; the first: .*train_00003\.jpg",
    ):
        list(make_loader(pictures, batch_size=4, order=EvalOrder(100), num_workers=workers))
    strict = make_loader(
        Pictures(annotations, EvalTransform(32)), batch_size=4, order=EvalOrder(100), num_workers=workers
    )
    with pytest.raises(ValueError, match=r"train_00003\.jpg"):
        list(strict)


def test_nothing_but_bad_pictures_is_an_error(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    annotations = read_split(data, "train")
    damage(data, "train", dict.fromkeys(range(10), "text"))
    with pytest.raises(ValueError, match=r"of 20 pictures drawn at random none can be decoded; .*train_000"):
        Pictures(annotations, EvalTransform(32), skip=True)[Draw(0, 0, 1)]


def test_a_large_picture_is_decoded_smaller_and_its_target_stays(tmp_path: Path) -> None:
    data = draw_dataset(tmp_path, {"train": 2}, hw=(300, 400), shapes=("dart", "circle"), seed=2)
    file = data / "train" / "_annotations.coco.json"
    document = json.loads(file.read_text())
    picture = data / "train" / "train_00000.jpg"
    Image.open(picture).resize((2400, 1800)).save(picture)
    for one in (one for one in document["annotations"] if one["image_id"] == 1):
        one["bbox"] = [6 * v for v in one["bbox"]]
        one["segmentation"] = [[6 * v for v in ring] for ring in one["segmentation"]]
        one["keypoints"] = [v if i % 3 == 2 else 6 * v for i, v in enumerate(one.get("keypoints", []))]
    file.write_text(json.dumps(document))
    transform, sizes = TrainTransform((544,)), []
    assert [transform.reduction(hw) for hw in ((3000, 4000), (1800, 2400), (1600, 2400), (480, 640))] == [2, 2, 1, 1]

    def note(image: np.ndarray, target: dict, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
        sizes.append(image.shape[:2])
        return transform(image, target, rng)

    for task in ({"masks": True}, {"keypoints": True}):
        annotations = read_split(data, "train", **task)
        small = Pictures(annotations, note, reduction=transform.reduction)
        whole = Pictures(annotations, transform)
        for position in range(3):
            for index in (0, 1):
                image, target = small[Draw(0, position, index)]
                expected, full = whole[Draw(0, position, index)]
                assert sizes[-1] == ((900, 1200), (300, 400))[index]
                assert target["labels"].tolist() == full["labels"].tolist()
                if index == 1:
                    assert np.array_equal(image, expected)
                assert np.abs(image.astype(int) - expected).mean() < 2
                assert np.abs(target["boxes"] - full["boxes"]).max(initial=0) * 544 <= 1
                assert target["orig_size"].tolist() == full["orig_size"].tolist()
                np.testing.assert_allclose(target["area"], full["area"], rtol=0.02)
                if "keypoints" in target:
                    assert np.abs(target["keypoints"] - full["keypoints"])[..., :2].max(initial=0) * 544 <= 1
                else:
                    masks = [np.unpackbits(one["masks"], axis=0).view(bool) for one in (target, full)]
                    assert (masks[0] ^ masks[1]).sum() <= (edges(masks[1])).sum()
                    assert not ((masks[0] ^ masks[1]) & ~edges(masks[1])).any()


def edges(masks: np.ndarray) -> np.ndarray:
    """Pixels (N, H, W) whose neighbourhood of 3 by 3 is not all the same, as is the border of the picture."""
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    height, width = masks.shape[1:]
    near = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.any(near, axis=0) & ~np.all(near, axis=0)
