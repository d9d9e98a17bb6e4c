"""Small files that ask for more than anybody waits for, or say more than anybody reads."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
from campaigns.damage import within
from support import refused

from numgpt import CharTokenizer, GPTConfig, LlamaConfig, formats
from numgpt.formats.safetensors import read_safetensors
from numgpt.messages import MOST, one_line, shown

LIMIT = 10  # seconds; each of these took minutes, or for ever


def refused_at_once(call, message: str, longest: int = 500) -> None:
    with within(LIMIT):
        assert len(refused(call, message)) < longest


def shared(levels: int) -> tuple:
    """2^levels references to one empty tuple, in some hundred bytes."""
    value: tuple = ()
    for _ in range(levels):
        value = (value, value)
    return value


def nested(levels: int) -> bytes:
    """A pickle of tuples in each other."""
    return b"\x80\x02)" + b"\x85" * levels + b"."


def write_checkpoint(path, model_args: bytes) -> None:
    """nanoGPT's ckpt.pt with these pickled model_args."""
    inner = model_args[2:-1]  # without its PROTO and STOP
    text = [b"X" + struct.pack("<I", len(t)) + t for t in (b"model", b"model_args")]
    data = b"\x80\x02}(" + text[0] + b"}" + text[1] + inner + b"u."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ckpt/data.pkl", data)


SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 4, "vocab_size": 5, "block_size": 8}


@pytest.mark.parametrize("place", ["n_layer", "bias", "everything"])
@pytest.mark.parametrize("bomb", ["shared", "nested"])
def test_a_memo_bomb_is_refused_at_once(tmp_path, place, bomb):
    value = pickle.dumps(shared(60), 2) if bomb == "shared" else nested(200_000)
    if place == "everything":
        data = value
    else:
        plain = pickle.dumps(SIZES | {"bias": True} | {place: "PLACE"}, 2)
        marker = b"X\x05\x00\x00\x00PLACE"
        assert marker in plain
        # The memo of the whole and of the bomb use different places.
        inner = value[2:-1]
        data = plain.replace(marker, b"}" if b"q" in inner else inner)
        if bomb == "shared":
            data = plain.replace(marker, _renumbered(inner))
    write_checkpoint(tmp_path / "ckpt.pt", data)
    refused_at_once(lambda: formats.load(tmp_path / "ckpt.pt"), r"ckpt\.pt")


def _renumbered(data: bytes) -> bytes:
    """The pickle of `shared` with its memo from place 100 on."""
    out, stream = bytearray(), io.BytesIO(data)
    while byte := stream.read(1):
        out += byte
        if byte in (b"q", b"h"):  # BINPUT, BINGET
            out.append(stream.read(1)[0] + 100)
    return bytes(out)


@pytest.mark.parametrize("value", [shared(60), {0: shared(60)}, {"itos": {0: shared(60)}}])
def test_a_bomb_in_meta_pkl_is_refused_at_once(tmp_path, value):
    from numgpt.formats.nanogpt import _tokenizer

    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(value, 2))
    refused_at_once(lambda: _tokenizer(tmp_path), r"meta\.pkl")


@pytest.mark.parametrize("axes", [65, 300_000])
@pytest.mark.parametrize("size", [1, 2, 10**4000], ids=["1", "2", "10**4000"])
def test_many_axes_are_refused_at_once(tmp_path, axes, size):
    entry = {"dtype": "F32", "shape": [size] * min(axes, 9000 if size > 9 else axes)}
    header = json.dumps({"x": entry | {"data_offsets": [0, 4]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refused_at_once(lambda: read_safetensors(path), r"x\.safetensors")


def test_a_header_of_many_megabytes_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(90_000_100)
    refused_at_once(lambda: read_safetensors(path), r"x\.safetensors is not a whole")


LONG = ["x" * 100_000, ["x"] * 100_000, {str(i): i for i in range(10_000)}, 10**5000]
LONG += [shared(60), [[[[[[1]]]]]] * 50, np.zeros(10**6), b"x" * 10**6, float("nan"), None]


@pytest.mark.parametrize("value", LONG, ids=lambda value: type(value).__name__)
def test_what_messages_show_is_short(value):
    with within(LIMIT):
        assert len(shown(value)) <= MOST
    for config in (GPTConfig(n_layer=value), LlamaConfig(rope_theta=value)):
        refused_at_once(config.validate, "=", 300)
    assert shown("abc") == "'abc'"
    assert one_line("a\n  b\n") == "a b"
    assert len(one_line("x" * 5000)) == 1000


@pytest.mark.parametrize("value", ["ab" * 5000, shared(60)], ids=["text", "bomb"])
def test_a_character_that_is_none_is_told_in_a_few_words(value):
    refused_at_once(lambda: CharTokenizer(["a", value]), "not one character", 300)
