from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from tests.vectors import DATA

from rfdetr.evaluation.coco import CocoEvaluator, GroundTruth
from rfdetr.evaluation.oks import MAX_DETS, PERSON_SIGMAS, STAT_NAMES, KeypointClasses, warn_of_guess


def load(name: str) -> dict:
    return json.loads((DATA / "evaluation" / f"{name}.json").read_text())


def padded(rows: list[list[float]], widest: int) -> np.ndarray:
    """Keypoints as COCO writes them to (N, K, 3)."""
    table = np.zeros((len(rows), widest, 3))
    for one, row in zip(table, rows, strict=True):
        one[: len(row) // 3] = np.reshape(row, (-1, 3))
    return table


def measure(
    classes: KeypointClasses, truth: GroundTruth, keypoints: np.ndarray, pictures: list[tuple[np.ndarray, ...]]
) -> CocoEvaluator:
    """Pictures as scores, labels and points (D, K, 2)."""
    evaluator = CocoEvaluator(classes.without_unlabelled(truth, keypoints), MAX_DETS)
    for index, (scores, labels, points) in enumerate(pictures):
        rows = evaluator.truth_rows(index)
        similarity = classes.overlaps(points, truth, rows, keypoints[rows])
        evaluator.update_overlaps(index, scores, labels, classes.areas(points, labels), similarity, similarity)
    return evaluator


@pytest.mark.parametrize("name", ["keypoints17", "keypoints_mixed"])
def test_recorded_numbers_of_pycocotools_are_reproduced(name):
    recorded, found, expected = (load(f"{name}_{part}") for part in ("gt", "dt", "expected"))
    label_of = {category["id"]: label for label, category in enumerate(recorded["categories"])}
    counts = [expected["keypoint_counts"][str(category)] for category in label_of]
    image_ids = sorted(image["id"] for image in recorded["images"])
    objects, widest = recorded["annotations"], max(counts)
    truth = GroundTruth(
        image_index=np.array([image_ids.index(row["image_id"]) for row in objects]),
        label=np.array([label_of[row["category_id"]] for row in objects]),
        boxes_xywh_px=np.array([row["bbox"] for row in objects], dtype=np.float64),
        area=np.array([row["area"] for row in objects], dtype=np.float64),
        crowd=np.array([row["iscrowd"] == 1 for row in objects]),
        row=np.arange(len(objects)),
        num_images=len(image_ids),
        class_names=[category["name"] for category in recorded["categories"]],
    )
    pictures = []
    for image_id in image_ids:
        rows = [row for row in found if row["image_id"] == image_id]
        labels = np.array([label_of[row["category_id"]] for row in rows], dtype=np.int64)
        points = padded([row["keypoints"] for row in rows], widest)[..., :2]
        pictures.append((np.array([row["score"] for row in rows]), labels, points))
    classes = KeypointClasses.of(counts)
    evaluator = measure(classes, truth, padded([row["keypoints"] for row in objects], widest), pictures)
    stats = classes.stats(evaluator.summarize())
    np.testing.assert_allclose(stats, expected["weighted_mean_of_groups"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(stats, expected["reference_stats"], rtol=0, atol=1e-6)
    assert len(stats) == len(STAT_NAMES)


def test_tolerances_are_those_given_then_those_of_people_then_a_guess_with_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert KeypointClasses.of([0, 17]).sigmas[1].tolist() == list(PERSON_SIGMAS)
        assert KeypointClasses.of([2], [0.1, 0.2]).sigmas.tolist() == [[0.1, 0.2]]
        mixed = KeypointClasses.of([17, 2], [0.1, 0.2])
        warn_of_guess([0, 17, 2], [0.1, 0.2])
    assert mixed.sigmas[0].tolist() == list(PERSON_SIGMAS)
    assert mixed.sigmas[1, :2].tolist() == [0.1, 0.2]
    assert mixed.exists.sum(1).tolist() == [17, 2]
    assert KeypointClasses.of([3, 5]).sigmas[1].tolist() == [0.05] * 5
    with pytest.warns(UserWarning, match="evaluation of 3 keypoints takes 0.05") as raised:
        warn_of_guess([3, 5], None)
    assert len(raised) == 1


@pytest.mark.parametrize("sigmas", [[0.1], [], [0.1, 0.1, 0.1], [0.1, 0.0]])
def test_tolerances_that_fit_no_class_are_refused(sigmas):
    with pytest.raises(ValueError, match="must be 2 numbers above 0"):
        KeypointClasses.of([0, 2], sigmas)


def test_without_objects_everything_is_undefined():
    empty = GroundTruth(
        image_index=np.zeros(0, np.int64),
        label=np.zeros(0, np.int64),
        boxes_xywh_px=np.zeros((0, 4)),
        area=np.zeros(0),
        crowd=np.zeros(0, bool),
        row=np.zeros(0, np.int64),
        num_images=1,
        class_names=["a"],
    )
    classes = KeypointClasses.of([17])
    pictures = [(np.array([0.5]), np.array([0]), np.ones((1, 17, 2)))]
    evaluator = measure(classes, empty, np.zeros((0, 17, 3)), pictures)
    assert classes.stats(evaluator.summarize()) == [-1] * 10
