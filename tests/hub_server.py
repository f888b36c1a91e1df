"""A server on loopback that answers huggingface-hub as the hub does, and misbehaves on request.

It speaks what hf_hub_download and snapshot_download use: /resolve/ (small files at once, large ones by a
redirect to the storage's host, with Range), /api/{models,datasets}/ID/revision/REV and a paginated /tree/.
Point a process at it with the variables of `HubServer.environment`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = 1 << 20  # from here on a file counts as one in large-file storage
BLOCK = 1 << 16


class Request(NamedTuple):
    method: str
    path: str
    range: str | None


class HubServer(ThreadingHTTPServer):
    """Serves {repository id: folder}. The fields below `faults` may be set at any time.

    cuts: after how many bytes of its body to break off the next large answer, the one after it, and so on.
    status: an HTTP status instead of an answer to any path that contains the key; gated: ids answered 401.
    garbage: paths whose bytes are served inverted, at the right length. delay: seconds between blocks.
    """

    daemon_threads = True
    handler: type[BaseHTTPRequestHandler]

    def __init__(self, models: dict[str, Path] | None = None, datasets: dict[str, Path] | None = None,
                 commits: dict[str, str] | None = None, page: int = 1000) -> None:
        super().__init__(("127.0.0.1", 0), self.handler)
        self.repos = {"models": models or {}, "datasets": datasets or {}}
        self.commits, self.page = commits or {}, page
        self.requests: list[Request] = []
        self.bytes_sent = 0
        self.digests: dict[Path, str] = {}
        # faults
        self.cuts: list[int] = []
        self.status: dict[str, int] = {}
        self.gated: set[str] = set()
        self.garbage: set[str] = set()
        self.delay = 0.0

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away is no matter for the output of whichever test runs then."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, cache: Path) -> dict[str, str]:
        """The variables of a process that takes this server for the hub and keeps its cache in `cache`."""
        kept = {key: value for key, value in os.environ.items()
                if not key.startswith("HF_") and not key.lower().endswith("_proxy")}
        return kept | {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1",
                       "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}

    def commit(self, repo: str) -> str:
        return self.commits.get(repo, hashlib.sha1(repo.encode()).hexdigest())

    def sha256(self, file: Path) -> str:
        if file not in self.digests:
            self.digests[file] = hashlib.sha256(file.read_bytes()).hexdigest()
        return self.digests[file]

    def count(self, method: str, part: str = "") -> int:
        """How many requests of this method had `part` in their path."""
        return sum(request.method == method and part in request.path for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.server.requests.append(Request(self.command, path, self.headers.get("Range")))
        for part, status in self.server.status.items():
            if part in path:
                return self._fail(status, "")
        if stored := re.fullmatch(r"storage/(models|datasets)/([^/]+/[^/]+)/(.+)", path):
            kind, repo, name = stored.groups()
            return self._send(self.server.repos[kind][repo] / name, {"ETag": '"storage"'})
        call = r"api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)/?(.*))?"
        if api := re.fullmatch(call, path):
            kind, repo, verb, revision, under = api.groups()
            if not self._known(kind, repo, revision or "main"):
                return None
            return self._tree(kind, repo, under) if verb == "tree" else self._info(kind, repo)
        if file := re.fullmatch(r"(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = "datasets" if file[1] else "models"
            return self._resolve(kind, file[2], file[4]) if self._known(kind, file[2], file[3]) else None
        return self._fail(404, "")

    def _known(self, kind: str, repo: str, revision: str) -> bool:
        """Answers with the hub's error where the repository is gated, or it or its revision is not there."""
        if repo in self.server.gated:
            self._fail(401, "GatedRepo")
        elif repo not in self.server.repos[kind]:
            self._fail(401, "RepoNotFound")  # 401, for the hub does not tell strangers what is private
        elif revision not in ("main", self.server.commit(repo)):
            self._fail(404, "RevisionNotFound")
        else:
            return True
        return False

    def _resolve(self, kind: str, repo: str, name: str) -> None:
        file, commit = self.server.repos[kind][repo] / name, self.server.commit(repo)
        if not file.is_file():
            return self._fail(404, "EntryNotFound", {"X-Repo-Commit": commit})
        if file.stat().st_size < LARGE:
            return self._send(file, {"ETag": f'"{_git_id(file)}"', "X-Repo-Commit": commit})
        # "localhost" is another host than "127.0.0.1", so huggingface-hub takes the file's data from here.
        target = f"http://localhost:{self.server.server_port}/storage/{kind}/{repo}/{quote(name)}"
        return self._head(302, 0, {"Location": target, "X-Repo-Commit": commit,
                                   "X-Linked-Size": str(file.stat().st_size),
                                   "X-Linked-ETag": f'"{self.server.sha256(file)}"'})

    def _info(self, kind: str, repo: str) -> None:
        names = [name for name, _ in _files(self.server.repos[kind][repo])]
        self._json({"id": repo, "sha": self.server.commit(repo), "private": False, "gated": False,
                    "siblings": [{"rfilename": name} for name in names]})

    def _tree(self, kind: str, repo: str, under: str) -> None:
        """One page of the listing, and a link to the next one."""
        entries = []
        for name, file in _files(self.server.repos[kind][repo]):
            if under and not name.startswith(under.rstrip("/") + "/"):
                continue
            size = file.stat().st_size
            entry = {"type": "file", "path": name, "size": size, "oid": "0" * 40}
            if size < LARGE:
                entry["oid"] = _git_id(file)
            else:
                entry["lfs"] = {"oid": self.server.sha256(file), "size": size, "pointerSize": 134}
            entries.append(entry)
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        stop, headers = start + self.server.page, {}
        if stop < len(entries):
            here = urlsplit(self.path).path
            headers["Link"] = f'<{self.server.url}{here}?recursive=true&cursor={stop}>; rel="next"'
        self._json(entries[start:stop], headers)

    def _send(self, file: Path, headers: dict[str, str]) -> None:
        """The file, or from the start of a Range on; broken off, inverted or slow where a fault is set."""
        size, start = file.stat().st_size, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and int(wanted[1]) < size:
            start = int(wanted[1])
            headers = headers | {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        self._head(206 if start else 200, size - start, headers | {"Accept-Ranges": "bytes"})
        if self.command == "HEAD":
            return
        left = size - start
        if size >= LARGE and self.server.cuts:
            left, self.close_connection = min(left, self.server.cuts.pop(0)), True
        invert = any(part in self.path for part in self.server.garbage)
        with open(file, "rb") as data:
            data.seek(start)
            while left and (block := data.read(min(BLOCK, left))):
                self.wfile.write(bytes(255 - byte for byte in block) if invert else block)
                self.server.bytes_sent += len(block)
                left -= len(block)
                time.sleep(self.server.delay)

    def _fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._head(status, 0, {"X-Error-Code": code, **(headers or {})} if code else headers or {})

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self._head(200, len(body), {"Content-Type": "application/json", **(headers or {})})
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(key, value)
        self.end_headers()


HubServer.handler = _Handler


def _git_id(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name in the repository, file), in the order of a listing."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file
