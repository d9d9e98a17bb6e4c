"""IDS -> MORE IDS. KV cache, logits processors, the decoding loop, streaming."""

from numgpt.generation.decode import LengthWarning, generate, generate_each, stream
from numgpt.generation.options import GenerationOptions
from numgpt.generation.processors import process_logits
from numgpt.lazy import lazy_names

__all__ = [
    "Chat",
    "GenerationOptions",
    "LengthWarning",
    "generate",
    "generate_each",
    "process_logits",
    "stream",
]
__getattr__, __dir__ = lazy_names(__name__, {"Chat": "chat"})
