"""generate, generate_each and stream: prompts in, ids out; the loop is the batcher's (batcher.py).

What `generate` returns is rectangular: padded on the left before shorter prompts, and on the right
after what ended early.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np

from numgpt.generation.batcher import Batcher, Sequence
from numgpt.generation.beam_search import beam_search
from numgpt.generation.options import GenerationOptions
from numgpt.generation.prompts import Prompts
from numgpt.models.kv_cache import KVCache
from numgpt.models.language_model import Ids, LanguageModel
from numgpt.options import OptionError, OptionWarning


class LengthWarning(UserWarning):
    """A sequence ended because the model's context was full."""


@dataclass
class GenerateOutput:
    """What `generate` returns with return_dict_in_generate=True; n is B · num_return_sequences."""

    sequences: np.ndarray  # (n, T')
    lengths: np.ndarray  # (n,): how many tokens each got, padding not counted
    # log p of each new token (n, T' - T), 0 at padding: by the model's own distribution, and by the
    # one that it was chosen from, after all processors. Of beams, none.
    logprobs: np.ndarray | None = None
    sampled_logprobs: np.ndarray | None = None
    # For each new token (n, V): what it was chosen by, after all processors (output_scores=True),
    # and the model's own logits (output_logits=True). Of a sequence that has ended, only
    # pad_token_id is possible.
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None
    sequences_scores: np.ndarray | None = None  # (n,), of beams: log P / length ** length_penalty


@overload
def generate(
    model: LanguageModel,
    ids: Ids,
    attention_mask: Ids | None = None,
    *,
    return_dict_in_generate: Literal[True],
    **options: Any,
) -> GenerateOutput: ...


@overload
def generate(
    model: LanguageModel, ids: Ids, attention_mask: Ids | None = None, **options: Any
) -> np.ndarray: ...


def generate(
    model: LanguageModel, ids: Ids, attention_mask: Ids | None = None, **options: Any
) -> np.ndarray | GenerateOutput:
    """Continue one or several prompts.

    ids: (T,), (B, T) or lists of unequal length, which are padded on the left; attention_mask
    (B, T) is 0 at padding that is there already. The options are the fields of GenerationOptions;
    of those not given the model's generation_config decides, where it has them.
    Returns (B · num_return_sequences, T'): prompts and continuations; those that ended early are
    filled up with pad_token_id. With return_dict_in_generate=True returns a GenerateOutput. Raises
    ValueError for a prompt or an option that is invalid; warns with LengthWarning where the model's
    context ended a sequence.
    """
    chosen = GenerationOptions.for_model(model, options)
    prompts, sequences = _continued(model, ids, attention_mask, chosen)
    pad, longest = sequences[0].pad_token_id, max(len(one.made) for one in sequences)
    padded = np.repeat(prompts.padded, chosen.num_return_sequences, axis=0)
    made = np.array([_padded(one.made, longest, pad) for one in sequences])
    padded = np.concatenate([padded, made], axis=1)
    if not chosen.return_dict_in_generate:
        return padded
    lengths = np.array([len(one.made) for one in sequences])
    if chosen.num_beams > 1:
        scores = np.array([one.beam_score for one in sequences])
        return GenerateOutput(padded, lengths, sequences_scores=scores)
    return GenerateOutput(
        padded,
        lengths,
        np.array([_padded(one.logprobs, longest, 0.0) for one in sequences]),
        np.array([_padded(one.sampled_logprobs, longest, 0.0) for one in sequences]),
        _by_step([one.scores for one in sequences], pad) if chosen.output_scores else None,
        _by_step([one.logits for one in sequences], pad) if chosen.output_logits else None,
    )


def generate_each(model: LanguageModel, ids: Ids, **options: Any) -> list[np.ndarray]:
    """As `generate`, but each sequence by itself, prompt and continuation without any padding."""
    _, sequences = _continued(model, ids, None, GenerationOptions.for_model(model, options))
    return [np.append(one.prompt, one.made) for one in sequences]


def stream(
    model: LanguageModel,
    ids: Ids,
    attention_mask: Ids | None = None,
    kv_cache: KVCache | None = None,
    **options: Any,
) -> Iterator[int]:
    """Continue one prompt and yield each new token as it is made, up to and without the end-of-text
    token.

    kv_cache, of one sequence, may hold the keys and values of the prompt's first tokens, from an
    earlier call: then only the rest is computed. New tokens are added to it; it grows as needed.
    """
    chosen = GenerationOptions.for_model(model, options, single=True)
    for name in ("num_beams", "num_return_sequences", "return_dict_in_generate"):
        if getattr(chosen, name) != getattr(GenerationOptions, name):
            raise OptionError(
                f"{{{name}:name}} is for generate: stream yields each token as it is made"
            )
    chosen.validate(model.config.vocab_size)
    prompts = Prompts.of(model, ids, attention_mask, chosen)
    if len(prompts.each) != 1:
        raise ValueError("stream makes one sequence: pass one prompt")
    if kv_cache is not None:
        _check_cache(kv_cache, prompts.each[0], chosen)
    batcher = Batcher(model, 1, kv_cache)
    done = 0 if kv_cache is None else kv_cache.length
    sequence = batcher.add(prompts.each[0], chosen, None, prompts.seen[0], done)

    def tokens() -> Iterator[int]:
        while batcher.busy:
            _step(batcher)
            if sequence.made[-1] not in sequence.eos_token_ids:
                yield sequence.made[-1]
        _warn_of_context([sequence], model)

    return tokens()


def _check_cache(kv_cache: KVCache, prompt: np.ndarray, options: GenerationOptions) -> None:
    """Raises ValueError for a cache that the prompt does not continue."""
    if options.slide:
        raise ValueError("slide=True cannot be combined with kv_cache, which has one context")
    if len(kv_cache.lengths) != 1:
        raise ValueError(f"kv_cache is for {len(kv_cache.lengths)} sequences, there are 1")
    if not kv_cache.length < len(prompt):
        raise ValueError(
            f"kv_cache holds {kv_cache.length} positions, the prompt has {len(prompt)}"
            " tokens: at least the last must be new (truncate the cache)"
        )


def _continued(
    model: LanguageModel, ids: Ids, attention_mask: Ids | None, options: GenerationOptions
) -> tuple[Prompts, list[Sequence]]:
    """num_return_sequences continuations of each prompt."""
    options.validate(model.config.vocab_size)
    prompts = Prompts.of(model, ids, attention_mask, options)
    times = options.num_return_sequences
    if times > options.num_beams and not options.do_sample:
        same = "{num_return_sequences} without {do_sample}: greedy decoding repeats itself"
        told = OptionWarning(same, num_return_sequences=times, do_sample=True)
        warnings.warn(told, stacklevel=3)
    pairs = [*zip(prompts.each, prompts.seen, strict=True)]
    if options.num_beams > 1:
        sequences = [
            beam for prompt, seen in pairs for beam in beam_search(model, prompt, options, seen)
        ]
    else:
        batcher = Batcher(model, len(pairs) * times)
        sequences = [
            batcher.add(prompt, options, _generator(options, i, k), seen)
            for i, (prompt, seen) in enumerate(pairs)
            for k in range(times)
        ]
        while batcher.busy:
            _step(batcher)
    _warn_of_context(sequences, model)
    return prompts, sequences


def _step(batcher: Batcher) -> None:
    """A step of the batcher.  Raises what ended a sequence as an error."""
    for sequence in batcher.step():
        if sequence.error is not None:
            raise sequence.error


def _generator(
    options: GenerationOptions, prompt: int, continuation: int
) -> np.random.Generator | None:
    """That of one sequence, whatever others are made; None: the batcher makes it of the seed alone,
    for the first one, or it samples nothing."""
    if not options.do_sample or options.seed is None or prompt == continuation == 0:
        return None
    return np.random.default_rng([options.seed, prompt, continuation])


def _warn_of_context(sequences: list[Sequence], model: LanguageModel) -> None:
    if any(one.finish_reason == "context" for one in sequences):
        warnings.warn(
            "the text ends here because it fills the model's context of"
            f" {model.context_length} tokens ({model.config.context_field})",
            LengthWarning,
            stacklevel=4,
        )


def _padded(values: Iterable[Any], length: int, padding: Any) -> np.ndarray:
    """(length,): the values, and padding after them."""
    row = np.array(values, type(padding))
    return np.append(row, np.full(length - len(row), padding))


def _by_step(rows: list[list[np.ndarray]], pad_token_id: int) -> tuple[np.ndarray, ...]:
    """What each of n sequences had at each step (V,) -> of each step (n, V); of one that has ended,
    the padding is sure."""
    if not any(rows):
        return ()
    sure = np.full_like(next(filter(None, rows))[0], -np.inf)
    sure[pad_token_id] = 0
    return tuple(
        np.stack([row[step] if step < len(row) else sure for row in rows])
        for step in range(max(map(len, rows)))
    )
