"""Published files on their way into the cache folder, from a server on this machine."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.tiny import MODEL

import rfdetr
from rfdetr.checkpoints import download

NAME = "rf-detr-nano.pth"
REMOTE = "nano_coco/checkpoint_best_regular.pth"
CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT under REMOTE, and keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.with_ranges = True
        self.stop_after: int | None = None
        self.content = CONTENT

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    """Ranges as the published server answers them."""

    def do_GET(self) -> None:
        wanted, content = self.headers.get("Range"), self.server.content
        self.server.ranges.append(wanted)
        if self.path != f"/{REMOTE}":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.with_ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.server.stop_after])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(download, "BASE_URL", server.address)
        monkeypatch.setattr(download, "PUBLISHED", {NAME: (REMOTE, MD5)})
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder, and no server elsewhere that a mistake could reach."""
    monkeypatch.setenv("RF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "BASE_URL", "http://127.0.0.1:9/")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def kept(cache: Path) -> list[str]:
    """Files of the cache beside the locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_a_published_file_is_fetched_once_and_found_afterwards(server, cache):
    assert download.find_weights(NAME) == cache / NAME
    assert (cache / NAME).read_bytes() == CONTENT
    assert download.find_weights(NAME) == cache / NAME
    assert server.ranges == [None]
    assert kept(cache) == [NAME]


@pytest.mark.parametrize("with_ranges", [True, False])
@pytest.mark.parametrize("have", [1, 5000, len(CONTENT)])
def test_a_part_is_resumed_where_it_stopped(server, cache, have, with_ranges):
    server.with_ranges = with_ranges
    cache.mkdir()
    (cache / f"{NAME}.part").write_bytes(CONTENT[:have])
    assert download.find_weights(NAME).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={have}-"]
    assert kept(cache) == [NAME]


def test_a_connection_that_breaks_leaves_a_part_that_the_next_call_completes(server, cache):
    server.stop_after = 300_000
    with pytest.raises(ConnectionError, match=NAME):
        download.find_weights(NAME)
    assert kept(cache) == [f"{NAME}.part"]
    server.stop_after = None
    assert download.find_weights(NAME).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]


@pytest.mark.parametrize("part", [b"", b"not the beginning of it"])
def test_a_file_with_a_wrong_hash_leaves_nothing(server, cache, part):
    server.content = CONTENT if part else b"<html>hello</html>"
    cache.mkdir()
    if part:
        (cache / f"{NAME}.part").write_bytes(part)
    with pytest.raises(ConnectionError, match=rf"{NAME} from {server.address}{REMOTE} is damaged.*not {MD5}"):
        download.find_weights(NAME)
    assert kept(cache) == []


def test_without_a_network_the_error_names_file_address_and_folder(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    download.BASE_URL = f"http://127.0.0.1:{port}/"
    with pytest.raises(ConnectionError) as raised:
        rfdetr.RFDETRNano()
    for part in (NAME, f"http://127.0.0.1:{port}/{REMOTE}", str(cache / NAME), download.PUBLISHED[NAME][1], "RF_HOME"):
        assert part in str(raised.value)


def test_a_file_that_the_server_does_not_have_is_named(server, monkeypatch):
    monkeypatch.setattr(download, "PUBLISHED", {NAME: ("gone.pth", MD5)})
    with pytest.raises(ConnectionError, match=r"gone\.pth.*404"):
        download.find_weights(NAME)


@pytest.mark.parametrize("here", [True, False])
def test_a_file_that_is_there_is_kept_whatever_its_hash(server, cache, tmp_path, here):
    cache.mkdir()
    own = (tmp_path if here else cache) / NAME
    own.write_bytes(b"my own")
    with pytest.warns(UserWarning, match=f"{NAME} is not the published file"):
        found = download.find_weights(NAME)
    assert found.resolve() == own
    assert (own.read_bytes(), server.ranges) == (b"my own", [])


def test_a_path_is_used_as_it_is(server, tmp_path):
    (tmp_path / "runs").mkdir()
    own = tmp_path / "runs" / NAME
    own.write_bytes(b"my own")
    (tmp_path / "link.pth").symlink_to(own)
    for given in (str(own), f"runs/{NAME}", "link.pth"):
        assert download.find_weights(given).read_bytes() == b"my own"
    with pytest.raises(FileNotFoundError, match=r"runs/none\.pth"):
        download.find_weights("runs/none.pth")
    assert server.ranges == []


def test_a_home_folder_in_a_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "own.pth").write_bytes(b"my own")
    assert download.find_weights("~/own.pth") == tmp_path / "own.pth"


def test_an_unknown_name_is_an_error_that_lists_the_published_ones(cache):
    with pytest.raises(FileNotFoundError, match=rf"rf-detr-nan\.pth.*{cache}.*rf-detr-nano\.pth, rf-detr-small\.pth"):
        download.find_weights("rf-detr-nan.pth")


def test_threads_that_want_the_same_file_fetch_it_once(server):
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(download.find_weights, [NAME] * 6))
    assert {path.read_bytes() for path in found} == {CONTENT}
    assert server.ranges == [None]


def test_processes_that_want_the_same_file_fetch_it_once(server, cache):
    script = (
        "import sys; from rfdetr.checkpoints import download as d; d.BASE_URL = sys.argv[1]; "
        "d.PUBLISHED = {sys.argv[2]: (sys.argv[3], sys.argv[4])}; d.find_weights(sys.argv[2])"
    )
    command = [sys.executable, "-c", script, server.address, NAME, REMOTE, MD5]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    assert [child.communicate(timeout=60)[0] for child in children] == [None, None]
    assert [child.returncode for child in children] == [0, 0]
    assert ((cache / NAME).read_bytes(), server.ranges) == (CONTENT, [None])


@pytest.mark.parametrize(
    ("rf", "roboflow", "folder"),
    [
        ("/a", "/b", Path("/a")),
        ("", "/b", Path("/b")),
        (None, "/b", Path("/b")),
        ("", "", Path.home() / ".roboflow" / "models"),
        (None, None, Path.home() / ".roboflow" / "models"),
        ("~/w", None, Path.home() / "w"),
    ],
)
def test_the_cache_folder_comes_from_the_environment(rf, roboflow, folder, monkeypatch):
    for name, value in (("RF_HOME", rf), ("ROBOFLOW_HOME", roboflow)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert download.cache_folder() == folder


@pytest.mark.parametrize("cls", ["RFDETRXLarge", "RFDETR2XLarge"])
def test_sizes_under_another_license_need_weights_of_the_user(cls):
    with pytest.raises(ValueError, match=r"Platform Model License 1\.0.*pretrain_weights=None"):
        getattr(rfdetr, cls)(device="cpu")


@pytest.mark.parametrize("name", sorted(download.OTHER_LICENSE))
def test_weights_under_another_license_are_found_but_never_fetched(name, cache):
    with pytest.raises(FileNotFoundError, match=rf"{name}: .*Platform Model License"):
        download.find_weights(name)
    cache.mkdir()
    (cache / name).write_bytes(b"licensed")
    assert download.find_weights(name) == cache / name


def test_the_published_files_are_those_of_the_sizes():
    sizes = {row.weights for row in rfdetr.variants.VARIANTS.values() if row.weights}
    assert sizes <= set(download.PUBLISHED)
    assert len({md5 for _, md5 in download.PUBLISHED.values()}) == len(download.PUBLISHED)


def test_random_weights_need_neither_cache_nor_network(cache):
    rfdetr.RFDETRNano(**MODEL)
    assert not cache.exists()
    assert os.environ["RF_HOME"] == str(cache)
