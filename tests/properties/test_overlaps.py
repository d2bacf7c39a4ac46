"""Masks and keypoints evaluated on random data, compared with pycocotools number by number."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rfdetr.evaluation.coco import CocoEvaluator, CocoResult, GroundTruth
from rfdetr.evaluation.oks import MAX_DETS, KeypointClasses
from rfdetr.evaluation.overlaps import CutOut, mask_overlaps, sample

NAMES = ["a", "b", "never annotated"]


def draw_truth(rng: np.random.Generator, num_images: int, most: int) -> GroundTruth:
    count = int(rng.integers(0, most * num_images + 1))
    boxes = np.c_[rng.integers(0, 60, (count, 2)), rng.integers(1, 120, (count, 2))].astype(float)
    return GroundTruth(
        image_index=rng.integers(0, num_images, count),
        label=rng.integers(0, 2, count),
        boxes_xywh_px=boxes,
        area=boxes[:, 2] * boxes[:, 3] * rng.choice([0.5, 1], count),
        crowd=rng.random(count) < rng.choice([0, 0.3]),
        row=np.arange(count),
        num_images=num_images,
        class_names=NAMES,
    )


def dataset_of(truth: GroundTruth, extra: list[dict]) -> dict:
    return {
        "images": [{"id": index + 1, "height": 24, "width": 30} for index in range(truth.num_images)],
        "categories": [{"id": label + 1} for label in range(len(NAMES))],
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(truth.image_index[row]) + 1,
                "category_id": int(truth.label[row]) + 1,
                "bbox": truth.boxes_xywh_px[row].tolist(),
                "area": float(truth.area[row]),
                "iscrowd": int(truth.crowd[row]),
                **extra[row],
            }
            for row in range(len(truth.label))
        ],
    }


def evaluate_with_pycocotools(dataset: dict, found: list[dict], kind: str, **params: object) -> dict[str, np.ndarray]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        # loadRes refuses an empty list.
        evaluation = COCOeval(coco, coco.loadRes(found) if found else COCO(), kind)
        vars(evaluation.params).update(params)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def likely_labels(rng: np.random.Generator, truth: GroundTruth, objects: np.ndarray) -> np.ndarray:
    """Labels of detections that resemble objects, mostly theirs; an object of -1 is none."""
    labels = rng.integers(0, len(NAMES), len(objects))
    right = (objects >= 0) & (rng.random(len(objects)) < 0.8)
    labels[right] = truth.label[objects[right]]
    return labels


def resembled(rng: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
    """An object for each of the detections, -1 for about one in five."""
    return np.where(rng.random(count) < 0.8, rng.choice(rows, count), -1) if len(rows) else np.full(count, -1)


# Masks


def draw_masks(rng: np.random.Generator, count: int, hw: tuple[int, int]) -> list[np.ndarray]:
    """Rectangles on a coarse grid, so that overlaps tie, some with holes, some empty."""
    masks = []
    for _ in range(count):
        mask = np.zeros(hw, bool)
        top, left, height, width = rng.integers([0, 0, 0, 0], [4, 4, 5, 5]) * 4
        mask[top : top + height, left : left + width] = True
        masks.append(mask & (rng.random(hw) < rng.choice([1, 0.9])))
    return masks


def disturbed(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """A mask moved by some pixels, without some."""
    return np.roll(mask, rng.integers(-2, 3, 2), (0, 1)) & (rng.random(mask.shape) < rng.choice([1, 0.8, 0.6]))


def cut(mask: np.ndarray, rng: np.random.Generator) -> CutOut:
    """A cut-out of a mask, sometimes with a margin."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, np.zeros((0, 0), bool)
    margin = int(rng.integers(0, 3))
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    return top, left, mask[top : rows[-1] + 1 + margin, left : columns[-1] + 1 + margin]


def to_rle(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_images=st.integers(1, 3),
    most_objects=st.sampled_from([6, 3, 1]),
    most_found=st.sampled_from([15, 6, 2]),
    max_dets=st.sampled_from([1, 10, 100]),
)
def test_masks_equal_to_pycocotools(seed, num_images, most_objects, most_found, max_dets):
    rng, hw = np.random.default_rng(seed), (24, 30)
    truth = draw_truth(rng, num_images, most_objects)
    objects = draw_masks(rng, len(truth.label), hw)
    evaluator, found = CocoEvaluator(truth, max_dets), []
    for index in range(num_images):
        rows = evaluator.truth_rows(index)
        near = resembled(rng, rows, int(rng.integers(0, most_found + 1)))
        others = draw_masks(rng, len(near), hw)
        masks = [other if row < 0 else disturbed(rng, objects[row]) for row, other in zip(near, others, strict=True)]
        scores, labels = rng.choice(np.linspace(0, 1, 7), len(masks)), likely_labels(rng, truth, near)
        overlaps = mask_overlaps(
            (cut(mask, rng) for mask in masks),
            labels,
            [cut(objects[row], rng) for row in rows],
            truth.label[rows],
            truth.crowd[rows],
        )
        evaluator.update_overlaps(index, scores, labels, *overlaps)
        found += [
            {"image_id": index + 1, "category_id": int(k) + 1, "score": float(s), "segmentation": to_rle(mask)}
            for mask, s, k in zip(masks, scores, labels, strict=True)
        ]
    dataset = dataset_of(truth, [{"segmentation": to_rle(mask)} for mask in objects])
    limits = [min(1, max_dets), min(10, max_dets), max_dets]
    expected = evaluate_with_pycocotools(dataset, found, "segm", maxDets=limits)
    result = evaluator.summarize()
    for key in ("precision", "recall", "scores"):
        assert np.array_equal(getattr(result, key), expected[key]), key


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), grid=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_a_sampled_cut_out_is_the_cut_out_of_the_sampled_mask(seed, grid):
    rng, hw = np.random.default_rng(seed), (24, 30)
    mask = draw_masks(rng, 1, hw)[0]
    expected = mask[np.ix_(*(np.arange(cells) * pixels // cells for pixels, cells in zip(hw, grid, strict=True)))]
    top, left, part = sample(cut(mask, rng), hw, grid)
    found = np.zeros(grid, bool)
    found[top : top + part.shape[0], left : left + part.shape[1]] = part
    assert np.array_equal(found, expected)


# Keypoints


def assert_keypoints_equal(result: CocoResult, expected: dict[str, np.ndarray], classes: list[int]) -> None:
    areas = [0, 2, 3]  # COCO's keypoints know no small objects
    assert np.array_equal(result.precision[:, :, classes][..., areas, -1:], expected["precision"])
    assert np.array_equal(result.scores[:, :, classes][..., areas, -1:], expected["scores"])
    assert np.array_equal(result.recall[:, classes][..., areas, -1:], expected["recall"])


@pytest.mark.filterwarnings("ignore:.*keypoint_oks_sigmas")
@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.sampled_from([(17, 17, 17), (3, 3, 3), (4, 17, 4), (0, 5, 2)]),
    num_images=st.integers(1, 3),
    most_objects=st.sampled_from([6, 3, 1]),
    most_found=st.sampled_from([30, 8, 2]),
    spread=st.sampled_from([3.0, 0.5, 10.0]),
)
def test_keypoints_equal_to_pycocotools(seed, counts, num_images, most_objects, most_found, spread):
    rng, widest = np.random.default_rng(seed), max(counts)
    classes = KeypointClasses.of(counts)
    truth = draw_truth(rng, num_images, most_objects)
    seen = rng.integers(0, 3, (len(truth.label), widest, 1)) * rng.integers(0, 2, (len(truth.label), 1, 1))
    width = rng.choice([30, 150], (len(truth.label), 1, 1))
    keypoints = np.concatenate((rng.uniform(0, width, (*seen.shape[:2], 2)), seen), axis=2)
    evaluator, found = CocoEvaluator(classes.without_unlabelled(truth, keypoints), MAX_DETS), []
    for index in range(num_images):
        count, rows = int(rng.integers(0, most_found + 1)), evaluator.truth_rows(index)
        near = resembled(rng, rows, count)
        points = rng.uniform(0, 150, (count, widest, 2)) * rng.choice([0.2, 1], (count, 1, 1))
        points[near >= 0] = keypoints[near[near >= 0], :, :2] + rng.normal(0, spread, (sum(near >= 0), widest, 2))
        scores, labels = rng.choice(np.linspace(0, 1, 7), count), likely_labels(rng, truth, near)
        similarity = classes.overlaps(points, truth, rows, keypoints[rows])
        evaluator.update_overlaps(index, scores, labels, classes.areas(points, labels), similarity, similarity)
        found += [
            {
                "image_id": index + 1,
                "category_id": int(k) + 1,
                "score": float(s),
                "keypoints": np.c_[one, np.ones(widest)][: counts[k]].ravel().tolist(),
            }
            for one, s, k in zip(points, scores, labels, strict=True)
            if counts[k]
        ]
    extra = [
        {
            "keypoints": one[: counts[k]].ravel().tolist(),
            "num_keypoints": int((one[: counts[k], 2] > 0).sum()),
        }
        for one, k in zip(keypoints, truth.label, strict=True)
    ]
    result, dataset = evaluator.summarize(), dataset_of(truth, extra)
    stats = []
    for number in {*counts} - {0}:
        group = [label for label in range(3) if counts[label] == number]
        sigmas = classes.sigmas[group[0], :number]
        category_ids = [label + 1 for label in group]
        expected = evaluate_with_pycocotools(dataset, found, "keypoints", catIds=category_ids, kpt_oks_sigmas=sigmas)
        assert_keypoints_equal(result, expected, group)
        stats.append((len(group), summary(expected)))
    for position, value in enumerate(classes.stats(result)):
        defined = [(weight, one[position]) for weight, one in stats if one[position] > -1]
        mean = sum(w * one for w, one in defined) / sum(w for w, _ in defined) if defined else -1
        assert abs(value - mean) < 1e-10


def summary(arrays: dict[str, np.ndarray]) -> list[float]:
    """The ten numbers, as pycocotools' summarizeKps takes them from its arrays."""

    def mean(kind: str, threshold: int | None, area: int) -> float:
        part = arrays[kind] if threshold is None else arrays[kind][threshold : threshold + 1]
        part = part[..., area, 0]
        return part[part > -1].mean() if (part > -1).any() else -1

    wanted = [(None, 0), (0, 0), (5, 0), (None, 1), (None, 2)]
    return [mean(kind, *one) for kind in ("precision", "recall") for one in wanted]
