"""DATA -> BETTER WEIGHTS. AdamW, schedule, loop, checkpoints, log."""

from numgpt.lazy import lazy_names

_MODULES = {
    "AdamW": "adamw",
    "TrainConfig": "config",
    "TuneConfig": "config",
    "Trainer": "loop",
    "TrainingError": "loop",
    "learning_rate": "schedule",
}

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
