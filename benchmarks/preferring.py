"""Steps of DPO and GRPO on GPT-2's sizes, and rollouts by themselves, beside trl on the same data.

Both sides train the whole model from the same random weights, with the reference's
log-probabilities known (DPO), or none asked for (GRPO, β = 0).
"""

from __future__ import annotations

import json
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.generating import numgpt_model
from benchmarks.process import ROOT, elsewhere

WORDS = "the of a to in and that it is was he for on his with as at be this had by not but"
PAIRS, COMPLETIONS, NEW_TOKENS = 4, 8, 64
LR = 1e-6
ROLLED = {"batch_size": 1, "group_size": COMPLETIONS, "max_completion_length": NEW_TOKENS}
ROLLED |= {"reward": "length:100"}


def text(rng: random.Random, words: int) -> str:
    return "".join(f" {rng.choice(WORDS.split())}" for _ in range(words))


def lines(kind: str) -> list[dict[str, str]]:
    """Pairs of some 64 + 64 tokens; or a prompt of 32."""
    rng = random.Random(0)
    if kind == "grpo":
        return [{"prompt": "Once" + text(rng, 31)}]
    return [
        {"prompt": "Once" + text(rng, 63), "chosen": text(rng, 63), "rejected": text(rng, 63)}
        for _ in range(PAIRS)
    ]


def save(directory: str) -> None:
    from numgpt.tokenizer import load_tokenizer

    numgpt_model().save_pretrained(directory)
    load_tokenizer(ROOT.parent / "shared" / "gpt2").save_pretrained(directory)


def saved() -> tempfile.TemporaryDirectory:
    """Random weights of GPT-2's sizes with its tokenizer."""
    directory = tempfile.TemporaryDirectory()
    elsewhere(save, directory.name)
    return directory


def numgpt_run(kind: str, **options: Any) -> tuple[Any, tempfile.TemporaryDirectory]:
    from numgpt.training import DPOConfig, GRPOConfig, Trainer

    directory = saved()
    data = Path(directory.name) / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines(kind)))
    config = {"dpo": DPOConfig, "grpo": GRPOConfig}[kind]
    common = {"model": directory.name, "data": str(data), "lora_r": 0, "lr": LR, "steps": 1000}
    common |= {"warmup": 0, "grad_accum": 1, "sample_every": 0, "weight_decay": 0.0}
    trainer = Trainer.start(config(**common | options), Path(directory.name) / "run")
    return trainer, directory


def numgpt_dpo() -> Callable[[], Any]:
    trainer, directory = numgpt_run("dpo", batch_size=PAIRS)

    def step() -> float:
        return trainer.step()

    step.files = directory  # they stay as long as the step
    return step


def numgpt_grpo() -> Callable[[], Any]:
    trainer, directory = numgpt_run("grpo", **ROLLED)

    def step() -> float:
        return trainer.step()

    step.files = directory
    return step


def numgpt_rollouts() -> Callable[[], Any]:
    trainer, directory = numgpt_run("grpo", **ROLLED)

    def step() -> Any:
        return trainer.task.roll_out(0)

    step.files = directory
    return step


def _trl(kind: str, directory: str, **options: Any) -> Any:
    """A trainer of trl's on the same weights and data."""
    import datasets
    import torch
    import transformers
    import trl

    warnings.simplefilter("ignore")  # of settings that trl itself gives
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = tokenizer.eos_token
    common = {"report_to": [], "use_cpu": True, "save_strategy": "no", "bf16": False}
    common |= {"gradient_checkpointing": False, "disable_tqdm": True, "learning_rate": LR}
    common |= {"output_dir": directory, "max_steps": 1000, "lr_scheduler_type": "constant"}
    make = {"dpo": trl.DPOTrainer, "grpo": trl.GRPOTrainer}[kind]
    of = {"dpo": trl.DPOConfig, "grpo": trl.GRPOConfig}[kind]
    more = {} if kind == "dpo" else {"reward_funcs": _lengths}
    trainer = make(
        model=model,
        args=of(**common | options),
        train_dataset=datasets.Dataset.from_list(lines(kind)),
        processing_class=tokenizer,
        **more,
    )
    trainer.create_optimizer()
    return trainer


def _lengths(completions: list[str], **_: Any) -> list[float]:
    return [max(0.0, 1 - abs(len(text) - 100) / 100) for text in completions]


def _stepping(trainer: Any, batch: Any) -> Callable[[], Any]:
    import torch

    model, optimizer = trainer.model, trainer.optimizer
    trainer.current_gradient_accumulation_steps = 1

    def step() -> float:
        inputs = {n: v.clone() for n, v in batch.items()} if isinstance(batch, dict) else batch
        loss = trainer.training_step(model, inputs, None)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step


def trl_dpo() -> Callable[[], Any]:
    directory = saved()
    trainer = _trl(
        "dpo", directory.name, per_device_train_batch_size=PAIRS, precompute_ref_log_probs=True
    )
    step = _stepping(trainer, next(iter(trainer.get_train_dataloader())))
    step.files = directory
    return step


def trl_grpo() -> Callable[[], Any]:
    directory = saved()
    trainer = _trl(
        "grpo", directory.name, per_device_train_batch_size=COMPLETIONS,
        num_generations=COMPLETIONS, max_completion_length=NEW_TOKENS,
    )  # fmt: skip
    step = _stepping(trainer, next(iter(trainer.get_train_dataloader())))
    step.files = directory
    return step


def transformers_rollouts() -> Callable[[], Any]:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    directory = saved()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory.name)
    ids = torch.tensor([tokenizer(lines("grpo")[0]["prompt"])["input_ids"]] * COMPLETIONS)

    def step() -> Any:
        with torch.no_grad():
            return model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                max_new_tokens=NEW_TOKENS, pad_token_id=50256,
            )  # fmt: skip

    step.files = directory
    return step
