"""numgpt tune: teach a model from examples."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numgpt.cli import runs
from numgpt.cli.common import add_command, show_progress
from numgpt.evaluation.exact import MOST_TOKENS, ExactMatch, exact_match, questions
from numgpt.messages import quoted, tell
from numgpt.options import OptionError
from numgpt.training import (
    DPOConfig,
    GRPOConfig,
    KTOConfig,
    PPOConfig,
    RewardConfig,
    Trainer,
    TuneConfig,
)
from numgpt.training.tuning import Examples

SHOWN = 100  # characters of a prompt
OF_MARGINS = frozenset(("sigmoid", "hinge", "robust", "ipo"))  # objectives that see nothing else


def register(subparsers: Any) -> None:
    tune = add_command(
        subparsers,
        "tune",
        "teach a model from examples of what to answer",
        "numgpt tune sft --model smollm2 --data answers.jsonl --out runs/desk",
        None,
    )
    methods = tune.add_subparsers(metavar="METHOD", required=True)
    pairs = '{"prompt": "…", "chosen": "…", "rejected": "…"}  of texts, or of lists of messages'
    for config, end, what, example, line in (
        (
            TuneConfig,
            _end,
            "supervised tuning: learn the answers of examples, by an adapter (LoRA) or as a whole",
            "numgpt tune sft --model smollm2 --data answers.jsonl --out runs/desk --show 2\n"
            "numgpt tune sft --model smollm2 --data answers.jsonl --val-fraction 0.1 --lora-r 0"
            " --out runs/whole\n"
            "numgpt tune sft --resume runs/desk --steps 400",
            '{"prompt": "…", "completion": "…"}  or  {"messages": [{"role": "user", "content": "…"}'
            ', {"role": "assistant", "content": "…"}]}',
        ),
        (
            DPOConfig,
            _end_of_preferences,
            "preferences: make the answers that were chosen likelier than those that were rejected",
            "numgpt tune dpo --model smollm2 --data preferences.jsonl --out runs/preferred\n"
            "numgpt tune dpo --model runs/desk-merged --data p.jsonl --loss-type ipo --out"
            " runs/ipo\n"
            "numgpt tune dpo --resume runs/preferred --steps 400",
            pairs,
        ),
        (
            KTOConfig,
            _end_of_preferences,
            "judgements: make good answers likelier, and bad ones less likely, without pairs",
            "numgpt tune kto --model smollm2 --data judged.jsonl --out runs/judged\n"
            "numgpt tune kto --resume runs/judged --steps 400",
            '{"prompt": "…", "completion": "…", "label": true}  of texts, or of lists of messages',
        ),
        (
            RewardConfig,
            _end_of_reward,
            "a reward model: score the answers that were chosen above those that were rejected",
            "numgpt tune reward --model smollm2 --data preferences.jsonl --out runs/judge\n"
            "numgpt eval --model runs/judge --preferences held-out.jsonl",
            pairs,
        ),
        (
            GRPOConfig,
            _end_of_rollouts,
            "rewards: make those of the model's own answers likelier that are better than others",
            "numgpt tune grpo --model smollm2 --data questions.jsonl --reward exact --out"
            " runs/grpo\n"
            "numgpt tune grpo --model smollm2 --data q.jsonl --reward mine.py:score length:40"
            " --reward-weights 1 0.2 --out runs/both\n"
            "numgpt tune grpo --model smollm2 --task reasoning_gym:chain_sum --out runs/sums",
            '{"prompt": "…", "answer": "…"}  the prompt a text, or a list of messages; all else is'
            " for the reward",
        ),
        (
            PPOConfig,
            _end_of_rollouts,
            "rewards, with a value head: make tokens likelier that led to more than was expected",
            "numgpt tune ppo --model smollm2 --data q.jsonl --reward runs/judge --out runs/ppo\n"
            "numgpt tune ppo --resume runs/ppo --steps 400",
            '{"prompt": "…"}  a text, or a list of messages; all else is for the reward',
        ),
    ):
        run = functools.partial(runs.run, check=_check, end=end)
        example = f"{example}\nwhere a line of the file is\n{line}"
        runs.add_run_options(add_command(methods, config.kind, what, example, run), config)


def _check(chosen: dict[str, Any]) -> None:
    """Raises ValueError for options that cannot be combined."""
    if chosen.get("lora_r") == 0:
        for name in ("lora_alpha", "lora_targets", "lora_dropout", "use_rslora"):
            if name in chosen:
                alone = f"{{{name}}} cannot be combined with {{lora_r}}, which tunes the whole"
                raise OptionError(f"{alone} model", lora_r=0, **{name: chosen[name]})
    if "epochs" in chosen and "steps" in chosen:
        raise OptionError("{epochs} cannot be combined with {steps}: choose one", **chosen)


def _tell_use(trainer: Trainer, greedy: str = " --greedy", prompt: str = "…") -> None:
    chat = trainer.task.state.tokens.conversations
    tell(
        f"try: numgpt {'chat' if chat else 'generate'} --model {quoted(trainer.out)}{greedy}"
        f"{'' if chat else f' {prompt}'}"
    )


def _end(trainer: Trainer) -> None:
    task = trainer.task
    assert isinstance(task, Examples)
    found = {}
    try:
        found = _answers(trainer, task)
    except KeyboardInterrupt:  # the run is saved
        tell("numgpt: note: the answers were not counted to their end")
    for place, (step, counts) in found.items():
        tell(f"{place} (step {step}): {'; '.join(_reached(trainer, step, counts))}")
    prompt = task.first_prompt() or "…"
    is_short = prompt.isprintable() and len(prompt) <= SHOWN
    _tell_use(trainer, prompt=quoted(prompt if is_short else "…"))


def _end_of_preferences(trainer: Trainer) -> None:
    """How much better the good answers have become, and what is often asked of the rewards."""
    reports = [r for r in trainer.log.records if "rewards/margins" in r]
    if reports:
        last = reports[-1]
        how_often = ""
        if "rewards/accuracies" in last:
            how_often = f"; {last['rewards/accuracies']:.0%} of them have the higher one"
        tell(
            f"step {last['step']}: the reward of chosen answers is {last['rewards/margins']:.3f}"
            f" above that of rejected ones{how_often}"
        )
        only_margins = getattr(trainer.config, "loss_type", None) in OF_MARGINS
        if only_margins and last["rewards/chosen"] < 0:
            tell(
                "numgpt: note: the reward of chosen answers fell, as it may: only the margin to the"
                " rejected ones is optimised (numgpt/training/README.md)"
            )
    _tell_use(trainer)


def _end_of_reward(trainer: Trainer) -> None:
    reports = [r for r in trainer.log.records if "accuracy" in r]
    if reports:
        last = reports[-1]
        tell(f"step {last['step']}: {last['accuracy']:.0%} of the chosen answers score higher")
    out = quoted(trainer.out)
    tell(f"try: numgpt eval --model {out} --preferences …  or: numgpt tune grpo --reward {out} …")


def _end_of_rollouts(trainer: Trainer) -> None:
    """How the reward has changed."""
    reports = [r for r in trainer.log.records if "reward" in r]
    if reports:
        each = dict.fromkeys((report["step"], report["reward"]) for report in reports)
        ends = [*each][:: max(1, len(each) - 1)]  # the first and the last
        tell("mean reward " + ", ".join(f"{reward:.3g} at step {step}" for step, reward in ends))
    _tell_use(trainer, greedy="")


def _answers(trainer: Trainer, task: Examples) -> dict[Path, tuple[int, dict[str, ExactMatch]]]:
    """Of the weights in each place the step, and how many answers they give exactly."""
    examples, ends = task.examples, task.end_ids()
    assert isinstance(task.config, TuneConfig)
    most = task.config.answers
    found: dict[Path, tuple[int, dict[str, ExactMatch]]] = {}
    asked = {
        name: questions(map(examples.example, numbers.tolist()), ends, most)
        for name, numbers in (("training", examples.train), ("held-out", examples.val))
    }
    asked = {name: pairs for name, pairs in asked.items() if pairs}
    if most and not asked:
        tell(f"numgpt: note: no answer of at most {MOST_TOKENS} tokens can be asked for")
    steps = {"best": trainer.state.best_step, "last": trainer.optimizer.steps}
    for name, place in trainer.places.items():
        step = steps[name]
        if any(step == other for other, _ in found.values()):
            continue  # the same weights
        model = trainer.weights_in(place) if asked else trainer.model
        counts = {}
        for kind, pairs in asked.items():
            progress = functools.partial(_tell_asked, kind, len(pairs))
            counts[kind] = exact_match(model, trainer.tokenizer, pairs, ends, progress)
        found[place] = step, counts
    return found


def _tell_asked(kind: str, count: int, done: int) -> None:
    show_progress(f"asked for {done} of {count} {kind} answers", ends=done == count)


def _reached(trainer: Trainer, step: int, counts: dict[str, ExactMatch]) -> Iterator[str]:
    """What the weights of a step have come to."""
    for kind, count in counts.items():
        yield f"{count} {kind} answers exact"
    for report in trainer.log.records:
        if report["step"] == step and "mean_token_accuracy" in report:
            yield f"loss {report['loss']:.4f}, accuracy {report['mean_token_accuracy']:.3f}"
            if report["val_loss"] is not None:
                yield f"validation loss {report['val_loss']:.4f}"
