"""TEXT FILES -> BATCHES. The tokens of a corpus on disk, and windows of them."""

from numgpt.lazy import lazy_names

_MODULES = {"Corpus": "corpus", "find_files": "corpus"}

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
