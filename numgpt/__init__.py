"""GPT, whole, in NumPy: tokenizer, hand-derived backward pass, AdamW, training, generation."""

from numgpt import runtime  # isort: skip  (first: it chooses NumPy's kernels before NumPy loads)
from numgpt.formats import load
from numgpt.generation import Chat, KVCache
from numgpt.models import GPT, GPTConfig, Llama, LlamaConfig
from numgpt.runtime import set_num_threads
from numgpt.tokenizer import CharTokenizer, Tokenizer
from numgpt.training import AdamW

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "AdamW",
    "CharTokenizer",
    "Chat",
    "GPTConfig",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "Tokenizer",
    "load",
    "runtime",
    "set_num_threads",
]
