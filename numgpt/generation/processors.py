"""Logits processors: between the model's logits and the choice of a token.

They come in the order, and with the meanings, that transformers has: first what applies to every
choice (repetition penalty, repeated n-grams, banned words, minimum length, the caller's own), then
what shapes the distribution to sample from (temperature, top-k, top-p, min-p). A token that must
not be chosen has the logit -∞.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from numgpt.generation.options import GenerationOptions, LogitsProcessor
from numgpt.layers import softmax_forward
from numgpt.messages import shown

GROUP = 64  # logits in a group of kth_largest


def process_logits(
    logits: np.ndarray,
    ids: np.ndarray,
    options: GenerationOptions,
    eos_token_ids: Collection[int] = (),
    may_end: np.ndarray | bool | None = None,
    pad_token_id: int = 0,
) -> np.ndarray:
    """logits (n, V) of the next token after ids (n, T) -> processed logits (n, V), a new array.

    Padding among the ids is -1: it counts as no token that has occurred. The caller's own
    processors see pad_token_id there. may_end, one for all or (n,), is False where no token of
    eos_token_ids may come yet; None: where min_length is not reached.
    """
    logits = logits.copy()
    if options.repetition_penalty != 1.0:
        repetition_penalty(logits, ids, options.repetition_penalty)
    if options.no_repeat_ngram_size:
        ban_repeats(logits, ids, options.no_repeat_ngram_size)
    if options.bad_words_ids:
        ban_words(logits, ids, options.bad_words_ids, eos_token_ids)
    may_end = ids.shape[1] >= options.min_length if may_end is None else may_end
    if not np.all(may_end):
        too_short = np.flatnonzero(~np.broadcast_to(may_end, len(logits)))
        logits[too_short[:, None], list(eos_token_ids)] = -np.inf
    if options.tokenizer is not None:  # a model's vocabulary may be padded to a round size
        logits[:, options.tokenizer.vocab_size :] = -np.inf
    for processor in options.logits_processor:
        logits = _called(processor, np.where(ids < 0, pad_token_id, ids), logits)
    highest = logits.max(axis=1, keepdims=True)
    if np.isnan(highest).any():
        whose = "its weights are damaged"
        whose += ", or a logits_processor is wrong" if options.logits_processor else ""
        raise ValueError(f"the model's logits are not numbers: {whose}")
    if np.isneginf(highest).any():
        raise ValueError(
            "every token that could come next is forbidden: ban fewer (bad_words_ids,"
            " no_repeat_ngram_size, logits_processor)"
        )
    if options.do_sample:
        if options.temperature != 1.0:
            logits -= highest  # changes no probability; what overflows below is -∞, as it should be
            with np.errstate(over="ignore"):
                smallest = np.finfo(logits.dtype).tiny
                logits /= logits.dtype.type(max(options.temperature, smallest))
        if options.top_k:
            top_k(logits, options.top_k)
        if options.top_p is not None and options.top_p < 1:
            top_p(logits, options.top_p)
        if options.min_p is not None:
            min_p(logits, options.min_p)
    return logits


def repetition_penalty(logits: np.ndarray, ids: np.ndarray, penalty: float) -> None:
    """Tokens that occurred: divide a positive logit, multiply a negative one (Keskar et al. 2019,
    arXiv:1909.05858).  What is beyond the largest number becomes that."""
    ids = np.where(ids < 0, ids[:, -1:], ids)  # the last token is no padding
    seen = np.take_along_axis(logits, ids, axis=1).astype(np.float64)
    with np.errstate(over="ignore"):
        changed = np.where(seen < 0, seen * penalty, seen / penalty)
    largest = np.finfo(logits.dtype).max
    changed = np.where(np.isneginf(seen), seen, np.clip(changed, -largest, largest))
    np.put_along_axis(logits, ids, changed.astype(logits.dtype), axis=1)


def ban_repeats(logits: np.ndarray, ids: np.ndarray, size: int) -> None:
    """Forbid what would complete an n-gram of this size that has occurred (Paulus et al. 2017,
    arXiv:1705.04304, section 2.5: for trigrams)."""
    for row, seen in zip(logits, ids, strict=True):
        seen = seen[seen >= 0]
        if len(seen) >= size:
            grams = np.lib.stride_tricks.sliding_window_view(seen, size)
            same = (grams[:, :-1] == seen[len(seen) - size + 1 :]).all(axis=1)
            row[grams[same, -1]] = -np.inf


def _called(processor: LogitsProcessor, ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """processor(ids, logits).  Raises ValueError for a result that is no logits."""
    result = processor(ids, logits)
    if not isinstance(result, np.ndarray) or result.shape != logits.shape:
        shape = result.shape if isinstance(result, np.ndarray) else shown(result)
        raise ValueError(
            f"a logits_processor returned {shape}: expected an array of shape {logits.shape}"
        )
    return result.astype(logits.dtype, copy=False)


def ban_words(
    logits: np.ndarray,
    ids: np.ndarray,
    words: Collection[Collection[int]],
    eos_token_ids: Collection[int],
) -> None:
    """Forbid the last token of each word where the tokens before it have just been made."""
    for *start, last in words:
        if not start and last in eos_token_ids:
            continue  # as in transformers: a sequence may always end
        if len(start) <= ids.shape[1]:
            tail = ids[:, ids.shape[1] - len(start) :]
            logits[(tail == np.array(start, ids.dtype)).all(axis=1), last] = -np.inf


def top_k(logits: np.ndarray, k: int) -> None:
    """Keep the k largest of each row, and what equals the smallest of them (Fan et al. 2018,
    arXiv:1805.04833)."""
    if k < logits.shape[1]:
        for row in logits:
            np.copyto(row, -np.inf, where=row < kth_largest(row, k))


def kth_largest(row: np.ndarray, k: int) -> np.generic:
    """The k-th largest value of a row (V,).

    The k-th largest of the maxima of short groups is a bound that at least k values reach. Few more
    than k do, as a rule, so that only these have to be partitioned, and not the vocabulary.
    """
    groups = len(row) // GROUP
    if groups >= k:
        maxima = row[: groups * GROUP].reshape(groups, GROUP).max(axis=1)
        row = row[~(row < np.partition(maxima, -k)[-k])]  # keeps NaNs, which partition puts last
    return np.partition(row, -k)[-k]


def top_p(logits: np.ndarray, p: float) -> None:
    """Keep the fewest tokens that together have probability p (Holtzman et al. 2019,
    arXiv:1904.09751)."""
    for row in logits:
        possible = np.flatnonzero(row > -np.inf)
        ascending = possible[np.argsort(row[possible], kind="stable")]
        # The probability of a token and all less likely ones.
        tail = np.cumsum(softmax_forward(row[ascending])[0])
        removed = tail <= 1 - p
        removed[-1] = False
        row[ascending[removed]] = -np.inf


def min_p(logits: np.ndarray, p: float) -> None:
    """Keep tokens at least p times as probable as the most likely one (Nguyen et al. 2024,
    arXiv:2407.01082)."""
    probabilities, _ = softmax_forward(logits)
    logits[probabilities < p * probabilities.max(axis=1, keepdims=True)] = -np.inf


def choose(logits: np.ndarray, levels: np.ndarray | None) -> np.ndarray:
    """One token a row: the most likely one, or with levels (n,), uniform in [0, 1), the one at
    which the probabilities, added up in the order of the ids, pass the level.  (n, V) -> (n,)."""
    if levels is None:
        return logits.argmax(axis=1)
    chosen = np.empty(len(logits), np.int64)
    for index, (row, level) in enumerate(zip(logits, levels, strict=True)):
        possible = np.flatnonzero(row > -np.inf)
        cumulative = np.cumsum(softmax_forward(row[possible].astype(np.float64))[0])
        place = np.searchsorted(cumulative, level * cumulative[-1], side="right")
        chosen[index] = possible[min(place, len(possible) - 1)]
    return chosen
