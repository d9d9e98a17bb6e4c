"""numgpt chat: a conversation in the terminal, or for scripts."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from numgpt.cli import common
from numgpt.cli.keyboard import Interrupts, line_editing
from numgpt.cli.wrapping import WordWrap
from numgpt.generation import Chat
from numgpt.generation.chat import DEFAULTS
from numgpt.messages import one_line, printable, shown, tell
from numgpt.options import AboutOptions
from numgpt.tokenizer.chat_formats import CHAT_TEMPLATES, PromptFormat
from numgpt.tokenizer.conversation import template_variables

DEFAULT_MODEL = "smollm2"
CUT = {
    "length": "(cut off here; --max-new-tokens N allows longer answers)",
    "context": "(cut off here: the context is full)",
    "repetition": "(ended here: it said the same again and again)",
}
# What a line of JSON says of an answer beside its text.
COSTS = ("prompt_tokens", "reused_tokens", "new_tokens", "dropped_messages", "finish_reason")
PROMPT, CONTINUED = "> ", "… "
HELP = """\
/help           this list
/reset          begin again
/system [TEXT]  show the system prompt, or set it and begin again
/save FILE      write the conversation to a file
/load FILE      go on from a saved conversation
/retry          another answer to the last question
/temperature [X], /top_p [P], /seed [N]    show how answers are sampled, or set it
/stats          what the last answer cost
/quit           leave (or Ctrl-D)
Ctrl-C stops an answer. A line that ends with \\ goes on in the next; lines that are pasted are one
message. A message that begins with a slash is written with two."""


def register(subparsers: Any) -> None:
    parser = common.add_command(
        subparsers,
        "chat",
        "talk with a model",
        "numgpt chat\n"
        'numgpt chat --model smollm2 --system "You answer in one sentence."\n'
        'echo "What is the capital of France?" | numgpt chat\n'
        """printf '{"content": "Hi"}\\n{"content": "Bye"}\\n' | numgpt chat --json""",
        run,
    )
    common.add_model(parser, DEFAULT_MODEL, "fetched by: numgpt download smollm2")
    common.add_dtype(parser)
    flags = {
        "--system TEXT": "system prompt (default: the model's own)",
        "--max-new-tokens N": f"longest answer (default {DEFAULTS['max_new_tokens']})",
    }
    common.add_flags(parser, flags)
    common.add_sampling(parser, DEFAULTS["temperature"], DEFAULTS["top_p"])
    parser.add_argument(
        "--chat-format",
        choices=CHAT_TEMPLATES,
        help="write conversations so, whatever the model's template",
    )
    variables = {"--chat-var NAME=VALUE": "for the chat template, such as enable_thinking=false"}
    common.add_flags(parser, variables, action="extend", nargs="+", default=[])
    what = 'a JSON object a line: {"content": "…"} in (also with "system" or "reset": true), the'
    common.add_flags(parser, {"--json": f"{what} answer out"} | common.THREADS)


def run(options: argparse.Namespace) -> None:
    sampling = common.sampling_options(options)
    model, tokenizer = common.load_language_model(options)
    sampling["seed"] = options.seed
    if options.max_new_tokens is not None:
        sampling["max_new_tokens"] = options.max_new_tokens
    if options.chat_format is not None:
        tokenizer.chat_template = CHAT_TEMPLATES[options.chat_format]
    variables = template_variables(options.chat_var)
    chat = Chat(model, tokenizer, options.system, variables, **sampling)
    if unused := chat.template.unused_variables:
        raise ValueError(f"--chat-var {unused[0]}: the chat template does not use it")
    if isinstance(chat.template.format, PromptFormat):
        _say(
            f"numgpt: note: {options.model} was tuned on texts, not on conversations: each message"
            " is a prompt by itself, of which nothing said before is part (as conversations:"
            f" --chat-format {' or '.join(CHAT_TEMPLATES)})"
        )
    seed = secrets.randbits(32) if options.seed is None else options.seed
    if options.json:
        _answer_lines(chat, itertools.count(seed))
    elif sys.stdin.isatty():
        _Terminal(chat, seed, options.model).run()
    else:
        for piece in chat.ask(common.read_stdin().rstrip("\r\n"), seed=seed):
            print(printable(piece), end="", flush=True)
        print()
        if chat.statistics.finish_reason in CUT:
            _say(CUT[chat.statistics.finish_reason])


def _answer_lines(chat: Chat, seeds: Iterator[int]) -> None:
    """A JSON object a line from stdin, another to stdout; a bad line is answered with an error."""
    readable = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    for line in sys.stdin.buffer:
        if not line.strip():
            continue
        try:
            asked = _json(line)
            if isinstance(asked, str):
                asked = {"content": asked}
            if not isinstance(asked, dict) or asked.keys() - {"content", "system", "reset", "role"}:
                raise ValueError('expected {"content": "…"}, and perhaps "system" or "reset": true')
            if asked.get("role", "user") != "user":
                raise ValueError('"role" is not "user": a system prompt is given as "system"')
            if not isinstance(asked.get("content", ""), str):
                raise ValueError('"content" is no text')
            if not isinstance(asked.get("reset", True), bool):
                raise ValueError('"reset" is neither true nor false')
            if "system" in asked:
                chat.set_messages([{"role": "system", "content": asked["system"]}])
            elif asked.get("reset"):
                chat.reset()
            if "content" not in asked:
                print('{"ok": true}', flush=True)  # a line for a line
                continue
            text = "".join(chat.ask(asked["content"], seed=next(seeds)))
            answer = {"role": "assistant", "content": text}
            answer |= {name: getattr(chat.statistics, name) for name in COSTS}
        except (ValueError, RecursionError, MemoryError) as error:
            answer = {"error": one_line(error) or "out of memory"}
        print(json.dumps(answer, ensure_ascii=not readable), flush=True)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError('the line is not JSON: expected {"content": "…"}') from None


class _Terminal:
    """A conversation with a person."""

    def __init__(self, chat: Chat, seed: int, model: str):
        self.chat = chat
        self.seed = seed  # of the next answer
        self.model = model
        self.dropped = 0
        self.interrupts = Interrupts()
        self.commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: _say(HELP),
            "reset": self.reset,
            "system": self.system,
            "save": self.save,
            "load": self.load,
            "retry": lambda _: self.answer(self.chat.retry),
            "temperature": lambda text: self.sampling("temperature", text),
            "top_p": lambda text: self.sampling("top_p", text),
            "seed": self.set_seed,
            "stats": self.stats,
        }

    def run(self) -> None:
        _say(
            f"{self.model}: {self.chat.model.num_parameters():,} parameters, a context of"
            f" {self.chat.model.context_length} tokens, {self.chat.template.format.name} format."
            " /help lists the commands."
        )
        with line_editing(), self.interrupts:
            while (line := self.read()) is not None:
                command, _, argument = line[1:].partition(" ")
                if not line.strip():
                    continue
                if line.startswith("/") and not line.startswith("//"):
                    if command in ("quit", "exit"):
                        break
                    self.obey(command, argument.strip())
                else:
                    self.answer(self.chat.ask, line.removeprefix("/"))

    def read(self) -> str | None:
        """A message, or None at the end."""
        lines: list[str] = []
        try:
            with self.interrupts.heard():
                while True:
                    line = input(CONTINUED if lines else PROMPT)
                    lines.append(line.removesuffix("\\"))
                    if not line.endswith("\\"):
                        return "\n".join(lines).rstrip("\n")  # of what was pasted
        except (KeyboardInterrupt, SystemError) as error:
            # When two come at once, Python has no better word for it than SystemError.
            if not isinstance(error.__cause__ or error, KeyboardInterrupt):
                raise
            print()
            _say("(/quit or Ctrl-D leaves)")
            return ""
        except EOFError:
            print()
            return "\n".join(lines) if lines else None

    def obey(self, command: str, argument: str) -> None:
        action = self.commands.get(command)
        if action is None:
            return _say(
                f"there is no command /{command}; /help lists them; to say it, type //{command}"
            )
        try:
            with self.interrupts.heard():
                action(argument)
        except KeyboardInterrupt:
            _say(f"/{command}: stopped")
        except AboutOptions as error:  # about the one that the command sets
            _say(f"/{command}: {error.told(lambda name, *value: ' '.join(map(shown, value)))}")
        except (ValueError, MemoryError) as error:
            _say(f"/{command}: {one_line(error) or 'out of memory'}")
        except OSError as error:
            _say(f"/{command} {argument}: {error.strerror or error}")

    def answer(self, ask: Callable[..., Generator[str, None, None]], *message: str) -> None:
        pieces, wrap = None, WordWrap(shutil.get_terminal_size().columns)
        try:
            with self.interrupts.heard():
                self.seed += 1
                pieces = ask(*message, seed=self.seed - 1)
                if (gone := self.chat.dropped_messages) and not self.dropped:
                    _say("(the context is full: from here on the oldest messages are left out)")
                self.dropped = gone
                for piece in pieces:
                    print(wrap.push(printable(piece)), end="", flush=True)
            print(wrap.finish(), end="")
        except KeyboardInterrupt:
            print(wrap.finish() + " …", end="")
        except (ValueError, MemoryError) as error:
            return _say(one_line(error) or "out of memory")
        finally:
            if pieces is not None:  # so that what was said so far is part of the conversation
                pieces.close()
        print(flush=True)
        if self.chat.statistics.finish_reason in CUT:
            _say(CUT[self.chat.statistics.finish_reason])

    def reset(self, _: str) -> None:
        self.chat.reset()
        _say("a new conversation")

    def system(self, text: str) -> None:
        if text:
            self.chat.set_messages([{"role": "system", "content": text}])
            _say("a new conversation, with this system prompt")
        else:
            default = self.chat.template.default_system or "none"
            _say(default if self.chat.system is None else self.chat.system)

    def sampling(self, name: str, text: str) -> None:
        """Show an option of sampling, or set it."""
        if text:
            try:
                value = float(text)
            except ValueError:
                raise ValueError(f"{text:.40} is not a number") from None
            if name == "temperature" and not 0 < value < math.inf:
                raise ValueError(f"{value} is not above 0: 0.01 is as good as the likeliest always")
            self.chat.set_options(**{name: value}, do_sample=True)
        sampled = "" if self.chat.options["do_sample"] else " (of no effect: --greedy)"
        _say(f"{name} {self.chat.options[name]}{sampled}")

    def set_seed(self, text: str) -> None:
        if text:
            if not text.isdecimal() or len(text) > 30:
                raise ValueError(f"{text:.40} is not a whole number from 0 up")
            self.seed = int(text)
        _say(f"the next answer's seed is {self.seed}")

    def save(self, path: str) -> None:
        file = _file(path)
        if file.exists():
            self.chat.check_conversation(file)  # anything else is not overwritten
        self.chat.save(file)
        _say(f"{len(self.chat.messages)} messages written to {path}")

    def load(self, path: str) -> None:
        self.chat.load(_file(path))
        _say(f"{len(self.chat.messages)} messages read from {path}")

    def stats(self, _: str) -> None:
        cost = self.chat.statistics
        _say(
            f"prompt {cost.prompt_tokens} tokens in {cost.prompt_seconds:.2f} s"
            f" ({cost.reused_tokens} more from the cache); answer {cost.new_tokens} tokens,"
            f" {cost.tokens_per_second:.1f} a second; context {cost.context_tokens} of"
            f" {cost.context_length}"
        )


def _file(path: str) -> Path:
    """Raises ValueError where none is named, or something that is no file (a device)."""
    if not path:
        raise ValueError("name a file: talk.json")
    file = Path(os.path.expanduser(path))
    if file.exists() and not file.is_file():
        raise ValueError(f"{path:.200} is no file")
    return file


def _say(text: str) -> None:
    tell(printable(text))
