"""Roboflow's service, as far as an upload needs it, on this machine."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "aB3secretKey"


class Handler(BaseHTTPRequestHandler):
    """The requests of `roboflow` 1.7.3 while it deploys, answered as its code expects."""

    def answer(self) -> None:
        service: Any = self.server
        address = urlsplit(self.path)
        query = {name: value for name, [value] in parse_qs(address.query).items()}
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        service.requests.append((self.command, address.path, query, content))
        status, text = service.failures.get(address.path, (200, ""))
        if self.command != "PUT" and query.get("api_key") != KEY:
            status, text = 401, "no such key"
        body = text if status != 200 else json.dumps(service.replies.get(address.path, {}))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_: object) -> None:
        pass


class Service(ThreadingHTTPServer):
    """One workspace with one project; remembers the requests, and fails by path as it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.failures: dict[str, tuple[int, str]] = {}
        project = {"id": "space/shapes", "name": "Shapes", "type": "object-detection", "public": False}
        project |= {"created": 1.0, "updated": 1.0, "images": 3, "unannotated": 0, "annotation": "shapes"}
        project |= {"classes": {}, "colors": {}, "splits": {}}
        version = {"augmentation": {}, "created": 1.0, "images": 3, "preprocessing": {}, "splits": {}}
        self.versions = [{**version, "id": f"space/shapes/{number}"} for number in (2, 10, 9)]
        upload = {"url": f"{self.address}/bucket/deploy.zip?signature=1"}
        self.replies = {
            "/": {"workspace": "space"},
            "/space": {"workspace": {"name": "Space", "url": "space", "projects": []}},
            "/space/shapes": {"project": project, "versions": self.versions},
            **{f"/space/shapes/{number}/uploadModel": upload for number in (2, 10)},
        }
