"""Defaults that depend on where the weights come from, or on how many examples there are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numgpt.training.tune_config import TuningConfig

# Of training on text, from random weights: nanoGPT's recipe for a CPU; and from another model's.
FROM_NOTHING = {"lr": 1e-3, "steps": 2000, "warmup": 100, "batch_size": 12, "block_size": 64}
FROM_NOTHING |= {"log_every": 100, "eval_every": 250, "sample_every": 500, "save_every": 250}
FROM_A_MODEL = {"lr": 5e-5, "steps": 200, "warmup": 20, "batch_size": 4}
FROM_A_MODEL |= {"log_every": 10, "eval_every": 50, "sample_every": 100, "save_every": 50}
MOST_CONTEXT = 512  # tokens; of a model's own context, when it is tuned without block_size

# Of tuning. By how many examples there are, at most: times that each is seen, batch size, learning
# rate of a whole model. Fewer are seen more often. Found with SmolLM2, see training/README.md.
FEW = ((30, 15, 4, 5e-5), (100, 10, 4, 5e-5), (500, 8, 4, 2e-5))
MANY = (3, 8, 2e-5)
LORA_LR, WARMUP = 1e-3, 0.03
# Of preferences, whatever their number: on SmolLM2 a LoRA at 1e-3 had a loss of 0 after six steps.
PREFERENCES, PREFERENCES_LORA_LR = (2, 4, 2e-6), 1e-4
REWARD, REWARD_LORA_LR = (2, 4, 2e-5), 1e-3  # whose head is new
# Of rollouts; a batch is of prompts, each with all its completions.
ROLLOUTS, ROLLOUTS_LORA_LR = (1, 1, 2e-6), 1e-4
PPO = (1, 8, 2e-6)  # of one completion a prompt
MOST_LENGTH = 1024  # tokens of an example, without max_length


def schedule(config: TuningConfig, examples: int) -> Iterator[dict[str, Any]]:
    """What the options of tuning are where they are not chosen, each part from what the part before
    has settled."""
    few = (values for most, *values in config.few if examples <= most)
    epochs, batch_size, whole_lr = next(few, config.many)
    lr = config.lora_lr if config.lora_r else whole_lr
    yield {"epochs": float(epochs), "batch_size": batch_size, "lr": lr}
    batches_in_epoch = -(-examples // config.batch_size) * config.uses
    steps_in_epoch = max(1, batches_in_epoch // config.grad_accum)
    assert config.epochs is not None
    yield {"steps": max(1, math.ceil(config.epochs * batches_in_epoch / config.grad_accum))}
    eval_every = min(steps_in_epoch, 200)
    yield {
        "warmup": math.ceil(WARMUP * config.steps),
        "log_every": max(1, min(10, config.steps // 10)),
        "eval_every": eval_every,
        "sample_every": eval_every,
        "save_every": min(steps_in_epoch, 50),
    }
