"""OpenAI's own release of GPT-2: hparams.json, encoder.json, vocab.bpe, and a TensorFlow
checkpoint.

Its convolutions of width 1 are matrices with a leading axis of length 1.
"""

from __future__ import annotations

import re
from pathlib import Path

from numgpt.formats import gpt2
from numgpt.formats.source import Source, WeightMapping
from numgpt.formats.tensorflow import read_bundle
from numgpt.messages import shown
from numgpt.models.gpt2 import GPTConfig
from numgpt.reading import about, read_json_object
from numgpt.tokenizer import load_tokenizer

HPARAMS_FILE = "hparams.json"
# hparams.json's names for what a GPTConfig holds.
FIELDS = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
FIELDS |= {name: name for name in ("n_embd", "n_head", "n_layer")}
_KINDS = {"w": "weight", "b": "bias", "g": "weight"}
_IN_BLOCK = re.compile(r"model/h(\d+)/(?:(attn|mlp)/)?(\w+)/([wbg])")


def open_bundle(directory: Path, prefix: Path) -> Source:
    """The model in a directory with hparams.json and a TensorFlow checkpoint."""
    path = directory / HPARAMS_FILE
    hparams = read_json_object(path)
    if missing := [name for name in FIELDS if name not in hparams]:
        raise ValueError(f"{path} lacks {shown(missing[0])}: copy or download it again")
    config = GPTConfig(**{ours: hparams[theirs] for theirs, ours in FIELDS.items()})
    with about(path):
        config.validate()
    config.bos_token_id = config.eos_token_id = gpt2.end_of_text_id(config.vocab_size)
    tensors = list(read_bundle(prefix).items())
    mapping = OpenAIWeightMapping(gpt2.FAMILY, config)
    return Source(
        directory, path, gpt2.FAMILY, config, tensors, mapping, lambda: load_tokenizer(directory)
    )


class OpenAIWeightMapping(WeightMapping):
    in_order = False

    def our_name(self, stored: str) -> str | None:
        if match := _IN_BLOCK.fullmatch(stored):
            layer, part, name, kind = match.groups()
            return ".".join(filter(None, ("h", layer, part, name, _KINDS[kind])))
        names = {"model/wte": "wte", "model/wpe": "wpe"}
        names |= {"model/ln_f/g": "ln_f.weight", "model/ln_f/b": "ln_f.bias"}
        # Everything else under model/ would be a parameter; what is not, the optimizer left.
        is_model = stored.startswith("model/") and "Adam" not in stored
        return names.get(stored, stored if is_model else None)

    def stored_name(self, name: str) -> str:
        if name.startswith("h."):
            _, layer, *parts, kind = name.split(".")
            norm = parts[0].startswith("ln")
            letter = "b" if kind == "bias" else "g" if norm else "w"
            return "/".join((f"model/h{layer}", *parts, letter))
        return "model/" + name.replace(".weight", "/g").replace(".bias", "/b")

    def stored_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, *shape) if name.startswith("h.") and len(shape) == 2 else shape
