"""The kinds of runs: how each begins, and what it trains on."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from numgpt.training import pretraining, tuning
from numgpt.training.config import RunConfig, TrainConfig
from numgpt.training.grpo import Groups
from numgpt.training.judgements import Judgements
from numgpt.training.ppo import ActorCritic
from numgpt.training.preferences import Preferences
from numgpt.training.reward_model import RewardModel
from numgpt.training.rollout_config import GRPOConfig, PPOConfig
from numgpt.training.starting import Prepare
from numgpt.training.tasks import RunTask
from numgpt.training.tune_config import DPOConfig, KTOConfig, RewardConfig, TuneConfig


class Kind(NamedTuple):
    prepare: Prepare[Any]
    task: type[RunTask]


KINDS: dict[type[RunConfig], Kind] = {
    TrainConfig: Kind(pretraining.prepare, pretraining.Text),
    TuneConfig: Kind(partial(tuning.prepare, tuning.Examples), tuning.Examples),
    DPOConfig: Kind(partial(tuning.prepare, Preferences), Preferences),
    KTOConfig: Kind(partial(tuning.prepare, Judgements), Judgements),
    RewardConfig: Kind(partial(tuning.prepare, RewardModel), RewardModel),
    GRPOConfig: Kind(partial(tuning.prepare, Groups), Groups),
    PPOConfig: Kind(partial(tuning.prepare, ActorCritic), ActorCritic),
}
