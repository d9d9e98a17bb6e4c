"""numgpt convert: a model in any format into Hugging Face's layout, or GGUF."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from numgpt.cli.common import ADAPTER, add_command, add_flags, check_directory_name, show_progress
from numgpt.files import DirectoryLock, finish_replacing, is_ours, replacing_together, sweep
from numgpt.formats import load_adapter, open_model, read_model, resolve, save_model
from numgpt.formats.gguf_writing import FILE_TYPES, save_gguf
from numgpt.formats.huggingface import WEIGHTS_FILE
from numgpt.formats.loading import check_belongs
from numgpt.formats.peft import base_of, hub_name, is_adapter
from numgpt.formats.safetensors import STORED
from numgpt.formats.source import Source
from numgpt.messages import shown, tell
from numgpt.models.language_model import LanguageModel
from numgpt.tokenizer import BaseTokenizer, load_tokenizer
from numgpt.tokenizer.base import tokenizer_files

NUMGPTS = ("int8",)  # dtypes of files that nobody else reads


def register(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "convert",
        "write a model of any format in Hugging Face's layout, or as GGUF",
        "numgpt convert smollm2 smollm2-hf --dtype bfloat16\n"
        "numgpt convert runs/desk desk.gguf --gguf Q8_0\n"
        "numgpt convert models/124M gpt2-hf\n"
        "numgpt convert runs/ckpt.pt nanogpt-hf\n"
        "numgpt convert smollm2 desk-hf --adapter runs/desk",
        run,
    )
    parser.add_argument("source", metavar="SRC", help="a model's directory or file, or a name")
    parser.add_argument("target", metavar="DST", help="the directory or file to write, a new one")
    add_flags(parser, ADAPTER)
    parser.add_argument(
        "--dtype",
        choices=(*STORED, *NUMGPTS),
        help="of the weights (default float32); int8 is for numgpt alone, which maps it with"
        " --dtype int8",
    )
    parser.add_argument(
        "--gguf", metavar="TYPE", choices=FILE_TYPES, help=f"write GGUF: {', '.join(FILE_TYPES)}"
    )


def run(options: argparse.Namespace) -> None:
    target, kind = Path(options.target), options.gguf or options.dtype or "float32"
    began = time.perf_counter()
    if options.gguf:
        if options.dtype:
            raise ValueError("--dtype cannot be combined with --gguf, whose TYPE it is")
        if not options.target:
            raise ValueError('DST is "": name a file')
        if os.path.lexists(target):
            raise ValueError(f"{target} is there already: name a new file")
        if target.parent.is_dir():
            sweep(target.parent)  # what a killed conversion has left
        model, tokenizer = _read(*_named(options))
        count = len(model.parameters)
        save_gguf(model, tokenizer, target, options.gguf, _progress("writing", count))
        size = target.stat().st_size
    else:
        check_directory_name("DST", options.target)
        with DirectoryLock(target):
            sweep(target)
            finish_replacing(target)
            _check_empty(target)
            source, name, adapter = _named(options)
            if adapter is not None and kind in NUMGPTS:
                raise ValueError(
                    f"--dtype {kind} can't be made of a model and an adapter at once: convert both"
                    f" without --dtype first, then the result with --dtype {kind}"
                )
            with replacing_together(target, check=lambda: _check_empty(target)) as staged:
                kept, stored = (kind, None) if kind in NUMGPTS else ("float32", kind)
                model, tokenizer = _read(source, name, adapter, kept)
                if tokenizer is not None:
                    tokenizer.save_pretrained(staged)
                save_model(model, staged, stored, _progress("writing", len(model.parameters)))
        size = (target / WEIGHTS_FILE).stat().st_size
    tell(
        f"{model.num_parameters():,} parameters, {size / 1e6:,.0f} MB in {kind}, written to"
        f" {target} in {time.perf_counter() - began:.1f} s"
    )


def _named(options: argparse.Namespace) -> tuple[Source, str, Path | None]:
    """The model that SRC names, its name, and the adapter that is to be added to it."""
    path, adapter = resolve(options.source), options.adapter
    name = hub_name(options.source)
    if is_adapter(path):
        if adapter is not None:
            raise ValueError(f"SRC {path} is an adapter itself: leave --adapter out")
        base = base_of(path)
        path, adapter, name = resolve(base), path, hub_name(base)
    return open_model(path), name, adapter


def _check_empty(target: Path) -> None:
    """Raises ValueError where anything is there but what is being written."""
    if there := [path.name for path in target.iterdir() if not is_ours(path.name)]:
        raise ValueError(
            f"{target} is there already, and not empty ({shown(min(there))}): name a new directory"
        )


def _read(
    source: Source, name: str, adapter: Path | None, dtype: str = "float32"
) -> tuple[LanguageModel, BaseTokenizer | None]:
    """The model, with what an adapter changes added to its weights, and the tokenizer."""
    try:
        if adapter is not None and tokenizer_files(adapter):
            tokenizer: BaseTokenizer | None = load_tokenizer(adapter)
        else:
            tokenizer = source.read_tokenizer()
        if tokenizer is not None:
            check_belongs(tokenizer, source.config.vocab_size, adapter or source.path)
    except FileNotFoundError as error:
        tell(f"numgpt: note: converted without a tokenizer: {error}")
        tokenizer = None
    count = len(source.family.model.shapes(source.config))
    model = read_model(source, _progress("reading", count), dtype=dtype)
    model.name_or_path = name
    if adapter is not None:
        load_adapter(model, adapter)
        model.merge_adapter()
    return model, tokenizer


def _progress(what: str, count: int) -> Any:
    """Shows how many of the tensors have had their turn, where a person is watching."""
    done = 0

    def report(name: str) -> None:
        nonlocal done
        done += 1
        show_progress(f"{what} {done} of {count}  {name:.40}", done == count)

    return report
