"""HOW GOOD IT IS. Loss, perplexity and bits per byte of a text of any length; exact answers;
preferences."""

from numgpt.lazy import lazy_names

_MODULES = {"Evaluation": "perplexity", "sliding_window_loss": "perplexity"}
_MODULES |= {"PreferenceAccuracy": "preferences", "preference_accuracy": "preferences"}
_MODULES |= {"ExactMatch": "exact", "exact_match": "exact", "questions": "exact"}

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
