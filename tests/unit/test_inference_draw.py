"""What is drawn where, and that files and videos of it take nobody's place."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from rfdetr.datasets import rle
from rfdetr.inference.draw import PictureWriter, VideoWriter, draw, open_writer
from rfdetr.inference.sources import Source, open_source
from rfdetr.inference.sv import supervision

sv = supervision()
COLORS = [np.array(sv.ColorPalette.DEFAULT.by_idx(i).as_rgb()) for i in range(4)]
HEIGHT, WIDTH = 120, 160


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def detections(boxes: list[list[float]], classes: list[int], **more: Any) -> Any:
    names = np.array(["cat", "dog", "owl", "fox"], dtype=object)[classes] if classes else np.empty(0, dtype=object)
    data = {"class_name": names, **more.pop("data", {})}
    scores, xyxy = np.full(len(classes), 0.87, np.float32), np.array(boxes, np.float32).reshape(-1, 4)
    return sv.Detections(xyxy=xyxy, confidence=scores, class_id=np.array(classes, int), data=data, **more)


def test_boxes_are_lines_in_the_colour_of_the_class(picture: np.ndarray) -> None:
    before = picture.copy()
    drawn = draw(picture, detections([[10, 20, 60, 90], [80.9, 30, 150, 110]], [0, 2]), labels=False)
    expected = before.copy()
    for (left, top, right, bottom), color in (((10, 20, 60, 90), COLORS[0]), ((80, 30, 150, 110), COLORS[2])):
        expected[[top, bottom], left : right + 1] = color
        expected[top : bottom + 1, [left, right]] = color
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn, expected)
    assert np.array_equal(picture, before)


def test_labels_lie_above_the_box(picture: np.ndarray) -> None:
    drawn = draw(picture, detections([[10, 60, 90, 110]], [1]), boxes=False)
    rows, columns = np.nonzero((drawn != picture).any(axis=2))
    assert (rows.max(), columns.min()) == (60, 10)
    assert rows.min() > 35
    assert (drawn[rows.min() : 61, 10:40] == COLORS[1]).all(axis=2).mean() > 0.5


@pytest.mark.parametrize("as_rle", [False, True])
def test_masks_are_half_their_colour(picture: np.ndarray, as_rle: bool) -> None:
    mask = np.zeros((1, HEIGHT, WIDTH), bool)
    mask[0, 30:60, 20:50] = mask[0, 70, 20] = True
    runs = {"size": [HEIGHT, WIDTH], "counts": rle.to_text(rle.encode(mask[0]))}
    how = {"data": {"rle": np.array([runs], dtype=object)}} if as_rle else {"mask": mask}
    drawn = draw(picture, detections([[20, 30, 50, 71]], [3], **how), boxes=False, labels=False)
    assert np.array_equal(drawn[~mask[0]], picture[~mask[0]])
    expected = (picture[mask[0]].astype(float) + COLORS[3]) / 2
    assert np.abs(drawn[mask[0]] - expected).max() <= 0.5


def key_points(points: int, count: int = 1) -> Any:
    xy = np.stack([np.linspace(20, 140, points), np.linspace(100, 30, points)], axis=1).astype(np.float32)
    visible = np.ones((count, points), bool)
    visible[:, 1] = False
    data = {"xyxy": np.array([[15, 25, 145, 105]] * count, np.float32).reshape(-1, 4)}
    return sv.KeyPoints(
        xy=np.stack([xy] * count) if count else np.empty((0, points, 2), np.float32),
        keypoint_confidence=np.ones((count, points), np.float32),
        detection_confidence=np.full(count, 0.9, np.float32),
        class_id=np.full(count, 2),
        visible=visible,
        data={**data, "class_name": np.array(["owl"] * count, dtype=object)},
    )


def test_keypoints_are_dots_and_those_of_people_have_a_skeleton(picture: np.ndarray) -> None:
    result = key_points(4)
    drawn = draw(picture, result, boxes=False, labels=False)
    changed = (drawn != picture).any(axis=2)
    for i, (x, y) in enumerate(result.xy[0].astype(int)):
        assert (drawn[y, x] == COLORS[2]).all() == (i != 1)
    assert 3 * 9 <= changed.sum() <= 3 * 25  # radius 2
    boxed = draw(picture, result, labels=False)
    assert (boxed[25, 15:146] == COLORS[2]).all()
    with_lines = (draw(picture, key_points(17), boxes=False, labels=False) != picture).any(axis=2)
    assert with_lines.sum() > 16 * 14


@pytest.mark.parametrize("result", [detections([], []), key_points(17, 0), key_points(4, 0)])
def test_nothing_found_is_the_picture(picture: np.ndarray, result: Any) -> None:
    assert np.array_equal(draw(picture, result), picture)


@pytest.mark.parametrize("hw", [(1, 1), (3, 2000), (2000, 1500)])
def test_any_size_can_be_drawn_on(hw: tuple[int, int]) -> None:
    blank = np.zeros((*hw, 3), np.uint8)
    drawn = draw(blank, detections([[0, 0, hw[1], hw[0]]], [0]))
    assert (drawn == COLORS[0]).all(axis=2).any()
    width = (draw(blank, detections([[0, 0, hw[1], hw[0]]], [0]), labels=False)[hw[0] // 2, :200] > 0).any(axis=1).sum()
    assert hw != (2000, 1500) or 3 <= width <= 8


def test_pictures_keep_their_names_and_overwrite_nothing(tmp_path: Path, picture: np.ndarray) -> None:
    (tmp_path / "a.png").write_text("mine")
    with PictureWriter(tmp_path) as writer:
        for name in ("x/a.png", "y/a.PNG", "a.webp", "b.JPG", "https://host/c.jpg?size=3", "picture 3"):
            writer.write(picture, name)
    names = ["a-2.png", "a-3.png", "a-4.png", "b.JPG", "c.jpg", "picture 3.png"]
    assert [path.name for path in writer.paths] == names
    assert (tmp_path / "a.png").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 7
    for path in writer.paths:
        with Image.open(path) as image:
            assert image.format == ("PNG" if path.suffix == ".png" else "JPEG")
            assert image.size == (WIDTH, HEIGHT)
            if image.format == "PNG":
                assert np.array_equal(np.asarray(image), picture)


def test_a_failed_write_leaves_no_file(tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="no space left"):
        PictureWriter(tmp_path).write(picture, "a.png")
    assert list(tmp_path.iterdir()) == []


def flat(color: np.ndarray | int, hw: tuple[int, int] = (47, 63)) -> np.ndarray:
    return np.full((*hw, 3), color, np.uint8)


def test_a_video_has_the_colours_the_rate_and_even_sides(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("mine")
    with VideoWriter(tmp_path, "/somewhere/clip.mov", 30000 / 1001) as writer:
        for i in range(6):
            writer.write(flat(COLORS[i % 4]), seconds=i * 1001 / 30000)
        # Nothing has the name before it is whole.
        assert sorted(path.name for path in tmp_path.iterdir()) == [".clip.mp4.part", "clip.mp4"]
        writer.write(flat(7, (24, 32)), seconds=6 * 1001 / 30000)  # scaled to the others
    writer.close()
    assert [path.name for path in writer.paths] == ["clip-2.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip-2.mp4", "clip.mp4"]
    with av.open(str(tmp_path / "clip-2.mp4")) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt, video.frames) == ("h264", "yuv420p", 7)
        assert video.average_rate == Fraction(30000, 1001)
        assert int(video.codec_context.colorspace) == 1
    frames = [frame.picture for frame in open_source(tmp_path / "clip-2.mp4")]
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    for i, frame in enumerate(frames[:6]):
        assert np.abs(frame.mean(axis=(0, 1)) - COLORS[i % 4]).max() < 6


def test_frames_that_are_missing_leave_their_time(tmp_path: Path) -> None:
    with VideoWriter(tmp_path, "rtsp://host:554/", 10.0) as writer:
        for seconds in (0.0, 0.1, 0.5, 0.5, None):
            writer.write(flat(0), seconds=seconds)
    assert [path.name for path in writer.paths] == ["host.mp4"]
    times = [frame.seconds for frame in open_source(writer.paths[0])]
    assert times == pytest.approx([0, 0.1, 0.5, 0.6, 0.7])


def test_a_video_without_frames_is_no_file(tmp_path: Path) -> None:
    VideoWriter(tmp_path, "a.mp4", None).close()
    assert list(tmp_path.iterdir()) == []


def test_the_writer_fits_the_source_and_the_folder_is_tried_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    video = Source("a.mp4", (frame for frame in ()), is_video=True, frames_per_second=5.0)
    assert isinstance(open_writer(tmp_path / "new" / "deep", video), VideoWriter)
    assert isinstance(open_writer(tmp_path / "new", open_source([])), PictureWriter)
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "deep"]
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"drawn pictures cannot be written to .*file.*; name another folder"):
            open_writer(folder, video)
