"""What a request for text can ask for: transformers' names, meanings and defaults."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from numgpt.messages import shown
from numgpt.models.language_model import LanguageModel
from numgpt.tokenizer import BaseTokenizer

LogitsProcessor = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids, logits -> logits
DEFAULT_NEW_TOKENS = 20
LONGEST = (1 << 31) - 1  # tokens
MOST_BEAMS = 1000
# What people call options that have other names here.
OTHER_NAMES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "n": "num_return_sequences",
    "stop": "stop_strings",
    "stop_sequences": "stop_strings",
    "generator": "seed",
    "random_state": "seed",
    "penalty": "repetition_penalty",
    "sample": "do_sample",
    "ids": "the first argument",
    "input_ids": "the first argument",
}
# transformers' options that are not here.
NOT_SUPPORTED = frozenset(  # (a string, as it would fill sixty lines as a list)
    "max_time use_cache cache_implementation top_h typical_p"  # noqa: SIM905
    " epsilon_cutoff eta_cutoff encoder_repetition_penalty"
    " renormalize_logits forced_bos_token_id forced_eos_token_id remove_invalid_values"
    " exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sequence_bias"
    " token_healing guidance_scale watermarking_config output_attentions output_hidden_states"
    " encoder_no_repeat_ngram_size"
    " num_beam_groups diversity_penalty penalty_alpha prompt_lookup_num_tokens dola_layers"
    " constraints force_words_ids past_key_values position_ids inputs_embeds"
    " stopping_criteria prefix_allowed_tokens_fn synced_gpus assistant_model"
    " streamer negative_prompt_ids custom_generate".split()
)


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


def token_ids(model: LanguageModel, name: str) -> list[int]:
    """The model's eos_token_id or pad_token_id: of its generation_config, or else of its config."""
    ids: Any = model.generation_config.get(name)
    ids = getattr(model.config, name, None) if ids is None else ids
    each = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(_whole(id) for id in each):
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


@dataclass
class GenerationOptions:
    """Options of `generate` and `stream`."""

    max_length: int | None = None  # tokens in all, the prompt's included
    max_new_tokens: int | None = (
        None  # tokens beyond the prompt; goes before max_length; 20 without either
    )
    min_length: int = 0
    min_new_tokens: int = 0  # the end-of-text token can't come before
    do_sample: bool = False  # False: always the most likely token (greedy)
    temperature: float = 1.0  # logits are divided by it
    top_k: int | None = 50  # only the k most likely tokens; None or 0: all
    top_p: float | None = None  # only the most likely tokens that together reach this probability
    min_p: float | None = (
        None  # only tokens at least this probable, relative to the most likely one
    )
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
    pad_token_id: int | None = (
        None  # fills up sequences that have ended; None: the end-of-text token
    )
    stop_strings: (
        str | Sequence[str]
    ) = ()  # end a sequence once its text contains one; needs `tokenizer`
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
        for name in options:
            if name in names:
                continue
            if name in NOT_SUPPORTED:
                raise TypeError(
                    f"generate: {name} is an option of transformers that numgpt does not have; it"
                    f" has {', '.join(names)}"
                )
            near = OTHER_NAMES.get(name) or next(
                iter(difflib.get_close_matches(name, names, 1, cutoff=0.5)), None
            )
            hint = f"did you mean {near}?" if near else f"there are {', '.join(names)}"
            raise TypeError(f"generate has no option {name}: {hint}")
        return cls(**options)

    def validate(self, vocab_size: int) -> None:
        """Raises ValueError naming the option, its value and what it may be."""

        def require(condition: bool, name: str, expected: str) -> None:
            if not condition:
                raise ValueError(f"{name}={shown(getattr(self, name))}: expected {expected}")

        for name in ("max_length", "max_new_tokens"):
            value = getattr(self, name)
            possible = value is None or (_whole(value) and 1 <= value <= LONGEST)
            require(possible, name, f"a whole number from 1 to {LONGEST}")
        for name in ("min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size"):
            value = getattr(self, name)
            if name == "top_k" and value is None:
                continue
            require(_whole(value) and value >= 0, name, "a whole number from 0 up")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty"):
            value = getattr(self, name)
            optional = name in ("top_p", "min_p") and value is None
            require(optional or isinstance(value, numbers.Real), name, "a number")
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature={shown(self.temperature)}: expected a number above 0;"
                " for the most likely token every time, turn sampling off (do_sample=False)"
            )
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", "0 < top_p <= 1")
        require(self.min_p is None or 0 <= self.min_p <= 1, "min_p", "0 <= min_p <= 1")
        require(0 < self.repetition_penalty < math.inf, "repetition_penalty", "a number above 0")
        possible = self.seed is None or (_whole(self.seed) and self.seed >= 0)
        require(possible, "seed", "a whole number from 0 up")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} is more than"
                f" max_new_tokens={self.max_new_tokens}"
            )
        value = self.num_return_sequences
        possible = _whole(value) and 1 <= value <= LONGEST
        require(possible, "num_return_sequences", f"a whole number from 1 to {LONGEST}")
        self._validate_beams(require)
        self._validate_outputs(require)
        expected = f"non-empty sequences of token ids below {vocab_size}"
        require(_is_list(self.bad_words_ids), "bad_words_ids", expected)
        for word in self.bad_words_ids:
            require(_are_ids(word, vocab_size) and len(word) > 0, "bad_words_ids", expected)
        for name in ("eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            ids = [] if value is None else [value] if _whole(value) else value
            require(_are_ids(ids, vocab_size), name, f"token ids below {vocab_size}")
        if isinstance(self.stop_strings, str):
            self.stop_strings = (self.stop_strings,)
        texts = _is_list(self.stop_strings) and all(
            isinstance(text, str) and text for text in self.stop_strings
        )
        require(texts, "stop_strings", "texts that are not empty")
        if self.stop_strings and self.tokenizer is None:
            raise ValueError("stop_strings are compared with text: pass tokenizer=... as well")

    def _validate_beams(self, require: Callable[[bool, str, str], None]) -> None:
        possible = _whole(self.num_beams) and 1 <= self.num_beams <= MOST_BEAMS
        require(possible, "num_beams", f"a whole number from 1 to {MOST_BEAMS}")
        require(abs(self.length_penalty) < 100, "length_penalty", "a number between -100 and 100")
        known = isinstance(self.early_stopping, bool) or self.early_stopping == "never"
        require(known, "early_stopping", 'True, False or "never"')
        if self.num_beams == 1:
            return
        if self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences} is more than"
                f" num_beams={self.num_beams}: beam search finds no more than that"
            )
        for name in ("do_sample", "slide", "output_scores", "output_logits"):
            if getattr(self, name):
                raise ValueError(f"{name}=True cannot be combined with num_beams={self.num_beams}")

    def _validate_outputs(self, require: Callable[[bool, str, str], None]) -> None:
        listed = _is_list(self.logits_processor) and all(map(callable, self.logits_processor))
        require(listed, "logits_processor", "a list of functions of ids and logits")
        for name in ("output_scores", "output_logits"):
            if getattr(self, name) and not self.return_dict_in_generate:
                raise ValueError(f"{name}=True goes with return_dict_in_generate=True")


def _whole(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str)


def _are_ids(ids: Any, vocab_size: int) -> bool:
    return _is_list(ids) and all(_whole(id) and 0 <= id < vocab_size for id in ids)
