"""Tokenizer files: every layout is read and written, and Hugging Face reads ours, with equal
ids."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given, settings
from support import shared
from tokenizer.test_bpe import TRICKY

from numgpt import CharTokenizer, Tokenizer
from numgpt.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tokenizer trained here and the directory it was saved to."""
    text = "Wörter, words and 1234 numbers; it's what they'd say.\n" * 30
    tokenizer = Tokenizer.train(text, 330, special_tokens=["<|endoftext|>", "<|user|>"])
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return tokenizer, directory


def same(a: Tokenizer, b: Tokenizer) -> None:
    assert a.vocabulary == b.vocabulary
    assert a.merges == b.merges
    assert a.special_tokens == b.special_tokens


def test_save_then_load_is_the_identity(saved, tmp_path):
    tokenizer, directory = saved
    same(load_tokenizer(directory), tokenizer)
    for names in (("tokenizer.json",), ("vocab.json", "merges.txt")):
        part = tmp_path / names[0]
        part.mkdir()
        for name in names:
            shutil.copy(directory / name, part)
        same(Tokenizer.from_pretrained(part), tokenizer)
    characters = CharTokenizer(list("abcé\n\u2028"))
    characters.save_pretrained(tmp_path / "characters")
    assert load_tokenizer(tmp_path / "characters").characters == characters.characters


def test_openais_files_and_hugging_faces_are_the_same_tokenizer(gpt2_tokenizer, tmp_path):
    gpt2_tokenizer.save_pretrained(tmp_path)
    same(load_tokenizer(tmp_path), gpt2_tokenizer)
    assert json.loads((tmp_path / "vocab.json").read_text("utf-8")) == json.loads(
        shared("gpt2", "encoder.json").read_text("utf-8")
    )
    assert (tmp_path / "merges.txt").read_text("utf-8").split("\n")[1:] == shared(
        "gpt2", "vocab.bpe"
    ).read_text("utf-8").split("\n")[1:]


@given(text=TRICKY)
@settings(max_examples=150)
def test_hugging_face_reads_our_files_with_equal_ids(saved, text):
    tokenizers = pytest.importorskip("tokenizers")
    ours, directory = saved
    theirs = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    text = text + "<|user|>"
    assert theirs.encode(text).ids == ours.encode(text, allowed_special="all")
    assert theirs.decode(ours.encode(text)) == text
    pair = tokenizers.models.BPE.from_file(
        str(directory / "vocab.json"), str(directory / "merges.txt")
    )
    bare = tokenizers.Tokenizer(pair)
    bare.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert bare.encode(text).ids == ours.encode(text)


def test_transformers_loads_the_directory(saved):
    transformers = pytest.importorskip("transformers")
    ours, directory = saved
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    text = "They'd say words: 12 Wörter!"
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.eos_token_id == ours.eos_token_id


def edit(directory, tmp_path, **changes):
    """A copy of tokenizer.json with dotted keys changed."""
    whole = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        place = whole
        for key in path:
            place = place[key]
        place[last] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__type": "Unigram"}, "Unigram"),
        ({"model__dropout": 0.1}, "model.dropout"),
        ({"model__byte_fallback": True}, "byte_fallback"),
        ({"normalizer": {"type": "NFC"}}, "NFC"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer__add_prefix_space": True}, "add_prefix_space"),
        ({"model__merges": ["a b c"]}, "merge 0"),
        ({"model__merges": [["a", "zz"]]}, "merge 0"),
        ({"model__vocab": {"a": 0}}, "not a byte-level BPE|not in the vocabulary"),
    ],
)
def test_refuses_what_it_would_tokenise_differently(saved, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(edit(saved[1], tmp_path, **changes))
    assert "tokenizer.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_names_files_that_are_missing_or_damaged(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    text = (saved[1] / "tokenizer.json").read_text("utf-8")
    (tmp_path / "tokenizer.json").write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not valid JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
