"""The page and the endpoints of one model. Only bytes are looked at: no path or address in a request is ever opened."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rfdetr.datasets.synthetic import KEYPOINTS
from rfdetr.extras import require
from rfdetr.inference.draw import PERSON_POINTS
from rfdetr.inference.images import load_image
from rfdetr.inference.objects import to_objects
from rfdetr.inference.sources import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Source, open_video
from rfdetr.inference.sv import supervision
from rfdetr.labels import DEFAULT_THRESHOLD
from rfdetr.serve.guard import LOOPBACK, Guard

_FILES = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}
# Of all that Pillow reads, what `predict` takes as files: some others run programs, such as Ghostscript.
_KNOWN = Image.registered_extensions()
_FORMATS = sorted({_KNOWN[suffix] for suffix in PICTURE_SUFFIXES if suffix in _KNOWN} & set(Image.OPEN))
# First bytes of videos, and FFmpeg's name of the format. Left to guess, it reads playlists too, which name other files.
_CONTAINERS = (
    (rb".{4}(ftyp|moov|mdat|wide|free|skip)", "mov"),
    (rb"\x1aE\xdf\xa3", "matroska"),
    (rb"RIFF.{4}AVI ", "avi"),
    (rb"0&\xb2u\x8ef\xcf\x11", "asf"),
    (rb"\x00\x00\x01\xba", "mpeg"),
)
# How options in an address are read, and what they may be.
_OPTIONS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "threshold": (r"0?\.\d+|[01]|1\.0+|0\.", float, "a number from 0 to 1"),
    "mask_format": ("polygon|rle", str, "polygon or rle"),
    "upright": ("[01]", int, "0 or 1"),
    "stride": (r"[1-9]\d{0,8}", int, "a whole number from 1"),
}


@dataclass(frozen=True)
class Served:
    """A model that is served.

    Args:
        facts: what `GET /health` answers.
        limit: bytes of an upload.
        worker: its one thread decodes and predicts, one request after the other.
    """

    model: Any
    facts: dict[str, Any]
    limit: int
    worker: ThreadPoolExecutor

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns, which the worker calls."""
        return await asyncio.get_running_loop().run_in_executor(self.worker, function, *arguments)


def create_app(
    model: Any, name: str, max_upload_mb: float = 64, *, hosts: Collection[str] | None = LOOPBACK
) -> Starlette:
    """The web application of a model, which looks at one picture to begin with: the first takes longest.

    Args:
        model: anything with `predict`, `has_masks` and `class_names`.
        name: what the page calls it.
        max_upload_mb: larger pictures and videos are refused.
        hosts: names that requests may be addressed to; None allows any.
    """
    first = model.predict(np.zeros((64, 64, 3), np.uint8))
    people = supervision().key_points.skeletons.SKELETONS_BY_VERTEX_COUNT[PERSON_POINTS]
    facts = {
        "model": name,
        "task": "segment" if model.has_masks else "keypoints" if "xyxy" in first.data else "detect",
        "classes": [text for text in model.class_names if text],
        "max_upload_mb": max_upload_mb,
        "videos": VIDEO_SUFFIXES if importlib.util.find_spec("av") else [],
        # How `rfdetr predict --save` draws: a colour per class, and lines between keypoints, counted from 1, by their
        # number or the name of the class.
        "colors": [color.as_hex() for color in supervision().ColorPalette.DEFAULT.colors],
        "skeletons": {str(PERSON_POINTS): people} | {shape: lines for shape, (_, lines) in KEYPOINTS.items()},
    }
    worker = ThreadPoolExecutor(1, thread_name_prefix="rfdetr-serve")
    routes = [
        *(Route(path, _sender(path.strip("/") or "page.html", kind)) for path, kind in _FILES.items()),
        Route("/health", health),
        Route("/predict", predict, methods=["POST"]),
        Route("/video", video, methods=["POST"]),
    ]
    handlers: Any = {HTTPException: _tell, ClientDisconnect: _tell, Exception: _tell}
    app = Starlette(routes=routes, middleware=[Middleware(Guard, hosts=hosts)], exception_handlers=handlers)
    app.state.served = Served(model, facts, round(max_upload_mb * 1e6), worker)
    # Whether the server wants to end; `make_server` knows.
    app.state.ends = lambda: False
    return app


def _sender(name: str, kind: str) -> Callable[[Request], Response]:
    return lambda request: FileResponse(Path(__file__).with_name(name), media_type=kind)


def _tell(request: Request, error: Exception) -> Response:
    """Any error as {"error": text}."""
    if not isinstance(error, HTTPException):
        return JSONResponse({"error": f"the server failed: {type(error).__name__}: {error}"}, 500)
    text = error.detail
    if error.status_code in (404, 405):
        known = ", ".join(f"{'/'.join(sorted(route.methods - {'HEAD'}))} {route.path}" for route in request.app.routes)
        text = f"{request.method} {request.url.path}: {text.lower()}; there are {known}"
    return JSONResponse({"error": text}, error.status_code, error.headers)


async def health(request: Request) -> Response:
    """Facts about the model, as JSON."""
    return JSONResponse(request.app.state.served.facts)


async def predict(request: Request) -> Response:
    """What is in the picture that is the body, as JSON."""
    served: Served = request.app.state.served
    options = _options(request, served.model, "upright")
    _check_type(request)
    data = b"".join([chunk async for chunk in _body(request, served.limit)])
    upright = bool(options.pop("upright", 0))
    return JSONResponse(await served.run(lambda: look(served.model, _decode(data, upright), options)))


async def video(request: Request) -> Response:
    """What is in the frames of the video that is the body, as a JSON object per line, one by one."""
    served: Served = request.app.state.served
    options = _options(request, served.model, "stride")
    _check_type(request)
    try:
        require("av")
    except ImportError as error:
        raise HTTPException(501, str(error)) from error
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rfdetr-")), "video")
        with path.open("wb") as file:
            async for chunk in _body(request, served.limit):
                file.write(chunk)
        source = stack.enter_context(await served.run(_open, path, options.pop("stride", 1)))
        lines = _lines(served.model, source, options)
        stack.callback(lines.close)
        left = stack.pop_all()
    # The worker closes them, so never while it reads a frame.
    return _Stream(_each(request, lines), lambda: served.worker.submit(left.close))


def _options(request: Request, model: Any, *names: str) -> dict[str, Any]:
    """The options of an address; 422 for one that there is not, or that cannot be used."""
    options: dict[str, Any] = {"threshold": DEFAULT_THRESHOLD} | ({"mask_format": "polygon"} if model.has_masks else {})
    known = {*options, *names}
    for name, text in request.query_params.items():
        if name not in known:
            raise HTTPException(422, f"this model has no option {name!r}; there are {', '.join(sorted(known))}")
        pattern, read, allowed = _OPTIONS[name]
        if not re.fullmatch(pattern, text, re.ASCII):
            raise HTTPException(422, f"{name}={text!r} must be {allowed}")
        options[name] = read(text)
    return options


def _check_type(request: Request) -> None:
    """415 for a body that is said to be no file; curl says of files that they are forms."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    others = ("", "application/octet-stream", "application/x-www-form-urlencoded")
    if kind not in others and not kind.startswith(("image/", "video/")):
        raise HTTPException(415, f"the body is {kind!r}; send the bytes of a picture or video as they are, no form")


async def _body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body in pieces; 413 as soon as it is known to be too large."""
    text = f"the upload is larger than {limit / 1e6:g} MB; --max-upload-mb allows more"
    if int(request.headers.get("content-length", 0)) > limit:
        raise HTTPException(413, text)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise HTTPException(413, text)
        yield chunk
    if not size:
        raise HTTPException(400, "the body is empty; send the bytes of a picture or video")


def _decode(data: bytes, upright: bool) -> np.ndarray:
    """Pixels (H, W, 3) of a picture, if wanted turned the way that its EXIF orientation says; 400 for anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {Image.MAX_IMAGE_PIXELS}")
            return load_image(ImageOps.exif_transpose(image) if upright else image, "the picture")
    except Exception as error:  # whatever the decoders of Pillow make of damaged files
        reason = re.sub(r" <_io\.BytesIO.*?>", "", str(error))
        text = f"the body, {len(data)} bytes, is no picture that can be used: {reason}; it must be one of "
        raise HTTPException(400, text + ", ".join(_FORMATS)) from error


def look(model: Any, pixels: np.ndarray, options: dict[str, Any]) -> dict[str, Any]:
    """What a model finds in a picture (H, W, 3), as it is answered."""
    begun = perf_counter()
    result = model.predict(pixels, include_source_image=False, **options)
    spent = (perf_counter() - begun) * 1000
    height, width = pixels.shape[:2]
    return {"width": width, "height": height, "milliseconds": round(spent, 2), "detections": to_objects(result)}


def _open(path: Path, stride: int) -> Source:
    """An uploaded video; 400 for anything else."""
    with path.open("rb") as file:
        start = file.read(16)
    kind = next((kind for pattern, kind in _CONTAINERS if re.match(pattern, start, re.DOTALL)), None)
    if kind is None:
        raise HTTPException(400, f"the body is no video; it must be one of {', '.join(VIDEO_SUFFIXES)}")
    try:
        return open_video(f"file:{path}", stride, name="the video", format=kind)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


def _lines(model: Any, source: Source, options: dict[str, Any]) -> Generator[str]:
    """A line per frame, and one with the error where the video breaks."""
    try:
        for frame in source:
            found = {"index": frame.index, "seconds": frame.seconds, **look(model, frame.picture, options)}
            yield json.dumps(found) + "\n"
    except ValueError as error:
        yield json.dumps({"error": str(error)}) + "\n"


async def _each(request: Request, lines: Iterator[str]) -> AsyncIterator[str]:
    state = request.app.state
    while line := await state.served.run(next, lines, ""):
        yield line
        if state.ends():
            yield json.dumps({"error": "the server has ended"}) + "\n"
            return


class _Stream(StreamingResponse):
    """Lines of JSON; `on_end` is called when they end, also because nobody reads them any more."""

    def __init__(self, lines: AsyncIterator[str], on_end: Callable[[], Any]) -> None:
        super().__init__(lines, media_type="application/x-ndjson")
        self._on_end = on_end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()
