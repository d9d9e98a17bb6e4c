"""DATA -> BETTER WEIGHTS. The step and the loop, AdamW, checkpoints, log."""

from numgpt.lazy import lazy_names

_MODULES = {"AdamW": "adamw", "Trainer": "loop", "TrainingError": "tasks", "learning_rate": "step"}
_MODULES |= {"TrainConfig": "config", "RewardError": "rewards"}
_MODULES |= dict.fromkeys(("DPOConfig", "KTOConfig", "RewardConfig", "TuneConfig"), "tune_config")
_MODULES |= dict.fromkeys(("GRPOConfig", "PPOConfig"), "rollout_config")
_MODULES |= dict.fromkeys(("Note", "Progress", "Report", "Sample", "Saved"), "records")

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
