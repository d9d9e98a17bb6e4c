"""Tokenizer files: which are there, how they are read and written.

tokenizer.json               Hugging Face's single file
vocab.json, merges.txt       GPT-2's vocabulary in two files, as Hugging Face names them
encoder.json, vocab.bpe      the same two, as in OpenAI's release of GPT-2
tokenizer_config.json        beside these: what begins and ends a text, the form of a chat
chat_template.jinja          beside these: the form of a chat, where it has a file of its own
special_tokens_map.json      beside these, until 2023: which tokens are special, …
added_tokens.json            … and which were added to the vocabulary

All files of a tokenizer change together.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numgpt.files import finish_replacing, replacing_together
from numgpt.messages import shown
from numgpt.reading import naming, read_json_object
from numgpt.tokenizer import sections
from numgpt.tokenizer.base import END_OF_TEXT, TOKENIZER_FILES, BaseTokenizer
from numgpt.tokenizer.bpe import Tokenizer
from numgpt.tokenizer.byte_alphabet import from_printable, to_printable
from numgpt.tokenizer.character import CharTokenizer

PAIRED_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
MOST_TOKENS = 1 << 29  # of a vocabulary: data keep more in 32 bits than an id
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates/*.jinja"
SPECIAL_FILE, ADDED_FILE = "special_tokens_map.json", "added_tokens.json"


def load_tokenizer(directory: str | os.PathLike) -> BaseTokenizer:
    """The tokenizer whose files are in the directory.

    Raises FileNotFoundError where there are none, ValueError naming the file where they can't be
    used.
    """
    directory = Path(directory)
    finish_replacing(directory)
    if (path := directory / "tokenizer.json").is_file():
        config = _read_config(directory)
        return _naming(path, _from_tokenizer_json, read_json_object(path), config)
    for vocabulary, merges in PAIRED_FILES:
        path = directory / vocabulary
        if path.is_file() and (directory / merges).is_file():
            config = _read_config(directory)
            lines = _read_text(directory / merges).split("\n")
            return _naming(path, _from_vocabulary_and_merges, read_json_object(path), lines, config)
    raise FileNotFoundError(
        f"no tokenizer in {directory}: expected tokenizer.json, vocab.json with merges.txt, or"
        " encoder.json with vocab.bpe"
    )


def build_bpe(
    vocabulary: dict[str, int],
    merges: Sequence[str] | Sequence[Sequence[str]],
    special: dict[str, int],
    added: dict[str, int] | None = None,
    **options: Any,
) -> Tokenizer:
    """A tokenizer from what model files hold: tokens in the printable alphabet (byte_alphabet.py),
    merges as pairs or with a space between, special and added tokens as they are, Tokenizer's
    options.

    A longer token that no merge makes can't come from text: it is a special one. With ignore_merges
    it can, where a piece is that token. A special or added token may be one that merges make.
    """
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    for number, parts in enumerate(pairs):
        if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise ValueError(
                f"merge {number} is {shown(' '.join(map(str, parts)))}:"
                " expected two tokens and a space between"
            )
    added = added or {}
    for token, id in (vocabulary | special | added).items():
        if not isinstance(id, int) or not 0 <= id < MOST_TOKENS:
            raise ValueError(
                f"the token {shown(token)} has the id {shown(id)}: expected a whole number below"
                f" {MOST_TOKENS:,}"
            )
    made = {left + right for left, right in pairs}
    reachable = _is_printable if options.get("ignore_merges") else made.__contains__
    ordinary = {
        t: id for t, id in vocabulary.items() if t in made or (t not in special and t not in added)
    }
    special = special | {t: i for t, i in ordinary.items() if len(t) > 1 and not reachable(t)}
    tokens = {from_printable(t): id for t, id in ordinary.items() if t in made or t not in special}
    made_of = [(from_printable(left), from_printable(right)) for left, right in pairs]
    return Tokenizer(tokens, made_of, special, added_tokens=added, **options)


def save_bpe(tokenizer: Tokenizer, directory: str | os.PathLike) -> None:
    """Write tokenizer.json and tokenizer_config.json; for what the class GPT2Tokenizer of
    transformers can express also vocab.json and merges.txt."""
    vocabulary = {to_printable(token): id for token, id in tokenizer.vocabulary.items()}
    merges = [f"{to_printable(left)} {to_printable(right)}" for left, right in tokenizer.merges]
    special, added = tokenizer.special_tokens, tokenizer.added_tokens
    # (A token that merges make is there already, in the printable alphabet.)
    more = {t: i for t, i in (special | added).items() if t.encode() not in tokenizer.vocabulary}
    in_order = dict(sorted((vocabulary | more).items(), key=lambda item: item[1]))
    model: dict[str, Any] = {"type": "BPE", "dropout": None}
    model |= {"unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    model |= {"ignore_merges": tokenizer.ignore_merges, "vocab": in_order, "merges": merges}
    beginning, (bos, id) = None, (tokenizer.bos_token, tokenizer.bos_token_id)
    if tokenizer.add_bos_token and bos is not None and id is not None:
        beginning = sections.post_processor(bos, id)
    whole = sections.WHOLE | {
        "added_tokens": sections.added_token_entries(special, added, tokenizer.normalized_tokens),
        "normalizer": tokenizer.normalizer and {"type": tokenizer.normalizer},
        "pre_tokenizer": sections.pre_tokenizer(tokenizer.pattern.name, tokenizer.add_prefix_space),
        "post_processor": beginning,
        "decoder": sections.DECODER,
        "model": model,
    }
    # transformers' GPT2Tokenizer takes no more than vocabulary and merges from tokenizer.json.
    like_gpt2 = tokenizer.pattern.name == "gpt2" and not (
        tokenizer.normalizer or tokenizer.ignore_merges or added
    )
    config: dict[str, Any] = {
        "tokenizer_class": "GPT2Tokenizer" if like_gpt2 else "PreTrainedTokenizerFast",
        "add_prefix_space": tokenizer.add_prefix_space,
        "unk_token": END_OF_TEXT if like_gpt2 and END_OF_TEXT in special else None,
        **tokenizer.settings,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "add_bos_token": tokenizer.add_bos_token,
    }
    named = config.pop(sections.NAMED_TEMPLATES, {})
    if named:
        config["chat_template"] = _listed(tokenizer.chat_template, named)
    elif tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    texts = {}
    if like_gpt2:
        texts["vocab.json"] = json.dumps(in_order, ensure_ascii=False)
        texts["merges.txt"] = "\n".join(["#version: 0.2", *merges, ""])
    _save(directory, whole, config, texts)


def save_characters(tokenizer: CharTokenizer, directory: str | os.PathLike) -> None:
    """Write tokenizer.json and tokenizer_config.json: whole words of one character each, cut
    between any two characters."""
    vocabulary = {character: id for id, character in enumerate(tokenizer.characters)}
    # The library asks for the name of an unknown token. This one can't be in the vocabulary, and
    # so an unknown character is an error there, as it is here.
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    whole = sections.WHOLE | {
        "pre_tokenizer": sections.CHARACTERS,
        "decoder": {"type": "Fuse"},
        "model": model,
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _save(directory, whole, config, {})


def _save(
    directory: str | os.PathLike, whole: Any, config: dict[str, Any], texts: dict[str, str]
) -> None:
    """Put tokenizer.json, tokenizer_config.json and other texts into a directory, in place of any
    tokenizer there."""
    texts = {"tokenizer.json": json.dumps(whole, ensure_ascii=False)} | texts
    texts[CONFIG_FILE] = json.dumps(config, indent=2)
    with replacing_together(directory, remove=TOKENIZER_FILES) as staged:
        for name, text in texts.items():
            with naming(staged / name):
                (staged / name).write_text(text, encoding="utf-8", newline="\n")


def _from_vocabulary_and_merges(
    vocabulary: dict[str, int], lines: Sequence[str], config: dict[str, Any]
) -> Tokenizer:
    name = str(config.get("tokenizer_class")).removesuffix("Fast")
    if name.startswith("Qwen2"):
        options: dict[str, Any] = {"pattern": "qwen2", "normalizer": "NFC"}
    elif name in ("PreTrainedTokenizer", "TokenizersBackend"):
        raise ValueError(f"the tokenizer class {name} needs the file tokenizer.json beside it")
    else:
        options = {}
    lines = [line.rstrip("\r") for line in lines]
    if lines and lines[0].startswith("#version"):
        del lines[0]
    options |= sections.config_options(config)
    if config.get("add_eos_token"):
        warnings.warn("add_eos_token is set, and is not done: no text is ended here", stacklevel=2)
    options["add_prefix_space"] = sections.adds_prefix_space(None, config)
    special, added, options["normalized_tokens"] = _named(config, [], vocabulary)
    tokenizer = build_bpe(vocabulary, [line for line in lines if line], special, added, **options)
    # A file cut short, or that of another vocabulary, leaves words that nothing makes.
    unmade = [text for text in tokenizer.special_tokens if text not in special]
    if words := [text for text in unmade if not (text[0] in "<[" and text[-1] in ">]")]:
        raise ValueError(
            f"{len(words)} of its tokens, such as {shown(words[0])}, are made by no merge: the"
            " merges beside it are cut short, or those of another vocabulary; copy or download"
            " both again"
        )
    return tokenizer


def _from_characters(whole: dict[str, Any]) -> CharTokenizer:
    """The tokenizer that save_characters has written."""
    vocabulary = whole["model"]["vocab"]
    sections.require(whole.get("pre_tokenizer"), sections.CHARACTERS, "pre_tokenizer")
    sections.require(whole.get("normalizer"), None, "normalizer")
    sections.require(whole.get("added_tokens") or [], [], "added_tokens")
    characters = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[character] for character in characters] != list(range(len(characters))):
        raise ValueError("the characters' ids are not 0, 1, 2, …")
    return CharTokenizer(characters)


def _from_tokenizer_json(whole: dict[str, Any], config: dict[str, Any]) -> BaseTokenizer:
    model = whole["model"]
    if model.get("type") == "WordLevel":
        return _from_characters(whole)
    sections.require(model.get("type", "BPE"), "BPE", "model.type")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise ValueError(f"model.{key}={shown(model[key])} is not supported")
    special, added, normalized = _named(config, whole.get("added_tokens") or [], model["vocab"])
    options = {
        "pattern": sections.pattern_name(whole.get("pre_tokenizer")),
        "add_prefix_space": sections.adds_prefix_space(whole.get("pre_tokenizer"), config),
        "normalized_tokens": normalized,
        "normalizer": sections.normalizer_name(whole.get("normalizer")),
        "ignore_merges": model.get("ignore_merges", False),
    }
    options |= sections.config_options(config)
    first = sections.first_token(whole.get("post_processor"))
    if first is not None and options.setdefault("add_bos_token", True):
        sections.require(first, options.setdefault("bos_token", first), "post_processor's token")
    tokenizer = build_bpe(model["vocab"], model["merges"], special, added, **options)
    if model.get("unk_token") and tokenizer.lacks_bytes_of_text:
        raise ValueError(
            f"model.unk_token={shown(model['unk_token'])} is not supported where bytes are missing"
            " from the vocabulary"
        )
    return tokenizer


def _named(
    config: dict[str, Any], entries: list[dict[str, Any]], vocabulary: dict[str, int]
) -> tuple[dict[str, int], dict[str, int], set[str]]:
    """The special and the added tokens that the files list, those of tokenizer.json last; one that
    is named and has no id gets the next one, as in transformers."""
    listed = {entry["id"]: entry for entry in [*sections.config_added_tokens(config), *entries]}
    special, added, normalized = sections.split_added_tokens(list(listed.values()))
    for token in sections.named_specials(config):
        free = max([*vocabulary.values(), *special.values(), *added.values()], default=-1) + 1
        known = token in vocabulary or token in added or token not in sections.ends(config).values()
        if token not in special and known:
            special[token] = added.pop(token, vocabulary.get(token, free))
    for token in sections.ends(config).values():
        if token in vocabulary and token not in special and token not in added:
            special[token] = vocabulary[token]
    return special, added, normalized


def _is_printable(token: str) -> bool:
    try:
        return bool(from_printable(token))
    except ValueError:
        return False


def _read_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, checked, with the chat template of a file of its own in place."""
    path = directory / CONFIG_FILE
    config = read_json_object(path) if path.is_file() else {}
    for check in (sections.config_options, sections.config_added_tokens, sections.named_specials):
        _naming(path, check, config)
    if "added_tokens_decoder" not in config:
        config |= _legacy_config(directory, config)
    if (path := directory / TEMPLATE_FILE).is_file():  # the newer place comes first
        config["chat_template"] = _read_text(path)
    if others := sorted(directory.glob(MORE_TEMPLATES)):
        default, named = config.get("chat_template"), {p.stem: _read_text(p) for p in others}
        config["chat_template"] = _listed(default if isinstance(default, str) else None, named)
    return config


def _listed(default: str | None, named: dict[str, str]) -> list[dict[str, str]]:
    """Several chat templates, as tokenizer_config.json has them."""
    every = named if default is None else {"default": default} | named
    return [{"name": name, "template": text} for name, text in every.items()]


def _legacy_config(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What earlier versions of transformers wrote into files of their own, in today's terms."""
    legacy: dict[str, Any] = {}
    if (path := directory / SPECIAL_FILE).is_file():
        legacy = read_json_object(path)
        for check in (sections.config_options, sections.named_specials):
            _naming(path, check, legacy)
        named = [*sections.ends(legacy).values(), *sections.named_specials(legacy)]
        legacy["additional_special_tokens"] = named
    if (path := directory / ADDED_FILE).is_file():
        both = config | legacy
        special = {*sections.named_specials(both), *sections.ends(both).values()}
        legacy["added_tokens_decoder"] = {
            str(id): {"content": t, "special": t in special, "normalized": t not in special}
            for t, id in read_json_object(path).items()
        }
        _naming(path, sections.config_added_tokens, legacy)
    return legacy


def _naming(path: Path, build: Any, *arguments: Any) -> Any:
    """build(*arguments), with the file's name in front of what it finds wrong."""
    try:
        return build(*arguments)
    except KeyError as error:
        reason = f"{error} is missing"
    except ValueError as error:
        reason = str(error)
    except (LookupError, TypeError, AttributeError, RecursionError):
        reason = "a part of it is of another kind than it should be; copy or download it again"
    raise ValueError(f"{path}: {reason}")


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: copy or download it again") from None
