"""IDS -> MORE IDS. KV cache, logits processors, the decoding loop, streaming."""

from numgpt.generation.decode import (
    GenerateOutput,
    LengthWarning,
    generate,
    generate_each,
    stream,
)
from numgpt.generation.options import GenerationOptions
from numgpt.generation.processors import process_logits
from numgpt.generation.scoring import Score, score
from numgpt.lazy import lazy_names

__all__ = [
    "Chat",
    "GenerateOutput",
    "GenerationOptions",
    "LengthWarning",
    "Score",
    "generate",
    "generate_each",
    "process_logits",
    "score",
    "stream",
]
__getattr__, __dir__ = lazy_names(__name__, {"Chat": "chat"})
