"""A hub of the tests' own, on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".gguf")  # files whose SHA-256 a hub tells


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server -> its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    # A short poll, because closing waits for one.
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def hub_of(
    repository: str, directory: Path, told: Mapping[str, str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A hub with one model, the files of a directory -> its address, the files asked for. `told`
    are SHA-256 that it gives wrongly."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    asked: list[str] = []

    def sibling(name: str, data: bytes) -> dict:
        facts = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
        if name.endswith(LARGE):
            sha256 = (told or {}).get(name, hashlib.sha256(data).hexdigest())
            facts["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 100}
        return facts

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body):
            *_, name = self.path.split("?")[0].split("/")
            ours = (f"{repository}/", f"api/models/{repository}")
            if not self.path.lstrip("/").startswith(ours):
                return self.send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
            if "/tree/" in self.path:
                tree = [
                    {"type": "file", "path": file, "size": len(data), "oid": "0" * 40}
                    for file, data in files.items()
                ]
                return self.send(200, json.dumps(tree).encode(), with_body, {})
            if self.path.startswith("/api/"):
                siblings = [sibling(file, data) for file, data in files.items()]
                facts = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False}
                facts |= {"downloads": 0, "likes": 0, "tags": []}
                return self.send(200, json.dumps(facts).encode(), with_body, {})
            if with_body:
                asked.append(name)
            etag = hashlib.sha256(files[name]).hexdigest()
            return self.send(200, files[name], with_body, {"ETag": f'"{etag}"'})

        def send(self, status, body, with_body, headers):
            self.send_response(status)
            headers = {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body))} | headers
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    with serving(Handler) as address:
        yield address, asked


def with_hub(
    command: list[str], address: str, cache: Path, **environment: str
) -> subprocess.CompletedProcess:
    """Run Python with this hub in place of the public one."""
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
