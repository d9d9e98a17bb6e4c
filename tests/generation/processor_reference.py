"""transformers' logits processors, in the order in which its `generate` applies them."""

from __future__ import annotations

from typing import Any

import numpy as np

VOCABULARY, END = 37, 36
CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 2.5},
    "top_k": {"top_k": 5},
    "top_k one": {"top_k": 1},
    "top_p": {"top_p": 0.8},
    "top_p small": {"top_p": 0.05},
    "min_p": {"min_p": 0.1},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "repetition_reward": {"repetition_penalty": 0.6},
    "bad_words_ids": {"bad_words_ids": [[3], [5, 6], [1, 2, 3], [END]]},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "no_repeat_ngram_size one": {"no_repeat_ngram_size": 1},
    "min_length": {"min_length": 9},
    "min_length reached": {"min_length": 8},
    "all": {
        "temperature": 0.9,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[4], [0, 1]],
        "min_length": 12,
    },
}


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """logits (3, V) and the ids (3, 8) before them, some of which end as a banned word begins."""
    rng = np.random.default_rng(list(name.encode()))
    ids = rng.integers(VOCABULARY, size=(3, 8))
    ids[0, -1], ids[1, -2:] = 5, (1, 2)
    ids[0, :2], ids[2, 3:] = (5, 9), (7, 8, 7, 8, 7)
    return rng.normal(scale=3, size=(3, VOCABULARY)), ids


def their_probabilities(logits: np.ndarray, ids: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """(n, V) of the next token, 0 where it can't be chosen."""
    import torch
    from transformers import LogitsProcessorList, generation

    processors = LogitsProcessorList()
    if "repetition_penalty" in options:
        processors.append(
            generation.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"])
        )
    if options.get("no_repeat_ngram_size"):
        processors.append(generation.NoRepeatNGramLogitsProcessor(options["no_repeat_ngram_size"]))
    if "bad_words_ids" in options:
        processors.append(
            generation.NoBadWordsLogitsProcessor(options["bad_words_ids"], torch.tensor([END]))
        )
    if options.get("min_length"):
        processors.append(generation.MinLengthLogitsProcessor(options["min_length"], END))
    for name, warper in (
        ("temperature", generation.TemperatureLogitsWarper),
        ("top_k", generation.TopKLogitsWarper),
        ("top_p", generation.TopPLogitsWarper),
        ("min_p", generation.MinPLogitsWarper),
    ):
        if name in options and not (name == "top_p" and options[name] == 1.0):
            processors.append(warper(options[name]))
    scores = processors(torch.tensor(ids), torch.tensor(logits))
    return torch.softmax(scores, dim=-1).numpy()


def record() -> dict[str, np.ndarray]:
    return {name: their_probabilities(*inputs(name), options) for name, options in CASES.items()}
