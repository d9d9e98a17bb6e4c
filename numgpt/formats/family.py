"""What a family of models is to the files: its class, its config fields, its names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numgpt.models.language_model import LanguageModel


@dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face's config.json."""

    model_type: str
    model: type[LanguageModel]
    # config.json -> config; raises ValueError naming a field whose value is not supported
    config_from: Callable[[dict[str, Any]], Any]
    # config -> config.json
    config_fields: Callable[[Any], dict[str, Any]]
    # our name -> the name in the file
    stored_name: Callable[[str], str]
    # the name in a file, with or without its prefix -> ours; None for what is not a parameter
    our_name: Callable[[str, Any], str | None]
    # whether a parameter is a linear layer's matrix as (in, out), where PyTorch's own are (out, in)
    is_transposed: Callable[[str], bool] = lambda name: False
