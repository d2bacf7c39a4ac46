"""A web page and an HTTP endpoint for one model on this machine."""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
import threading
import webbrowser
from contextlib import suppress
from typing import Any

from rfdetr.extras import require


def serve(
    model: Any,
    name: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    max_upload_mb: float = 64,
    open_browser: bool = False,
) -> None:
    """Serve a model until Ctrl-C, after which it returns.

    Args:
        model: what `rfdetr.load` returns, or anything with `predict`, `has_masks` and `class_names`.
        name: what the page calls it.
        host: name or address to listen on; others than those of this machine alone let everybody in the network in.
        port: 0 takes any free one; the address is printed.

    Raises:
        ImportError: starlette or uvicorn is not installed; the message has the pip command.
        OSError, ValueError: the port is in use or not allowed, or the host is not this machine.
    """
    require("starlette")
    from rfdetr.serve.app import create_app
    from rfdetr.serve.guard import LOOPBACK

    with listen(host, port) as listener:
        own, port = listener.getsockname()[:2]
        address = ipaddress.ip_address(own)
        shown = "localhost" if address.is_unspecified else f"[{own}]" if address.version == 6 else own
        hosts = {*LOOPBACK, host.lower(), shown} if address.is_loopback else None
        app = create_app(model, name, max_upload_mb, hosts=hosts)
        if not address.is_loopback:
            print(f"rfdetr: warning: everybody on the network can reach this server ({host})", file=sys.stderr)
        print(f"{name} is served at http://{shown}:{port} until Ctrl-C", flush=True)
        if open_browser:
            # Some browsers return only when they are closed.
            threading.Thread(target=webbrowser.open, args=(f"http://{shown}:{port}",), daemon=True).start()
        with suppress(KeyboardInterrupt):
            make_server(app).run(sockets=[listener])
    print("rfdetr: the server has ended", file=sys.stderr)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; ValueError or OSError says why it cannot."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} must lie in 0..65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        why = {errno.EADDRINUSE: "in use", errno.EACCES: "not allowed"}.get(error.errno or 0)
        if why is None:
            raise OSError(f"cannot listen on {host}: {error.strerror or error}") from error
        text = f"port {port} of {host} is {why}; name another with --port, or --port 0 for any free one"
        raise OSError(text) from error


def make_server(app: Any) -> Any:
    """The `uvicorn.Server` of an application; after Ctrl-C videos end, and who hangs is cut off in 5 seconds."""
    uvicorn = require("uvicorn")
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    how: dict[str, Any] = {"http": "h11", "ws": "none", "lifespan": "off", "timeout_graceful_shutdown": 5}
    server = uvicorn.Server(uvicorn.Config(app, **how, **quiet))
    app.state.ends = lambda: server.should_exit
    return server
