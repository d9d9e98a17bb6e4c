"""How often a reward model prefers what people preferred."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from numgpt.data.preferences import PairEncoder
from numgpt.data.records import find_record_files, read_records
from numgpt.models.language_model import LanguageModel
from numgpt.options import AboutOptions, OptionError
from numgpt.tokenizer import BaseTokenizer

AT_ONCE = 8  # pairs


@dataclass(frozen=True)
class PreferenceAccuracy:
    """What a reward model makes of pairs."""

    pairs: int
    accuracy: float  # of those where the chosen completion scores higher
    margin: float  # mean score of the chosen completions above that of the rejected ones
    left_out: int = 0  # more pairs, too long for the model
    cut: int = 0  # pairs whose prompt was cut from the left


def preference_accuracy(
    model: LanguageModel,
    tokenizer: BaseTokenizer,
    data: str | list[str],
    progress: Callable[[int], object] = lambda done: None,
) -> PreferenceAccuracy:
    """Score the pairs in files of JSON lines.  A tie is not right.  Raises OptionError for a model
    without a score head, ValueError for records that are no preferences."""
    if model.score_head is None:
        named = model.name_or_path or type(model).__name__
        raise OptionError("{model} is no reward model: numgpt tune reward makes one", model=named)
    encoder, differences, left_out, cut = PairEncoder(tokenizer), list[float](), 0, 0
    waiting: list[np.ndarray] = []

    def score() -> None:
        scores = model.scores(waiting).astype(np.float64)
        differences.extend(scores[::2] - scores[1::2])
        waiting.clear()
        progress(len(differences))

    try:
        files = find_record_files(data)
    except AboutOptions as error:
        raise error.renamed({"data": "preferences"}) from None
    for record in read_records(files):
        whole = encoder.examples(record)
        pair = encoder.fit(whole, model.context_length)
        if pair is None:
            left_out += 1
            continue
        cut += len(pair[0].ids) < len(whole[0].ids)
        waiting += [example.ids for example in pair]
        if len(waiting) == 2 * AT_ONCE:
            score()
    if waiting:
        score()
    if not differences:
        raise OptionError("{preferences:name}: no pair is short enough for the model")
    apart = np.array(differences)
    return PreferenceAccuracy(
        len(apart), float((apart > 0).mean()), float(apart.mean()), left_out, cut
    )
