"""TEXT FILES -> BATCHES. Corpora and windows of them; examples of what to answer, and what is
trained on."""

from numgpt.lazy import lazy_names

_MODULES = {
    "Batch": "batch",
    "Corpus": "corpus",
    "ExampleEncoder": "examples",
    "ExampleSet": "example_set",
    "find_files": "corpus",
    "find_record_files": "records",
    "read_records": "records",
}

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
