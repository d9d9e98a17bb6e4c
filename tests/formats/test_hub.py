"""Models by hub id, from a hub of the test's own on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from models.references import small_model

from numgpt import CharTokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path):
    """A hub with one model, someone/tiny, and a file that is not to be fetched -> its address, the
    files asked for."""
    files_directory = tmp_path / "hub"
    small_model("default").save_pretrained(files_directory)
    CharTokenizer([chr(48 + i) for i in range(37)]).save_pretrained(files_directory)
    (files_directory / "pytorch_model.bin").write_bytes(b"not wanted")
    files = {path.name: path.read_bytes() for path in files_directory.iterdir()}
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body):
            *_, name = self.path.split("?")[0].split("/")
            if not self.path.lstrip("/").startswith(("someone/tiny/", "api/models/someone/tiny")):
                return self.send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
            if "/tree/" in self.path:
                tree = [
                    {"type": "file", "path": file, "size": len(data), "oid": "0" * 40}
                    for file, data in files.items()
                ]
                return self.send(200, json.dumps(tree).encode(), with_body, {})
            if self.path.startswith("/api/"):
                siblings = [{"rfilename": file} for file in files]
                facts = {
                    "id": "someone/tiny",
                    "sha": COMMIT,
                    "siblings": siblings,
                    "private": False,
                }
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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def generate(model: str, address: str, cache, **environment: str) -> subprocess.CompletedProcess:
    pytest.importorskip("huggingface_hub")
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "numgpt",
            "generate",
            "012",
            "--model",
            model,
            "--greedy",
            "--max-length=9",
        ],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_hub_id_is_downloaded_once_and_found_offline(hub, tmp_path):
    address, asked = hub
    first = generate("someone/tiny", address, tmp_path / "cache")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("012")
    assert set(asked) == {"config.json", "model.safetensors", "characters.json"}
    count = len(asked)
    assert generate("someone/tiny", address, tmp_path / "cache").stdout == first.stdout
    offline = generate("someone/tiny", address, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout
    assert len(asked) == count


def test_a_model_that_the_hub_does_not_have_is_one_line(hub, tmp_path):
    result = generate("someone/else", hub[0], tmp_path / "cache")
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("numgpt: error: 'someone/else' is no directory")
    assert "Traceback" not in result.stderr
