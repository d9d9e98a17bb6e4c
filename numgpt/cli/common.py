"""What several subcommands share: the flags, and reading a prompt from a pipe."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from numgpt.formats import SHIPPED


def add_command(
    subparsers: Any, name: str, help: str, example: str, run: Any
) -> argparse.ArgumentParser:
    """A subcommand whose --help ends with an example that works."""
    parser = subparsers.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog="example:\n  " + example.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=SHIPPED,
        metavar="M",
        help=f"a directory, a shipped name or a hub id (default: {SHIPPED}, shipped with numgpt)",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads to compute on (default: all cores)"
    )


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
