"""Beam searches, ours and transformers's, whose results are recorded as goldens."""

from __future__ import annotations

from typing import Any

import numpy as np
from models.references import small_model, to_transformers

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "early": {"early_stopping": True},
    "never": {"early_stopping": "never", "length_penalty": 2.0},
    "short": {"length_penalty": -1.0},
    "canonical": {"length_penalty": 0.0, "early_stopping": "never"},
    "repeats": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "banned": {"bad_words_ids": [[3], [5, 6]], "min_new_tokens": 3},
}
CASES = [f"{name} {option}" for name in ("default", "llama_grouped") for option in OPTIONS]
COMMON = {"max_new_tokens": 10, "num_beams": 4, "num_return_sequences": 3}
COMMON |= {"eos_token_id": [7, 36], "pad_token_id": 1, "return_dict_in_generate": True}
SEEDS = range(4)


def _inputs(case: str):
    """model, prompts (8, 3), options."""
    name, option = case.split()
    model = small_model(name)
    for array in model.parameters.values():  # differences that rounding does not bridge
        array *= 3 if array.ndim == 2 else 1
    prompts = [np.random.default_rng(seed).integers(36, size=(2, 3)) for seed in SEEDS]
    return model, np.concatenate(prompts), COMMON | OPTIONS[option]


def ours(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Sequences (24, T'), and their scores (24,)."""
    model, prompts, options = _inputs(case)
    found = model.generate(prompts, **options)
    return found.sequences, found.sequences_scores


def theirs(case: str) -> tuple[np.ndarray, np.ndarray]:
    import torch

    model, prompts, options = _inputs(case)
    found = (
        to_transformers(model)
        .eval()
        .generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(prompts.shape, dtype=torch.long),
            output_scores=True,
            **options,
        )
    )
    return found.sequences.numpy(), found.sequences_scores.numpy()


def record() -> dict[str, np.ndarray]:
    results = {case: theirs(case) for case in CASES}
    answers = {f"{case}/sequences": sequences for case, (sequences, _) in results.items()}
    return answers | {f"{case}/scores": scores for case, (_, scores) in results.items()}
