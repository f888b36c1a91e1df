"""The hub server of tests/hub_server.py, taking uploads as well: create, preupload, large files, commit."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

from hub_server import HubServer, _Handler

TOKEN = "hf_of_the_tests"


class UploadHandler(_Handler):
    """What huggingface-hub's upload_folder asks for without xet, in its order."""

    server: UploadHub

    def do_GET(self) -> None:
        if urlsplit(self.path).path != "/api/whoami-v2":
            return super().do_GET()
        return self._json({"name": "me", "orgs": []}) if self._known_user() else self._fail(401, "")

    def _known_user(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path.lstrip("/")
        for part, status in self.server.status.items():
            if part in path:
                return self._fail(status, "")
        if not self._known_user():
            return self._fail(401, "")
        if path == "api/repos/create":
            return self._create(json.loads(body))
        if path == "api/validate-yaml":
            self.server.validated.append(json.loads(body)["content"])
            return self._json_to_post({"errors": [], "warnings": []})
        if found := re.fullmatch(r"api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            repo, verb = found.groups()
            return self._preupload(json.loads(body)) if verb == "preupload" else self._commit(repo, body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        return self._fail(404, "")

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[hashlib.sha256(data).hexdigest()] = data
        self._head(200, 0, {})

    def _create(self, asked: dict) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        self.server.visibility.setdefault(repo, asked.get("visibility"))
        place = self.server.repos["models"].setdefault(repo, self.server.room / repo)
        place.mkdir(parents=True, exist_ok=True)
        self._json_to_post({"url": f"{self.server.url}/{repo}", "name": repo, "id": repo})

    def _preupload(self, asked: dict) -> None:
        """As on the hub: safetensors and pictures are large files however small they are."""
        self._json_to_post({"files": [
            {"path": file["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"}
            for file in asked["files"]]})

    def _batch(self, asked: dict) -> None:
        self._json_to_post({"transfer": "basic", "objects": [
            {"oid": each["oid"], "size": each["size"],
             "actions": {"upload": {"href": f"{self.server.url}/upload/{each['oid']}"}}}
            for each in asked["objects"]]})

    def _commit(self, repo: str, body: bytes) -> None:
        for row in map(json.loads, body.decode().splitlines()):
            value, place = row["value"], self.server.repos["models"][repo]
            if row["key"] == "file":
                content = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                content = self.server.large[value["oid"]]
            else:
                continue
            (place / value["path"]).parent.mkdir(parents=True, exist_ok=True)
            (place / value["path"]).write_bytes(content)
        self._json_to_post({"commitUrl": f"{self.server.url}/{repo}/commit/1", "commitOid": "1" * 40,
                            "success": True})

    def _json_to_post(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._head(200, len(body), {"Content-Type": "application/json"})
        self.wfile.write(body)


class UploadHub(HubServer):
    """Keeps what is uploaded in folders below `room`, one a repository."""

    handler = UploadHandler

    def __init__(self, room: Path) -> None:
        super().__init__()
        self.room = room
        self.large: dict[str, bytes] = {}
        self.visibility: dict[str, str | None] = {}
        self.validated: list[str] = []

    def environment(self, cache: Path) -> dict[str, str]:
        """Logged in, and with large files over plain HTTP: xet's protocol has a server of its own."""
        return super().environment(cache) | {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
