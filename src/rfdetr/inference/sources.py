"""A lazy stream of pictures from whatever a detector is pointed at: files, folders, lists, videos, cameras."""

from __future__ import annotations

import math
import os
import re
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from rfdetr.extras import require

PICTURES = ".avif .bmp .gif .jp2 .jpeg .jpg .mpo .pgm .png .ppm .tif .tiff .webp"
VIDEOS = ".avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm .wmv"
PICTURE_SUFFIXES, VIDEO_SUFFIXES = PICTURES.split(), VIDEOS.split()
WEB = ("http://", "https://")
LIVE = ("rtsp://", "rtsps://", "rtmp://", "udp://", "tcp://", "srt://")
# Seconds that an address may be silent.
PATIENCE = 10.0
# The part of a video's length that may be missing at its end before the file counts as cut off.
TOLERANCE = 0.1


class Frame(NamedTuple):
    """One picture of a source.

    Args:
        name: its path or address, that of its video, "camera 0" or "picture 3".
        index: frame number in the video, place in the list; from 0.
        seconds: time since the first frame of the video.
        picture: what `predict` takes: a path, an address, an (H, W, 3) uint8 RGB array, or the object that was given.
    """

    name: str
    index: int
    seconds: float | None
    picture: Any


class Source(AbstractContextManager):
    """An iterable of `Frame`, passed through once; its files are closed at the end, on an error and by `close()`.

    Args:
        name: the path or address of it.
        count: frames that are to be expected; None if nobody knows.
        is_video, is_live: frames of a video or a stream; of a stream that does not wait for its reader.
        frames_per_second: of those that are given, so with the stride; None if there are none or nobody knows.
    """

    def __init__(
        self,
        name: str,
        frames: Generator[Frame],
        *,
        count: int | None = None,
        is_video: bool = False,
        is_live: bool = False,
        frames_per_second: float | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.name, self.count, self.is_video, self.is_live = name, count, is_video, is_live
        self.frames_per_second = frames_per_second
        self._frames, self._closing = frames, ExitStack()
        if on_close is not None:
            self._closing.callback(on_close)

    def __iter__(self) -> Iterator[Frame]:
        with self:
            yield from self._frames

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its files and end its thread; nothing follows."""
        self._frames.close()
        self._closing.close()


def open_source(source: Any, *, stride: int = 1) -> Source:
    """Open pictures, a video or a camera.

    Args:
        source: path of a picture, of a folder of pictures, of a video, or of a .txt file with a path per line; a
            pattern with * or ?; an address; the number of a camera; one picture of any kind that `predict` takes, or a
            list or iterator of them. An open `Source` is returned as it is.
        stride: every n-th frame is given, from the first.

    Raises:
        FileNotFoundError, ValueError, TypeError: what is not there or no source, before the first frame.
        ConnectionError: an address or camera that does not answer.
        ImportError: PyAV is not installed, and a video was asked for.
    """
    if isinstance(source, Source):
        return source
    if stride < 1:
        raise ValueError(f"stride={stride} must be at least 1; 1 takes every frame")
    if isinstance(source, bool):
        raise TypeError(f"{source} is no source; cameras are numbers from 0")
    if isinstance(source, Integral):
        return _open_camera(int(source), stride)
    if isinstance(source, str | os.PathLike):
        return _open_text(os.fspath(source), stride)
    if isinstance(source, list | tuple) or getattr(source, "ndim", 0) == 4:
        return _of_list(f"{len(source)} pictures", list(source), stride)
    if isinstance(source, Iterator) and not hasattr(source, "read"):
        return _of_pictures("pictures", source, None, stride)
    return _of_list("picture", [source], stride)


def _open_text(text: str, stride: int) -> Source:
    lowered, path = text.lower(), Path(text).expanduser()
    suffix = Path(urlsplit(text).path).suffix.lower() if lowered.startswith(WEB) else path.suffix.lower()
    if lowered.startswith(LIVE):
        return open_video(text, stride, is_live=True)
    if lowered.startswith(WEB):
        return open_video(text, stride) if suffix in VIDEO_SUFFIXES else _of_list(text, [text], stride)
    if path.is_dir():
        return _of_list(text, _pictures_of(path.iterdir(), f"the folder {text}"), stride)
    if path.is_file():
        return _open_file(path, suffix, stride)
    if text.isdecimal():
        return _open_camera(int(text), stride)
    if "*" in text or "?" in text:
        matching = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        return _of_list(text, _pictures_of(matching, f"the pattern {text}"), stride)
    raise FileNotFoundError(f"there is no file or folder {text}")


def _open_file(path: Path, suffix: str, stride: int) -> Source:
    if suffix in VIDEO_SUFFIXES:
        # Without the scheme, a colon in the name would end one.
        return open_video(f"file:{path}", stride, name=str(path))
    if suffix == ".txt":
        return _of_list(str(path), _paths_in(path), stride)
    if suffix not in PICTURE_SUFFIXES:
        raise ValueError(
            f"{path} is no source by its suffix; pictures end with {PICTURES}, videos with {VIDEOS}, "
            "lists of paths with .txt"
        )
    return _of_list(str(path), [str(path)], stride)


def _pictures_of(paths: Iterable[Path], where: str) -> list[str]:
    """The picture files among some paths, page 10 after page 9; hidden ones are left out."""
    shown = (path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."))
    found = [str(path) for path in shown if path.is_file()]
    if not found:
        raise ValueError(f"{where} has no pictures; their names end with {PICTURES}")
    return sorted(found, key=_natural)


def _natural(text: str) -> list[Any]:
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", text)]


def _paths_in(file: Path) -> list[str]:
    """The lines of a text file; a relative path starts at the file's folder or, if nothing is there, from here."""
    try:
        lines = [line for raw in file.read_text(encoding="utf-8-sig").splitlines() if (line := raw.strip())]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no list of paths: {error}") from error
    if not lines:
        raise ValueError(f"{file} is empty; it needs the path of a picture on each line")
    return [str(file.parent / line) if (file.parent / line).is_file() else line for line in lines]


def _of_list(name: str, items: list[Any], stride: int) -> Source:
    """The pictures of a list whose files are known to be there."""
    for index, item in enumerate(items):
        is_local = isinstance(item, str | os.PathLike) and not str(item).lower().startswith(WEB)
        if is_local and not Path(item).expanduser().is_file():
            raise FileNotFoundError(f"picture {index} of {name}: there is no file {item}")
    return _of_pictures(name, items, -(-len(items) // stride), stride)


def _of_pictures(name: str, items: Iterable[Any], count: int | None, stride: int) -> Source:
    named = (
        Frame(str(item) if isinstance(item, str | os.PathLike) else f"picture {index}", index, None, item)
        for index, item in islice(enumerate(items), 0, None, stride)
    )
    return Source(name, named, count=count)


def _open_camera(number: int, stride: int) -> Source:
    if number < 0:
        raise ValueError(f"{number} is no camera; their numbers start at 0")
    if sys.platform.startswith("linux"):
        address, system = f"/dev/video{number}", "v4l2"
    elif sys.platform == "darwin":
        address, system = str(number), "avfoundation"
    else:
        address, system = _windows_camera(number), "dshow"
    return open_video(address, stride, name=f"camera {number}", is_live=True, format=system)


def _windows_camera(number: int) -> str:
    """The address of a camera, which Windows knows by names."""
    devices = require("av").enumerate_input_devices("dshow")
    cameras = [device.name for device in devices if "video" in device.media_types]
    if number >= len(cameras):
        raise ConnectionError(f"camera {number} cannot be opened; there are {len(cameras)}: {', '.join(cameras)}")
    return f"video={cameras[number]}"


def open_video(address: str, stride: int, name: str | None = None, is_live: bool = False, **how: Any) -> Source:
    """A video file or stream; `how` goes to `av.open`."""
    av = require("av")
    # An address may hold a password.
    name = name or re.sub(r"(?<=://)[^/@]*@", "", address)
    is_file = address.startswith("file:")
    # Over UDP, which is the default of cameras in a network, lost packets are smeared pictures.
    options = {"rtsp_transport": "tcp"} if address.lower().startswith("rtsp") else {}
    try:
        container = av.open(address, timeout=None if is_file else PATIENCE, options=options, **how)
    except av.FFmpegError as error:
        kind, what = (ValueError, " as a video") if is_file else (ConnectionError, "")
        raise kind(f"{name} cannot be opened{what}: {error.strerror}") from error
    streams = container.streams.video
    if not streams:
        others = ", ".join(stream.type for stream in container.streams) or "nothing"
        container.close()
        raise ValueError(f"{name} has no video in it, only {others}")
    # Threads that take a frame each hold frames back.
    streams[0].thread_type = "SLICE" if is_live else "AUTO"
    rate = streams[0].average_rate or streams[0].guessed_rate
    length = _length(container, streams[0])
    numbered = enumerate(_decoded(container, streams[0], is_live))
    newest = Newest(numbered, container.close) if is_live else None
    count = streams[0].frames or round((length or 0) * (rate or 0))
    return Source(
        name,
        _frames(numbered if newest is None else newest, name, stride, None if is_live else length or 0.0),
        count=-(-count // stride) if count and not is_live else None,
        is_video=True,
        is_live=is_live,
        frames_per_second=float(rate) / stride if rate else None,
        on_close=container.close if newest is None else newest.close,
    )


def _length(container: Any, stream: Any) -> float | None:
    """Seconds that a video should have; of containers without an entry for each stream, if it is the only one."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    is_known = container.duration is not None and len(container.streams) == 1
    return container.duration / 1e6 if is_known else None


def _decoded(container: Any, stream: Any, is_live: bool) -> Iterator[Any]:
    """The frames of a video in the order they are shown; what is damaged is left out of a live one."""
    errors = require("av").FFmpegError
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except errors:
            # Nobody joins a stream at the start of a group of pictures, so its first ones miss what they build on.
            if not is_live:
                raise
        else:
            yield from frames


def _frames(numbered: Iterable[tuple[int, Any]], name: str, stride: int, length: float | None) -> Generator[Frame]:
    """Every n-th of the decoded frames; ValueError where the video breaks, or ends before its `length` in seconds."""
    index, first, end = -1, None, 0.0
    try:
        for index, decoded in numbered:
            first = decoded.time if first is None else first
            seconds = None if decoded.time is None or first is None else decoded.time - first
            # The last frame may be shown for long, and not every file says for how long.
            end = (seconds or 0) + float(decoded.duration * decoded.time_base) if decoded.duration else math.inf
            if index % stride == 0:
                yield Frame(name, index, seconds, _picture(decoded))
    except require("av").FFmpegError as error:
        raise ValueError(f"{name} breaks at frame {index + 1}: {error}") from error
    if length is not None and (index < 0 or end < length * (1 - TOLERANCE)):
        raise ValueError(f"{name} breaks at frame {index + 1}, after {end:.1f} of {length:.1f} seconds; is it cut off?")


def _picture(decoded: Any) -> np.ndarray:
    """An (H, W, 3) uint8 RGB array, turned as players turn it."""
    return np.ascontiguousarray(np.rot90(decoded.to_ndarray(format="rgb24"), round(decoded.rotation / 90)))


class Newest:
    """The newest item of an iterator that a thread reads; those that nobody took in time are dropped.

    Args:
        items: what is read; its errors are raised to whoever iterates.
        on_end: called when nothing is read any more, by the thread if there was one, so never while it reads.
    """

    def __init__(self, items: Iterable[Any], on_end: Callable[[], None]) -> None:
        self._items, self._on_end = items, on_end
        self._kept: list[Any] = []
        self._changed = threading.Condition()
        self._ended = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="rfdetr-newest-frame", daemon=True)

    def _read(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    if self._ended:
                        break
                    self._kept = [item]
                    self._changed.notify()
        except Exception as error:  # handed over to the other thread, whatever it is
            self._error = error
        finally:
            self._on_end()
            with self._changed:
                self._ended = True
                self._changed.notify()

    def __iter__(self) -> Iterator[Any]:
        self._thread.start()
        while True:
            with self._changed:
                # Windows does not notice Ctrl-C in a wait without an end.
                while not self._changed.wait_for(lambda: self._kept or self._ended, timeout=1):
                    pass
                if not self._kept:
                    break
                item = self._kept.pop()
            yield item
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread, which takes as long as it waits for its next item, `PATIENCE` at most."""
        with self._changed:
            self._ended, self._kept = True, []
            self._changed.notify()
        if self._thread.ident is None:
            self._on_end()
        else:
            self._thread.join(PATIENCE + 1)
