"""Roboflow's service on this machine, and a stand-in for the package that talks to it."""

from __future__ import annotations

import json
import types
import urllib.error
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch

from rfdetr.checkpoints.roboflow import BACKGROUND

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


class StandIn(types.ModuleType):
    """As much of `roboflow` 1.7.3 as deploying uses: its requests, prints and failures, the key in all of them."""

    def __init__(self, address: str) -> None:
        super().__init__("roboflow")
        self.address = address

    def call(self, method: str, path: str, data: bytes | None = None) -> tuple[int, str]:
        url = path if path.startswith("http") else self.address + path
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, method=method)) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except urllib.error.URLError:
            raise ConnectionError(f"Max retries exceeded with url: {url}") from None

    def read(self, path: str, method: str = "GET") -> Any:
        status, text = self.call(method, f"{path}?api_key={self.key}")
        if status != 200:
            raise RuntimeError(text)
        return json.loads(text)

    def Roboflow(self, api_key: str) -> StandIn:
        self.key = api_key
        self.read("/", "POST")
        return self

    def workspace(self, name: str) -> StandIn:
        print("\rloading Roboflow workspace...")
        self.url = self.read(f"/{name}")["workspace"]["url"]
        return self

    def project(self, project_id: str) -> StandIn:
        self.path = f"/{self.url}/{project_id}"
        self.type = self.read(self.path)["project"]["type"]
        return self

    def get_version_information(self) -> list[dict]:
        return self.read(self.path)["versions"]

    def version(self, number: int) -> StandIn:
        [found] = [one for one in self.get_version_information() if one["id"].endswith(f"/{number}")]
        self.goal = f"/{found['id']}"
        return self

    def deploy(self, model_type: str, model_path: str, filename: str) -> None:
        args = torch.load(Path(model_path, filename), weights_only=False)["args"]
        if (model_type, args.positional_encoding_size) == ("rfdetr-nano", 32):
            print("the checkpoint was trained with 32x32, which matches 'rfdetr-small'")
            input("Would you like to continue anyway? y/n: ")
        names = Path(model_path, "class_names.txt").read_text().splitlines()
        names = names if BACKGROUND in names else [BACKGROUND, *names]
        if self.type != "object-detection":
            raise ValueError(f"Project 'shapes' is type '{self.type}'")
        with zipfile.ZipFile(Path(model_path, "roboflow_deploy.zip"), "w") as archive:
            archive.write(Path(model_path, filename), "weights.pt")
            archive.writestr("class_names.txt", "\n".join(names) + "\n")
        path = f"{self.goal}/uploadModel?api_key={self.key}&modelType={model_type}&nocache=true"
        status, text = self.call("GET", path)
        if status != 200:
            reason = "This version already has a trained model." if status == 429 else f"for url: {self.address}{path}"
            print(f"An error occured when getting the model upload URL: {reason}")
            return
        status, _ = self.call("PUT", json.loads(text)["url"], Path(model_path, "roboflow_deploy.zip").read_bytes())
        print("An error occured when uploading the model:" if status != 200 else "View the status of your deployment")
