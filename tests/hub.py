"""A stand-in for the Hugging Face hub on this machine: real requests by the hub's own client, over real sockets, no network.

It knows repositories of models, commits, files of git and of LFS, tokens, and what can go wrong.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

# To be recognised wherever it might be shown.
TOKEN, READER = "hf_sEcReTtOkEnThAtMayWrite", "hf_sEcReTtOkEnThAtMayRead"


@dataclass
class Repository:
    """Its files by name, the number of its last commit, and whether anybody may see it."""

    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    lfs: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=lambda: ["start"])
    private: bool = False

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{len(self.commits)}{self.commits[-1]}".encode()).hexdigest()


@dataclass
class Hub:
    """The server.

    Attributes:
        url: where it is.
        repositories: by USER/REPO.
        requests: method and path of those that came.
        refuses: a status for every request whose path holds one of these texts.
        between: is called once before the next commit is made.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refuses: dict[str, int] = field(default_factory=dict)
    between: list[object] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)

    def reset(self) -> None:
        for records in (self.repositories, self.requests, self.refuses, self.between, self.objects):
            records.clear()  # type: ignore[attr-defined]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, content: object = None, status: int = 200, **headers: str) -> None:
        body = (
            content
            if isinstance(content, bytes)
            else b""
            if content is None
            else json.dumps(content).encode()
        )
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status: int, code: str, message: str = "") -> None:
        self._answer({"error": message or code}, status, X_Error_Code=code, X_Error_Message=message or code)

    def _route(self) -> None:
        hub, parts = self.hub, urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        hub.requests.append(f"{self.command} {path}")
        for text, status in hub.refuses.items():
            if text in path:
                return self._fail(status, "Broken")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path.startswith("/objects/"):
            hub.objects[path.removeprefix("/objects/")] = body
            return self._answer()
        if path == "/api/repos/create":
            if token != TOKEN:
                return self._fail(403 if token else 401, "Forbidden")
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'ada'}/{asked['name']}"
            hub.repositories[name] = Repository(
                private=bool(asked.get("private") or asked.get("visibility") == "private")
            )
            return self._answer({"url": f"{hub.url}/{name}", "name": name})
        match = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?(/.*)?", path)
        name, rest = (match[1], match[2] or "") if match else ("", "")
        repository = hub.repositories.get(name)
        if repository is None or (repository.private and token not in (TOKEN, READER)):
            return self._fail(404 if token else 401, "RepoNotFound")
        if self.command in ("POST", "PUT") and token != TOKEN:
            return self._fail(403, "Forbidden")
        return self._of_repository(name, repository, rest, query, body)

    def _of_repository(
        self, name: str, repository: Repository, rest: str, query: dict[str, list[str]], body: bytes
    ) -> None:
        hub = self.hub
        if rest == "" or rest.startswith("/revision/"):
            files = [{"rfilename": file} for file in sorted(repository.files)]
            return self._answer(
                {
                    "id": name,
                    "modelId": name,
                    "sha": repository.sha,
                    "siblings": files,
                    "private": repository.private,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                }
            )
        if rest.startswith("/tree/"):
            return self._answer(
                [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in sorted(repository.files.items())
                ]
            )
        if rest.startswith("/preupload/"):
            asked = json.loads(body)["files"]
            return self._answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs"
                            if file["path"].endswith((".safetensors", ".onnx"))
                            else "regular",
                            "shouldIgnore": False,
                        }
                        for file in asked
                    ]
                }
            )
        if rest == "/info/lfs/objects/batch":
            objects = [
                {
                    "oid": blob["oid"],
                    "size": blob["size"],
                    "actions": {"upload": {"href": f"{hub.url}/objects/{blob['oid']}"}},
                }
                for blob in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        if rest.startswith("/commit/"):
            return self._commit(name, repository, body)
        if rest.startswith("/resolve/"):
            file = rest.removeprefix("/resolve/").partition("/")[2]
            data = repository.files.get(file)
            if data is None:
                return self._fail(404, "EntryNotFound")
            return self._answer(
                data, X_Repo_Commit=repository.sha, ETag=f'"{hashlib.sha1(data).hexdigest()}"'
            )
        return self._fail(404, "EntryNotFound")

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        header = lines[0]["value"]
        while self.hub.between:
            self.hub.between.pop()()  # type: ignore[operator]
        if header.get("parentCommit") not in (None, repository.sha):
            return self._fail(412, "Outdated", "the repository has moved on")
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
                repository.lfs.add(value["path"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                return self._fail(400, "Unknown", line["key"])
        repository.files = files
        repository.commits.append(header["summary"])
        return self._answer(
            {
                "success": True,
                "commitOid": repository.sha,
                "commitUrl": f"{self.hub.url}/{name}/commit/{repository.sha}",
            }
        )

    do_GET = do_HEAD = do_POST = do_PUT = _route  # noqa: N815


@contextlib.contextmanager
def serving_hub() -> Iterator[Hub]:
    """The server, on a port of its own, while the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
