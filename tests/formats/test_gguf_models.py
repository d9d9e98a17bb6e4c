"""Whole models in GGUF as llama.cpp lays them out: weights, sizes, tokenizer, chat template."""

import dataclasses

import numpy as np
import pytest
from formats.gguf_writer import (
    QUANTISED,
    gguf_file,
    metadata_of,
    model_gguf,
    random_blocks,
    tensors_of,
    tokenizer_metadata,
)
from models.references import (
    EVERY_CONFIG,
    LLAMA3_SCALING,
    assert_same,
    batch,
    small_model,
    their_logits,
)
from support import refused

import numgpt
from numgpt import GPT, GPTConfig, Llama, LlamaConfig, Tokenizer
from numgpt.formats import load_model
from numgpt.formats.llamacpp import PATTERNS
from numgpt.formats.quantised import BLOCKS

# Those whose numbers llama.cpp can't give: GPT-2's activation there is the tanh approximation, its
# scores are scaled by 1/sqrt(D), Llama 3's frequencies are those of the published models.
INEXPRESSIBLE = ("gelu", "relu", "scaled_by_layer", "llama_scaled_rope")
BIASED = ("llama_biases",)  # transformers ignores a Llama's biases in GGUF
EXPRESSIBLE = [name for name in EVERY_CONFIG if name not in INEXPRESSIBLE]
SCALING = LLAMA3_SCALING | {"original_max_position_embeddings": 8192}
SCALED = {"rope_scaling": SCALING, "rope_theta": 500000.0}
TEXT = "Once upon a time a hen ran in the sun.\n\nOnce more it's 1234567 o'clock, naïve café! " * 3


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


def written(path, model, metadata=None, **options):
    path.write_bytes(model_gguf(model, metadata, **options))
    return path


def changed(model, **fields):
    """A model of the same family, its config changed."""
    return type(model)(dataclasses.replace(model.config, **fields), seed=7)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_gives_the_model_that_was_written(path, name, version):
    model = small_model(name)
    loaded = load_model(written(path, model, version=version))
    assert_same(loaded, model)
    tied = model.config.tie_word_embeddings
    assert loaded.config.tie_word_embeddings == tied


@pytest.mark.parametrize("kind", ["F16", "BF16", "F64"])
@pytest.mark.parametrize("name", ["untied", "llama_grouped"])
def test_reads_other_floats(path, name, kind):
    model = small_model(name)
    flat = model.parameters.flat
    if kind == "F16":
        flat[:] = flat.astype(np.float16)
    elif kind == "BF16":
        flat.view(np.uint32)[:] &= 0xFFFF0000
    assert_same(load_model(written(path, model, kind=kind)), model)


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_reads_quantised_matrices(path, family, kind):
    """They equal a model of the weights that the blocks stand for (proved in test_quantised.py)."""
    width = QUANTISED[kind][1]
    if family == "gpt2":
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": width, "n_positions": 8, "n_inner": width}
        model = GPT(GPTConfig(**sizes, vocab_size=11))
    else:
        sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
        sizes |= {"hidden_size": width, "head_dim": width // 2, "intermediate_size": width}
        model = Llama(LlamaConfig(**sizes, vocab_size=11))
    rng, blocks, floats = np.random.default_rng(3), [], []
    for name, _, shape, raw in tensors_of(model):
        if len(shape) == 2:
            made = random_blocks(kind, int(np.prod(shape)) // width, rng)
            blocks.append((name, kind, shape, made.tobytes()))
            floats.append((name, "F32", shape, BLOCKS[kind][2](made).tobytes()))
        else:
            blocks.append((name, "F32", shape, raw))
            floats.append(blocks[-1])
    path.write_bytes(gguf_file(metadata_of(model), floats))
    expected = load_model(path)
    other = path.with_name("quantised.gguf")
    other.write_bytes(gguf_file(metadata_of(model), blocks))
    loaded = load_model(other)
    for name, array in loaded.parameters.items():
        np.testing.assert_array_equal(array, expected.parameters[name], err_msg=name)
        assert array.ndim == 1 or np.ptp(array) > 0


def test_llama3s_scaling_comes_from_the_factors(path):
    model = changed(small_model("llama_scaled_rope"), **SCALED)
    loaded = load_model(written(path, model))
    assert loaded.config.rope_scaling == SCALING
    np.testing.assert_array_equal(loaded.config.frequencies(), model.config.frequencies())
    assert_same(loaded, model)
    assert load_model(written(path, small_model("llama"))).config.rope_scaling is None


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_llama3s_frequencies_equal_those_of_transformers(path, factor, head_dim):
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = SCALING | {"factor": factor}
    fields = {"rope_scaling": scaling, "head_dim": head_dim, "num_hidden_layers": 1}
    model = changed(small_model("llama"), **(SCALED | fields))
    loaded = load_model(written(path, model))
    theirs = transformers.LlamaConfig(
        head_dim=head_dim, rope_parameters=scaling | {"rope_theta": 500000.0}
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, device="cpu")
    np.testing.assert_allclose(loaded.config.frequencies(), expected.numpy(), rtol=1e-6)


@pytest.mark.live("gguf", "accelerate", "torch", "transformers")
@pytest.mark.parametrize("kind", ["F32", "F16"])
@pytest.mark.parametrize("name", [n for n in EXPRESSIBLE if n not in BIASED])
def test_equals_transformers_on_the_same_file(path, name, kind):
    import torch
    import transformers

    model = small_model(name)
    if isinstance(model, GPT):  # transformers reads neither GPT-2's context nor its inner width
        model = changed(model, n_positions=1024, n_inner=None)
    if name.startswith("llama_qwen3"):  # … nor the size of its heads
        model = changed(model, head_dim=128)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokens = [f"t{id}" for id in range(model.config.vocab_size)]
    written(path, model, {"tokenizer.ggml.tokens": ("array", ("str", tokens))}, kind=kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    ids, _ = batch(model.config, (2, 9))
    expected = their_logits(theirs, ids)
    difference = np.abs(load_model(path)(ids) - expected).max()
    assert difference <= 1e-4 * np.abs(expected).max()


# Tokenizers


def trained(pre, **options):
    """A tokenizer whose pieces are those of llama.cpp's `pre`, with two special tokens."""
    pattern = PATTERNS[pre]
    learnt = Tokenizer.train(TEXT, 330, special_tokens=("<s>", "</s>"), pattern=pattern)
    return Tokenizer(
        learnt.vocabulary,
        learnt.merges,
        learnt.special_tokens,
        pattern,
        normalizer="NFC" if pattern == "qwen2" else None,
        ignore_merges=pattern == "llama3",
        bos_token="<s>",
        eos_token="</s>",
        **options,
    )


@pytest.mark.parametrize("add_bos_token", [False, True])
@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "smollm", "qwen2", "smaug-bpe"])
def test_load_gives_the_tokenizer_that_was_written(path, pre, add_bos_token):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer = trained(pre, add_bos_token=add_bos_token, chat_template=template)
    model = changed(small_model("llama_grouped"), vocab_size=tokenizer.vocab_size)
    written(path, model, tokenizer_metadata(tokenizer, pre, add_bos_token))
    for place in (path, path.parent):
        loaded, read = numgpt.load(place)
        assert_same(loaded, model)
        same = ("vocabulary", "merges", "special_tokens", "normalizer", "ignore_merges")
        same += ("bos_token", "eos_token", "add_bos_token", "chat_template", "vocab_size")
        for field in same:
            assert getattr(read, field) == getattr(tokenizer, field), field
        assert read.pattern.name == tokenizer.pattern.name
        text = TEXT + "<s>Ünseen 98765\u0301 \r\n\t words</s>"
        for allowed in ((), "all"):
            ids = tokenizer.encode(text, allowed, add_special_tokens=True)
            assert read.encode(text, allowed, add_special_tokens=True) == ids
        ends = loaded.config.bos_token_id, loaded.config.eos_token_id
        assert ends == (tokenizer.special_tokens["<s>"], tokenizer.special_tokens["</s>"])


def test_without_a_pre_the_family_tells(path):
    """Older files do not name it: of a Qwen2 it can be one alone."""
    tokenizer = trained("qwen2")
    model = changed(small_model("llama_qwen2"), vocab_size=tokenizer.vocab_size)
    metadata = tokenizer_metadata(tokenizer, "qwen2", False)
    del metadata["tokenizer.ggml.pre"]
    _, read = numgpt.load(written(path, model, metadata))
    assert (read.pattern.name, read.normalizer) == ("qwen2", "NFC")
    # What is no token's number, -1 in 32 bits, says that there is none.
    metadata["tokenizer.ggml.bos_token_id"] = ("u32", 0xFFFFFFFF)
    metadata["tokenizer.ggml.eos_token_id"] = ("u32", 0xFFFFFFFF)
    loaded, read = numgpt.load(written(path, model, metadata))
    assert loaded.config.bos_token_id is loaded.config.eos_token_id is None
    assert read.bos_token is read.eos_token is None


def test_both_tokens_that_end_a_turn_or_a_text_end_generation(path):
    tokenizer = trained("llama-bpe")
    model = changed(small_model("llama_grouped"), vocab_size=tokenizer.vocab_size)
    metadata = tokenizer_metadata(tokenizer, "llama-bpe")
    metadata |= {"tokenizer.ggml.eot_token_id": ("u32", 7)}
    loaded, _ = numgpt.load(written(path, model, metadata))
    assert loaded.config.eos_token_id == [7, tokenizer.eos_token_id]


# What is refused


def without(name):
    return lambda metadata, tensors: metadata.pop(name)


def with_(name, kind, value):
    return lambda metadata, tensors: metadata.update({name: (kind, value)})


def tensor(stored, **changes):
    """Change name, kind, shape or raw values of this tensor; without changes remove it."""

    def damage(metadata, tensors):
        place = [name for name, *_ in tensors].index(stored)
        fields = dict(zip(("name", "kind", "shape", "raw"), tensors[place], strict=True))
        tensors[place : place + 1] = [tuple((fields | changes).values())] if changes else []

    return damage


FACTORS = ("rope_freqs.weight", "F32", (2,), np.array([1, 8], "<f4").tobytes())
L = "llama"
TABLE, NORM, QUERIES = "token_embd.weight", "output_norm.weight", "blk.1.attn_q.weight"
BAD = {
    "architecture": (with_("general.architecture", "str", "mamba"), r"architecture='mamba'"),
    "no architecture": (without("general.architecture"), "lacks .*general.architecture"),
    "number": (with_("general.architecture", "u32", 3), "general.architecture is '3', exp.* str"),
    "layers": (with_(f"{L}.block_count", "u32", 1 << 31), "num_hidden_layers=2147483648"),
    "one layer": (with_(f"{L}.block_count", "u32", 1), r"'blk\.1\.\w+\.weight' has no place"),
    "no layers": (with_(f"{L}.block_count", "u32", 0), "num_hidden_layers=0"),
    "lacks": (without(f"{L}.block_count"), r"lacks .*'llama\.block_count'"),
    "text": (with_(f"{L}.block_count", "str", "2"), r"llama\.block_count is '2', expected int"),
    "bool": (with_(f"{L}.block_count", "bool", True), r"llama\.block_count is 'True'"),
    "width": (with_(f"{L}.embedding_length", "u64", 1 << 60), r"token_embd\.weight' has shape"),
    "heads": (with_(f"{L}.attention.head_count", "u64", 1 << 60), r"attn_q\.weight' has shape"),
    "list": (
        with_(f"{L}.attention.head_count_kv", "array", ("i32", [2] * 500)),
        r"llama\.attention\.head_count_kv is '\[2 2",
    ),
    "head": (with_(f"{L}.attention.key_length", "u64", 1 << 60), "llama.rope.dimension_count=4"),
    "eps": (with_(f"{L}.attention.layer_norm_rms_epsilon", "f32", float("nan")), "rms_norm_eps"),
    "theta": (with_(f"{L}.rope.freq_base", "f32", float("inf")), "rope_theta=inf"),
    "scaling": (with_(f"{L}.rope.scaling.type", "str", "yarn"), r"rope\.scaling\.type='yarn'"),
    "rotation": (with_(f"{L}.rope.dimension_count", "u32", 2), r"rope\.dimension_count=2"),
    "values": (with_(f"{L}.attention.value_length", "u32", 8), r"attention\.value_length=8"),
    "window": (with_(f"{L}.attention.sliding_window", "u32", 8), "sliding_window is not"),
    "experts": (with_(f"{L}.expert_count", "u32", 8), "mixture of experts"),
    "split": (with_("split.count", "u16", 2), "one of several shards"),
    "bos": (with_("tokenizer.ggml.bos_token_id", "i32", -1), "bos_token_id=-1"),
    "eos": (with_("tokenizer.ggml.eos_token_id", "i32", -2), "eos_token_id=-2"),
    "no table": (tensor(TABLE), r"lack 'token_embd\.weight'"),
    "no norm": (tensor(NORM), r"lack 'output_norm\.weight'"),
    "no queries": (tensor(QUERIES), r"lack 'blk\.1\.attn_q\.weight'"),
    "surplus": (tensor(QUERIES, name="blk.9.x"), r"'blk\.9\.x' has no place"),
    "another's name": (tensor(NORM, name="norm.weight"), r"'norm\.weight' has no place"),
    "flat table": (tensor(TABLE, shape=(), raw=bytes(4)), r"'token_embd\.weight' has shape \[\]"),
    "whole numbers": (tensor(NORM, kind="I32"), r"'output_norm\.weight' is stored as I32"),
    "nan": (tensor(NORM, raw=b"\xff" * 64), r"'output_norm\.weight' holds NaN"),
    "few factors": (lambda m, t: t.append((*FACTORS[:2], (1,), bytes(4))), r"rope_freqs.* \[1\]"),
    "no factors": (lambda m, t: t.append((*FACTORS[:3], bytes(8))), "holds what is no factor"),
    "nan factors": (lambda m, t: t.append((*FACTORS[:3], b"\xff" * 8)), "is no factor"),
    "other factors": (lambda m, t: t.append(FACTORS), "not the scaling of Llama 3"),
    "factors of huge heads": (
        lambda m, t: (
            t.append(FACTORS),
            [m.pop(f"llama.{name}") for name in ("rope.dimension_count", "attention.value_length")],
            m.update({"llama.attention.key_length": ("u64", 1 << 40)}),
        ),
        "rope_freqs.* 1099511627776",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BAD.values(), ids=BAD)
def test_refuses_what_does_not_fit(path, damage, message):
    model = small_model("llama_grouped")
    metadata, tensors = metadata_of(model), tensors_of(model)
    damage(metadata, tensors)
    path.write_bytes(gguf_file(metadata, tensors))
    said = refused(lambda: load_model(path), message, path)
    assert said.startswith(str(path))
    assert len(said) < 400 + len(str(path))


TOKENS = ("array", ("str", ["a"]))
BAD_TOKENIZERS = {
    "sentencepiece": ({"model": ("str", "llama")}, r"ggml\.model='llama' \(SentencePiece\)"),
    "pre": ({"pre": ("str", "falcon")}, r"tokenizer\.ggml\.pre='falcon'"),
    "numbers": ({"tokens": ("array", ("i32", [1, 2]))}, r"tokenizer\.ggml\.tokens is '\[1 2\]'"),
    "merges": ({"merges": ("array", ("str", ["a b c"]))}, "merge 0 is 'a b c'"),
    "merge": ({"merges": ("array", ("str", ["zq qz"]))}, "merge 0 joins"),
    "types": ({"token_type": ("array", ("i32", [1]))}, r"token_type has 1 entries, tokens \d+$"),
    "few": ({"tokens": TOKENS, "token_type": ("array", ("i32", [1]))}, "merge 0|lacks the byte"),
    "bos": ({"bos_token_id": ("u32", 0)}, "bos_token='!' is not one of the special"),
    "bos text": ({"bos_token_id": ("str", "0")}, r"bos_token_id is '0', expected int"),
    "no bos": ({"add_bos_token": ("u8", 1)}, r"add_bos_token is '1', expected bool"),
    "template": ({"chat": ("u8", 1)}, r"tokenizer\.chat_template is '1', expected str"),
}


@pytest.mark.parametrize(("fields", "message"), BAD_TOKENIZERS.values(), ids=BAD_TOKENIZERS)
def test_refuses_tokenizers_that_it_can_not_run(path, fields, message):
    tokenizer = trained("gpt-2")
    model = changed(small_model("default"), vocab_size=tokenizer.vocab_size)
    metadata = tokenizer_metadata(tokenizer, "gpt-2")
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    if "chat" in fields:
        metadata["tokenizer.chat_template"] = fields["chat"]
    written(path, model, metadata)
    assert refused(lambda: numgpt.load(path), message, path).startswith(str(path))
