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

from numgpt.generation.batcher import Batcher
from numgpt.generation.beam_search import beam_search
from numgpt.generation.options import GenerationOptions
from numgpt.generation.request import Request
from numgpt.models.kv_cache import KVCache
from numgpt.models.language_model import Ids, LanguageModel
from numgpt.options import OptionError


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
    request = Request(model, ids, attention_mask, GenerationOptions.for_model(model, options))
    made, found = _continuations(request)
    pad, prompts = request.pad_token_id, np.repeat(request.ids, _times(request), axis=0)
    longest = max(map(len, made))
    sequences = np.concatenate([prompts, [_padded(row, longest, pad) for row in made]], axis=1)
    if not request.options.return_dict_in_generate:
        return sequences
    lengths = np.array([len(row) for row in made])
    if request.options.num_beams > 1:
        return GenerateOutput(sequences, lengths, sequences_scores=np.array(found))
    return GenerateOutput(
        sequences,
        lengths,
        np.array([_padded(one.logprobs, longest, 0.0) for one in found]),
        np.array([_padded(one.sampled_logprobs, longest, 0.0) for one in found]),
        _by_step([one.scores for one in found], pad) if request.options.output_scores else None,
        _by_step([one.logits for one in found], pad) if request.options.output_logits else None,
    )


def generate_each(model: LanguageModel, ids: Ids, **options: Any) -> list[np.ndarray]:
    """As `generate`, but each sequence by itself, prompt and continuation without any padding."""
    request = Request(model, ids, None, GenerationOptions.for_model(model, options))
    times, (made, _) = _times(request), _continuations(request)
    return [np.append(request.prompts[n // times], row) for n, row in enumerate(made)]


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
    earlier call: then only the rest is computed. It takes in what is, and grows where it has to.
    """
    chosen = GenerationOptions.for_model(model, options, single=True)
    request = Request(model, ids, attention_mask, chosen)
    if len(request.ids) * chosen.num_return_sequences != 1:
        raise ValueError(
            "stream makes one sequence: pass one prompt and leave num_return_sequences at 1"
        )
    for name in ("num_beams", "return_dict_in_generate"):
        if getattr(chosen, name) != getattr(GenerationOptions, name):
            raise OptionError(
                f"{{{name}:name}} is for generate: stream yields each token as it is made"
            )
    if kv_cache is not None:
        _check_cache(kv_cache, request)
    batcher = Batcher(model, 1, kv_cache)
    sequence = batcher.add(request.prompts[0], request.options, None, request.shown[0])

    def tokens() -> Iterator[int]:
        while batcher.busy:
            _step(batcher)
            if sequence.made[-1] not in sequence.eos_token_ids:
                yield sequence.made[-1]
        _warn_of_context(sequence.finish_reason == "context", model)

    return tokens()


def _check_cache(kv_cache: KVCache, request: Request) -> None:
    """Raises ValueError for a cache that the prompt does not continue."""
    if request.options.slide:
        raise ValueError("slide=True cannot be combined with kv_cache, which has one context")
    if len(kv_cache.lengths) != 1:
        raise ValueError(f"kv_cache is for {len(kv_cache.lengths)} sequences, there are 1")
    if not kv_cache.length < (length := len(request.prompts[0])):
        raise ValueError(
            f"kv_cache holds {kv_cache.length} positions, the prompt has {length}"
            " tokens: at least the last must be new (truncate the cache)"
        )


def _continuations(request: Request) -> tuple[list[np.ndarray], list[Any]]:
    """The new tokens of each sequence; and the sequences, or of beams their scores."""
    model, options = request.model, request.options
    if options.num_beams > 1:
        beams = beam_search(request)
        ends = request.eos_token_ids
        rows = [(request.prompts[n // _times(request)], row) for n, (_, row) in enumerate(beams)]
        _warn_of_context(
            any(
                len(prompt) + len(made) >= model.context_length
                and len(made) < request.most
                and not (len(made) and made[-1] in ends)
                for prompt, made in rows
            ),
            model,
        )
        return [made for _, made in beams], [score for score, _ in beams]
    batcher = Batcher(model, len(request.prompts) * _times(request))
    sequences = [
        batcher.add(prompt, options, _generator(options, i, k), shown)
        for i, (prompt, shown) in enumerate(zip(request.prompts, request.shown, strict=True))
        for k in range(_times(request))
    ]
    while batcher.busy:
        _step(batcher)
    _warn_of_context(any(one.finish_reason == "context" for one in sequences), model)
    return [np.array(one.made, np.int64) for one in sequences], sequences


def _step(batcher: Batcher) -> None:
    """A step of the batcher.  Raises what ended a sequence as an error."""
    for sequence in batcher.step():
        if sequence.error is not None:
            raise sequence.error


def _generator(
    options: GenerationOptions, prompt: int, continuation: int
) -> np.random.Generator | None:
    """That of one sequence, whatever others are made; the first one's is that of the seed alone."""
    if not options.do_sample:
        return None
    seed = options.seed
    if seed is None or (prompt, continuation) == (0, 0):
        return np.random.default_rng(seed)
    return np.random.default_rng([seed, prompt, continuation])


def _times(request: Request) -> int:
    return request.options.num_return_sequences


def _warn_of_context(cut: bool, model: LanguageModel) -> None:
    if cut:
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
