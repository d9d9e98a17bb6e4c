"""GPT, whole, in NumPy: tokenizer, hand-derived backward, AdamW, training, generation, chat."""

from numgpt import launch  # isort: skip

if launch.is_program():
    launch.let_interrupts_end_it()
    launch.warn_in_one_line()

from numgpt import runtime  # isort: skip  (first: it chooses NumPy's kernels before NumPy loads)
from numgpt.layers import gradcheck
from numgpt.lazy import lazy_names
from numgpt.models import GPT, GPTConfig, KVCache, Llama, LlamaConfig, LoRAConfig
from numgpt.runtime import set_num_threads
from numgpt.tokenizer import CharTokenizer, Tokenizer
from numgpt.training import AdamW

__version__ = "0.2.0"

_MODULES = {"Chat": "generation.chat", "insight": "insight"}
_MODULES |= {"formats": "formats", "load": "formats"}

__all__ = [
    "GPT",
    "AdamW",
    "CharTokenizer",
    "Chat",
    "GPTConfig",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "LoRAConfig",
    "Tokenizer",
    "gradcheck",
    "load",
    "runtime",
    "set_num_threads",
]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
