"""`rfdetr serve`: a web page and an HTTP endpoint for one model on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from rfdetr.commands.parser import positive
from rfdetr.extras import require


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="nano",
        help="size (nano, seg-nano, ...), checkpoint (.pth) or exported file (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free one (default: %(default)s)")
    parser.add_argument(
        "--max-upload-mb", type=positive(int), default=64, help="larger files are refused (default: %(default)s)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--device", help="cpu, cuda, ... (default: what is there)")
    parser.add_argument("--backend", help="what runs the model (default: that of the file)")
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Serve a model until Ctrl-C."""
    from rfdetr.loading import open_model
    from rfdetr.serve.server import listen, serve

    # What is missing or taken shows before the model is loaded.
    require("starlette")
    require("uvicorn")
    listen(options.host, options.port).close()
    given = {name: getattr(options, name) for name in ("device", "backend") if getattr(options, name) is not None}
    model, name = open_model(options.model, **given), Path(options.model).name
    how = {"max_upload_mb": options.max_upload_mb, "open_browser": options.open}
    serve(model, name, options.host, options.port, **how)
    return 0
