"""A family that the project does not have is added as its README says, and then all of it works."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
from models.test_gradients import along, numerical

import numgpt
from numgpt import cli
from numgpt.formats.families import FAMILIES
from numgpt.formats.family import Family
from numgpt.layers import attention_backward, attention_forward
from numgpt.models.blocks import merge_heads, split_heads
from numgpt.models.config import Config
from numgpt.models.language_model import LanguageModel
from numgpt.models.modules import Embedding, Linear, RMSNorm, Unembedding


@dataclasses.dataclass
class ToyConfig(Config):
    layers_field = "depth"
    context_field = "context"

    depth: int = 2
    context: int = 16
    size: int = 8
    vocab_size: int = 300
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    initializer_range: float = 0.05
    model_type: str = "toy"

    @classmethod
    def of_sizes(cls, model_type, sizes):
        if sizes.heads != 1:
            raise ValueError("a toy has one head")
        return cls(sizes.layers, sizes.context_length, sizes.width, sizes.vocab_size)

    def validate(self):
        pass

    def set_dropout(self, p):
        pass

    width = head_size = inner_width = property(lambda self: self.size)
    kv_heads = property(lambda self: 1)


class ToyCache(NamedTuple):
    table: object
    blocks: list
    norm: object


class Toy(LanguageModel[ToyConfig, ToyCache]):
    """Attention without positions, without feed-forward layers."""

    config_class = ToyConfig

    @staticmethod
    def shapes(config):
        names = [f"block.{layer}.{part}.weight" for layer in range(config.depth) for part in "qkv"]
        shapes = dict.fromkeys(names, (config.size, config.size))
        table = {"table": (config.vocab_size, config.size)}
        return table | shapes | {"norm.weight": (config.size,)}

    def build(self):
        self.table = Embedding(self.parameters, "table")
        self.qkv = [
            Linear(self.parameters, *(f"block.{layer}.{part}" for part in "qkv"), transposed=True)
            for layer in range(self.config.depth)
        ]
        self.norm = RMSNorm(self.parameters, "norm", 1e-6)
        self.unembedding = Unembedding(self.parameters, "table")

    def forward(self, ids, ctx):
        x, table = self.table.forward(ids.ravel())
        caches = []
        for layer, linear in enumerate(self.qkv):
            y, read = linear.forward(x)
            q, k, v = (split_heads(part, ctx.batch, 1) for part in np.split(y, 3, axis=1))
            k, v, mask = ctx.keys_and_values(layer, k, v)
            z, attention = attention_forward(ctx.queries(layer, q), k, v, None, mask)
            y = merge_heads(z)
            x = ctx.rows_like(y, x) + y
            caches.append((read, attention))
        ctx.advance()
        y, norm = self.norm.forward(x)
        return y, ToyCache(table, caches, norm)

    def backward(self, dy, cache, ctx, g):
        dx = self.norm.backward(dy, cache.norm, g)
        for linear, (read, attention) in zip(self.qkv[::-1], cache.blocks[::-1], strict=True):
            parts = attention_backward(split_heads(dx, ctx.batch, 1), attention)
            dqkv = np.hstack([merge_heads(part) for part in parts])
            dx = dx + linear.backward(dqkv, read, g)
        self.table.backward(dx, cache.table, g)


@pytest.fixture
def toy(monkeypatch):
    family = Family(
        "toy",
        Toy,
        config_from=lambda fields: ToyConfig(
            **{field.name: fields[field.name] for field in dataclasses.fields(ToyConfig)}
        ),
        config_fields=dataclasses.asdict,
        stored_name=lambda name: f"toy.{name}",
        our_name=lambda stored, config: stored.removeprefix("toy."),
    )
    monkeypatch.setitem(FAMILIES, "toy", family)


def test_a_new_family_trains_saves_loads_and_generates(toy, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 100)
    flags = ["--arch=toy", "--n-layer=2", "--n-head=1", "--n-embd=8", "--block-size=16"]
    flags += ["--tokenizer=char", "--steps=20", "--eval-batches=1", "--lr=0.01", "--dropout=0"]
    run = str(tmp_path / "run")
    assert cli.main(["train", "--data", str(text), "--out", run, *flags]) == 0
    assert cli.main(["train", "--resume", run, "--steps=30"]) == 0
    model, tokenizer = numgpt.load(run)
    assert type(model) is Toy
    ids = tokenizer.encode("the cat sat")
    assert model.generate([ids, ids[:3]], max_new_tokens=4).shape == (2, 15)
    for command in (["generate", "the", "--model", run], ["info", run]):
        assert cli.main(command) == 0
    assert cli.main(["train", "--data", str(text), "--out", f"{run}2", *flags, "--n-head=2"]) == 2
    assert "a toy has one head" in capsys.readouterr().err


def test_its_gradients_are_numerical_derivatives_and_parts_can_be_frozen():
    model = Toy(ToyConfig(vocab_size=11), dtype=np.float64)
    model.parameters.flat[:] = np.random.default_rng(0).normal(size=model.num_parameters())
    ids, targets = np.random.default_rng(1).integers(11, size=(2, 3, 7))
    model.freeze("block.0.k.weight")
    _, gradients = model.loss_and_grads(ids, targets)
    for name in gradients:
        slope, direction = numerical(model, lambda: model.loss(ids, targets), [name])
        assert slope == pytest.approx(along(gradients, direction), rel=1e-5, abs=1e-7)
    assert "block.0.k.weight" not in gradients


def test_an_unknown_family_is_named(tmp_path, capsys):
    assert cli.main(["train", "--arch", "toy", "--out", str(tmp_path / "run")]) == 2
    assert "--arch 'toy': expected gpt2 or llama or qwen2 or qwen3" in capsys.readouterr().err
