"""GGUF out: what was written is read again, by numgpt and by the gguf package."""

import dataclasses
import itertools

import numpy as np
import pytest
from formats.gguf_writer import gguf_file, metadata_of, tensors_of
from formats.test_gguf_models import EXPRESSIBLE, SCALED, TEXT, changed
from models.references import LLAMA_SMALL, assert_same, batch, small_model, their_logits
from support import assert_close

import numgpt
from numgpt import GPT, CharTokenizer, GPTConfig, Llama, LlamaConfig, LoRAConfig, Tokenizer
from numgpt.formats import load_model
from numgpt.formats.gguf import read_gguf
from numgpt.formats.gguf_writing import FILE_TYPES, quantise_q8_0, save_gguf
from numgpt.formats.llamacpp import PATTERNS
from numgpt.formats.quantised import dequantise_q8_0

WIDE = GPTConfig(n_layer=2, n_head=2, n_embd=64, n_positions=16, vocab_size=70)
SIZES = {"num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 70}
WIDE_LLAMA = LlamaConfig(**LLAMA_SMALL | SIZES | {"max_position_embeddings": 16})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("name", [*EXPRESSIBLE, "llama_scaled_rope"])
def test_lies_as_llama_cpps_converter_lays_it_out(path, name):
    """… which the writer of the tests follows."""
    model = small_model(name)
    if name not in EXPRESSIBLE:
        model = changed(model, **SCALED)
    save_gguf(model, None, path, "F32")
    assert_same(load_model(path), model)
    assert path.read_bytes()[:8] == b"GGUF\3\0\0\0"
    other = path.with_name("other.gguf")
    other.write_bytes(gguf_file(metadata_of(model), tensors_of(model)))
    (metadata, tensors), (expected, their_tensors) = read_gguf(path), read_gguf(other)
    assert {n: metadata[n] for n in expected} == expected
    assert tensors.keys() == their_tensors.keys()
    for name in tensors:
        np.testing.assert_array_equal(tensors[name].raw, their_tensors[name].raw, name)


@pytest.mark.parametrize("kind", FILE_TYPES)
@pytest.mark.parametrize("config", [WIDE, WIDE_LLAMA], ids=["GPT-2", "Llama"])
def test_every_type(path, kind, config):
    model = (GPT if isinstance(config, GPTConfig) else Llama)(config, seed=2)
    names = []
    save_gguf(model, None, path, kind, names.append)
    metadata, tensors = read_gguf(path)
    assert metadata["general.file_type"] == FILE_TYPES[kind]
    assert names == list(tensors)
    loaded = load_model(path)
    for name, array in model.parameters.items():
        limit = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 254 + 2**-11}[kind]
        limit = 0 if array.ndim == 1 or name == "wpe" else limit * np.abs(array).max()
        assert np.abs(loaded.parameters[name] - array).max() <= limit, name
    assert {tensor.dtype for tensor in tensors.values()} == {kind, "F32"}


def test_blocks_of_q8_0():
    w = np.random.default_rng(0).standard_normal((70, 64), np.float32)
    w[0, :32] = 0
    w[1, :32] = np.arange(32) - 15.5  # halves, once they are divided by 127 of the largest
    blocks = quantise_q8_0(w)
    back = dequantise_q8_0(blocks).reshape(w.shape)
    assert not back[0, :32].any()
    scale = np.repeat(np.abs(w.reshape(-1, 32)).max(axis=1) / 127, 32).reshape(w.shape)
    assert (np.abs(back - w) <= 0.51 * scale + 2**-11 * np.abs(w)).all()


@pytest.mark.live("gguf")
def test_the_gguf_package_rounds_and_reads_alike(path):
    import gguf

    w = np.random.default_rng(1).standard_normal((500, 96), np.float32)
    w[:50] = np.round(w[:50] * 2) / 2
    kind = gguf.GGMLQuantizationType.Q8_0
    np.testing.assert_array_equal(quantise_q8_0(w).reshape(500, -1), gguf.quants.quantize(w, kind))
    tokenizer = numgpt.formats.load_tokenizer("shakespeare")
    model = GPT(dataclasses.replace(WIDE, vocab_size=tokenizer.vocab_size))
    save_gguf(model, tokenizer, path, "Q8_0")
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "gpt2"
    assert len(reader.get_field("tokenizer.ggml.tokens").contents()) == tokenizer.vocab_size
    loaded = load_model(path)
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight":
            theirs = gguf.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(theirs, loaded.parameters["wte"])
    assert len(reader.tensors) == len(model.parameters)


@pytest.mark.live("gguf", "accelerate", "torch", "transformers")
def test_transformers_computes_the_same_from_the_file(path):
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    tokenizer = numgpt.formats.load_tokenizer("shakespeare")
    config = dataclasses.replace(WIDE_LLAMA, vocab_size=tokenizer.vocab_size)
    model = Llama(config, seed=4)
    save_gguf(model, tokenizer, path, "F32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    ids, _ = batch(config, (2, 9))
    assert_close(model(ids), their_logits(theirs, ids))


@pytest.mark.live("llama_cpp")
@pytest.mark.parametrize("kind", FILE_TYPES)
@pytest.mark.parametrize("config", [WIDE, WIDE_LLAMA], ids=["GPT-2", "Llama"])
def test_llama_cpp_goes_on_with_the_same_text(path, config, kind):
    """… its products of F16, BF16 and Q8_0 round activations as well: its first token is ours."""
    import llama_cpp

    tokenizer = Tokenizer.train([TEXT], 300, ["<|endoftext|>"])
    sizes = {"vocab_size": tokenizer.vocab_size, config.context_field: 64}
    model = (GPT if config is WIDE else Llama)(dataclasses.replace(config, **sizes), seed=7)
    for array in model.parameters.values():
        array *= 3 if array.ndim == 2 else 1  # so that choices are clear
    save_gguf(model, tokenizer, path, kind)
    theirs = llama_cpp.Llama(str(path), n_ctx=64, verbose=False)
    ids = theirs.tokenize(TEXT[:20].encode(), add_bos=False)
    assert ids == tokenizer.encode(TEXT[:20])
    count = 20 if kind == "F32" else 1
    expected = load_model(path).generate(ids, max_new_tokens=count, eos_token_id=[])[0]
    assert [*ids, *itertools.islice(theirs.generate(ids, temp=0.0), count)] == expected.tolist()


@pytest.mark.parametrize("pattern", sorted(set(PATTERNS.values())))
def test_the_tokenizer_comes_with_it(path, pattern):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer.train([TEXT], 300, special, pattern=pattern)
    tokenizer.eos_token, tokenizer.bos_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.ignore_merges = pattern == "llama3"
    tokenizer.normalizer = "NFC" if pattern == "qwen2" else None
    size = tokenizer.vocab_size + 7  # a table may be padded
    ends = [tokenizer.eos_token_id, 3]
    model = GPT(dataclasses.replace(WIDE, vocab_size=size, eos_token_id=ends))
    save_gguf(model, tokenizer, path, "F16")
    loaded, again = numgpt.load(path)
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert again.pattern.name == pattern
    for name in ("special_tokens", "bos_token", "eos_token", "chat_template", "add_bos_token"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    assert sorted(loaded.config.eos_token_id) == sorted(ends)


def test_a_model_in_fewer_bits_is_written_as_what_it_is(path, tmp_path):
    GPT(WIDE, seed=6).save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model", dtype="int8")
    save_gguf(model, None, path, "F32")
    loaded = load_model(path)
    for name, array in model.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[name], np.asarray(array), name)
    again = load_model(path, dtype="int8")
    assert again.parameters.nbytes == model.parameters.nbytes


@pytest.mark.parametrize(
    ("ends", "eos", "expected"),
    [
        ([], None, []),
        ([], "<|b|>", ["<|b|>"]),
        (["<|a|>"], None, ["<|a|>"]),
        (["<|a|>"], "<|b|>", ["<|a|>"]),
        (["<|a|>", "<|b|>"], "<|b|>", ["<|a|>", "<|b|>"]),
        (["<|a|>", "<|b|>", "<|c|>"], None, ["<|a|>", "<|b|>", "<|c|>"]),
    ],
)
def test_what_ends_a_text_is_kept(path, ends, eos, expected):
    tokenizer = Tokenizer.train([TEXT], 302, ["<|a|>", "<|b|>", "<|c|>"])
    tokenizer.eos_token = eos
    ids = [tokenizer.special_tokens[end] for end in ends]
    ids = ids if len(ids) > 1 else ids[0] if ids else None
    model = GPT(dataclasses.replace(WIDE, vocab_size=tokenizer.vocab_size, eos_token_id=ids))
    save_gguf(model, tokenizer, path, "F16")
    read = load_model(path).config.eos_token_id
    read = read if isinstance(read, list) else [] if read is None else [read]
    assert read == sorted(tokenizer.special_tokens[end] for end in expected)


def other_tokenizer(**changes):
    tokenizer = Tokenizer.train([TEXT], 300, ["<|a|>"])
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (other_tokenizer(add_prefix_space=True), "can't say the tokenizer's add_prefix_space"),
        (other_tokenizer(normalizer="NFC"), "can't say the tokenizer's normalizer"),
        (other_tokenizer(ignore_merges=True), "can't say the tokenizer's ignore_merges"),
        (Tokenizer.train([TEXT], 310), "310 tokens, the model's table 300: GGUF has no place"),
    ],
)
def test_a_tokenizer_that_would_be_read_otherwise_is_refused(path, tokenizer, message):
    model = GPT(dataclasses.replace(WIDE, vocab_size=300))
    with pytest.raises(ValueError, match=message):
        save_gguf(model, tokenizer, path, "F16")
    assert not path.exists()


def adapted():
    model = GPT(WIDE)
    model.add_adapter(LoRAConfig(2, 4))
    return model


LARGE = GPT(WIDE)
LARGE.parameters["wte"][0] = 1e8
DAMAGED = GPT(WIDE)
DAMAGED.parameters["wte"][0, 0] = np.nan
OF_QWEN3 = dataclasses.replace(WIDE_LLAMA, model_type="qwen3", attention_bias=True)
BIASED = dataclasses.replace(WIDE_LLAMA, model_type="qwen2", attention_bias=True, mlp_bias=True)
SHAKESPEARE = CharTokenizer.train(["abc"])
WRONG = {
    "an activation": (small_model("relu"), None, "F32", "activation_function='relu': GGUF can't"),
    "a scale": (small_model("scaled_by_layer"), None, "F32", "scaled otherwise than by 1/√D"),
    "no scale": (changed(GPT(WIDE), scale_attn_weights=False), None, "F32", "than by 1/√D"),
    "Qwen3's biases": (Llama(OF_QWEN3), None, "F32", "a Qwen3 in GGUF has no biases"),
    "a type": (GPT(WIDE), None, "Q4_0", "gguf='Q4_0': expected F32, F16, BF16, Q8_0"),
    "an adapter": (adapted(), None, "F32", "merge_adapter.. first"),
    "a width": (small_model("default"), None, "Q8_0", "rows of [0-9]+, and Q8_0 blocks of 32"),
    "a tokenizer": (GPT(WIDE), SHAKESPEARE, "F32", "only byte-level BPE"),
    "a number": (LARGE, None, "F16", "token_embd.weight holds values beyond float16"),
    "a scale of a block": (LARGE, None, "Q8_0", "token_embd.weight holds values beyond float16"),
    "no number": (DAMAGED, None, "F32", "token_embd.weight holds NaN or infinity"),
    "biases": (Llama(BIASED), None, "F32", "a Qwen2 in GGUF has biases of queries, keys"),
    "four ends": (
        GPT(dataclasses.replace(WIDE, vocab_size=300, eos_token_id=[1, 2, 3, 4])),
        other_tokenizer(),
        "F32",
        "GGUF has room for 3",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_can_not_be_said_is_refused(path, name):
    model, tokenizer, kind, message = WRONG[name]
    with pytest.raises((ValueError, OverflowError), match=message):
        save_gguf(model, tokenizer, path, kind)
    assert not list(path.parent.iterdir())
