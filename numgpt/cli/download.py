"""numgpt download: fetch a model, once."""

from __future__ import annotations

import argparse
import time
from typing import Any

from numgpt.cli.common import add_command, show_progress
from numgpt.formats.catalogue import CATALOGUE, HUB_NAMES
from numgpt.formats.downloads import download
from numgpt.formats.names import models_directory
from numgpt.messages import tell


def register(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "download",
        "fetch a model, once; its name then works wherever a model is wanted",
        "numgpt download smollm2\nnumgpt download gpt2",
        run,
    )
    parser.add_argument(
        "name",
        help="smollm2, a chat model, SmolLM2-135M-Instruct (98 MB: 4 bits a weight); with"
        f" huggingface_hub also {', '.join(HUB_NAMES)}, or any hub id",
    )
    parser.add_argument("--force", action="store_true", help="fetch it again")


def run(options: argparse.Namespace) -> None:
    target = models_directory() / options.name
    there = options.name in CATALOGUE and target.is_dir() and not options.force
    began = time.perf_counter()

    def progress(done: int, total: int) -> None:
        show_progress(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB", done >= total)

    if not there and options.name in CATALOGUE and CATALOGUE[options.name].note:
        tell(f"{options.name}: {CATALOGUE[options.name].note}")
    directory = download(options.name, progress, options.force)
    if there:
        tell(f"{options.name} is there already; --force fetches it again")
    else:
        tell(f"done in {time.perf_counter() - began:.1f} s")
    print(directory)
