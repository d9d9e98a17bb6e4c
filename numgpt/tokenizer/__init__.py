"""TEXT <-> IDS. Byte-level BPE, and single characters behind the same interface. Stands alone."""

from numgpt.tokenizer.base import BaseTokenizer, StreamDecoder
from numgpt.tokenizer.bpe import Tokenizer
from numgpt.tokenizer.character import CharTokenizer
from numgpt.tokenizer.files import build_bpe, load_tokenizer

__all__ = [
    "BaseTokenizer",
    "CharTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "build_bpe",
    "load_tokenizer",
]
