"""A Hub on the loopback: the part of the Hugging Face Hub's HTTP interface that its client libraries read with.

What `huggingface_hub`, `transformers` and `datasets` ask of the Hub is answered here as there: files by revision, large
ones through a redirect to a content-addressed store, etags, the commit in every answer, repository info, the tree,
path infos, and errors with the code that the client turns into an exception. `HF_ENDPOINT` points a process to it.

Not modelled: Xet, gated repositories, pages of long listings, writing.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = ("*.bin", "*.safetensors", "*.model", "*.parquet")
"""Files that the Hub keeps in its large file storage; the others are git blobs."""

Kind = Literal["models", "datasets"]


@dataclass
class Repository:
    """A repository with its history: every commit's files, and where the branches point."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a branch or commit hash names, and its files."""
        commit = self.refs.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


class Hub(ThreadingHTTPServer):
    """The server. `push` gives it content; `requests` lists what it was asked.

    Attributes:
        broken: number of bytes after which the body of a large file ends, as when a connection is lost; None for never.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[str] = []
        self.broken: int | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def store(self) -> str:
        """Address of the large files: another host, as clients take metadata from redirects off the Hub only."""
        return f"http://localhost:{self.server_address[1]}/large"

    def push(self, kind: Kind, name: str, folder: Path, branch: str = "main") -> str:
        """Makes the files of a folder the next commit of a branch.

        Returns:
            The commit's hash.
        """
        repository = self.repositories.setdefault((kind, name), Repository())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}
        content = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in files.items()})
        commit = hashlib.sha1(f"{repository.refs.get(branch)} {content}".encode()).hexdigest()
        repository.commits[commit] = files
        repository.refs[branch] = commit
        return commit

    def blob(self, sha256: str) -> bytes | None:
        """A large file by its content's hash."""
        commits = (files for repository in self.repositories.values() for files in repository.commits.values())
        found = (data for files in commits for data in files.values() if hashlib.sha256(data).hexdigest() == sha256)
        return next(found, None)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        query = parse_qs(urlsplit(self.path).query)
        if parts[:1] == ["large"]:
            self._large(parts[1])
        elif parts[:2] in (["api", "models"], ["api", "datasets"]) and len(parts) >= 4:
            self._api(parts[1], "/".join(parts[2:4]), parts[4:], query, parse_qs(body))
        elif "resolve" in parts:
            kind = "datasets" if parts[0] == "datasets" else "models"
            owner = parts[1:] if kind == "datasets" else parts
            self._resolve(kind, "/".join(owner[:2]), owner[3], "/".join(owner[4:]))
        else:
            self._error(404, "", f"no such page: {self.path}")

    def _at(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files that were asked for; answers with the error if there are none."""
        repository = self.server.repositories.get((kind, name))
        if repository is None:
            self._error(401, "RepoNotFound", "Repository not found")
            return None
        found = repository.files(revision)
        if found is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        found = self._at(kind, name, revision)
        if found is None:
            return
        commit, files = found
        if path not in files:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        elif _is_large(path):
            sha256 = hashlib.sha256(files[path]).hexdigest()
            linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(files[path]))}
            self._send(302, b"", {**linked, "X-Repo-Commit": commit, "Location": f"{self.server.store}/{sha256}"})
        else:
            self._send(200, files[path], {"X-Repo-Commit": commit, "ETag": f'"{_git_oid(files[path])}"'})

    def _large(self, sha256: str) -> None:
        data = self.server.blob(sha256)
        if data is None:
            self._error(404, "", "no such object")
            return
        first, last = 0, len(data) - 1
        asked = self.headers.get("Range")
        if asked:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(start), int(end or last)
        status = 206 if asked else 200
        spread = {"Content-Range": f"bytes {first}-{last}/{len(data)}"} if asked else {}
        self._send(status, data[first : last + 1], {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes", **spread})

    def _api(
        self, kind: str, name: str, rest: list[str], query: Mapping[str, list[str]], form: Mapping[str, list[str]]
    ) -> None:
        what, revision, *path = rest if len(rest) > 1 else ["revision", "main"]
        found = self._at(kind, name, revision)
        if found is None:
            return
        commit, files = found
        if what == "revision":
            self._json(
                {
                    "id": name,
                    "_id": "0" * 24,
                    "sha": commit,
                    "private": False,
                    "gated": False,
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "lastModified": _DATE,
                    "createdAt": _DATE,
                    "siblings": [{"rfilename": file} for file in files],
                }
            )
        elif what == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            listed = _tree(files, "/".join(path), recursive)
            if listed:
                self._json(listed)
            else:
                self._error(404, "EntryNotFound", f"{'/'.join(path)} does not exist on {revision!r}")
        elif what == "paths-info":
            everything = {entry["path"]: entry for entry in _tree(files, "", True)}
            self._json([everything[one] for one in form.get("paths", []) if one in everything])
        else:
            self._error(404, "", f"no such page: {self.path}")

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str, more: Mapping[str, str] | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json", **(more or {})}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.broken is not None and status in (200, 206) and self.path.startswith("/large/"):
            self.wfile.write(body[: self.server.broken])
            self.close_connection = True
        else:
            self.wfile.write(body)


_DATE = "2024-01-01T00:00:00.000Z"


def _is_large(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in LARGE)


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _git_oid(data)}
    if _is_large(path):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _tree(files: Mapping[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below a folder, as `/api/.../tree/...` lists them."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, data in files.items():
        if not path.startswith(prefix):
            continue
        parents = path.removeprefix(prefix).split("/")[:-1]
        for depth in range(1, (len(parents) if recursive else min(1, len(parents))) + 1):
            inner = prefix + "/".join(parents[:depth])
            oid = hashlib.sha1(inner.encode()).hexdigest()
            entries[inner] = {"type": "directory", "path": inner, "size": 0, "oid": oid}
        if recursive or not parents:
            entries[path] = _entry(path, data)
    return list(entries.values())
