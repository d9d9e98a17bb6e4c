"""The kinds of runs: what each trains on."""

from __future__ import annotations

from numgpt.training.config import RunConfig, TrainConfig
from numgpt.training.grpo import Groups
from numgpt.training.judgements import Judgements
from numgpt.training.ppo import ActorCritic
from numgpt.training.preferences import Preferences
from numgpt.training.pretraining import Text
from numgpt.training.reward_model import RewardModel
from numgpt.training.rollout_config import GRPOConfig, PPOConfig
from numgpt.training.tasks import RunTask
from numgpt.training.tune_config import DPOConfig, KTOConfig, RewardConfig, TuneConfig
from numgpt.training.tuning import Examples

KINDS: dict[type[RunConfig], type[RunTask]] = {
    TrainConfig: Text,
    TuneConfig: Examples,
    DPOConfig: Preferences,
    KTOConfig: Judgements,
    RewardConfig: RewardModel,
    GRPOConfig: Groups,
    PPOConfig: ActorCritic,
}
