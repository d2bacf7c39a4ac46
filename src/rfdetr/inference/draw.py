"""Results drawn on their pictures, and files of such pictures and videos, which overwrite nothing."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager, suppress
from fractions import Fraction
from itertools import count
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from rfdetr.datasets import rle
from rfdetr.extras import require
from rfdetr.inference.sources import Source
from rfdetr.inference.sv import supervision

# Frames per second of a video whose source does not tell.
USUAL_RATE = 25
# What videos call the usual colours and their range of 16..235.
BT709, LIMITED = 1, 1
# People of COCO, whose skeleton supervision knows.
PERSON_POINTS = 17


def draw(picture: np.ndarray, result: Any, *, boxes: bool = True, labels: bool = True) -> np.ndarray:
    """A copy of a picture with what was found on it, in a colour per class.

    Args:
        picture: (H, W, 3) uint8 RGB.
        result: what `predict` returns for it; masks are drawn if it has them as `mask` or `data["rle"]`.
        boxes: draw boxes.
        labels: write "name 0.87" at each.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    sv = supervision()
    # supervision draws in BGR.
    scene = np.ascontiguousarray(picture[..., ::-1])
    thickness = max(1, round(min(scene.shape[:2]) / 250))
    has_points = isinstance(result, sv.KeyPoints)
    xyxy, scores = (
        (result.data["xyxy"], result.detection_confidence) if has_points else (result.xyxy, result.confidence)
    )
    found = sv.Detections(xyxy=xyxy, confidence=scores, class_id=result.class_id)
    if not has_points and len(found):
        found.mask = _masks(result)
        scene = sv.MaskAnnotator(opacity=0.5).annotate(scene, found)
    if boxes:
        scene = sv.BoxAnnotator(thickness=thickness).annotate(scene, found)
    if has_points:
        scene = _draw_points(scene, result, thickness)
    if labels:
        texts = [f"{name} {score:.2f}" for name, score in zip(result.data["class_name"], scores, strict=True)]
        scene = _label_annotator(min(scene.shape[:2]), thickness).annotate(scene, found, texts)
    return np.ascontiguousarray(scene[..., ::-1])


def _label_annotator(short: int, thickness: int) -> Any:
    """What writes on a picture with this shorter side: white on dark colours, black on light ones."""
    sv = supervision()
    light = [color.r * 0.3 + color.g * 0.6 + color.b * 0.1 > 140 for color in sv.ColorPalette.DEFAULT.colors]
    return sv.LabelAnnotator(
        text_color=sv.ColorPalette([sv.Color.BLACK if is_light else sv.Color.WHITE for is_light in light]),
        text_scale=max(0.4, short / 1200),
        text_thickness=max(1, thickness // 3),
        text_padding=2 + 2 * thickness,
    )


def _masks(result: Any) -> np.ndarray | None:
    """Masks (N, H, W) bool of detections, if they have any."""
    if "rle" not in result.data:
        return result.mask
    return np.stack([rle.decode(rle.from_text(one["counts"]), tuple(one["size"])) for one in result.data["rle"]])


def _draw_points(scene: np.ndarray, result: Any, thickness: int) -> np.ndarray:
    """Keypoints that are visible, those of people with their skeleton, in the colour of their class."""
    sv = supervision()
    for class_id in np.unique(result.class_id):
        own = result.class_id == class_id
        points = sv.KeyPoints(xy=result.xy[own], class_id=result.class_id[own], visible=result.visible[own])
        color = sv.ColorPalette.DEFAULT.by_idx(int(class_id))
        if points.xy.shape[1] == PERSON_POINTS:
            scene = sv.EdgeAnnotator(color=color, thickness=thickness).annotate(scene, points)
        scene = sv.VertexAnnotator(color=color, radius=2 * thickness).annotate(scene, points)
    return scene


def open_writer(folder: str | Path, source: Source) -> PictureWriter | VideoWriter:
    """The writer of drawn pictures of a source: files of their names, or of a video one video.

    Raises:
        OSError: nothing can be written to the folder.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, ".probe").unlink()
    except OSError as error:
        raise OSError(f"drawn pictures cannot be written to {folder}: {error.strerror}; name another folder") from error
    if not source.is_video:
        return PictureWriter(folder)
    return VideoWriter(folder, source.name, source.frames_per_second)


class PictureWriter(AbstractContextManager):
    """Writes pictures to a folder under their own names: JPEG where the source was one, else PNG."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[Path] = []

    def __exit__(self, *_: object) -> None:
        """Every picture is already whole."""

    def write(self, picture: np.ndarray, name: str, seconds: float | None = None) -> None:
        """Write a picture (H, W, 3) uint8 RGB that was found under a path, an address or another name."""
        own = PurePath(_file_name(name))
        is_jpeg = own.suffix.lower() in (".jpg", ".jpeg")
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "JPEG" if is_jpeg else "PNG", **({"quality": 95} if is_jpeg else {}))
        path = _claim(self.folder, own.name if is_jpeg else f"{own.stem}.png")
        try:
            path.write_bytes(encoded.getvalue())
        except BaseException:
            path.unlink()
            raise
        self.paths.append(path)


class VideoWriter(AbstractContextManager):
    """Writes frames to an H.264 video, which has its name when it is closed.

    Args:
        name: path or address of the source.
        rate: frames per second; None for `USUAL_RATE`.
    """

    def __init__(self, folder: Path, name: str, rate: float | None) -> None:
        self.folder, self._name = folder, f"{PurePath(_file_name(name)).stem}.mp4"
        self._rate = Fraction(rate or USUAL_RATE).limit_denominator(1001)
        self.paths: list[Path] = []
        self._container: Any = None
        self._last = -1

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, picture: np.ndarray, name: str = "", seconds: float | None = None) -> None:
        """Add a frame (H, W, 3) uint8 RGB; frames of another size than the first are scaled to it.

        Args:
            seconds: time since the first frame; None for one step after the last.
        """
        height, width = picture.shape[:2]
        if self._container is None:
            self._container = self._open(height, width)
        # H.264 with colours at half the size needs even sides; the last row or column is repeated.
        even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = require("av").VideoFrame.from_ndarray(even, format="rgb24")
        wanted = {"dst_colorspace": BT709, "dst_color_range": LIMITED}
        frame = frame.reformat(self._stream.width, self._stream.height, "yuv420p", **wanted)
        # Of a live stream, frames are missing; the others stay at their time.
        self._last = max(self._last + 1, round((seconds or 0.0) * self._rate))
        frame.pts, frame.time_base = self._last, 1 / self._rate
        self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> Any:
        self._unfinished = _claim(self.folder, f".{self._name}.part")
        options = {"movflags": "faststart"}
        container = require("av").open(str(self._unfinished), "w", format="mp4", container_options=options)
        self._stream = container.add_stream("libx264", rate=self._rate, options={"crf": "20"})
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        codec = self._stream.codec_context
        codec.pix_fmt, codec.color_range = "yuv420p", LIMITED
        # Players guess the colours of videos that do not tell by their size.
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        return container

    def close(self) -> None:
        """Finish the video and give it its name."""
        if self._container is None:
            return
        container, self._container = self._container, None
        container.mux(self._stream.encode(None))
        container.close()
        path = _claim(self.folder, self._name)
        self._unfinished.replace(path)
        self.paths.append(path)


def _file_name(name: str) -> str:
    """What a file made of a path, an address or "camera 0" is called."""
    if "://" not in name:
        return PurePath(name).name
    parts = urlsplit(name)
    return re.sub(r"[^\w.-]", "_", PurePath(parts.path).name or parts.hostname or "stream")


def _claim(folder: Path, name: str) -> Path:
    """A new empty file of a name, or with -2, -3, ... behind it where there is one already."""
    own = PurePath(name)
    for number in count(1):
        path = folder / (name if number == 1 else f"{own.stem}-{number}{own.suffix}")
        with suppress(FileExistsError), path.open("xb"):
            return path
    raise AssertionError("counting does not end")
