"""The page and the endpoints of `rfdetr serve`: real servers on free ports, and a real browser where there is one."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.tiny import decided_model

from rfdetr import cli, loading
from rfdetr.inference.draw import VideoWriter
from rfdetr.inference.objects import to_objects
from rfdetr.inference.stream import predict_stream
from rfdetr.inference.sv import supervision
from rfdetr.serve import server
from rfdetr.serve.app import create_app
from rfdetr.serve.guard import LOOPBACK
from rfdetr.serve.server import listen, make_server, serve

PAGE = Path(server.__file__).parent


@contextmanager
def running(model: Any, **options: Any) -> Iterator[int]:
    """The port of a server in a thread."""
    with listen("127.0.0.1", 0) as listener:
        server = make_server(create_app(model, "tiny", **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def ask(port: int, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON that a server answers; `_` in names of headers stands for `-`."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
PICTURE = encoded(Image.fromarray(PIXELS))
JPEG = encoded(Image.fromarray(PIXELS), "JPEG")


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# A file of 60 bytes that claims to have 3.6 billion pixels, and one just above the limit.
BOMB, SMALL_BOMB = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b""))
    + chunk(b"IEND", b"")
    for side in (60000, 10000)
)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {task: decided_model(task) for task in ("detect", "segment", "keypoints")}


@pytest.fixture(scope="module")
def ports(models) -> Iterator[dict[str, int]]:
    with (
        running(models["detect"]) as detect,
        running(models["segment"]) as segment,
        running(models["keypoints"]) as keypoints,
    ):
        yield {"detect": detect, "segment": segment, "keypoints": keypoints}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A video of eight frames in two seconds."""
    with VideoWriter(tmp_path_factory.mktemp("clip"), "clip", 4) as writer:
        for index in range(8):
            writer.write(np.roll(PIXELS, 10 * index, axis=1))
    return writer.paths[0]


@pytest.mark.parametrize(
    ("task", "query", "options"),
    [
        ("detect", "", {}),
        ("detect", "?threshold=0.1", {"threshold": 0.1}),
        ("detect", "?threshold=1", {"threshold": 1.0}),  # nothing
        ("segment", "?threshold=.25", {"threshold": 0.25, "mask_format": "polygon"}),
        ("segment", "?mask_format=rle", {"mask_format": "rle"}),
        ("keypoints", "?threshold=0", {"threshold": 0.0}),
    ],
)
def test_the_answer_is_what_predict_returns(task, query, options, models, ports) -> None:
    for body in (PICTURE, JPEG):
        status, answer = ask(ports[task], f"/predict{query}", body)
        expected = to_objects(models[task].predict(body, **options))
        assert status == 200, answer
        assert (answer["width"], answer["height"]) == (120, 90)
        assert answer["milliseconds"] > 0
        assert answer["detections"] == expected
        assert len(expected) > 0 or query == "?threshold=1"
    extra = {"detect": set(), "segment": {"mask" if "rle" in query else "polygons"}, "keypoints": {"keypoints"}}[task]
    assert all(set(one) == {"class_id", "class_name", "confidence", "box"} | extra for one in expected)


def test_health_says_what_is_served(models, ports) -> None:
    for task, port in ports.items():
        status, facts = ask(port, "/health")
        assert (status, facts["model"], facts["task"]) == (200, "tiny", task)
        assert facts["classes"] == models[task].class_names
        assert facts["skeletons"]["17"][0] == [1, 2]


def test_pictures_are_turned_only_when_asked(models, ports) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(PIXELS), exif=exif)
    assert ask(ports["detect"], "/predict?upright=0", turned)[1]["width"] == 120
    status, answer = ask(ports["detect"], "/predict?upright=1&threshold=0", turned)
    assert (status, answer["width"], answer["height"]) == (200, 90, 120)
    assert answer["detections"] == to_objects(models["detect"].predict(np.rot90(PIXELS, -1), threshold=0.0))
    # What has no orientation stays as it is.
    assert ask(ports["detect"], "/predict?upright=1", JPEG)[1]["width"] == 120


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "words"),
    [
        ("/predict", b"", {}, 400, "the body is empty"),
        ("/predict", b"just some text", {}, 400, r"14 bytes, is no picture .*: cannot identify image file; .*JPEG"),
        ("/predict", JPEG[: len(JPEG) // 2], {}, 400, "is no picture that can be used: .*truncated"),
        ("/predict", PICTURE[:40], {}, 400, "is no picture that can be used"),
        ("/predict", BOMB, {}, 400, "3600000000 pixels"),
        ("/predict", SMALL_BOMB, {}, 400, "pixels"),
        # Neither paths and addresses nor formats for which Pillow starts other programs.
        ("/predict", b"/etc/passwd", {}, 400, "no picture"),
        ("/predict", b"http://127.0.0.1:1/a.png", {}, 400, "no picture"),
        ("/predict", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", {}, 400, "cannot identify"),
        ("/predict?path=/etc/passwd", PICTURE, {}, 422, "no option 'path'; there are threshold, upright"),
        ("/predict?stride=2", PICTURE, {}, 422, "no option 'stride'"),
        ("/predict?mask_format=rle", PICTURE, {}, 422, "no option 'mask_format'"),
        ("/predict?threshold=2", PICTURE, {}, 422, "threshold='2' must be a number from 0 to 1"),
        ("/predict?threshold=-0.1", PICTURE, {}, 422, "threshold"),
        ("/predict?threshold=nan", PICTURE, {}, 422, "threshold"),
        ("/predict?threshold=", PICTURE, {}, 422, "threshold"),
        ("/predict?upright=yes", PICTURE, {}, 422, "0 or 1"),
        ("/predict", PICTURE, {"Content_Type": "text/plain"}, 415, "'text/plain'"),
        ("/predict", PICTURE, {"Content_Type": "multipart/form-data; boundary=a"}, 415, "no form"),
        ("/predict", None, {}, 405, "GET /predict: method not allowed; there are .*POST /predict"),
        ("/health", PICTURE, {}, 405, "GET /health"),
        ("/../../../etc/passwd", None, {}, 404, "not found; there are GET /,"),
        ("/page.py", None, {}, 404, "not found"),
        ("/video", b"", {}, 400, "the body is empty"),
        ("/video", PICTURE, {}, 400, "no video; it must be one of .avi"),
        ("/video", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", {}, 400, "no video"),
        ("/video", b"ffconcat version 1.0\nfile /etc/passwd\n", {}, 400, "no video"),
        ("/video", b"\x00\x00\x00\x18ftypmp42" + bytes(500), {}, 400, "the video cannot be opened as a video"),
        ("/video?stride=0", b"a", {}, 422, "stride='0' must be a whole number from 1"),
        ("/video?upright=1", b"a", {}, 422, "no option 'upright'"),
        # Other pages: by name (rebinding), and by what they send here.
        ("/health", None, {"Host": "evil.example"}, 403, "the host 'evil.example' is not served"),
        ("/health", None, {"Host": ""}, 403, "the host"),
        ("/predict", PICTURE, {"Origin": "http://evil.example"}, 403, "may not use this server"),
        ("/predict", PICTURE, {"Origin": "null"}, 403, "may not use this server"),
        ("/predict", PICTURE, {"Origin": "http://localhost:8000", "Host": "localhost:1234"}, 403, "may not use"),
    ],
)
def test_what_cannot_be_used_is_refused(path, body, headers, status, words, ports) -> None:
    got, answer = ask(ports["detect"], path, body, **headers)
    assert (got, set(answer)) == (status, {"error"}), answer
    assert re.search(words, answer["error"]), answer["error"]
    assert "0x" not in answer["error"]
    assert tempfile.gettempdir() not in answer["error"]


@pytest.mark.parametrize("name", [*sorted(LOOPBACK), "LocalHost"])
def test_names_of_this_machine_are_served(name, ports) -> None:
    host = f"{name}:{ports['detect']}"
    assert ask(ports["detect"], "/predict", PICTURE, Host=host, Origin=f"http://{host}")[0] == 200
    assert ask(ports["detect"], "/health", Host=name)[0] == 200


def test_uploads_are_limited_whatever_is_said_of_their_size(models) -> None:
    body = bytes(400_000)
    with running(models["detect"], max_upload_mb=0.1) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for path, sent in (("/predict", body), ("/video", body), ("/predict", iter([body[:50_000]] * 8))):
            connection.request("POST", path, sent, encode_chunked=not isinstance(sent, bytes))
            response = connection.getresponse()
            assert response.status == 413
            assert json.loads(response.read()) == {
                "error": "the upload is larger than 0.1 MB; --max-upload-mb allows more"
            }
        connection.request("POST", "/predict", PICTURE)
        assert connection.getresponse().status == 200, "the connection still works"
        connection.close()


class Slow:
    """A model that notes how many predictions there are at once."""

    has_masks, class_names = False, ("thing",)

    def __init__(self) -> None:
        self.now = self.most = 0
        self.goes_on = threading.Event()
        self.goes_on.set()

    def predict(self, pixels: np.ndarray, **options: Any) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        self.goes_on.wait(20)
        if pixels.shape[:2] == (13, 13):
            raise RuntimeError("out of something")
        self.now -= 1
        found = {"xyxy": np.array([[1.0, 2, 3, 4]]), "confidence": np.array([0.9]), "class_id": np.array([0])}
        return supervision().Detections(**found, data={"class_name": np.array(["thing"])})


def test_one_prediction_at_a_time_and_the_server_answers_meanwhile() -> None:
    model = Slow()
    with running(model) as port:
        model.goes_on.clear()
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(port, "/predict", PICTURE))) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: model.now == 1)
        assert ask(port, "/health")[0] == 200
        model.goes_on.set()
        for thread in threads:
            thread.join()
        assert [status for status, _ in answers] == [200] * 4
        assert model.most == 1


def test_an_error_of_the_model_is_an_answer(caplog) -> None:
    with running(Slow()) as port:
        answer = ask(port, "/predict", encoded(Image.new("RGB", (13, 13))))
        assert answer == (500, {"error": "the server failed: RuntimeError: out of something"})
        assert ask(port, "/predict", PICTURE)[0] == 200


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """What a condition is as soon as it holds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)
    return value


def lines_of(port: int, path: str, body: bytes) -> list[Any]:
    """The JSON objects that a server answers."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", path, body)
        response = connection.getresponse()
        assert (response.status, response.headers["Content-Type"]) == (200, "application/x-ndjson")
        return [json.loads(line) for line in response]


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files, which must be empty afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    until(lambda: not list(tmp_path.iterdir()))


def test_frames_of_a_video_come_line_by_line(clip, models, ports, scratch) -> None:
    for stride in (1, 3):
        lines = lines_of(ports["detect"], f"/video?stride={stride}&threshold=0.2", clip.read_bytes())
        found = list(predict_stream(models["detect"], str(clip), stride=stride, threshold=0.2))
        assert [(one["index"], one["seconds"]) for one in lines] == [(one.index, one.seconds) for one in found]
        assert [one["detections"] for one in lines] == [to_objects(one.result) for one in found]
        assert all((one["width"], one["height"]) == (120, 90) for one in lines)


def test_a_video_that_breaks_ends_with_an_error(clip, ports, scratch) -> None:
    data = clip.read_bytes()
    *found, last = lines_of(ports["detect"], "/video", data[: len(data) // 2])
    assert all("detections" in one for one in found)
    assert set(last) == {"error"}
    assert last["error"].startswith("the video breaks at frame")


def test_nothing_is_left_of_a_video_that_nobody_waits_for(clip, scratch) -> None:
    model = Slow()
    with running(model) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/video", clip.read_bytes())
        response = connection.getresponse()
        assert response.readline()
        model.goes_on.clear()
        assert list(scratch.iterdir())
        response.close()
        connection.close()
        time.sleep(0.2)
        model.goes_on.set()
        until(lambda: not list(scratch.iterdir()))
        # Half an upload.
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(b"POST /video HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf")
            until(lambda: list(scratch.iterdir()))
        until(lambda: not list(scratch.iterdir()))
        assert ask(port, "/predict", PICTURE)[0] == 200


def test_without_pyav_the_answer_says_how_to_install_it(ports, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    status, answer = ask(ports["detect"], "/video", b"anything")
    assert (status, answer) == (501, {"error": 'reading videos and cameras needs av: pip install "rfdetr[video]"'})


def test_nothing_leaves_the_page(ports) -> None:
    for path, file, kind in (
        ("/", "page.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
    ):
        with closing(http.client.HTTPConnection("127.0.0.1", ports["detect"])) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
        assert text == (PAGE / file).read_text(encoding="utf-8")
        assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|url\(|@import", text)


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_only_a_named_host_lets_others_in(host, is_open, monkeypatch, capsys) -> None:
    served: list[Any] = []

    class Server:
        def __init__(self, app: Any) -> None:
            served.append(app)

        def run(self, sockets: list[socket.socket]) -> None:
            served.append(sockets[0].getsockname()[1])
            raise KeyboardInterrupt

    monkeypatch.setattr(server, "make_server", Server)
    serve(Slow(), "tiny", host, 0)
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"tiny is served at http://(localhost|127.0.0.1|\[::1\]):{served[1]} until Ctrl-C\n", out)
    assert ("everybody on the network can reach this server" in err) is is_open
    assert (served[0].user_middleware[0].kwargs["hosts"] is None) is is_open


def test_ports_that_cannot_be_had() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port} of 127.0.0.1 is in use; .*--port 0"):
            serve(Slow(), "tiny", port=port)
    with pytest.raises(ValueError, match="port 70000 must lie in"):
        serve(Slow(), "tiny", port=70000)
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1: "):
        serve(Slow(), "tiny", "192.0.2.1", 0)


def test_the_command_passes_its_options_on(monkeypatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(loading, "open_model", lambda name, **options: given.append((name, options)) or "model")
    monkeypatch.setattr(server, "listen", lambda host, port: socket.socket())
    monkeypatch.setattr(server, "serve", lambda *values, **options: given.append((values, options)))
    for line in ("serve", "serve runs/best.pth --device cpu --port 0 --max-upload-mb 9 --open --host ::1"):
        assert cli.main(line.split()) == 0
    assert given == [
        ("nano", {}),
        (("model", "nano", "127.0.0.1", 8000), {"max_upload_mb": 64, "open_browser": False}),
        ("runs/best.pth", {"device": "cpu"}),
        (("model", "best.pth", "::1", 0), {"max_upload_mb": 9, "open_browser": True}),
    ]


SCRIPT = """
import time
from rfdetr.inference.sv import supervision
from rfdetr.serve.server import serve

class Model:
    has_masks, class_names = False, ()

    def predict(self, pixels, **options):
        time.sleep(0.1)
        found = supervision().Detections.empty()
        found.data = {"class_name": []}
        return found

serve(Model(), "tiny", port=0)
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a signal")
def test_ctrl_c_ends_the_server_and_its_videos(clip, scratch) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], text=True, env=environment, **pipes) as process:
        port = int(re.search(r"http://127.0.0.1:(\d+) until Ctrl-C", process.stdout.readline())[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/video", clip.read_bytes())
        response = connection.getresponse()
        first = json.loads(response.readline())
        process.send_signal(signal.SIGINT)
        *others, last = [json.loads(line) for line in response]
        connection.close()
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "done\n", "rfdetr: the server has ended\n")
    assert (first["index"], last) == (0, {"error": "the server has ended"})
    assert len(others) < 7


class Browser:
    """A page in a headless Chromium, which is told what to do through a pipe."""

    def __init__(self, chromium: str, profile: Path) -> None:
        flags = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", "--window-size=1280,860"),
            *("--autoplay-policy=no-user-gesture-required", f"--user-data-dir={profile}", "--remote-debugging-pipe"),
        )
        # It reads from descriptor 3 and writes to 4.
        shell = ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', "sh", chromium, *flags]
        self.process = subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.number, self.session, self.rest = 0, {}, b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self.errors: list[Any] = []
        self.call("Log.enable")
        self.call("Runtime.enable")

    def open(self, url: str) -> None:
        """Show the page of a server."""
        self.call("Page.navigate", url=url)
        self.until(f"location.href === '{url}' && document.getElementById('model')?.textContent")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while (answer := self.read()).get("id") != self.number:
            # What scripts threw, and what could not or must not be loaded.
            params = answer.get("params", {})
            if "exceptionDetails" in params or params.get("entry", {}).get("level") == "error":
                self.errors.append(params.get("entry", params))
        assert "error" not in answer, answer
        return answer["result"]

    def read(self) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self.rest:
            part = self.process.stdout.read1()
            assert part, "the browser has ended"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def value(self, expression: str) -> Any:
        """What an expression gives in the page."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, expression: str) -> Any:
        """What an expression gives as soon as it is true."""
        return until(lambda: self.value(expression))

    def put(self, path: Path) -> None:
        """Choose a file."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def screenshot(self, path: Path, **options: Any) -> None:
        """Write what it shows."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))

    def close(self) -> None:
        """End it."""
        self.call("Browser.close")
        self.process.communicate(timeout=20)


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with closing(Browser(chromium, tmp_path / "profile")) as page:
        yield page


ROWS = "document.querySelectorAll('#rows tr').length"
# How many pixels are drawn over the picture.
DRAWN = """(() => { const canvas = document.getElementById("overlay");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.filter((value, at) => at % 4 === 3 && value > 0).length; })()"""
SLIDE = """(() => { const slider = document.getElementById("threshold"); slider.value = %s;
  slider.dispatchEvent(new Event("input")); return %s; })()"""
TEXT = "document.getElementById('%s').textContent"


def test_the_page_in_a_browser(browser, models, ports, clip, tmp_path) -> None:
    (tmp_path / "picture.png").write_bytes(PICTURE)
    (tmp_path / "text.png").write_text("no picture")
    counts = [len(models["detect"].predict(PICTURE, threshold=value)) for value in (0.1, 0.5, 0.6)]
    assert counts[0] > counts[1] > counts[2]
    browser.open(f"http://localhost:{ports['detect']}/")
    assert browser.value(TEXT % "known") == "3 classes"
    browser.put(tmp_path / "picture.png")
    assert browser.until(ROWS) == counts[1]
    assert browser.until("document.getElementById('picture').naturalWidth") == 120
    assert re.match(r"model [\d.]+ ms, round trip [\d.]+ ms, 120 × 90 pixels", browser.value(TEXT % "times"))
    drawn = browser.until(DRAWN)
    # The threshold works on what is there.
    assert browser.value(SLIDE % (0.1, ROWS)) == counts[0]
    assert browser.value(DRAWN) > drawn
    assert browser.value(SLIDE % (0.6, ROWS)) == counts[2]
    assert browser.value(SLIDE % (1, TEXT % "count")).startswith("Nothing above the threshold, but ")
    assert browser.value(DRAWN) == 0
    assert browser.value(SLIDE % (0.5, ROWS)) == counts[1]
    browser.put(clip)
    browser.until("document.getElementById('video').currentTime > 0.3 && !document.getElementById('video').paused")
    assert "ms per frame, 8 frames" in browser.until(TEXT % "times")
    assert browser.until(ROWS)
    assert browser.value(DRAWN) > 0
    assert browser.value(TEXT % "message") == ""
    assert browser.errors == []
    # Of a file that is no picture, the message is that of the server.
    browser.put(tmp_path / "text.png")
    assert "is no picture that can be used" in browser.until("document.querySelector('#message.error')?.textContent")
    assert browser.value("document.getElementById('stage').hidden") is True
    assert [error["text"] for error in browser.errors] == [
        "Failed to load resource: the server responded with a status of 400 (Bad Request)"
    ]


def test_masks_and_keypoints_are_drawn(browser, ports, tmp_path) -> None:
    (tmp_path / "picture.png").write_bytes(PICTURE)
    for task in ("segment", "keypoints"):
        browser.open(f"http://127.0.0.1:{ports[task]}/")
        browser.put(tmp_path / "picture.png")
        assert browser.until(ROWS)
        assert browser.value(DRAWN) > 0
    assert browser.errors == []
