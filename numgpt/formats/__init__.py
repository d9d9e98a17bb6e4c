"""FILES <-> ARRAYS. Models in files of every format; their names <-> ours.

containers     safetensors, pytorch, tensorflow, gguf (with quantised): files -> stored tensors
sources        huggingface, openai, nanogpt, llmc, llamacpp: what a model in them is
families       gpt2, llama: names and config fields
peft           adapters
loading        which of them it is; source brings the tensors into a model
"""

from numgpt.formats.huggingface import save_model
from numgpt.formats.loading import (
    is_reward_model,
    load,
    load_model,
    load_tokenizer,
    open_model,
    read_model,
)
from numgpt.formats.names import SHIPPED, resolve
from numgpt.formats.peft import load_adapter, save_adapter
from numgpt.formats.safetensors import read_safetensors, write_safetensors

__all__ = [
    "SHIPPED",
    "is_reward_model",
    "load",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "open_model",
    "read_model",
    "read_safetensors",
    "resolve",
    "save_adapter",
    "save_model",
    "write_safetensors",
]
