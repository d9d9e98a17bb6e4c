"""THE WIRING. A model is a page of layer calls forward, then the mirror page backward."""

from numgpt.models.gpt2 import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
