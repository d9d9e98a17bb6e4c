"""nanoGPT's checkpoints (Karpathy 2022): ckpt.pt, and the meta.pkl of its character datasets.

A checkpoint is a dict: "model" holds the weights, "model_args" the sizes. The linear layers are
PyTorch's, (out, in). A model trained with bias=False has no biases, which is the same as biases
of 0. The activation is the exact GELU, as in nanoGPT since February 2023.
"""

from __future__ import annotations

from pathlib import Path

from numgpt.formats import gpt2
from numgpt.formats.huggingface import state_dict
from numgpt.formats.pickles import read_pickle
from numgpt.formats.pytorch import read_pytorch
from numgpt.formats.source import Source, WeightMapping
from numgpt.messages import shown
from numgpt.models.gpt2 import GPTConfig
from numgpt.reading import about
from numgpt.tokenizer import BaseTokenizer, CharTokenizer, load_tokenizer

CHECKPOINT_FILE = "ckpt.pt"
META_FILE = "meta.pkl"
SIZES = ("n_layer", "n_head", "n_embd", "vocab_size")


def open_checkpoint(path: Path) -> Source:
    """The model in a ckpt.pt."""
    saved = read_pytorch(path)
    sizes = saved.get("model_args") if isinstance(saved, dict) else None
    if not isinstance(sizes, dict) or "model" not in saved:
        raise ValueError(
            f"{path} is no checkpoint of nanoGPT, with 'model' and 'model_args'; for a"
            " pytorch_model.bin name its directory, which has a config.json"
        )
    for name in (*SIZES, "block_size"):
        if name not in sizes:
            raise ValueError(f"{path}: model_args lacks {shown(name)}")
    has_biases = sizes.get("bias", True)
    if not isinstance(has_biases, bool):
        raise ValueError(f"{path}: model_args: bias={shown(has_biases)}: expected true or false")
    known = {name: sizes[name] for name in SIZES}
    config = GPTConfig(**known, n_positions=sizes["block_size"], activation_function="gelu")
    with about(f"{path}: model_args"):
        config.validate()
    config.eos_token_id = gpt2.end_of_text_id(config.vocab_size)
    mapping = NanoGPTWeightMapping(gpt2.FAMILY, config)
    mapping.lacks_biases = not has_biases
    tensors = state_dict(path, saved["model"])
    return Source(
        path, path, gpt2.FAMILY, config, tensors, mapping, lambda: _tokenizer(path.parent)
    )


class NanoGPTWeightMapping(WeightMapping):
    in_order = False
    transposes_linear = True


def _tokenizer(directory: Path) -> BaseTokenizer:
    """From meta.pkl, where there is one, else from the usual files."""
    path = directory / META_FILE
    if not path.is_file():
        try:
            return load_tokenizer(directory)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}; a checkpoint of a character dataset needs that dataset's {META_FILE}"
                " beside it, one trained on GPT-2's tokens GPT-2's tokenizer files"
            ) from None
    meta = read_pickle(path)
    characters = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(characters, dict) or characters.keys() != set(range(len(characters))):
        raise ValueError(f"{path}: 'itos' is not a dict from the ids 0, 1, 2, … to characters")
    with about(path):
        return CharTokenizer([characters[id] for id in range(len(characters))])
