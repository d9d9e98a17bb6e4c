"""What several subcommands share: the flags, and reading a prompt from a pipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from numgpt.formats import SHIPPED, load
from numgpt.generation.options import SAMPLING
from numgpt.messages import shown, tell
from numgpt.models import LanguageModel
from numgpt.options import AboutOptions, OptionError, as_argument
from numgpt.runtime import DTYPES
from numgpt.tokenizer import BaseTokenizer
from numgpt.training.config import options_of

# Flags of several commands, for add_flags.
ADAPTER = {"--adapter DIR": "what was tuned of the model: an adapter's directory"}
THREADS = {"--threads N": "threads to compute on (default: all cores)"}


def load_language_model(options: argparse.Namespace) -> tuple[LanguageModel, BaseTokenizer]:
    """The model that the options name.  Raises OptionError for a reward model, which writes
    nothing."""
    dtype = getattr(options, "dtype", DTYPES[0])
    model, tokenizer = load(options.model, adapter=options.adapter, dtype=dtype)
    if model.score_head is not None:
        what = "{model} is a reward model, which scores texts: numgpt eval --preferences asks it"
        raise OptionError(what, model=options.adapter or options.model)
    return model, tokenizer


def add_command(
    subparsers: Any, name: str, help: str, example: str, run: Any
) -> argparse.ArgumentParser:
    """A subcommand whose --help ends with an example that works."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog="example:\n  " + example.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a flag that is mistyped is none
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_model(
    parser: argparse.ArgumentParser, default: str = SHIPPED, origin: str = "shipped with numgpt"
) -> None:
    what = f"a model's directory or file, a name or a hub id (default: {default}, {origin})"
    add_flags(parser, {"--model M": what}, default=default)
    add_flags(parser, ADAPTER)


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help=f"what the model's matrices are kept as: {', '.join(DTYPES)} (default {DTYPES[0]}; the"
        " others take a half and a quarter of the memory, and are faster with numgpt[onednn])",
    )


def add_sampling(
    parser: argparse.ArgumentParser, temperature: float, top_p: float | None = None
) -> None:
    """How tokens are chosen."""
    default = "" if top_p is None else f" (default {top_p})"
    flags = {
        "--greedy": "always the most likely token, no sampling",
        "--temperature X": f"below 1 is safer (default {temperature}, here and below where the"
        " model's generation_config.json says nothing else)",
        "--top-k N": "the N likeliest; 0: all (default 50)",
        "--top-p X": f"the likeliest that reach probability X together{default}",
        "--min-p X": "only tokens X times as likely as the likeliest",
        "--repetition-penalty X": "above 1 repeats less (default 1)",
        "--seed N": "the same numbers again (default: a new seed)",
    }
    add_flags(parser, flags)


def add_flags(parser: Any, flags: Mapping[str, str], **settings: Any) -> None:
    """Flags as a usage line has them -> help. Behind the names N is a whole number, X any number,
    another word a text; without one it is a switch."""
    for usage, what in flags.items():
        *names, value = usage.split()
        if value.startswith("-"):
            parser.add_argument(*names, value, action="store_true", help=what)
        else:
            kind = {"N": whole, "X": number}.get(value, str)
            parser.add_argument(*names, type=kind, metavar=value, help=what, **settings)


def sampling_options(options: argparse.Namespace) -> dict[str, Any]:
    """The flags of add_sampling that are given, as options of `generate`, but for the seed."""
    given = {name: getattr(options, name) for name in (*SAMPLING, "repetition_penalty")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.greedy or given.keys() & set(SAMPLING):
        given["do_sample"] = not options.greedy
    return given


def in_flags(message: object, options: argparse.Namespace) -> object:
    """A message of the library, with the flags of this command in place of its options."""
    if not isinstance(message, AboutOptions):
        return message
    known = options_of(options.config_class) if "config_class" in options else {}

    def write(name: str, *value: Any) -> str:
        if name in known or name in options:
            is_switch = name in known and known[name].metadata["rule"].kind is bool
            flag = f"--{name.replace('_', '-')}"
            given = () if is_switch and value == (True,) else value
            return " ".join([flag, *map(shown, given)])
        return "--greedy" if name == "do_sample" and not any(value) else as_argument(name, *value)

    return message.told(write)


def tell_note(message: object, options: argparse.Namespace) -> None:
    tell(f"numgpt: note: {in_flags(message, options)}")


def whole(text: str) -> int:
    """A flag's whole number."""
    try:
        if len(text) > 30:
            raise ValueError
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {shown(text)}") from None


def number(text: str) -> float:
    """A flag's number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {shown(text)}") from None


def show_progress(text: str, ends: bool = False) -> None:
    """A line in a terminal, over which the next one is written."""
    if sys.stderr.isatty():
        tell(f"{text:60}", end="\n" if ends else "\r")


def check_directory_name(flag: str, name: str | None) -> None:
    """Raises ValueError for an empty one, which would mean the working directory."""
    if name == "":
        raise ValueError(f'{flag} "": name a directory')


def text_argument(text: str | None, what: str) -> str:
    """The text itself; standard input for `-`, or for nothing where a pipe is connected."""
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        raise ValueError(f"no {what}: pass it as an argument, or pipe it in")
    return read_stdin()


def read_stdin() -> str:
    """All of standard input as text."""
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"standard input is not UTF-8 text (byte 0x{data[error.start]:02X} at {error.start})"
        ) from None
