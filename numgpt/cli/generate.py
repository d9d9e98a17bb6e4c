"""numgpt generate: continue a prompt."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from typing import Any

import numpy as np

from numgpt.cli import common
from numgpt.generation import GenerateOutput, generate, generate_each
from numgpt.generation.options import defaults_of
from numgpt.layers.softmax import log_softmax
from numgpt.messages import printable, shown, tell
from numgpt.models.language_model import LanguageModel
from numgpt.options import Combination, refuse
from numgpt.tokenizer import BaseTokenizer, StreamDecoder
from numgpt.training.checkpoint import tuned_on_conversations

NEW_TOKENS = 200
DEFAULTS = {"do_sample": True, "temperature": 0.8, "num_beams": 1, "num_return_sequences": 1}
# Flags that are options of `generate` by the same name.
GIVEN = frozenset(("max_new_tokens", "max_length", "min_new_tokens", "no_repeat_ngram_size"))
GIVEN |= {"num_beams", "length_penalty", "num_return_sequences"}
TOP_LOGPROBS, MOST_TOP_LOGPROBS = 5, 1000


def register(subparsers: Any) -> None:
    parser = common.add_command(
        subparsers,
        "generate",
        "continue a text",
        'numgpt generate "Once upon a time" --max-length 30 --num-return-sequences 5',
        run,
    )
    parser.add_argument(
        "prompt", nargs="*", help="the text to continue; - or a pipe: standard input"
    )
    common.add_model(parser)
    common.add_dtype(parser)
    flags = {
        "--special-tokens": "special tokens in the prompt (<|endoftext|>) are meant, not spelt",
        "--max-new-tokens N": f"tokens to add (default {NEW_TOKENS})",
        "--max-length N": "tokens in all, the prompt's included",
        "--min-new-tokens N": "no end of text before these",
        "--num-return-sequences -n N": "continuations (default 1)",
    }
    common.add_flags(parser, flags)
    parser.add_argument(
        "--no-slide",
        dest="slide",
        action="store_false",
        help="end where the model's context is full (default: go on from its newer half)",
    )
    common.add_sampling(parser, temperature=DEFAULTS["temperature"])
    texts = {
        "--stop TEXT": "end after this text; repeatable",
        "--ban TEXT": "never write this; repeatable",
    }
    common.add_flags(parser, texts, action="append", default=[])
    others = {
        "--no-repeat-ngram-size N": "no N tokens in a row occur twice",
        "--num-beams N": "search for the most probable text with N beams, in place of sampling",
        "--length-penalty X": "of beams: above 1 favours longer texts (default 1)",
        "--logprobs": "write JSON lines: a text each, with the log-probability of every token, as"
        " the model gives it: before temperature, top-k and the like",
        "--top-logprobs N": f"beside each token the N likeliest (default {TOP_LOGPROBS})",
    }
    common.add_flags(parser, others | common.THREADS)


def run(options: argparse.Namespace) -> None:
    refuse(options, _COMBINATIONS)
    prompt = common.text_argument(" ".join(options.prompt) if options.prompt else None, "prompt")
    model, tokenizer = common.load_language_model(options)
    allowed = "all" if options.special_tokens else ()
    ids = tokenizer.encode(prompt, allowed, add_special_tokens=True)
    if not ids:
        raise ValueError(
            'the prompt is empty: numgpt generate "Once upon a time", or pipe a text in'
        )
    tuned = options.model if options.adapter is None else options.adapter
    if not options.special_tokens and tuned_on_conversations(tuned):
        tell(
            f"numgpt: note: {tuned} was tuned on conversations, and this prompt is none: numgpt"
            " chat asks as it was tuned"
        )
    seed = secrets.randbits(32) if options.seed is None else options.seed
    given = common.sampling_options(options)
    given |= {name: value for name in GIVEN if (value := getattr(options, name)) is not None}
    if options.stop:
        given["stop_strings"] = options.stop
    request = _with_defaults(model, given, options) | given
    # A word is one token with a space before it and another without, where tokens are more than
    # characters.
    spaces = ("", " ") if hasattr(tokenizer, "merges") else ("",)
    words = [space + word for word in options.ban for space in spaces]
    banned = [tokenizer.encode(word, continues=True) for word in words]
    if banned:
        request["bad_words_ids"] = [*(request.get("bad_words_ids") or ()), *banned]
    request |= {"tokenizer": tokenizer, "seed": seed, "slide": options.slide}
    request["generation_config"] = {}  # which the request has
    beams, count = request["num_beams"], request.pop("num_return_sequences")
    if beams != 1:
        request["slide"] = False
    began = time.perf_counter()
    if options.logprobs:
        request |= {"return_dict_in_generate": True, "output_logits": True}
        found = generate(model, ids, num_return_sequences=count, **request)
        made, longest = int(found.lengths.sum()), len(ids) + int(found.lengths.max())
        top = TOP_LOGPROBS if options.top_logprobs is None else options.top_logprobs
        _write_logprobs(found, prompt, len(ids), tokenizer, top)
    elif count == 1 and beams == 1:
        decoder = StreamDecoder(tokenizer, skip_special_tokens=True)
        tokens = model.stream(ids, **request)  # checks everything, before any text appears
        _write(prompt)
        made = longest = 0
        for made, token in enumerate(tokens, start=1):  # noqa: B007 (the count outlives the loop)
            _write(decoder.push(token))
        _write(decoder.finish() + "\n")
        longest = len(ids) + made
    else:
        sequences = generate_each(model, ids, num_return_sequences=count, **request)
        made = sum(len(sequence) - len(ids) for sequence in sequences)
        longest = max(map(len, sequences))
        for index, sequence in enumerate(sequences, start=1):
            text = tokenizer.decode(sequence, skip_special_tokens=True)
            _write(text + "\n" if count == 1 else f"=== {index} of {count} ===\n{text}\n\n")
    seconds = time.perf_counter() - began
    sampled = f", seed {seed}" if request["do_sample"] else ""
    tell(f"{made} tokens in {seconds:.2f} s, {made / seconds:.1f} tokens/s{sampled}")
    if options.slide and longest > model.context_length:
        tell(
            f"the text is longer than the model's context of {model.context_length} tokens: each"
            " time that was full, it went on from the newer half (--no-slide ends there)"
        )


def _with_defaults(
    model: LanguageModel, given: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """What the model's generation_config says where no flag does, and else the command's own."""
    config = model.generation_config
    if "num_beams" in given and given["num_beams"] != 1:
        given.setdefault("do_sample", False)  # beams sample nothing
    elif given.get("do_sample") or options.seed is not None:
        given.setdefault("num_beams", 1)  # a flag asks for sampling
    beams = given.get("num_beams", config.get("num_beams") or 1)
    samples = {"do_sample": given.get("do_sample", config.get("do_sample", beams == 1))}
    # (What is given is not taken from it; of the beams, see below.)
    request = DEFAULTS | samples | defaults_of(config, samples | given | {"num_beams": None})
    request["num_beams"] = beams
    if beams != 1 and options.logprobs:
        raise ValueError(
            f"--logprobs cannot be combined with num_beams={shown(beams)} of the model's"
            " generation_config: add --num-beams 1"
        )
    if beams != 1 and request["do_sample"]:
        raise ValueError(
            f"do_sample and num_beams={shown(beams)} of the model's generation_config cannot be"
            " combined: add --num-beams 1, or --greedy"
        )
    if "max_length" in given:  # which else goes behind
        request.pop("max_new_tokens", None)
    elif request.get("max_new_tokens") is None and request.get("max_length") is None:
        request["max_new_tokens"] = NEW_TOKENS
    least, most = request.get("min_new_tokens"), (request | given).get("max_new_tokens")
    if isinstance(least, int) and isinstance(most, int):
        request["min_new_tokens"] = min(least, most)
    return request


def _beams(options: argparse.Namespace) -> int:
    return 1 if options.num_beams is None else options.num_beams


def _given_beside_beams(name: str) -> Combination:
    return (
        lambda o: _beams(o) > 1 and getattr(o, name) is not None,
        f"{{{name}}} cannot be combined with {{num_beams:name}}, which samples nothing",
    )


# What the library does not know of: flags that go together, or do not, or are no names of its own.
_COMBINATIONS: tuple[Combination, ...] = (
    (
        lambda o: _beams(o) > 1 and o.logprobs,
        "{logprobs:name} cannot be combined with {num_beams:name}: leave one of them out",
    ),
    *map(_given_beside_beams, ("temperature", "top_k", "top_p", "min_p", "seed")),
    (
        lambda o: _beams(o) == 1 and o.length_penalty is not None,
        "{length_penalty} goes with {num_beams:name}: add it",
    ),
    (
        lambda o: o.top_logprobs is not None and not o.logprobs,
        "{top_logprobs} goes with {logprobs:name}: add it",
    ),
    (
        lambda o: o.top_logprobs is not None and not 0 <= o.top_logprobs <= MOST_TOP_LOGPROBS,
        f"{{top_logprobs}}: expected 0 to {MOST_TOP_LOGPROBS}",
    ),
    (
        lambda o: o.greedy and (o.num_return_sequences or 1) > max(_beams(o), 1),
        "{greedy:name} writes the same text every time: leave {num_return_sequences:name} out",
    ),
    (lambda o: not all(map(_is_text, o.ban)), "{ban}: give texts in UTF-8 that are not empty"),
    (lambda o: not all(map(_is_text, o.stop)), "{stop}: give texts in UTF-8 that are not empty"),
)


def _is_text(text: str) -> bool:
    """Whether it is not empty, and was UTF-8: other bytes come as surrogates."""
    return text != "" and not any("\ud800" <= character <= "\udfff" for character in text)


def _write_logprobs(
    found: GenerateOutput, prompt: str, length: int, tokenizer: BaseTokenizer, top: int
) -> None:
    """A line of JSON for each text, with the model's own log-probabilities (before temperature and
    all else that changes them)."""
    assert found.logits is not None  # asked for
    logps = [log_softmax(step) for step in found.logits]

    def told(id: int, logp: np.ndarray) -> dict[str, Any]:
        return {"id": id, "token": tokenizer.decode([id]), "logprob": round(float(logp[id]), 6)}

    for row, (sequence, made) in enumerate(zip(found.sequences, found.lengths, strict=True)):
        ids, tokens = sequence[length : length + made], []
        for id, step in zip(ids.tolist(), logps, strict=False):
            likeliest = np.argsort(-step[row], kind="stable")[:top].tolist()
            tokens.append(told(id, step[row]) | {"top": [told(i, step[row]) for i in likeliest]})
        text = tokenizer.decode(ids, skip_special_tokens=True)
        print(json.dumps({"prompt": prompt, "text": text, "tokens": tokens}), flush=True)


def _write(text: str) -> None:
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)
