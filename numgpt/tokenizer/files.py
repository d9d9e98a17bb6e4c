"""Tokenizer files: which are there, how they are read and written.

encoder.json, vocab.bpe      OpenAI's release of GPT-2
vocab.json, merges.txt       the same two, as Hugging Face names them
tokenizer.json               Hugging Face's single file
characters.json              numgpt's character-level tokenizer
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numgpt.tokenizer.base import END_OF_TEXT, BaseTokenizer, clear_tokenizer_files
from numgpt.tokenizer.bpe import Tokenizer
from numgpt.tokenizer.byte_alphabet import from_printable, to_printable
from numgpt.tokenizer.character import CHARACTERS_FILE, CharTokenizer

PAIRED_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def load_tokenizer(directory: str | os.PathLike) -> BaseTokenizer:
    """The tokenizer whose files are in the directory.

    Raises FileNotFoundError where there are none, ValueError naming the file where they can't be
    used.
    """
    directory = Path(directory)
    if (path := directory / "tokenizer.json").is_file():
        return _naming(path, _from_tokenizer_json, _read_json(path))
    for vocabulary, merges in PAIRED_FILES:
        path = directory / vocabulary
        if path.is_file() and (directory / merges).is_file():
            lines = (directory / merges).read_text(encoding="utf-8").split("\n")
            return _naming(path, _from_vocabulary_and_merges, _read_json(path), lines)
    if (path := directory / CHARACTERS_FILE).is_file():
        return _naming(path, CharTokenizer, _read_json(path))
    raise FileNotFoundError(
        f"no tokenizer in {directory}: expected tokenizer.json, vocab.json with merges.txt,"
        f" encoder.json with vocab.bpe, or {CHARACTERS_FILE}"
    )


def save_bpe(tokenizer: Tokenizer, directory: str | os.PathLike) -> None:
    """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json."""
    directory = Path(directory)
    clear_tokenizer_files(directory)
    vocabulary = {to_printable(token): id for token, id in tokenizer.vocabulary.items()}
    merges = [f"{to_printable(left)} {to_printable(right)}" for left, right in tokenizer.merges]
    special = tokenizer.special_tokens
    in_order = dict(sorted((vocabulary | special).items(), key=lambda item: item[1]))
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": text} | flags for text, id in special.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model | {"vocab": in_order, "merges": merges},
    }
    config: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
    if END_OF_TEXT in special:
        config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    _write(directory / "vocab.json", json.dumps(in_order, ensure_ascii=False))
    _write(directory / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    _write(directory / "tokenizer.json", json.dumps(whole, ensure_ascii=False))
    _write(directory / "tokenizer_config.json", json.dumps(config, indent=2))


def _from_vocabulary_and_merges(vocabulary: dict[str, int], lines: Iterable[str]) -> Tokenizer:
    lines = [line.rstrip("\r") for line in lines]
    if lines and lines[0].startswith("#version"):
        del lines[0]
    merges = [line.split(" ") for line in lines if line]
    return _build(vocabulary, merges, {})


def _from_tokenizer_json(whole: dict[str, Any]) -> Tokenizer:
    model = whole["model"]
    _require(model.get("type", "BPE"), "BPE", "model.type")
    for key in (
        "dropout",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
        "ignore_merges",
    ):
        if model.get(key):
            raise ValueError(f"model.{key}={model[key]!r} is not supported")
    if whole.get("normalizer"):
        raise ValueError(f"the normalizer {whole['normalizer'].get('type')!r} is not supported")
    pre_tokenizer = whole.get("pre_tokenizer") or {}
    _require(pre_tokenizer.get("type"), "ByteLevel", "pre_tokenizer.type")
    _require(pre_tokenizer.get("add_prefix_space", True), False, "pre_tokenizer.add_prefix_space")
    _require(pre_tokenizer.get("use_regex", True), True, "pre_tokenizer.use_regex")
    special = {entry["content"]: entry["id"] for entry in whole.get("added_tokens", [])}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return _build(model["vocab"], merges, special)


def _build(
    vocabulary: dict[str, int], merges: list[list[str]], special: dict[str, int]
) -> Tokenizer:
    """From printable tokens. A longer token that no merge makes can't come from text: it is a
    special one."""
    for number, parts in enumerate(merges):
        if len(parts) != 2:
            raise ValueError(
                f"merge {number} is {' '.join(parts)!r}: expected two tokens and a space between"
            )
    made = {left + right for left, right in merges}
    special = special | {t: id for t, id in vocabulary.items() if len(t) > 1 and t not in made}
    ordinary = {from_printable(t): id for t, id in vocabulary.items() if t not in special}
    return Tokenizer(ordinary, [(from_printable(a), from_printable(b)) for a, b in merges], special)


def _require(value: Any, expected: Any, name: str) -> None:
    if value != expected:
        raise ValueError(f"{name}={value!r} is not supported, only {expected!r}")


def _naming(path: Path, build: Any, *arguments: Any) -> Any:
    """build(*arguments), with the file's name in front of what it finds wrong."""
    try:
        return build(*arguments)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: {reason}") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): copy or download it again") from None


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
