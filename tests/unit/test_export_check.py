"""The comparison of a file with its model, on made-up detections: what a file loses or makes up is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import decided_model

from rfdetr import RFDETR
from rfdetr.export import check as module
from rfdetr.export.check import TOLERANCES, Parity, check, chosen_pictures, compare, measure, sample_pictures
from rfdetr.inference import optimised
from rfdetr.inference.decode import Found
from rfdetr.inference.network import NetworkRunner

PICTURE = np.zeros((100, 200, 3), np.uint8)
# In pixels of the picture, whose longer side is 200.
BOX_PX, SCORE = 2e-5 * 200, 1e-4
# More than there are detections: none was left out.
ALL = 1000


def found_of(count: int = 10, seed: int = 0, task: str = "detect") -> Found:
    """Detections far from each other, best first."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 80, (count, 2))
    found = {
        "scores": np.linspace(0.95, 0.05, count).astype(np.float32),
        "labels": random.integers(0, 3, count),
        "boxes": np.hstack((corners, corners + random.uniform(5, 20, (count, 2)))).astype(np.float32),
    }
    if task == "segment":
        found["mask_logits"] = random.normal(size=(count, 20, 20)).astype(np.float32)
    if task == "keypoints":
        found["keypoints"] = random.uniform(0, 100, (count, 3, 3)).astype(np.float32)
    return found


def taken(found: Found, rows: Sequence[int] | np.ndarray) -> Found:
    return {name: value[rows] for name, value in found.items()}


def parity_of(one: Found, other: Found, reports: int = ALL, hidden: Sequence[int] = ()) -> Parity:
    return compare([one], [other], [PICTURE], TOLERANCES["float32"], reports, hidden)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray], task: str = "detect") -> tuple[Found, Found]:
    one = found_of(task=task)
    return one, {**one, name: change(one[name].copy())}


# What is the same


@pytest.mark.parametrize("task", ["detect", "segment", "keypoints"])
def test_the_same_detections_agree_in_any_order(task):
    one = found_of(task=task)
    for rows in (np.arange(10), np.arange(10)[::-1], np.random.default_rng(0).permutation(10)):
        assert parity_of(one, taken(one, rows)) == Parity(1, 10, 1.0, 0.0, 0.0, 0.0)


def test_no_detections_agree_with_none():
    assert parity_of(found_of(0), found_of(0)) == Parity(1, 0, 1.0, 0.0, 0.0, 0.0)


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 150))
def test_what_rounding_does_is_measured(seed, count):
    random = np.random.default_rng(seed)
    one = found_of(count, seed)
    other = {**one, "boxes": one["boxes"] + random.uniform(-0.9, 0.9, (count, 4)).astype(np.float32) * BOX_PX}
    other["scores"] = one["scores"] + random.uniform(-0.9, 0.9, count).astype(np.float32) * SCORE
    parity = parity_of(one, other)
    assert parity.matched == 1.0
    assert parity.detections == min(count, 100)
    rows = slice(0, min(count, 100))
    away = np.abs(one["boxes"] - other["boxes"])[rows].max()
    assert parity.max_box_px == pytest.approx(float(away), abs=1e-7)
    assert parity.max_score == pytest.approx(float(np.abs(one["scores"] - other["scores"])[rows].max()), abs=1e-7)


# What is not


@pytest.mark.parametrize(
    ("pair", "matched"),
    [
        (changed("boxes", lambda boxes: boxes + 2 * BOX_PX), 0),
        (changed("scores", lambda scores: scores - 3 * SCORE), 0),
        (changed("labels", lambda labels: labels + 1), 0),
        (changed("mask_logits", lambda logits: -logits, "segment"), 0),
        (changed("keypoints", lambda points: points + np.float32([0, 2 * BOX_PX, 0]), "keypoints"), 0),
        # not one number
        (changed("scores", lambda scores: scores * np.nan), 0),
        (changed("boxes", lambda boxes: boxes * np.nan), 0),
        (changed("keypoints", lambda points: points * np.nan, "keypoints"), 0),
        (changed("mask_logits", lambda logits: logits * np.nan, "segment"), 0),
        # nothing is certain, or everything
        (changed("scores", np.zeros_like), 0),
        (changed("scores", np.ones_like), 0),
        # one of ten, in both directions
        (changed("boxes", lambda boxes: boxes + 5 * np.eye(10, 4, -3, dtype=np.float32)[:, :1]), 0.9),
        (changed("labels", lambda labels: (labels + (np.arange(10) == 4)) % 3), 0.9),
        # nothing at all, or a part
        ((found_of(), found_of(0)), 0),
        ((found_of(), taken(found_of(), np.arange(5))), 10 / 15),
        ((found_of(), taken(found_of(), np.arange(5, 10))), 10 / 15),
        # one for all of them
        ((found_of(), taken(found_of(), np.zeros(10, int))), 0.1),
        # what scores half are no numbers
        (changed("scores", lambda scores: np.where(scores < 0.5, np.nan, scores)), 10 / 15),
    ],
)
@pytest.mark.parametrize("reports", [10, ALL])
@pytest.mark.parametrize("swapped", [False, True])
def test_what_differs_does_not_agree(pair, matched, reports, swapped):
    """However many detections there can be, and whichever of the two is the file."""
    one, other = reversed(pair) if swapped else pair
    if reports == 10 and min(len(one["scores"]), len(other["scores"])) < 10:
        reports = ALL
    parity = parity_of(one, other, reports)
    # Of a list that is full the last one may be another in every arithmetic, so that it is left out.
    assert parity.matched == pytest.approx(matched, abs=0.11 if reports == 10 else 1e-5)
    assert parity.matched < TOLERANCES["float32"].share


def test_masks_may_differ_in_a_few_pixels_alone():
    one, other = changed("mask_logits", lambda logits: np.abs(logits) + 0.1, "segment")
    one = {**one, "mask_logits": other["mask_logits"].copy()}
    one["mask_logits"][:, 0, :7] = -1  # 7 of 400
    assert parity_of(one, other).matched == 1.0
    assert parity_of(one, other).max_mask == pytest.approx(7 / 400)
    one["mask_logits"][:, 0, :9] = -1
    assert parity_of(one, other).matched == 0.0


def test_which_ones_are_the_last_of_a_full_list_is_chance():
    """Two of equal scores at its end, of which each list has one."""
    whole = found_of(11)
    whole["scores"][9:] = whole["scores"][9]
    one, other = taken(whole, np.arange(10)), taken(whole, [*range(9), 10])
    assert parity_of(one, other, reports=10) == Parity(1, 9, 1.0, 0.0, 0.0, 0.0)
    # If the list is not full, one is missing.
    assert parity_of(one, other, reports=11).matched == 0.9


def test_what_is_no_class_is_left_out():
    one = found_of()
    one["labels"][:] = [0, 1, 2, 2, 1, 0, 2, 1, 0, 2]
    other = {**one, "boxes": np.where((one["labels"] == 2)[:, None], one["boxes"] + 9, one["boxes"])}
    assert parity_of(one, other).matched == pytest.approx(0.6)
    assert parity_of(one, other, hidden=[2]) == Parity(1, 6, 1.0, 0.0, 0.0, 0.0)
    # A file may leave them out before it chooses, and then it reports more of the others than a full list has.
    kept = taken(one, np.flatnonzero(one["labels"] != 2))
    more = {"scores": np.float32([0.04, 0.03, 0.02, 0.01]), "labels": np.zeros(4, int)}
    more["boxes"] = np.tile(np.float32([1, 1, 3, 3]), (4, 1))
    longer = {name: np.concatenate((value, more[name])) for name, value in kept.items()}
    assert parity_of(one, longer, reports=10, hidden=[2]) == Parity(1, 6, 1.0, 0.0, 0.0, 0.0)


# A model and what stands for its file


@pytest.fixture(scope="module")
def model() -> RFDETR:
    return decided_model()


PICTURES = [np.random.default_rng(i).integers(0, 256, (60, 80, 3), np.uint8) for i in range(6)]
HW = (64, 64)


class File(NetworkRunner):
    """The network itself, whose detections can be changed on their way."""

    change: Callable[[Found], Found] = staticmethod(lambda found: found)

    def detect(self, pictures: Sequence[np.ndarray], hw: tuple[int, int], threshold: float) -> list[Found]:
        return [type(self).change(one) for one in super().detect(pictures, hw, threshold)]


def file_that(model: RFDETR, change: Callable[[Found], Found]) -> File:
    return type("Changed", (File,), {"change": staticmethod(change)})(model.model)


def nothing(found: Found) -> Found:
    return {**found, "scores": found["scores"] * np.float32(np.nan)}


def shifted(found: Found) -> Found:
    return {**found, "boxes": found["boxes"] + np.float32(0.01)}


def test_a_model_agrees_with_itself(model):
    parity = check(model.model, File(model.model), PICTURES, HW, "float32", Path("file"))
    assert (parity.pictures, parity.matched, parity.max_mask) == (6, 1.0, 0.0)
    assert parity.max_box_px < 1e-4
    assert parity == measure(model.model, File(model.model), PICTURES, HW, "float32")


# A hundredth of a pixel is what half precision may do.
@pytest.mark.parametrize(("change", "precision"), [(nothing, "float32"), (nothing, "float16"), (shifted, "float32")])
def test_a_file_that_finds_something_else_is_refused(model, change, precision):
    with pytest.raises(RuntimeError, match=r"file was not written: it finds something else than the model.* agree"):
        check(model.model, file_that(model, change), PICTURES, HW, precision, Path("file"))
    assert measure(model.model, file_that(model, change), PICTURES, HW, precision).matched < 0.1


def test_a_file_that_confuses_the_pictures_of_a_batch_is_refused(model):
    class Confused(File):
        def detect(self, pictures, hw, threshold):
            return super().detect([pictures[0]] * len(pictures), hw, threshold)

    with pytest.raises(RuntimeError, match="finds something else"):
        check(model.model, Confused(model.model), PICTURES, HW, "float32", Path("file"))


@pytest.mark.parametrize(("own", "passes"), [(1.0, False), (0.97, False), (0.9, True), (0.3, True)])
def test_undecided_weights_excuse_what_they_do_themselves(model, own, passes, monkeypatch):
    """A fifth of what the file finds has no partner, and as much as said of the model computed otherwise."""

    def without(share: float) -> Callable[[Found], Found]:
        def change(found: Found) -> Found:
            moved = np.arange(len(found["scores"])) < round(share * len(found["scores"]))
            return {**found, "boxes": np.where(moved[:, None], found["boxes"] + 9, found["boxes"]).astype(np.float32)}

        return change

    computed = module._computed

    def otherwise(model: RFDETR, kind: torch.dtype = torch.float32, *, halved: bool = False) -> NetworkRunner:
        plain = kind == torch.float32 and not halved
        return computed(model) if plain else file_that_of(model, without(1 - own))

    def file_that_of(model: RFDETR, change: Callable[[Found], Found]) -> File:
        return type("Changed", (File,), {"change": staticmethod(change)})(model)

    monkeypatch.setattr(module, "_computed", otherwise)
    file = file_that(model, without(0.2))
    if passes:
        assert check(model.model, file, PICTURES, HW, "float32", Path("file")).matched == pytest.approx(0.8, abs=0.05)
    else:
        with pytest.raises(RuntimeError, match="finds something else"):
            check(model.model, file, PICTURES, HW, "float32", Path("file"))
    # But never a file that finds nothing of what the model does.
    with pytest.raises(RuntimeError, match="finds something else"):
        check(model.model, file_that(model, nothing), PICTURES, HW, "float32", Path("file"))


def test_the_model_is_compared_in_single_precision_and_stays_as_it_is(monkeypatch):
    """Whatever `inference` made of it, and in whichever mode it is."""
    monkeypatch.setattr(optimised, "is_faster", lambda dtype: True)
    model, plain = decided_model(), decided_model()
    model.inference(dtype="bfloat16")
    model.model.model.train()
    made, before = model.model.inference_model, {n: t.clone() for n, t in model.model.model.state_dict().items()}
    parity = check(model.model, File(plain.model), PICTURES, HW, "float32", Path("file"))
    assert parity.matched == 1.0
    assert parity.max_box_px < 1e-4
    assert model.model.model.training
    assert model.model.inference_model is made
    assert model.model.device == torch.device("cpu")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.model.model.state_dict().items())


# Pictures to compare on


def test_pictures_are_drawn_or_the_users():
    assert all(np.array_equal(*pair) for pair in zip(chosen_pictures(None, 1), sample_pictures(), strict=True))
    assert len(chosen_pictures(PICTURES, 4)) == 4
    assert len(chosen_pictures(iter(PICTURES), 100)) == 6
    assert np.array_equal(chosen_pictures(PICTURES[2], 5)[0], PICTURES[2])


@pytest.mark.parametrize("most", [0, -1, 2.5, True, "8"])
def test_wrong_numbers_of_pictures_are_refused(most):
    with pytest.raises(ValueError, match=r"max_images=.* must be a positive whole number"):
        chosen_pictures(PICTURES, most)


def test_no_picture_is_refused():
    for nothing_at_all in ([], iter([])):
        with pytest.raises(ValueError, match="holds no picture; leave it out to compare on drawn ones"):
            chosen_pictures(nothing_at_all, 5)
