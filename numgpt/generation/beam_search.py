"""Beam search: the most probable continuations that a few candidates at a time can find.

Greedy decoding may begin with a likely token that leads nowhere. Here `num_beams` beginnings grow
side by side: each step extends all of them by every token, and of all extensions the likeliest ones
go on. A hypothesis that ends is set aside with the score

    log P(y | x) / |y| ** length_penalty

as more tokens never make a text more probable: a penalty of 1 compares means, one above 1 favours
longer texts. What ends the search is transformers's, whose results these are (its `_beam_search`):
with early_stopping=True as many finished hypotheses as beams; with False, when the best beam at its
present length scores below the worst of them; with "never", at the length that would favour it
most.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numgpt.generation.batcher import Sequence, read
from numgpt.generation.endings import ends_with
from numgpt.generation.options import GenerationOptions
from numgpt.generation.processors import process_logits
from numgpt.layers.softmax import log_softmax
from numgpt.models.kv_cache import KVCache
from numgpt.models.language_model import LanguageModel
from numgpt.options import OptionError


class Beam(NamedTuple):
    """A continuation, and its log-probability."""

    logp: float
    made: np.ndarray  # (n,) new tokens


def beam_search(
    model: LanguageModel, prompt: np.ndarray, options: GenerationOptions, seen: np.ndarray
) -> list[Sequence]:
    """The num_return_sequences best continuations of a prompt, each with its score, the best
    first."""
    found = []
    for score, made in _search(model, Sequence(model, prompt, options, None, seen)):
        found.append(Sequence(model, prompt, options, None, seen))
        found[-1].beam_score = score
        found[-1].made.extend(made.tolist())
        found[-1].check_end()
    return found


def _search(model: LanguageModel, of: Sequence) -> list[tuple[float, np.ndarray]]:
    """The best continuations of a sequence, with their scores."""
    options, prompt, width = of.options, of.prompt, of.options.num_beams
    most = min(of.most, model.context_length - len(prompt))
    candidates = max(2, 1 + len(of.eos_token_ids)) * width  # enough to go on if many end
    cache = KVCache(model, 1, min(len(prompt) + of.most, model.context_length))
    logits = read(model, cache, [prompt], 0)
    beams = [Beam(0.0, np.empty(0, np.int64))]
    finished: list[tuple[float, np.ndarray]] = []  # the best first
    for length in range(1, most + 1):
        logps, may_end = log_softmax(logits.astype(np.float64)), length > of.least
        seen = np.stack([np.append(of.seen, beam.made) for beam in beams])
        totals = process_logits(logps, seen, options, of.eos_token_ids, may_end, of.pad_token_id)
        totals += np.array([beam.logp for beam in beams])[:, None]
        going: list[Beam] = []
        parents: list[int] = []
        for rank, place in enumerate(_largest(totals.ravel(), candidates)):
            parent, token = divmod(int(place), totals.shape[1])
            made = np.append(beams[parent].made, token)
            if length == most or ends_with(made, of.eos_token_ids, options):
                if rank < width:
                    finished.append((totals[parent, token] / length**options.length_penalty, made))
            elif len(going) < width:
                going.append(Beam(totals[parent, token], made))
                parents.append(parent)
        finished = sorted(finished, key=lambda one: -one[0])[:width]
        beams = going
        if not beams or _is_decided(beams[0].logp, finished, length, most, options):
            break
        cache = cache.selected(parents)
        logits = read(model, cache, [beam.made[-1:] for beam in beams], 0)
    if not most:  # the prompt fills the context
        finished = [(0.0, beams[0].made)] * options.num_return_sequences
    if len(finished) < options.num_return_sequences:
        raise OptionError(
            "{num_return_sequences}: only {0} continuations are possible after what is forbidden;"
            " ban fewer",
            len(finished),
            num_return_sequences=options.num_return_sequences,
        )
    return finished[: options.num_return_sequences]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The places of the largest values (n,) above -∞, the largest first."""
    count = min(count, int(np.count_nonzero(values > -np.inf)))
    places = np.argpartition(-values, count - 1)[:count]
    return places[np.argsort(-values[places], kind="stable")]


def _is_decided(
    best: float,
    finished: list[tuple[float, np.ndarray]],
    length: int,
    most: int,
    options: GenerationOptions,
) -> bool:
    """Whether no beam, the best of which has log-probability `best`, can better what is
    finished."""
    if len(finished) < options.num_beams:
        return False
    if options.early_stopping is True:
        return True
    longest = options.early_stopping == "never" and options.length_penalty > 0
    return best / (most if longest else length) ** options.length_penalty <= finished[-1][0]
