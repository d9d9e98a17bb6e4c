"""IDS -> MORE IDS. Logits processors, sequences that decode together, streaming, chat."""

from numgpt.generation.batcher import Batcher, Sequence
from numgpt.generation.decode import GenerateOutput, LengthWarning, generate, generate_each, stream
from numgpt.generation.options import GenerationOptions
from numgpt.generation.processors import process_logits
from numgpt.generation.scoring import Score, score
from numgpt.lazy import lazy_names

__all__ = [
    "Batcher",
    "Chat",
    "GenerateOutput",
    "GenerationOptions",
    "LengthWarning",
    "Score",
    "Sequence",
    "generate",
    "generate_each",
    "process_logits",
    "score",
    "stream",
]
__getattr__, __dir__ = lazy_names(__name__, {"Chat": "chat"})
