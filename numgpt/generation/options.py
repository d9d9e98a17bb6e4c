"""What a request for text can ask for: transformers' names, meanings and defaults."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from numgpt.messages import shown
from numgpt.models.language_model import LanguageModel
from numgpt.options import (
    Combination,
    OptionError,
    Rule,
    is_list,
    is_whole,
    number,
    optional,
    refuse,
    require,
    whole,
)
from numgpt.tokenizer import BaseTokenizer

LogitsProcessor = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids, logits -> logits
DEFAULT_NEW_TOKENS = 20
LONGEST = (1 << 31) - 1  # tokens
MOST_BEAMS = 1000


@dataclass
class GenerationOptions:
    """Options of `generate` and `stream`."""

    max_length: int | None = None  # tokens in all, the prompt's included
    # Tokens beyond the prompt; wins over max_length; 20 without either.
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int = 0  # the end-of-text token can't come before
    do_sample: bool = False  # False: always the most likely token (greedy)
    temperature: float = 1.0  # logits are divided by it
    top_k: int | None = 50  # only the k most likely tokens; None or 0: all
    top_p: float | None = None  # only the most likely tokens that together reach this probability
    min_p: float | None = None  # only tokens so probable, relative to the most likely one
    repetition_penalty: float = 1.0  # above 1: tokens that are there already become less likely
    no_repeat_ngram_size: int = 0  # no n-gram of this size occurs twice; 0: any may
    bad_words_ids: Sequence[Sequence[int]] = ()  # token sequences that must not occur
    # Functions of ids (n, T) and logits (n, V) that return other logits, called in this order after
    # the processors above, and before temperature and all that samples.
    logits_processor: Sequence[LogitsProcessor] = ()
    num_beams: int = 1  # above 1: beam search
    length_penalty: float = 1.0  # beams are compared by log P / length ** length_penalty
    early_stopping: bool | str = False  # when a beam search ends: True, False or "never"
    num_return_sequences: int = 1
    eos_token_id: int | Sequence[int] | None = None  # ends a sequence; None: the model's own
    pad_token_id: int | None = None  # fills up ended sequences; None: the end-of-text token
    stop_strings: str | Sequence[str] = ()  # end a sequence whose text has one; needs tokenizer
    tokenizer: BaseTokenizer | None = None  # where given, only ids that it knows are chosen
    seed: int | None = None  # of the sampling; None: different every time
    return_dict_in_generate: bool = False  # a GenerateOutput, which may have as well
    output_scores: bool = False  # the processed logits of each step
    output_logits: bool = False  # the model's own
    # numgpt's own: when the model's context is full, go on from its newer half; False: end there
    slide: bool = False

    @classmethod
    def for_model(
        cls, model: LanguageModel, options: Mapping[str, Any], single: bool = False
    ) -> GenerationOptions:
        """The options of a call; where it gives none, those of its generation_config, by default
        the model's."""
        given = dict(options)
        config = given.pop("generation_config", None)
        config = model.generation_config if config is None else config
        if not isinstance(config, Mapping):
            raise ValueError(f"generation_config={shown(config)}: expected a dict of options")
        optional = {f.name for f in dataclasses.fields(cls) if f.default is None}
        given = {n: value for n, value in given.items() if value is not None or n in optional}
        return cls.of(**defaults_of(config, given, single) | given)

    @classmethod
    def of(cls, **options: Any) -> GenerationOptions:
        """The options of a call.  Raises TypeError for one that there is not, saying which is
        meant."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in (name for name in options if name not in names):
            near = difflib.get_close_matches(name, names, 1, cutoff=0.7)
            near = [OTHER_NAMES[name]] if name in OTHER_NAMES else near
            hint = f"the nearest is {near[0]}" if near else f"there are {', '.join(names)}"
            raise TypeError(f"generate has no option {name}: {hint}")
        return cls(**options)

    def validate(self, vocab_size: int) -> None:
        """Raises OptionError naming the option, its value and what it may be."""
        for name, rule in _RULES.items():
            require(self, rule, name)
        for name in ("eos_token_id", "pad_token_id", "bad_words_ids"):
            value = getattr(self, name)
            ids = [id for word in value for id in word] if name == "bad_words_ids" else value
            ids = [] if ids is None else [ids] if is_whole(ids) else ids
            if any(id >= vocab_size for id in ids):
                expected = f"token ids below {vocab_size}"
                raise OptionError(f"{{{name}}}: expected {expected}", **{name: value})
        if isinstance(self.stop_strings, str):
            self.stop_strings = (self.stop_strings,)
        refuse(self, _COMBINATIONS)

    def limits(self, prompt_length: int) -> tuple[int, int]:
        """How many new tokens there must be, and may be, after a prompt.  Raises OptionError where
        max_length leaves none."""
        whole = self.max_length
        usual = DEFAULT_NEW_TOKENS if whole is None else whole - prompt_length
        most = usual if self.max_new_tokens is None else self.max_new_tokens
        if most < 1:
            raise OptionError(
                "{max_length} counts the prompt, which has {0} tokens already: raise it, or use"
                " {max_new_tokens:name}",
                prompt_length,
                max_length=whole,
            )
        return max(self.min_length - prompt_length, self.min_new_tokens), most

    def processing(self) -> tuple:
        """What process_logits and the choice of a token read, to be compared."""
        words = tuple(tuple(word) for word in self.bad_words_ids)
        others = tuple(map(id, self.logits_processor)), id(self.tokenizer)
        shaping = self.do_sample, self.temperature, self.top_k, self.top_p, self.min_p
        return shaping, self.repetition_penalty, self.no_repeat_ngram_size, words, others


def token_ids(model: LanguageModel, name: str) -> list[int]:
    """The model's eos_token_id or pad_token_id: of its generation_config, or else of its config."""
    ids: Any = model.generation_config.get(name)
    ids = getattr(model.config, name, None) if ids is None else ids
    each = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(map(is_whole, each)):
        raise ValueError(f"{name}={shown(ids)}: expected a token id, several, or none")
    # A config may name a token of the family's usual vocabulary that this model's lacks, or -1.
    return [int(id) for id in each if 0 <= id < model.config.vocab_size]


def defaults_of(
    config: Mapping[str, Any], given: Mapping[str, Any], single: bool = False
) -> dict[str, Any]:
    """What a generation_config says, as transformers' generate takes it where nothing is given;
    with `single`, for one sequence as it grows. Warns of options that are not supported."""
    fields = {name: value for name, value in config.items() if value is not None}
    known = {field.name for field in dataclasses.fields(GenerationOptions)} - _NO_OPTION - _OURS
    left_out = [
        name
        for name, value in fields.items()
        if name not in known | _NO_OPTION
        and name[:1] != "_"
        and (value is True or value not in _NEUTRAL)
    ]
    chosen = {name: v for name, v in fields.items() if name in known and name not in given}
    if single:
        left_out += [name for name in ("num_beams",) if chosen.pop(name, 1) != 1]
        chosen.pop("num_return_sequences", None)
    if left_out:
        warnings.warn(
            f"the model's generation_config has {', '.join(sorted(left_out))}: left out here",
            stacklevel=3,
        )
    if not given.get("do_sample", chosen.get("do_sample", False)):
        chosen = {name: value for name, value in chosen.items() if name not in SAMPLING}
    least = chosen.get("min_new_tokens")
    most = given.get("max_new_tokens", chosen.get("max_new_tokens"))
    if isinstance(least, int) and isinstance(most, int):
        chosen["min_new_tokens"] = min(least, most)
    return chosen


def eos_and_pad(model: LanguageModel, options: GenerationOptions) -> tuple[list[int], int]:
    """The tokens that end a sequence, and the one that fills it up: the options', or else the
    model's."""
    eos, pad = options.eos_token_id, options.pad_token_id
    ends = token_ids(model, "eos_token_id") if eos is None else np.atleast_1d(eos).tolist()
    pads = token_ids(model, "pad_token_id") if pad is None else [pad]
    return ends, next(iter([*pads, *ends]), 0)


def _are_ids(ids: Any) -> bool:
    return is_list(ids) and all(is_whole(id) and id >= 0 for id in ids)


def _are_texts(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return is_list(texts) and all(isinstance(text, str) and text for text in texts)


_whole, _number = (functools.partial(rule, numpys=True) for rule in (whole, number))
_RULES = {
    "max_length": optional(_whole(1, LONGEST)),
    "max_new_tokens": optional(_whole(1, LONGEST)),
    "min_length": _whole(0),
    "min_new_tokens": _whole(0),
    "temperature": _number(
        above=0, hint="; for the most likely token every time, turn sampling off ({do_sample:name})"
    ),
    "top_k": optional(_whole(0)),
    "top_p": optional(_number(above=0, most=1)),
    "min_p": optional(_number(least=0, most=1)),
    "repetition_penalty": _number(above=0),
    "no_repeat_ngram_size": _whole(0),
    "bad_words_ids": Rule(
        list,
        "non-empty lists of token ids",
        lambda words: is_list(words) and all(_are_ids(word) and len(word) for word in words),
    ),
    "logits_processor": Rule(
        list,
        "a list of functions of ids and logits",
        lambda functions: is_list(functions) and all(map(callable, functions)),
    ),
    "num_beams": _whole(1, MOST_BEAMS),
    "length_penalty": _number(above=-100, below=100),
    "early_stopping": Rule(
        bool, 'True, False or "never"', lambda x: isinstance(x, bool) or x == "never"
    ),
    "num_return_sequences": _whole(1, LONGEST),
    "eos_token_id": optional(
        Rule(list, "token ids", lambda ids: _are_ids([ids] if is_whole(ids) else ids))
    ),
    "pad_token_id": optional(Rule(int, "a token id", lambda id: _are_ids([id]))),
    "stop_strings": Rule(list, "texts that are not empty", _are_texts),
    "seed": optional(_whole(0, math.inf)),
}
_ALONE = "cannot be combined with {num_beams}"
_IN_DICT = "goes with {return_dict_in_generate:name}=True"
_COMBINATIONS: tuple[Combination, ...] = (
    (
        lambda o: o.max_new_tokens is not None and o.min_new_tokens > o.max_new_tokens,
        "{min_new_tokens} is more than {max_new_tokens}",
    ),
    (
        lambda o: 1 < o.num_beams < o.num_return_sequences,
        "{num_return_sequences} is more than {num_beams}: beam search finds no more than that",
    ),
    (lambda o: o.num_beams > 1 and o.do_sample, f"{{do_sample}} {_ALONE}, which samples nothing"),
    (lambda o: o.num_beams > 1 and o.slide, f"{{slide}} {_ALONE}"),
    (lambda o: o.num_beams > 1 and o.output_scores, f"{{output_scores}} {_ALONE}"),
    (lambda o: o.num_beams > 1 and o.output_logits, f"{{output_logits}} {_ALONE}"),
    (lambda o: o.output_scores and not o.return_dict_in_generate, f"{{output_scores}} {_IN_DICT}"),
    (lambda o: o.output_logits and not o.return_dict_in_generate, f"{{output_logits}} {_IN_DICT}"),
    (
        lambda o: bool(o.stop_strings) and o.tokenizer is None,
        "{stop_strings:name} are compared with text: pass {tokenizer:name}=... as well",
    ),
)

# Options of other libraries whose names here are not near theirs.
OTHER_NAMES = {"n": "num_return_sequences", "max_completion_tokens": "max_new_tokens"}
OTHER_NAMES |= {"temp": "temperature", "generator": "seed", "random_state": "seed"}
OTHER_NAMES |= {"stop": "stop_strings", "stop_sequences": "stop_strings"}

# What sampling alone reads.
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
# What in a generation_config.json changes nothing of what is generated, or is none of its options.
_NO_OPTION = frozenset(
    "use_cache cache_implementation cache_config transformers_version"  # noqa: SIM905
    " bos_token_id eos_token_id pad_token_id"
    " output_attentions output_hidden_states output_scores output_logits return_dict_in_generate"
    " max_cache_len compile_config disable_compile is_assistant prefill_chunk_size low_memory"
    " num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold".split()
)
# Options that are no model's to set.
_OURS = frozenset(("tokenizer", "seed", "slide", "logits_processor"))
# Values of options that are not here by which nothing changes.
_NEUTRAL: tuple[Any, ...] = (None, False, 0, 0.0, 1, 1.0, [], {})
