"""What keeps other web pages away from a server on this machine."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The names by which a browser reaches the machine that it runs on.
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src blob: data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses what other web pages send, and adds headers that keep the page to itself.

    Args:
        hosts: names that a request may be addressed to; None allows any. A page elsewhere whose name was made to lead
            here (DNS rebinding) has another one.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        app = self.app if refusal is None else JSONResponse({"error": refusal}, 403)
        await app(scope, receive, guarded)

    def _refusal(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if self.hosts is not None and re.sub(r":\d+$", "", host) not in self.hosts:
            return f"the host {host!r} is not served; it is one of {', '.join(sorted(self.hosts))}"
        # Browsers send it with every POST; other programs leave it out.
        if origin is not None and origin.lower().partition("://")[2] != host:
            return f"the page {origin!r} may not use this server, only its own may"
        return None
