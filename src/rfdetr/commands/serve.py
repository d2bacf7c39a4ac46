"""`rfdetr serve`: a web page and an HTTP endpoint for one model on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from rfdetr.commands.parser import add_model, runtime_of
from rfdetr.commands.values import add_number, add_switch
from rfdetr.extras import require


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_model(parser, metavar="MODEL", nargs="?")
    parser.add_argument(
        "--host", metavar="NAME", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)"
    )
    parser.add_argument(
        "--port", type=int, metavar="N", default=8000, help="0 takes any free one (default: %(default)s)"
    )
    add_number(parser, "max-upload-mb", "larger files are refused", default=64)
    add_switch(parser, "open", "open the page in the browser")
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Serve a model until Ctrl-C."""
    from rfdetr.loading import open_model
    from rfdetr.serve.server import listen, serve

    # What is missing or taken shows before the model is loaded.
    require("starlette")
    require("uvicorn")
    listen(options.host, options.port).close()
    model, name = open_model(options.model, **runtime_of(options)), Path(options.model).name
    how = {"max_upload_mb": options.max_upload_mb, "open_browser": options.open}
    serve(model, name, options.host, options.port, **how)
    return 0
