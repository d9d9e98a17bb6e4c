"""DATA -> BETTER WEIGHTS. The step and the loop, AdamW, checkpoints, log."""

from numgpt.lazy import lazy_names

_MODULES = {
    "AdamW": "adamw",
    "TrainConfig": "config",
    "DPOConfig": "tune_config",
    "KTOConfig": "tune_config",
    "TuneConfig": "tune_config",
    "Trainer": "loop",
    "TrainingError": "tasks",
    "RewardError": "rewards",
    "GRPOConfig": "rollout_config",
    "PPOConfig": "rollout_config",
    "RewardConfig": "tune_config",
    "learning_rate": "step",
    "Note": "records",
    "Progress": "records",
    "Report": "records",
    "Sample": "records",
    "Saved": "records",
}

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
