"""What a source gives: which frames, in which order, how much is read for it, and what is refused before the first."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from rfdetr.inference.sources import Newest, open_source
from rfdetr.inference.stream import predict_stream

COUNT, RATE, HEIGHT, WIDTH = 8, 10, 48, 64


def write_video(path: Path, count: int = COUNT, codec: str = "libx264", intra: bool = False) -> Path:
    """A video whose frame i is grey of 30 * i, with a red corner at the top left; `intra`: frames stand alone."""
    with av.open(str(path), "w") as container:
        options = {"g": "1", "crf": "10"} if intra else {"crf": "10"}
        stream = container.add_stream(codec, rate=RATE, options=options if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(count):
            pixels = np.full((HEIGHT, WIDTH, 3), 30 * i, np.uint8)
            pixels[:16, :16] = (255, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three pictures, and with what is none of its pictures."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for name in ("p10.png", "p9.jpg", "P1.PNG", "below/p0.png", ".hidden.png"):
        Image.new("RGB", (4, 3)).save(folder / name)
    (folder / "notes.md").write_text("no picture")
    return folder


def test_importing_loads_neither_torch_nor_av_nor_supervision() -> None:
    code = "import sys; from rfdetr{}; print({{'torch', 'av', 'supervision'}} & set(sys.modules))"
    for name in (".inference import sources", ".inference import stream, draw, objects", ".commands import predict"):
        done = subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("set()\n", "")


def test_a_folder_is_read_in_natural_order(pictures: Path) -> None:
    source = open_source(pictures)
    assert (source.count, source.is_video, source.frames_per_second) == (3, False, None)
    frames = list(source)
    assert [Path(frame.name).name for frame in frames] == ["P1.PNG", "p9.jpg", "p10.png"]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert all(frame.picture == frame.name and frame.seconds is None for frame in frames)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("p*.png", ["p10.png"]), ("p?.*", ["p9.jpg"]), ("**/p*.png", ["p0.png", "p10.png"]), ("*", 3)],
)
def test_a_pattern_gives_what_matches(pictures: Path, pattern: str, names: list[str] | int) -> None:
    found = [Path(frame.name).name for frame in open_source(str(pictures / pattern))]
    assert (len(found) if isinstance(names, int) else found) == names


def test_a_text_file_holds_paths(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # From the file's folder, from here, from the root, and an address.
    lines = ["p10.png", "pictures/p9.jpg", "", str(pictures / "P1.PNG"), "https://example.com/a.jpg"]
    (pictures / "list.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    source = open_source("pictures/list.txt", stride=2)
    assert source.count == 2
    assert [(frame.name, frame.index) for frame in source] == [("pictures/p10.png", 0), (str(pictures / "P1.PNG"), 2)]


def test_objects_are_given_as_they_are() -> None:
    array, image = np.zeros((2, 3, 3), np.uint8), Image.new("RGB", (3, 2))
    frames = list(open_source([array, image]))
    assert [(frame.name, frame.index) for frame in frames] == [("picture 0", 0), ("picture 1", 1)]
    assert frames[0].picture is array
    assert frames[1].picture is image
    assert [frame.picture for frame in open_source(image)] == [image]
    assert len(list(open_source(np.zeros((4, 2, 3, 3), np.uint8)))) == 4
    opened = open_source("https://example.com/picture?size=3")
    assert open_source(opened) is opened
    assert [frame.picture for frame in opened] == ["https://example.com/picture?size=3"]


def test_an_iterator_is_read_only_as_far_as_needed() -> None:
    taken = []

    def endless() -> Iterator[np.ndarray]:
        for i in range(100):
            taken.append(i)
            yield np.full((2, 2, 3), i, np.uint8)

    class Model:
        def predict(self, pictures: list[np.ndarray], **_: Any) -> list[int]:
            return [int(picture[0, 0, 0]) for picture in pictures]

    found = predict_stream(Model(), endless(), batch_size=2, stride=3)
    assert taken == []
    assert next(found).result == 0
    assert taken == [0, 1, 2, 3]
    assert (next(found).result, next(found).result) == (3, 6)
    assert taken == list(range(10))
    found.close()
    assert open_source(endless()).count is None


@pytest.mark.parametrize(("name", "codec"), [("v.mp4", "libx264"), ("v.mkv", "libx264"), ("v.AVI", "mpeg4")])
def test_a_video_gives_its_frames(tmp_path: Path, name: str, codec: str) -> None:
    source = open_source(write_video(tmp_path / name, codec=codec))
    assert (source.count, source.is_video, source.frames_per_second) == (COUNT, True, RATE)
    frames = list(source)
    assert [frame.seconds for frame in frames] == pytest.approx([i / RATE for i in range(COUNT)])
    assert [frame.index for frame in frames] == list(range(COUNT))
    assert {frame.name for frame in frames} == {str(tmp_path / name)}
    for i, frame in enumerate(frames):
        assert (frame.picture.shape, frame.picture.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
        assert frame.picture[4, 4].tolist() == pytest.approx([255, 0, 0], abs=12)
        assert frame.picture[40, 60].tolist() == pytest.approx([30 * i] * 3, abs=4)


def test_a_stride_skips_frames_and_slows_the_rate(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "a:b 100%.mp4"), stride=3)
    assert (source.count, source.frames_per_second) == (3, pytest.approx(RATE / 3))
    assert [(frame.index, frame.seconds) for frame in source] == [(0, 0.0), (3, pytest.approx(0.3)), (6, 0.6)]


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [((0, 1, -1, 0), (4, HEIGHT - 4)), ((-1, 0, 0, -1), (HEIGHT - 4, WIDTH - 4)), ((0, -1, 1, 0), (WIDTH - 4, 4))],
)
def test_a_turned_video_is_shown_upright(tmp_path: Path, matrix: tuple[int, ...], corner: tuple[int, int]) -> None:
    path = write_video(tmp_path / "turned.mp4")
    a, b, c, d = (value << 16 for value in matrix)
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    # The first matrix is the file's, the second the picture's.
    before, between, after = path.read_bytes().split(plain)
    path.write_bytes(before + plain + between + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + after)
    picture = next(iter(open_source(path))).picture
    assert picture.shape == ((HEIGHT, WIDTH, 3) if matrix[0] else (WIDTH, HEIGHT, 3))
    assert picture[corner].tolist() == pytest.approx([255, 0, 0], abs=12)


def test_a_video_that_breaks_gives_the_frames_before(tmp_path: Path) -> None:
    path = write_video(tmp_path / "broken.mp4", intra=True)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for start, size in packets[5:]:
        data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    found: list[int] = []

    class Model:
        def predict(self, pictures: list[np.ndarray], **_: Any) -> list[int]:
            return [round(float(picture[40, 60, 0]) / 30) for picture in pictures]

    with pytest.raises(ValueError, match=r"broken\.mp4 breaks at frame 5: .*Invalid data"):
        found.extend(one.result for one in predict_stream(Model(), path, batch_size=3))
    assert found == [0, 1, 2, 3, 4]


def test_a_video_that_was_cut_off_is_no_whole_one(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.mkv", intra=True)
    with av.open(str(path)) as container:
        fifth = [packet.pos for packet in container.demux(video=0) if packet.size][5]
    path.write_bytes(path.read_bytes()[:fifth])
    seen = []
    with pytest.raises(ValueError, match=r"short\.mkv breaks at frame 5, after 0\.5 of 0\.8 seconds; is it cut off\?"):
        seen.extend(frame.index for frame in open_source(path))
    assert seen == [0, 1, 2, 3, 4]


def write_sound(path: Path) -> None:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


FILES: dict[str, Callable[[Path], object]] = {
    "text.md": lambda path: path.write_text("text"),
    "empty": lambda path: path.mkdir(),
    "empty.txt": lambda path: path.write_text("\n"),
    "lost.txt": lambda path: path.write_text("nowhere.jpg"),
    "bytes.txt": lambda path: path.write_bytes(b"\xff\xfe\xff"),
    "junk.mp4": lambda path: path.write_bytes(b"no video" * 99),
    "sound.mp4": write_sound,
}


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("missing.jpg", FileNotFoundError, r"there is no file or folder .*missing\.jpg"),
        ("text.md", ValueError, r"text\.md is no source by its suffix; pictures end with .* \.png .* \.mp4 .* \.txt"),
        ("empty", ValueError, r"the folder .*empty has no pictures; their names end with \.avif .* \.png"),
        ("*.webp", ValueError, r"the pattern .*\*\.webp has no pictures"),
        ("empty.txt", ValueError, r"empty\.txt is empty; it needs the path of a picture"),
        ("lost.txt", FileNotFoundError, r"picture 0 of .*lost\.txt: there is no file nowhere\.jpg"),
        ("bytes.txt", ValueError, r"bytes\.txt is no list of paths: 'utf-8'"),
        ("junk.mp4", ValueError, r"junk\.mp4 cannot be opened as a video: Invalid data found"),
        ("sound.mp4", ValueError, r"sound\.mp4 has no video in it, only audio"),
    ],
)
def test_what_is_no_source_is_told_at_once(tmp_path: Path, name: str, kind: type[Exception], said: str) -> None:
    if name in FILES:
        FILES[name](tmp_path / name)
    with pytest.raises(kind, match=said) as caught:
        open_source(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        (True, TypeError, "True is no source"),
        (-1, ValueError, "-1 is no camera"),
        (["nowhere.png"], FileNotFoundError, r"picture 0 of 1 pictures: there is no file nowhere\.png"),
        ("rtsp://me:secret@127.0.0.1:9/x", ConnectionError, r"rtsp://127\.0\.0\.1:9/x cannot be opened"),
        pytest.param(
            *("97", ConnectionError, "camera 97 cannot be opened: No such file"),
            marks=pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/video97"),
        ),
    ],
)
def test_other_sources_that_are_refused(source: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        open_source(source)
    assert "secret" not in str(caught.value)


def test_a_stride_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="stride=0 must be at least 1"):
        open_source([], stride=0)


def test_closing_closes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, closed, opening = write_video(tmp_path / "v.mp4"), [], av.open

    class Container:
        """What PyAV opens, watched: its own class cannot be changed."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._own = opening(*arguments, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._own, name)

        def close(self) -> None:
            closed.append(self)
            self._own.close()

    monkeypatch.setattr(av, "open", Container)
    list(open_source(path))
    assert len(closed) == 1
    with open_source(path) as source:
        for frame in source:
            source.close()
            assert frame.index == 0
    assert len(closed) == 2
    frames = iter(open_source(path))
    next(frames)
    frames.close()
    assert len(closed) == 3
    for one in (found := predict_stream(None, path)), predict_stream(None, path):
        assert one is not None
    with pytest.raises(AttributeError):
        next(found)  # None has no predict
    assert len(closed) == 4


def test_a_live_stream_gives_the_newest_and_ends_its_thread() -> None:
    taken, ended = [], threading.Event()

    def camera() -> Iterator[int]:
        for i in range(1000):
            time.sleep(0.005)
            taken.append(i)
            yield i

    newest = Newest(camera(), ended.set)
    seen = []
    for item in newest:
        seen.append(item)
        if len(seen) == 3:
            break
        time.sleep(0.1)
    newest.close()
    assert ended.is_set()
    assert not any(thread.name == "rfdetr-newest-frame" for thread in threading.enumerate())
    assert seen[1] - seen[0] > 5  # what came while the reader slept is gone
    assert seen[2] - seen[1] > 5
    assert len(taken) < 100


def test_a_live_stream_passes_its_end_and_its_error_on() -> None:
    def breaks() -> Iterator[int]:
        yield 1
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(Newest(breaks(), lambda: None))
    assert list(Newest([7], lambda: None)) == [7]
    ended: list[bool] = []
    Newest([1], lambda: ended.append(True)).close()
    assert ended == [True]


def serve(data: bytes) -> str:
    """The address of a stream that repeats some bytes until nobody listens any more."""
    server = socket.create_server(("127.0.0.1", 0))

    def send() -> None:
        with server, server.accept()[0] as listener, contextlib.suppress(OSError):
            while True:
                listener.sendall(data)
                time.sleep(0.02)

    threading.Thread(target=send, daemon=True).start()
    return f"tcp://me:secret@127.0.0.1:{server.getsockname()[1]}"


def test_a_stream_over_the_network_has_no_end_and_is_closed(tmp_path: Path) -> None:
    address = serve(write_video(tmp_path / "v.ts").read_bytes())
    with open_source(address, stride=2) as source:
        assert (source.count, source.is_live, source.is_video) == (None, True, True)
        frames = list(islice(source, 10))
    assert {frame.name for frame in frames} == {address.replace("me:secret@", "")}
    assert all(frame.index % 2 == 0 and frame.picture.shape == (HEIGHT, WIDTH, 3) for frame in frames)
    assert frames[-1].index > 10
    assert not any(thread.name == "rfdetr-newest-frame" for thread in threading.enumerate())
    unread = open_source(serve(write_video(tmp_path / "v.ts").read_bytes()))
    unread.close()
    assert list(unread) == []
