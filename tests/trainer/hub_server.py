"""A server that behaves as the hub of Hugging Face does towards `datasets`: data sets with commits, branches,
tags, private ones and ranged reads, over HTTP. What is not known is a 404, as there.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """name -> commits, oldest first. asked: (method, path, bytes that were sent) of each request."""

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, Mapping[str, bytes]]]] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.tokens: dict[str, str] = {}
        self.asked: list[tuple[str, str, int]] = []
        self.url = ""

    def push(self, name: str, files: Mapping[str, bytes], *, tag: str = "", token: str = "") -> str:
        """A new commit; returns its hash."""
        known = self.commits.setdefault(name, [])
        commit = hashlib.sha1(f"{name}{len(known)}".encode(), usedforsecurity=False).hexdigest()
        known.append((commit, files))
        if tag:
            self.tags[name, tag] = commit
        if token:
            self.tokens[name] = token
        return commit

    def at(self, name: str, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        """(commit, files) of a branch, tag or commit."""
        known = self.commits[name]
        if revision == "main":
            return known[-1]
        wanted = self.tags.get((name, revision), revision)
        return next((one for one in known if one[0] == wanted), None)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.hub.asked.append((self.command, self.path, len(body)))
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"/(api/)?datasets/([^/]+/[^/]+)(?:/(.*))?", path)
        if found is None or found[2] not in self.hub.commits:
            self._send(404 if found is None else 401, X_Error_Code="RepoNotFound")
            return
        name, rest = found[2], found[3] or ""
        token = self.hub.tokens.get(name)
        if token and self.headers.get("Authorization") != f"Bearer {token}":
            self._send(401, X_Error_Code="RepoNotFound")
            return
        verb, _, more = rest.partition("/")
        revision, _, file = more.partition("/")
        at = self.hub.at(name, revision or "main")
        if at is None:
            self._send(404, X_Error_Code="RevisionNotFound")
        elif found[1]:
            self._api(name, verb, file, *at, body)
        elif verb == "resolve" and file in at[1]:
            self._file(at[0], at[1][file])
        else:
            self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=at[0])

    def _api(
        self, name: str, verb: str, place: str, commit: str, files: Mapping[str, bytes], body: bytes
    ) -> None:
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
            for path, data in files.items()
        ]
        if verb in ("", "revision"):
            names = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": commit, "siblings": names, "private": False})
        elif verb == "tree":
            self._tree(entries, f"{place}/" if place else "")
        elif verb == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else unquote(body.decode())
            self._json([one for one in entries if one["path"] in wanted])
        else:
            self._send(404)

    def _tree(self, entries: list[dict[str, object]], below: str) -> None:
        """The files of a folder and its folders; with recursive=true all below it."""
        deep = "recursive=true" in self.path.lower()
        found: dict[str, object] = {}
        for entry in entries:
            rest = str(entry["path"])
            if not rest.startswith(below):
                continue
            first, _, more = rest.removeprefix(below).partition("/")
            if more:
                folder = f"{below}{first}"
                found[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0"}
            if deep or not more:
                found[rest] = entry
        if found:
            self._json(list(found.values()))
        else:
            self._send(404, X_Error_Code="EntryNotFound")

    def _file(self, commit: str, data: bytes) -> None:
        facts = {"ETag": f'"{_oid(data)}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            self._send(200, b"", **facts, Content_Length=str(len(data)))
            return
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            self._send(200, data, **facts)
            return
        first = int(part[1])
        last = min(int(part[2] or len(data)), len(data) - 1)
        where = f"bytes {first}-{last}/{len(data)}"
        self._send(206, data[first : last + 1], **facts, Content_Range=where)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the end of the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
