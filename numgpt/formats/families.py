"""The families of models: one entry each.

A new family is a page in numgpt/models, a page of names here in formats, and a line in FAMILIES.
"""

from __future__ import annotations

from numgpt.formats import gpt2, llama
from numgpt.formats.family import Family
from numgpt.models.language_model import LanguageModel

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (gpt2.FAMILY, llama.LLAMA, llama.QWEN2, llama.QWEN3)
}


def family_of(model: LanguageModel) -> Family:
    """The entry that a model belongs to."""
    return FAMILIES[model.config.model_type]
