"""FILES <-> ARRAYS. Model directories and the files in them; their names <-> ours."""

from numgpt.formats.directory import load, load_model, load_tokenizer, save_model
from numgpt.formats.names import SHIPPED, resolve
from numgpt.formats.safetensors import read_safetensors, write_safetensors

__all__ = [
    "SHIPPED",
    "load",
    "load_model",
    "load_tokenizer",
    "read_safetensors",
    "resolve",
    "save_model",
    "write_safetensors",
]
