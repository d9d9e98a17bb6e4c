"""THE WIRING. A model is a page of layer calls forward, then the mirror page backward."""

from numgpt.models.gpt2 import GPT, GPTConfig
from numgpt.models.kv_cache import KVCache
from numgpt.models.language_model import LanguageModel
from numgpt.models.llama import Llama, LlamaConfig
from numgpt.models.lora import LoRAConfig
from numgpt.models.parameters import Gradients, Parameters

__all__ = [
    "GPT",
    "GPTConfig",
    "Gradients",
    "KVCache",
    "LanguageModel",
    "Llama",
    "LlamaConfig",
    "LoRAConfig",
    "Parameters",
]
