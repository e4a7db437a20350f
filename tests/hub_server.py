"""A stand-in for the hub on this machine: serves one folder as ``owner/name`` to the real client."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 39 + "1"
REVISIONS = ("main", "v1", "refs/pr/3", COMMIT)
GATED = "somebody/gated-model"
"""A repository that is only for those who were given access."""


@contextmanager
def serve(folder: Path, repository: str) -> Iterator[str]:
    """Yield the address of a hub: it has ``folder`` at the :data:`REVISIONS`, and for nobody here :data:`GATED`."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def answer(self, body: bool) -> None:
            from urllib.parse import unquote

            path = unquote(self.path.split("?")[0])
            files = sorted(folder.iterdir())
            model = f"/api/models/{repository}"
            if path.startswith(f"/api/models/{GATED}"):
                return self.refuse("GatedRepo", 403)
            if path == model or path.startswith(f"{model}/revision/"):
                if path != model and path.removeprefix(f"{model}/revision/") not in REVISIONS:
                    return self.refuse("RevisionNotFound")
                info = {"id": repository, "modelId": repository, "sha": COMMIT, "private": False, "tags": []}
                info |= {"downloads": 0, "likes": 0, "siblings": [{"rfilename": file.name} for file in files]}
                return self.send(json.dumps(info).encode(), body)
            if path.startswith(f"{model}/tree/"):
                tree = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": digest(f)}
                    for f in files
                ]
                return self.send(json.dumps(tree).encode(), body)
            file = folder / path.rsplit("/", 1)[-1]
            if path.startswith(f"/{repository}/resolve/") and file.is_file():
                tags = {"ETag": f'"{digest(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "none"}
                return self.send(file.read_bytes(), body, tags)
            return self.refuse("EntryNotFound" if path.startswith(f"/{repository}/") else "RepoNotFound")

        def refuse(self, code: str, status: int = 404) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send(self, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
