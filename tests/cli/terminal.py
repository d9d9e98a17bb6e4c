"""Tiny models that say what a test wants, and a terminal to talk with them."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from numgpt import GPT, CharTokenizer, GPTConfig

PATIENCE = 60  # seconds until a silent process counts as hanging
ASCII = [chr(code) for code in (10, *range(32, 127))]


def write_model(directory: Path, says: str, context: int = 128, characters=ASCII) -> Path:
    """A model that says these characters, all equally likely, whatever it is asked."""
    tokenizer = CharTokenizer(characters)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": context}
    model = GPT(GPTConfig(**sizes, vocab_size=len(characters), tie_word_embeddings=False))
    parameters = model.parameters
    parameters["ln_f.weight"][:] = 0  # the last hidden state is the bias, whatever came before
    parameters["ln_f.bias"][:] = np.eye(8)[0]
    model.unembedding.weight[:] = 0
    model.unembedding.weight[tokenizer.encode(says), 0] = 50
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


class Terminal:
    """A numgpt command in a terminal of its own, with a person at it."""

    def __init__(self, *arguments: object, home: Path, **environment: str):
        import fcntl
        import pty
        import termios

        self.keyboard, screen = pty.openpty()
        settings = {"NUMGPT_HOME": str(home), "TERM": "dumb", "INPUTRC": os.devnull}
        settings |= {"PYTHONUTF8": "1", "PYTHONPATH": os.getcwd()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "numgpt", *map(str, arguments)],
            stdin=screen,
            stdout=screen,
            stderr=screen,
            cwd=home,
            env=os.environ | settings | environment,
            start_new_session=True,
            # Ctrl-C reaches those whose controlling terminal this is.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(screen)
        self.seen = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.keyboard)

    def read_until(self, text: str) -> str:
        """What the screen shows from where the last call ended, up to and with this text."""
        wanted, patience = text.encode(), time.monotonic() + PATIENCE
        while wanted not in self.seen:
            ready, _, _ = select.select([self.keyboard], [], [], patience - time.monotonic())
            assert ready, f"waited for {text!r}, saw {self.seen[-2000:]!r}"
            try:
                self.seen += os.read(self.keyboard, 1 << 16)
            except OSError:  # on Linux, where the process has ended
                raise AssertionError(f"ended before {text!r}, with {self.seen[-2000:]!r}") from None
        shown, _, self.seen = self.seen.partition(wanted)
        return (shown + wanted).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    def enter(self, line: str, until: str = "\n> ") -> str:
        """Type a line; what is shown until the next prompt."""
        self.type(line + "\r")
        return self.read_until(until).replace("\r", "")

    def interrupt_prompt(self, until: str) -> None:
        """Ctrl-C where a line is typed. One that comes just before Python waits for a key is only
        heard with the next key, so it may take two."""
        patience = time.monotonic() + PATIENCE
        while until.encode() not in self.seen:
            assert time.monotonic() < patience, f"waited for {until!r}, saw {self.seen[-2000:]!r}"
            self.type("\x03")
            while select.select([self.keyboard], [], [], 1)[0]:
                self.seen += os.read(self.keyboard, 1 << 16)
        self.seen = b""

    def end(self) -> int:
        """The rest of what is shown goes by -> the exit status."""
        patience = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < patience, f"still there, after {self.seen[-2000:]!r}"
            ready, _, _ = select.select([self.keyboard], [], [], 0.1)
            try:
                self.seen += os.read(self.keyboard, 1 << 16) if ready else b""
            except OSError:
                self.process.wait(PATIENCE)
        return self.process.returncode
