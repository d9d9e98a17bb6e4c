"""GPT-2's names and config fields in Hugging Face's files <-> ours."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from numgpt.formats.family import Family
from numgpt.messages import shown
from numgpt.models.gpt2 import GPT, GPTConfig

END_OF_TEXT_ID = 50256  # of <|endoftext|> in GPT-2's vocabulary

# Our parameters carry Hugging Face's names without the "transformer." prefix; these three differ by
# a ".weight".
_STORED_TABLES = {"wte": "wte.weight", "wpe": "wpe.weight", "lm_head": "lm_head.weight"}
_OUR_TABLES = {stored: ours for ours, stored in _STORED_TABLES.items()}
# The causal mask, which older files store beside the weights.
_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")

# What a config.json may say beyond our fields only if it says what we do anyway.
_REQUIRED = {"add_cross_attention": False, "is_encoder_decoder": False}


def stored_name(name: str) -> str:
    """Our name -> the name in the file."""
    name = _STORED_TABLES.get(name, name)
    return name if name.startswith("lm_head") else f"transformer.{name}"


def our_name(stored: str, config: GPTConfig) -> str | None:
    """The name in a file, with or without its prefix -> ours; None for what is not a parameter."""
    name = stored.removeprefix("transformer.")
    if _BUFFER.fullmatch(name) or (name == "lm_head.weight" and config.tie_word_embeddings):
        return None
    return _OUR_TABLES.get(name, name)


def config_from(fields: dict[str, Any]) -> GPTConfig:
    """config.json -> GPTConfig.  Raises ValueError naming a field whose value is not supported."""
    for name, value in _REQUIRED.items():
        if fields.get(name, value) != value:
            raise ValueError(f"{name}={shown(fields[name])} is not supported")
    names = {field.name for field in dataclasses.fields(GPTConfig)}
    return GPTConfig(**{name: value for name, value in fields.items() if name in names})


def config_fields(config: GPTConfig) -> dict[str, Any]:
    """GPTConfig -> config.json."""
    return {"architectures": ["GPT2LMHeadModel"], **dataclasses.asdict(config)}


def is_linear(name: str) -> bool:
    """Whether a parameter is the matrix of a linear layer: all of them are (in, out)."""
    return name.startswith("h.") and name.endswith(
        ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    )


def end_of_text_id(vocab_size: int) -> int | None:
    """The token that ends a text, where the vocabulary can be GPT-2's."""
    return END_OF_TEXT_ID if vocab_size > END_OF_TEXT_ID else None


FAMILY = Family(
    "gpt2", GPT, config_from, config_fields, stored_name, our_name, is_transposed=is_linear
)
