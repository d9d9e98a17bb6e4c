"""Writes GGUF from the description of the format, and models as llama.cpp's converter lays them
out, for the tests, good and bad."""

import math
import struct

import numpy as np

from numgpt import GPT
from numgpt.models import LanguageModel
from numgpt.tokenizer import Tokenizer
from numgpt.tokenizer.byte_alphabet import to_printable

# Types of metadata by name: number, form of a scalar.
KINDS = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I")}
KINDS |= {"i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?"), "str": (8, ""), "array": (9, "")}
KINDS |= {"u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}

# Types of tensors by name: number, weights in a block, its bytes.
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "F64": (28, 1, 8)}
TYPES |= {"I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4), "I64": (27, 1, 8)}
QUANTISED = {"Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24)}
QUANTISED |= {"Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176)}
QUANTISED |= {"Q6_K": (14, 256, 210)}
TYPES |= QUANTISED
# Where in a block its float16 scale is, and its float16 minimum.
SCALES = dict.fromkeys(QUANTISED, (0,)) | dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))
SCALES["Q6_K"] = (208,)

Tensor = tuple[str, str, tuple[int, ...], bytes]  # name, type, shape in C order, raw values
Metadata = dict[str, tuple[str, object]]  # name -> type, value; an array's value is again a pair


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data)) + data


def payload(kind: str, value: object) -> bytes:
    if kind == "str":
        return string(value)
    if kind == "array":
        items, values = value
        return u32(KINDS[items][0]) + u64(len(values)) + b"".join(payload(items, v) for v in values)
    return struct.pack("<" + KINDS[kind][1], value)


def entry(name: str | bytes, kind: str, value: object) -> bytes:
    """A metadata entry."""
    return string(name) + u32(KINDS[kind][0]) + payload(kind, value)


def tensor_entry(name: str | bytes, code: int, shape: tuple[int, ...], offset: int) -> bytes:
    axes = b"".join(map(u64, shape[::-1]))
    return string(name) + u32(len(shape)) + axes + u32(code) + u64(offset)


def header(
    entries: list[bytes],
    tensors: list[bytes],
    version: int = 3,
    tensor_count: int | None = None,
    entry_count: int | None = None,
) -> bytes:
    """All before the padding; the counts are those of the lists unless said otherwise."""
    counts = [len(tensors) if tensor_count is None else tensor_count]
    counts += [len(entries) if entry_count is None else entry_count]
    return b"GGUF" + u32(version) + b"".join(map(u64, counts)) + b"".join([*entries, *tensors])


def padded(data: bytes, alignment: int) -> bytes:
    return data.ljust(-(-len(data) // alignment) * alignment, b"\0")


def gguf_file(metadata: Metadata, tensors: list[Tensor], version: int = 3) -> bytes:
    """A whole file."""
    alignment = metadata.get("general.alignment", ("u32", 32))[1]
    infos, data = [], b""
    for name, kind, shape, raw in tensors:
        code, block_size, block_bytes = TYPES[kind]
        assert len(raw) == math.prod(shape) // block_size * block_bytes
        infos.append(tensor_entry(name, code, shape, len(data)))
        data = padded(data + raw, alignment)
    entries = [entry(name, kind, value) for name, (kind, value) in metadata.items()]
    return padded(header(entries, infos, version), alignment) + data


def random_blocks(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Blocks (count, bytes) with any quantised weights and small finite scales."""
    _, _, size = QUANTISED[kind]
    blocks = rng.integers(0, 256, (count, size), np.uint8)
    for place in SCALES[kind]:
        scales = rng.normal(scale=0.01, size=(count, 1)).astype("<f2")
        blocks[:, place : place + 2] = scales.view(np.uint8)
    return blocks


def golden_blocks(kind: str) -> np.ndarray:
    """Those whose weights the gguf package has answered."""
    return random_blocks(kind, 3 if QUANTISED[kind][1] == 256 else 24, np.random.default_rng(8))


def record() -> dict[str, np.ndarray]:
    """The gguf package's weights of those blocks: for goldens/record.py."""
    import gguf

    return {
        kind: gguf.dequantize(golden_blocks(kind), gguf.GGMLQuantizationType[kind])
        for kind in QUANTISED
    }


def as_type(array: np.ndarray, kind: str) -> bytes:
    """Raw values in a type that holds floats."""
    if kind == "BF16":  # cut off, not rounded: the tests' values are multiples of what it holds
        return (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return array.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[kind]).tobytes()


# Our names -> llama.cpp's.
GPT2_NAMES = {"wte": "token_embd.weight", "wpe": "position_embd.weight", "ln_f": "output_norm"}
GPT2_NAMES |= {"lm_head": "output.weight", "ln_1": "attn_norm", "attn.c_attn": "attn_qkv"}
GPT2_NAMES |= {"attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up"}
GPT2_NAMES |= {"mlp.c_proj": "ffn_down"}
LLAMA_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
LLAMA_NAMES |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
LLAMA_NAMES |= {f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"}
LLAMA_NAMES |= {"self_attn.o_proj": "attn_output"}
LLAMA_NAMES |= {f"self_attn.{name}_norm": f"attn_{name}_norm" for name in "qk"}
LLAMA_NAMES |= {f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")}


def llama_cpp_name(name: str, names: dict[str, str]) -> str:
    layer = ""
    if name.startswith(("h.", "layers.")):
        _, number, name = name.split(".", 2)
        layer = f"blk.{number}."
    if name in names:
        return layer + names[name]
    part, _, kind = name.rpartition(".")
    return f"{layer}{names[part]}.{kind}"


def in_neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """As in llama.cpp's converter."""
    shape = heads, 2, len(rows) // heads // 2, *rows.shape[1:]
    return rows.reshape(shape).swapaxes(1, 2).reshape(rows.shape)


def frequency_factors(config) -> np.ndarray:
    """By what Llama 3's frequencies are divided, as in llama.cpp's converter."""
    scaling, factors = config.rope_scaling, []
    context = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    for i in range(0, config.head_size, 2):
        wavelength = 2 * math.pi * config.rope_theta ** (i / config.head_size)
        if wavelength < context / high:
            factors.append(1)
        elif wavelength > context / low:
            factors.append(scaling["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def architecture_of(model: LanguageModel) -> str:
    """llama.cpp's name for the family."""
    if isinstance(model, GPT):
        return "gpt2"
    return model.config.model_type


def tensors_of(model: LanguageModel, kind: str = "F32") -> list[Tensor]:
    """The parameters in llama.cpp's names and layout; vectors always in float32."""
    config, tensors = model.config, []
    for name, array in model.parameters.items():
        if isinstance(model, GPT):
            stored = llama_cpp_name(name, GPT2_NAMES)
            if array.ndim == 2 and stored.startswith("blk."):
                array = array.T
        else:
            stored = llama_cpp_name(name, LLAMA_NAMES)
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.kv_heads}
            part = stored.split(".")[-2]
            llama = architecture_of(model) == "llama"  # Qwen2's rows stay in their order
            if part in heads and llama:
                array = in_neighbours(array, heads[part])
        chosen = kind if array.ndim == 2 else "F32"
        tensors.append((stored, chosen, array.shape, as_type(array, chosen)))
    if getattr(config, "rope_scaling", None):
        factors = frequency_factors(config)
        tensors.insert(0, ("rope_freqs.weight", "F32", factors.shape, as_type(factors, "F32")))
    return tensors


def metadata_of(model: LanguageModel) -> Metadata:
    """A model's sizes."""
    c = model.config
    if isinstance(model, GPT):
        return {
            "general.architecture": ("str", "gpt2"),
            "gpt2.block_count": ("u32", c.n_layer),
            "gpt2.context_length": ("u32", c.n_positions),
            "gpt2.embedding_length": ("u32", c.n_embd),
            "gpt2.feed_forward_length": ("u32", c.n_inner or 4 * c.n_embd),
            "gpt2.attention.head_count": ("u32", c.n_head),
            "gpt2.attention.layer_norm_epsilon": ("f32", c.layer_norm_epsilon),
        }
    family = architecture_of(model)
    return {
        "general.architecture": ("str", family),
        f"{family}.block_count": ("u32", c.num_hidden_layers),
        f"{family}.context_length": ("u32", c.max_position_embeddings),
        f"{family}.embedding_length": ("u32", c.hidden_size),
        f"{family}.feed_forward_length": ("u32", c.intermediate_size),
        f"{family}.attention.head_count": ("u32", c.num_attention_heads),
        f"{family}.attention.head_count_kv": ("u32", c.kv_heads),
        f"{family}.attention.key_length": ("u32", c.head_size),
        f"{family}.attention.value_length": ("u32", c.head_size),
        f"{family}.attention.layer_norm_rms_epsilon": ("f32", c.rms_norm_eps),
        f"{family}.rope.dimension_count": ("u32", c.head_size),
        f"{family}.rope.freq_base": ("f32", c.rope_theta),
        f"{family}.vocab_size": ("u32", c.vocab_size),
    }


def tokenizer_metadata(tokenizer: Tokenizer, pre: str, add_bos_token: bool = False) -> Metadata:
    """A byte-level BPE: its tokens in the printable alphabet, special ones as they are."""
    tokens, types = [""] * tokenizer.vocab_size, [1] * tokenizer.vocab_size
    for token, id in tokenizer.vocabulary.items():
        tokens[id] = to_printable(token)
    for token, id in tokenizer.special_tokens.items():
        tokens[id], types[id] = token, 3
    merges = [f"{to_printable(left)} {to_printable(right)}" for left, right in tokenizer.merges]
    metadata: Metadata = {
        "tokenizer.ggml.model": ("str", "gpt2"),
        "tokenizer.ggml.pre": ("str", pre),
        "tokenizer.ggml.tokens": ("array", ("str", tokens)),
        "tokenizer.ggml.token_type": ("array", ("i32", types)),
        "tokenizer.ggml.merges": ("array", ("str", merges)),
        "tokenizer.ggml.add_bos_token": ("bool", add_bos_token),
    }
    for end, id in (("bos", tokenizer.bos_token_id), ("eos", tokenizer.eos_token_id)):
        if id is not None:
            metadata[f"tokenizer.ggml.{end}_token_id"] = "u32", id
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = "str", tokenizer.chat_template
    return metadata


def model_gguf(
    model: LanguageModel, metadata: Metadata | None = None, kind: str = "F32", version: int = 3
) -> bytes:
    """A whole model; `metadata` is added to its sizes, or changes them."""
    return gguf_file(metadata_of(model) | (metadata or {}), tensors_of(model, kind), version)
