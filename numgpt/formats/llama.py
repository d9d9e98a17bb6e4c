"""The Llama family's names and config fields in Hugging Face's files <-> ours."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from numgpt.formats.family import Family
from numgpt.messages import shown
from numgpt.models.llama import Llama, LlamaConfig

# The frequencies of the rotation, which older files store beside the weights.
_BUFFER = re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq|rotary_emb\.inv_freq")

QWEN3_HEAD_SIZE = 128  # where a config.json does not say

# What a config.json may say beyond our fields only if it says what we do anyway.
_REQUIRED = {
    "hidden_act": "silu",
    "pretraining_tp": 1,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "rope_interleave": False,
}


def stored_name(name: str) -> str:
    """Our name -> the name in the file."""
    return name if name.startswith("lm_head") else f"model.{name}"


def our_name(stored: str, config: LlamaConfig) -> str | None:
    """The name in a file, with or without its prefix -> ours; None for what is not a parameter."""
    name = stored.removeprefix("model.")
    if _BUFFER.fullmatch(name) or (name == "lm_head.weight" and config.tie_word_embeddings):
        return None
    return name


def config_from(fields: dict[str, Any]) -> LlamaConfig:
    """config.json -> LlamaConfig.  Raises ValueError naming a field whose value is not
    supported."""
    for name, value in _REQUIRED.items():
        if fields.get(name, value) != value:
            raise ValueError(f"{name}={shown(fields[name])} is not supported")
    # Qwen2's configs name a window that use_sliding_window=False keeps from being used.
    if fields.get("sliding_window") is not None and "use_sliding_window" not in fields:
        raise ValueError(f"sliding_window={shown(fields['sliding_window'])} is not supported")
    kinds = fields.get("layer_types")  # of attention, a layer each, in newer files
    if kinds is not None and (
        not isinstance(kinds, list) or any(k != "full_attention" for k in kinds)
    ):
        raise ValueError(f"layer_types={shown(kinds)} is not supported, only full_attention")
    names = {field.name for field in dataclasses.fields(LlamaConfig)}
    names.discard("attention_output_bias")  # ours alone: Qwen2's files don't name its biases
    config = LlamaConfig(**{name: value for name, value in fields.items() if name in names})
    if config.model_type == "qwen2":
        config.attention_bias, config.attention_output_bias = True, False
    if config.model_type == "qwen3":
        config.head_dim = fields.get("head_dim", QWEN3_HEAD_SIZE)
    # transformers 5 writes one dict where earlier versions have rope_theta and rope_scaling.
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict):
        config.rope_theta = rope.get("rope_theta", config.rope_theta)
        config.rope_scaling = {n: v for n, v in rope.items() if n != "rope_theta"}
    elif rope is not None:
        raise ValueError(f"rope_parameters={shown(rope)} is not supported")
    if isinstance(scaling := config.rope_scaling, dict):
        if scaling.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError("partial_rotary_factor is not supported")
        # Without a type it is the default only if there is nothing else either.
        unsaid = None if scaling.keys() - {"partial_rotary_factor"} else "default"
        kind = scaling.get("rope_type", scaling.get("type", unsaid or ""))
        config.rope_scaling = None if kind == "default" else scaling | {"rope_type": kind}
    return config


def config_fields(config: LlamaConfig) -> dict[str, Any]:
    """LlamaConfig -> config.json."""
    fields = dataclasses.asdict(config) | {"hidden_act": "silu"}
    fields |= {"num_key_value_heads": config.kv_heads, "head_dim": config.head_size}
    del fields["attention_output_bias"]
    saved = config.output_bias == config.attention_bias
    if config.model_type == "qwen2":
        saved = config.attention_bias and not config.output_bias
    if config.model_type != "llama":
        saved = saved and not config.mlp_bias
        fields["use_sliding_window"] = False
    if not saved:
        raise ValueError(
            f"model_type={shown(config.model_type)} with this combination of biases can't be saved:"
            " Hugging Face's Llama has them on all of attention's projections or none, its Qwen2 on"
            " all but the last, its Qwen3 as Llama, and these two on no other"
        )
    return fields | {"architectures": [f"{config.model_type.capitalize()}ForCausalLM"]}


LLAMA, QWEN2, QWEN3 = (
    Family(model_type, Llama, config_from, config_fields, stored_name, our_name)
    for model_type in ("llama", "qwen2", "qwen3")
)
