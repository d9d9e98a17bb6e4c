"""The options of every kind of run, by the name that its checkpoint has for it."""

from numgpt.training.config import RunConfig, TrainConfig
from numgpt.training.rollout_config import GRPOConfig, PPOConfig
from numgpt.training.tune_config import DPOConfig, KTOConfig, RewardConfig, TuneConfig

CONFIGS: dict[str, type[RunConfig]] = {
    config.kind: config
    for config in (
        *(TrainConfig, TuneConfig, DPOConfig, KTOConfig),
        *(RewardConfig, GRPOConfig, PPOConfig),
    )
}
