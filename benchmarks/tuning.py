"""Supervised tuning of a model of SmolLM2's sizes: a step on questions and their answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.generating import SMOLLM2, numgpt_llama_model
from benchmarks.process import elsewhere

# Of each example the tokens, and how many of them, at the end, are learnt: as a batch of a shop's
# questions and answers has them, sorted by length.
LENGTHS = np.array([58, 62, 66, 70, 74, 80, 86, 96])
LEARNT = LENGTHS // 3
TOKENS = int(LENGTHS.sum())
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


def batch() -> tuple[np.ndarray, np.ndarray]:
    """ids and targets (B, T), padded on the right; -100 is what is not learnt."""
    shape = (len(LENGTHS), LENGTHS.max())
    ids = np.random.default_rng(0).integers(1, SMOLLM2["vocab_size"], size=shape)
    places, ends = np.arange(shape[1]), LENGTHS[:, None]
    ids[places >= ends] = 0
    learnt = (places >= ends - LEARNT[:, None]) & (places < ends)
    targets = np.where(learnt, np.random.default_rng(1).integers(1, 49152, size=shape), -100)
    return ids, targets


def save(directory: str) -> None:
    numgpt_llama_model().save_pretrained(directory)


def saved_model() -> tempfile.TemporaryDirectory:
    """Random weights on disk, in float32, so that a side may leave them there."""
    directory = tempfile.TemporaryDirectory()
    elsewhere(save, directory.name)
    return directory


def numgpt_tune(whole: bool) -> Callable[[], Any]:
    import numgpt

    directory = saved_model()
    model = numgpt.Llama.from_pretrained(directory.name)
    if not whole:
        model.add_adapter(numgpt.LoRAConfig(**LORA))
    optimizer = numgpt.AdamW(model, lr=1e-4)
    ids, targets = batch()

    def step() -> float:
        loss, _ = model.loss_and_grads(ids, targets)
        optimizer.step(grad_clip=1.0)
        return loss

    step.files = directory  # they stay as long as the step
    return step


def peft_tune(whole: bool) -> Callable[[], Any]:
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    directory = saved_model()
    model = transformers.LlamaForCausalLM.from_pretrained(directory.name, dtype=torch.float32)
    if not whole:
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA, task_type="CAUSAL_LM"))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids, targets = map(torch.tensor, batch())
    mask = (torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return float(loss.detach())

    return step
