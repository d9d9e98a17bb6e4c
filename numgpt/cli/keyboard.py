"""What a person types at a terminal: lines that can be edited and remembered, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from numgpt.formats.names import home

HISTORY_LINES = 1000


class Interrupts:
    """Ctrl-C, heard once by each thing that it can stop, however often the key is pressed."""

    def __init__(self) -> None:
        self.listening = False

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGINT, self.handle)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.before)

    def handle(self, *_: object) -> None:
        if self.listening:
            self.listening = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Ctrl-C raises KeyboardInterrupt here, once."""
        self.listening = True
        try:
            yield
        finally:
            self.listening = False


@contextlib.contextmanager
def line_editing() -> Iterator[None]:
    """Arrow keys and a history that lasts, where Python has readline."""
    try:
        import readline
    except ImportError:  # Windows: its console has editing of its own
        yield
        return
    path = None
    with contextlib.suppress(OSError):
        path = home() / "chat_history"
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    if os.environ.get("TERM", "dumb") != "dumb":  # pasted lines don't end the message
        readline.parse_and_bind("set enable-bracketed-paste on")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)  # what people say is theirs
                path.chmod(0o600)
                readline.write_history_file(path)
