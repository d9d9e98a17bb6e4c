"""Tokenizer files: another library reads them alike, what does not fit is refused."""

import errno
import json
import os
import shutil

import pytest
from support import refused

from numgpt import CharTokenizer, Tokenizer
from numgpt.tokenizer import load_tokenizer

TEXT = "Ab a é😀\n\n<b>\t'" * 20


@pytest.fixture
def pair(tmp_path):
    """vocab.json and merges.txt by themselves."""
    Tokenizer.train([TEXT], 280).save_pretrained(tmp_path / "whole")
    (tmp_path / "pair").mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "pair")
    return tmp_path / "pair"


@pytest.mark.parametrize("keep", [0, 1, 5])
def test_merges_that_do_not_fit_their_vocabulary_are_refused(pair, keep):
    assert list(load_tokenizer(pair).special_tokens) == ["<|endoftext|>"]
    path = pair / "merges.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:keep]))
    refused(lambda: load_tokenizer(pair), r"vocab\.json: \d+ of its tokens.*cut short")


def test_characters_survive_saving(tmp_path):
    tokenizer = CharTokenizer.train([TEXT])
    tokenizer.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["tokenizer.json", "tokenizer_config.json"]
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, CharTokenizer)
    assert loaded.characters == tokenizer.characters


@pytest.mark.live("transformers")
def test_transformers_reads_characters(tmp_path):
    import transformers

    tokenizer = CharTokenizer.train([TEXT])
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert other(TEXT)["input_ids"] == tokenizer.encode(TEXT)
    assert other.decode(tokenizer.encode(TEXT)) == TEXT
    with pytest.raises(Exception, match="UNK"):  # as here: not silently nothing
        other("☃")


@pytest.mark.parametrize("change", ["hole", "pair of characters", "pre_tokenizer", "normalizer"])
def test_other_word_level_tokenizers_are_refused(tmp_path, change):
    CharTokenizer.train([TEXT]).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text())
    vocabulary = whole["model"]["vocab"]
    if change == "hole":
        vocabulary["b"] = 99
    elif change == "pair of characters":
        vocabulary["ab"] = len(vocabulary)
    else:
        whole[change] = {"type": "Whitespace" if change == "pre_tokenizer" else "NFC"}
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("point", range(6))
def test_a_full_disk_leaves_the_tokenizer_before(tmp_path, monkeypatch, point):
    before, after = Tokenizer.train([TEXT], 270), Tokenizer.train([TEXT], 285)
    before.save_pretrained(tmp_path)
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == point + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        after.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert str(tmp_path) in str(error.value)
    assert load_tokenizer(tmp_path).merges == before.merges
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
