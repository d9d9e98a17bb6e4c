"""GPT-2 in CTranslate2, an inference engine in C++: the other side of the rows with `-ctranslate2`.

It reads its own format, which its converter writes from a directory of transformers. In int8 it
multiplies 8-bit weights, a scale for each row of a matrix, by activations that it rounds likewise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from benchmarks.generating import END, prompt
from benchmarks.loading import saved_model
from benchmarks.process import elsewhere
from benchmarks.training import GPT2


def convert(directory: str) -> None:
    """numgpt's random weights, with the ids in digits for a vocabulary."""
    import torch  # noqa: F401  (the converter goes on without them, to fail later)
    import transformers
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> SimpleNamespace:
            vocabulary = {str(id): id for id in range(GPT2["vocab_size"])}
            ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), str(END))
            return SimpleNamespace(get_vocab=lambda: vocabulary, **ends)

    transformers.logging.disable_progress_bar()
    source = saved_model()
    Converter(source.name).convert(directory, force=True)


def decode(sequences: int, tokens: int, compute_type: str = "float32") -> Callable[[], Any]:
    import ctranslate2

    with tempfile.TemporaryDirectory() as directory:
        elsewhere(convert, directory)
        generator = ctranslate2.Generator(directory, compute_type=compute_type)
    prompts = [[str(id) for id in ids] for ids in prompt(8, sequences)]
    lengths = {"min_length": tokens, "max_length": tokens, "include_prompt_in_result": False}
    return lambda: generator.generate_batch(prompts, **lengths)
