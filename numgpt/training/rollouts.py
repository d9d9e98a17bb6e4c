"""Rollouts: a policy continues prompts, and what it wrote is rewarded.  grpo.py and ppo.py beside
this file say what is learnt from that.

    prompts → completions, each token with its log π_old   the batcher, by the weights that train
            → rewards                                      rewards.py
            → batches                                      prompts with their completions, padded

log π_old is that of the very distribution that was sampled, at the temperature that the policy is
trained at too, with no token cut out of it (but for ids that the tokenizer does not have). A
completion has a generator of its own, made of the seed and its number, so that a run that goes on
samples what it would have sampled; completions that are used for several steps are in the
checkpoint.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from numgpt.data.batch import IGNORED
from numgpt.data.examples import ExampleEncoder
from numgpt.data.prompts import PromptEncoder, read_prompts, write_prompts
from numgpt.data.records import Record
from numgpt.formats.peft import fingerprint
from numgpt.generation.batcher import Batcher
from numgpt.generation.batcher import Sequence as Decoded
from numgpt.generation.options import GenerationOptions
from numgpt.messages import shown
from numgpt.models import LanguageModel
from numgpt.models.parameters import Gradients
from numgpt.objectives import group_advantages
from numgpt.objectives.functions import Metrics
from numgpt.options import OptionError
from numgpt.tokenizer import BaseTokenizer
from numgpt.training.checkpoint import RunState, load_base
from numgpt.training.records import Callback
from numgpt.training.rewards import (
    Completion,
    GymReward,
    Reward,
    RewardError,
    gym_records,
    named_reward,
)
from numgpt.training.rollout_config import RolloutConfig
from numgpt.training.step import Sums
from numgpt.training.tune_config import TuningConfig
from numgpt.training.tuning import Tuning, drawn

DECODED_AT_ONCE = 32  # completions
IN_VAIN = 10  # rollouts that teach nothing, after which that is told
COMPLETIONS, TOKENS, GROUPS, SCORED = "completions", "counted", "groups", "scored"  # among the sums
LATER: Any = None  # what a kind of rollouts gives a value


@dataclass
class RolledBatch:
    """Completions with their prompts, padded on the right; those of a prompt one after another."""

    ids: np.ndarray  # (n, T)
    targets: np.ndarray  # (n, T), IGNORED but for the completions' tokens
    old_logps: np.ndarray  # (n, T), 0 where nothing counts
    lengths: np.ndarray  # (n,): ids that are no padding
    rewards: np.ndarray  # (n,), NaN where none applies
    told: Sums = field(default_factory=dict)  # sums that are reported
    ref_logps: np.ndarray | None = None  # (n, T), by the reference
    advantages: np.ndarray = LATER  # (n,) of completions, or (n, T) of tokens
    old_values: np.ndarray = LATER  # (n, T), of the value head
    returns: np.ndarray = LATER  # (n, T)

    @property
    def mask(self) -> np.ndarray:
        """(n, T)."""
        return self.targets != IGNORED

    @property
    def tokens(self) -> int:
        """Ids that are no padding."""
        return int(self.lengths.sum())


class Rollouts(Tuning):
    """Prompts to continue, and what their completions are worth."""

    config: RolloutConfig
    encoder = PromptEncoder
    unit = "prompt"
    entropy: ClassVar[str]  # what the entropy is called among the metrics
    has_values: ClassVar[bool] = False  # whether there is a value head
    # (batch, totals, log π of its tokens, with a head also their values) -> its part of the loss,
    # derivatives by these arrays (n, T), metrics: means over the step's tokens.
    objective: Callable[..., tuple[float, tuple[np.ndarray, ...], Metrics]]
    # Of the sums those that are told: the means over what another one counts.
    means: ClassVar[dict[str, str]] = {
        "reward": SCORED,
        "reward_std": GROUPS,
        "frac_reward_zero_std": GROUPS,
        "completions/mean_length": COMPLETIONS,
        "completions/clipped_ratio": COMPLETIONS,
    }

    def __init__(self, state: RunState, out: Path, tokenizer: BaseTokenizer):
        """Raises OptionError for a reward that there is not."""
        super().__init__(state, out, tokenizer)
        config = self.config
        self.prompts, self.base = read_prompts(out, len(self.examples), state.tokens)
        self.rewards: list[Reward] = [*map(named_reward, config.rewards)]
        if config.task is not None:
            self.rewards.append(GymReward(config.task, config.task_size, config.seed))
        names = [reward.name for reward in self.rewards]
        self.reward_names = [  # those that are called alike are numbered
            name if names.count(name) == 1 else f"{name}-{place}"
            for place, name in enumerate(names, 1)
        ]
        self.batches = self._restored()
        self.in_vain, self.reason, self.remarked = 0, "", False  # rollouts, one after another

    # --- the prompts ---

    @classmethod
    def fit_model(
        cls, model: LanguageModel, tokenizer: BaseTokenizer, config: TuningConfig
    ) -> None:
        """Raises OptionError for a reward that there is not, before anything is read."""
        super().fit_model(model, tokenizer, config)
        assert isinstance(config, RolloutConfig)
        for name in config.rewards:
            named_reward(name)

    @classmethod
    def records(
        cls, config: Any, files: list[str], held_out: list[str]
    ) -> Iterator[tuple[Record, bool]]:
        if config.task is None:
            return super().records(config, files, held_out)
        return drawn(gym_records(config.task, config.task_size, config.seed), config)

    @classmethod
    def stage(cls, state: RunState, into: Path, report: Callback, encoder: ExampleEncoder) -> None:
        assert isinstance(encoder, PromptEncoder)
        assert isinstance(state.config, RolloutConfig)
        for name in state.config.rewards:
            reward = named_reward(name)
            reward.check(encoder.kept[0]["prompt"])
            needed = reward.needs
            if needed is not None and not any(needed in fields for fields in encoder.kept):
                missing = "{reward} needs {0}, which no line of the data has"
                raise OptionError(missing, shown(needed), reward=name)
        write_prompts(into, encoder.kept, state.tokens, fingerprint(state.model))

    def refer(self, batches: list[RolledBatch]) -> None:
        """Give batches their log π_ref, by the model that the run began as: the frozen base below
        the adapter, or the files again."""
        model, config = self.state.model, self.config
        if model.adapter is None:
            model = self.reloaded
            as_it_began = model.autocast(config.products)
        else:
            as_it_began = model.without_adapter()
        with as_it_began:
            for batch in batches:
                batch.ref_logps = model.log_probs(batch.ids, batch.targets, config.temperature)

    @cached_property
    def reloaded(self) -> LanguageModel:
        """What the model's files hold.  Raises BaseModelError where that is another model."""
        return load_base(self.config, self.base)

    # --- completions, rewards, batches ---

    def next_step(self) -> list[Any]:
        """Those of a new rollout; or, for `iterations` steps, of the one before."""
        config = self.config
        number, turn = divmod(self.state.optimizer.steps, config.iterations)
        if turn == 0 or not self.batches:
            with self.state.model.autocast(config.products):  # as the policy will be
                self.batches = self.roll_out(number)
            self.state.made = self._as_arrays() if config.iterations > 1 else {}
            self.reason = self._nothing_learnt()
            self.in_vain = self.in_vain + 1 if self.reason else 0
            return self.batches
        return [replace(batch, told={}) for batch in self.batches]

    def _nothing_learnt(self) -> str:
        """Why the rollout teaches nothing, and what may help; "" where it does."""
        told = [batch.told for batch in self.batches]
        if not any(sums[SCORED] for sums in told):
            return "no reward applied to any completion: look at what it asks of a line"
        if not any(batch.mask.any() for batch in self.batches):
            return "all completions were cut off: more tokens, or a prompt that asks for less"
        if all(sums.get("frac_reward_zero_std") == sums.get(GROUPS, -1) for sums in told):
            return (
                "all completions of a prompt had the same reward: an easier or harder task, a"
                " reward with degrees or a higher temperature gives some that differ"
            )
        return ""

    def roll_out(self, number: int) -> list[RolledBatch]:
        """The batches of the rollout of this number.  Raises RewardError."""
        config, first = self.config, number * self.config.grad_accum
        each = [
            self.examples.numbers(first + place, config.batch_size, config.seed)
            for place in range(config.grad_accum)
        ]
        prompts = np.concatenate(each).repeat(config.sequences)
        seeds = ([config.seed, number, place] for place in range(len(prompts)))
        made = self.complete(prompts, [*map(np.random.default_rng, seeds)])
        by_reward = self.rewarded(prompts, made)
        edges = np.cumsum([len(numbers) * config.sequences for numbers in each])[:-1]
        parts = np.split(np.arange(len(made)), edges)
        return self.prepared([self._batch([made[n] for n in p], by_reward[:, p]) for p in parts])

    def complete(
        self, prompts: np.ndarray, rngs: Sequence[np.random.Generator | None]
    ) -> list[Decoded]:
        """A completion of each prompt, by its number; without a generator the likeliest one."""
        config, model = self.config, self.state.model
        known = model.config.vocab_size <= self.tokenizer.vocab_size
        batcher, made = Batcher(model, min(DECODED_AT_ONCE, len(prompts))), []
        for number, rng in zip(prompts.tolist(), rngs, strict=True):
            options = GenerationOptions(
                max_new_tokens=config.max_completion_length,
                do_sample=rng is not None,
                temperature=config.temperature if rng is not None else 1.0,
                top_k=None,
                eos_token_id=self.end_ids(),
                tokenizer=None if known else self.tokenizer,
                return_dict_in_generate=True,
            )
            made.append(batcher.add(self.examples.example(number).ids, options, rng))
        while batcher.busy:
            batcher.step()
        return made

    def rewarded(self, prompts: np.ndarray, made: Sequence[Decoded]) -> np.ndarray:
        """What each reward makes of each completion -> (R, B), NaN where it does not apply."""
        completions = [
            Completion(
                self.prompts[number]["prompt"],
                self.tokenizer.decode(list(one.made), skip_special_tokens=True),
                self.prompts[number],
            )
            for number, one in zip(prompts.tolist(), made, strict=True)
        ]
        return np.stack([reward(completions) for reward in self.rewards])

    def total(self, by_reward: np.ndarray) -> np.ndarray:
        """(R, B) -> (B,), the weighted sum of those that apply; NaN where none does."""
        weights = np.array(self.config.weights)[:, None]
        total = np.where(np.isnan(by_reward), 0, weights * by_reward).sum(axis=0)
        return np.where(np.isnan(by_reward).all(axis=0), np.nan, total)

    def _batch(self, made: list[Decoded], by_reward: np.ndarray) -> RolledBatch:
        rewards = self.total(by_reward)
        lengths = np.array([len(one.prompt) + len(one.made) - 1 for one in made])
        ids = np.zeros((len(made), lengths.max()), np.int64)
        targets = np.full(ids.shape, IGNORED)
        old_logps = np.zeros(ids.shape, np.float32)
        for row, one in enumerate(made):
            start, whole = len(one.prompt) - 1, np.append(one.prompt, one.made)
            completion = slice(start, start + len(one.made))
            ids[row, : len(whole) - 1] = whole[:-1]
            old_logps[row, completion] = one.sampled_logprobs
            is_cut = self.config.mask_truncated and one.finish_reason != "stop"
            if not is_cut and not np.isnan(rewards[row]):
                targets[row, completion] = one.made
        old_logps[targets == IGNORED] = 0
        told = self._told(made, rewards, by_reward)
        return RolledBatch(ids, targets, old_logps, lengths, rewards, told)

    def _told(self, made: list[Decoded], rewards: np.ndarray, by_reward: np.ndarray) -> Sums:
        """Sums over completions, and over groups of several, for the metrics."""
        groups = rewards.reshape(-1, self.config.sequences)
        scored = ~np.isnan(groups)
        told: Sums = {
            COMPLETIONS: len(made),
            SCORED: int(scored.sum()),
            "reward": float(np.nansum(rewards)),
            "completions/mean_length": sum(len(one.made) for one in made),
            "completions/clipped_ratio": sum(one.finish_reason != "stop" for one in made),
        }
        if self.config.sequences > 1:
            apart = group_advantages(rewards, self.config.sequences, "none").reshape(groups.shape)
            stds = np.sqrt((apart**2).sum(axis=1) / np.maximum(1, scored.sum(axis=1) - 1))
            without = np.all((groups == groups[:, :1]) | ~scored, axis=1)
            told |= {GROUPS: len(groups), "reward_std": float(stds.sum())}
            told["frac_reward_zero_std"] = int(without.sum())
        for name, values in zip(self.reward_names, by_reward, strict=True):
            told[f"rewards/{name}/mean"] = float(np.nansum(values))
            told[f"rewards/{name}/{SCORED}"] = int((~np.isnan(values)).sum())
        return told

    @abstractmethod
    def prepared(self, batches: list[RolledBatch]) -> list[RolledBatch]:
        """The batches of a rollout, with what has to be known of all of it."""

    # --- a step ---

    def totals(self, model: LanguageModel, batches: Sequence[RolledBatch]) -> Sums:
        counted = sum(int(batch.mask.sum()) for batch in batches)
        return {TOKENS: max(1, counted), COMPLETIONS: sum(len(batch.ids) for batch in batches)}

    def gradients(
        self, model: LanguageModel, batch: RolledBatch, totals: Sums, add_to: Gradients | None
    ) -> tuple[Sums, Gradients]:
        """Those of the objective, less the bonus for entropy, its mean over the step's tokens."""
        config, tokens, mask = self.config, totals[TOKENS], batch.mask
        share = mask / tokens

        def objective(
            logps: np.ndarray, entropies: np.ndarray, *values: np.ndarray
        ) -> tuple[float, tuple[np.ndarray, ...], dict[str, float]]:
            if not all(np.isfinite(array[mask]).all() for array in (logps, *values)):
                return np.nan, (np.zeros_like(logps),) * (2 + len(values)), {}  # the loop tells
            loss, (dlogps, *dvalues), metrics = self.objective(batch, totals, logps, *values)
            entropy = float((share * entropies).sum())
            derivatives = dlogps, -config.entropy_coef * share, *dvalues
            told = metrics | {self.entropy: entropy}
            return loss - config.entropy_coef * entropy, derivatives, told

        loss, gradients, metrics = model.value_and_grads(
            batch.ids,
            batch.targets,
            objective,
            self.state.rng if config.has_dropout else None,
            temperature=config.temperature,
            entropy=True,
            values=self.has_values,
            add_to=add_to,
        )
        sums = {name: value * tokens for name, value in metrics.items()}
        sums |= {"loss": loss, "tokens": batch.tokens, TOKENS: int(mask.sum())}
        return sums | batch.told, gradients

    # --- what is told ---

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Means over completions, groups or tokens, named as trl names them."""
        each = {f"rewards/{name}/mean": f"rewards/{name}/{SCORED}" for name in self.reward_names}
        counts = self.means | each
        told = {name: sums[counts[name]] for name in sums if name in counts}
        return {name: sums[name] / count for name, count in told.items() if count}

    def remarks(self) -> Iterable[str]:
        if self.in_vain == IN_VAIN and not self.remarked:
            self.remarked = True
            yield f"{IN_VAIN} rollouts have taught nothing: {self.reason}"

    def held_out_loss(self, model: LanguageModel) -> float:
        """Minus the mean reward of the likeliest completions of what is held out."""
        numbers = self.examples.val
        made = self.complete(numbers, [None] * len(numbers))
        rewards = self.total(self.rewarded(numbers, made))
        if np.isnan(rewards).all():
            raise RewardError("no reward applies to any of what is held out")
        return -float(np.nanmean(rewards))

    def sample(self) -> tuple[str, str]:
        """A prompt, and its likeliest completion, with what that is worth."""
        number = self.shown_number()
        (one,) = self.complete(np.array([number]), [None])
        by_reward = self.rewarded(np.array([number]), [one])
        each = (f"{n} {v[0]:g}" for n, v in zip(self.reward_names, by_reward, strict=True))
        total = self.total(by_reward)[0]
        reward = "no reward applies" if np.isnan(total) else f"reward {total:g}"
        reward += f" ({', '.join(each)})" if len(self.rewards) > 1 else ""
        text = self.tokenizer.decode(list(one.made), skip_special_tokens=True)
        prompt = self.tokenizer.decode(one.prompt, skip_special_tokens=True)
        return prompt[-200:], f"{text}\n[{reward}]"

    # --- the checkpoint ---

    def _as_arrays(self) -> dict[str, np.ndarray]:
        return {
            f"{place}.{name}": array
            for place, batch in enumerate(self.batches)
            for name, array in vars(batch).items()
            if isinstance(array, np.ndarray)
        }

    def _restored(self) -> list[RolledBatch]:
        batches: dict[int, dict[str, Any]] = {}
        for name, array in self.state.made.items():
            place, _, part = name.partition(".")
            batches.setdefault(int(place), {})[part] = array
        return [RolledBatch(**batches[place]) for place in sorted(batches)]
