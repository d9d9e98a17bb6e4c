"""Files of models with pieces of bytes changed: each works, or is refused in one line."""

import contextlib
import functools
import pickle
import shutil
import warnings

import numpy as np
import pytest
from formats.gguf_writer import model_gguf, tokenizer_metadata
from formats.source_writers import (
    llmc_checkpoint,
    llmc_tokenizer,
    nanogpt_checkpoint,
    save_torch,
    write_openai,
    write_pickled_directory,
)
from formats.test_pytorch import CHANGES, changed, write_archive, write_legacy
from hypothesis import given, settings
from hypothesis import strategies as st
from models.references import LLAMA3_SCALING
from support import examples, memory_below, overwrite

from numgpt import GPT, CharTokenizer, GPTConfig, Llama, LlamaConfig, Tokenizer
from numgpt.formats import open_model, read_model

TOKENIZER = Tokenizer.train("hen ten", 258)
GPT2 = {"n_layer": 1, "n_head": 2, "n_embd": 4, "n_positions": 3}
LLAMA = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
LLAMA |= {"hidden_size": 4, "intermediate_size": 3, "max_position_embeddings": 3}
# Factors are stored for these frequencies.
LLAMA |= {"rope_theta": 5e5, "head_dim": 8, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
LLAMA |= {"rope_scaling": LLAMA3_SCALING | {"original_max_position_embeddings": 8192}}


def gpt(vocab_size=3):
    return GPT(GPTConfig(**GPT2, vocab_size=vocab_size))


def write_gguf(directory, model, pre):
    metadata = tokenizer_metadata(TOKENIZER, pre)
    metadata["tokenizer.chat_template"] = "str", "{{ messages }}"
    (directory / "m.gguf").write_bytes(model_gguf(model, metadata))


def write_nanogpt(directory, write=write_archive):
    save_torch(directory / "ckpt.pt", nanogpt_checkpoint(gpt()), write)
    (directory / "meta.pkl").write_bytes(pickle.dumps({"itos": {0: "a", 1: "b", 2: "c"}}))


def write_llmc(directory):
    (directory / "m.bin").write_bytes(llmc_checkpoint(gpt(), padded=4))
    (directory / "gpt2_tokenizer.bin").write_bytes(llmc_tokenizer(TOKENIZER))


def write_pickled(directory, model, write=write_archive):
    write_pickled_directory(directory, model, write=write)
    CharTokenizer("abc").save_pretrained(directory)


def write_safe(directory):
    gpt().save_pretrained(directory)
    CharTokenizer("abc").save_pretrained(directory)


# What is written, which file of it is changed, how often: with -m slow, four times as often.
VICTIMS = {
    "gguf gpt2": (lambda d: write_gguf(d, gpt(258), "gpt-2"), "m.gguf", 200),
    "gguf llama": (
        lambda d: write_gguf(d, Llama(LlamaConfig(**LLAMA, vocab_size=258)), "llama-bpe"),
        "m.gguf",
        325,
    ),
    "nanogpt": (write_nanogpt, "ckpt.pt", 125),
    "nanogpt legacy": (lambda d: write_nanogpt(d, write_legacy), "ckpt.pt", 100),
    "nanogpt characters": (write_nanogpt, "meta.pkl", 50),
    "llm.c": (write_llmc, "m.bin", 200),
    "llm.c tokenizer": (write_llmc, "gpt2_tokenizer.bin", 75),
    "safetensors": (write_safe, "model.safetensors", 250),
    "pytorch_model.bin": (lambda d: write_pickled(d, gpt()), "pytorch_model.bin", 100),
    "legacy": (lambda d: write_pickled(d, gpt(), write_legacy), "pytorch_model.bin", 75),
    "config of gpt2": (lambda d: write_pickled(d, gpt()), "config.json", 75),
    "config of llama": (
        lambda d: write_pickled(d, Llama(LlamaConfig(**LLAMA, vocab_size=3))),
        "config.json",
        75,
    ),
    "hparams": (lambda d: write_openai(d, gpt(258), TOKENIZER), "hparams.json", 50),
    "index": (lambda d: write_openai(d, gpt(258), TOKENIZER), "model.ckpt.index", 25),
}


def works_or_is_refused(place):
    """Also without a warning, which would be a second line."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # True where a value has changed of the one matrix that some files hold twice.
        warnings.filterwarnings("ignore", ".*is not the embedding's table")
        try:
            source = open_model(place)
        except (ValueError, FileNotFoundError) as error:
            one_line(error, place)
            return
        for work in (source.read_tokenizer, functools.partial(read_model, source)):
            try:
                work()
            except (ValueError, FileNotFoundError) as error:
                one_line(error, place)


def one_line(error, place):
    said = str(error)
    assert str(place) in said
    assert len(said.splitlines()) == 1
    assert len(said) < 3000
    assert type(error) in (ValueError, FileNotFoundError)  # not UnicodeDecodeError, …


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """What the victims' directories hold, written once; each test changes a copy."""

    @functools.cache
    def made(name):
        directory = tmp_path_factory.mktemp("whole")
        VICTIMS[name][0](directory)
        return directory

    return made


@examples(1, 4)
@pytest.mark.parametrize("name", VICTIMS)
def test_a_changed_file_works_or_is_refused(directories, tmp_path_factory, name, examples):
    _, victim, often = VICTIMS[name]
    examples *= often
    directory = tmp_path_factory.mktemp("changed")
    shutil.copytree(directories(name), directory, dirs_exist_ok=True)
    path = directory / victim
    whole = path.read_bytes()
    source = open_model(directory)  # the whole one works
    read_model(source)
    assert source.read_tokenizer().vocab_size <= 258
    numbers = iter(range(10 * examples))

    @given(changes=CHANGES)
    @settings(max_examples=examples)
    def check(changes):
        overwrite(path, changed(whole, changes))
        traced = next(numbers) % 10 == 0  # tracing makes it slow
        with memory_below(50_000_000) if traced else contextlib.nullcontext():
            works_or_is_refused(directory)

    check()


@pytest.mark.parametrize("name", ["gguf gpt2", "gguf llama"])
@given(place=st.integers(0, 1 << 16), size=st.sampled_from([1, 2, 4, 8]), high=st.integers(0, 64))
@settings(max_examples=200)
def test_numbers_of_any_size_in_gguf_work_or_are_refused(
    directories, tmp_path_factory, name, place, size, high
):
    """Sizes, counts and offsets of one to eight bytes, near powers of two."""
    whole = (directories(name) / "m.gguf").read_bytes()
    number = ((1 << high) - 1) % (1 << 8 * size)
    place %= len(whole)
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    overwrite(path, whole[:place] + number.to_bytes(size, "little") + whole[place + size :])
    works_or_is_refused(path)


@given(data=st.binary(max_size=100))
@settings(max_examples=100)
@pytest.mark.parametrize("start", [b"", b"GGUF\3\0\0\0", b"PK\3\4", np.int32(20240326).tobytes()])
def test_any_bytes_are_refused(tmp_path_factory, start, data):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    overwrite(path, start + data)
    works_or_is_refused(path)
