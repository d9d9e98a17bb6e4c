"""Loading weights of GPT-2's size from safetensors, against transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.generating import numgpt_model


def saved_model() -> tempfile.TemporaryDirectory:
    """Random weights of 124M parameters, in float32, on disk (and in the system's file cache)."""
    directory = tempfile.TemporaryDirectory()
    numgpt_model().save_pretrained(directory.name)
    return directory


def numgpt_load() -> Callable[[], Any]:
    import numgpt

    directory = saved_model()
    return lambda: numgpt.GPT.from_pretrained(directory.name)


def transformers_load() -> Callable[[], Any]:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    directory = saved_model()
    return lambda: transformers.GPT2LMHeadModel.from_pretrained(directory.name, dtype=torch.float32)
