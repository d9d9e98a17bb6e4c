"""DATA -> BETTER WEIGHTS. Corpus and batches, AdamW, schedule, loop, checkpoints, log."""

from numgpt.training.adamw import AdamW
from numgpt.training.config import TrainConfig
from numgpt.training.corpus import Corpus, prepare_corpus
from numgpt.training.loop import Trainer, TrainingError
from numgpt.training.schedule import learning_rate

__all__ = [
    "AdamW",
    "Corpus",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "learning_rate",
    "prepare_corpus",
]
