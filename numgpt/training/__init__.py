"""DATA -> BETTER WEIGHTS. Corpus and batches, AdamW, schedule, loop, checkpoints, log.

The names below are imported when first used, so that `import numgpt` need not wait for the loop.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "AdamW": "adamw",
    "Corpus": "corpus",
    "TrainConfig": "config",
    "Trainer": "loop",
    "TrainingError": "loop",
    "learning_rate": "schedule",
    "prepare_corpus": "corpus",
}

__all__ = list(_MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
