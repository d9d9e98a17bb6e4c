"""What every model is made of, whatever its layers: config, parameters, blocks, and which train.

A family (gpt2.py, llama.py) supplies the shapes of its parameters, the modules on them, and the two
pages of layer calls, `forward` and `backward`. What a model is asked for is in language_model.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

import numpy as np

from numgpt.messages import shown
from numgpt.models.config import Config
from numgpt.models.context import Context
from numgpt.models.modules import LayerNorm, Linear, RMSNorm
from numgpt.models.parameters import (
    Gradients,
    Layout,
    Parameters,
    layout_of,
    matching_names,
    size_of,
)

ConfigT = TypeVar("ConfigT", bound=Config)  # of a family
CacheT = TypeVar("CacheT")  # what its backward needs


class BaseBlock:
    """What is the same in the blocks of all families."""

    hook_names: ClassVar[tuple[str, ...]]  # in the order of the forward pass
    norms: tuple[LayerNorm, LayerNorm] | tuple[RMSNorm, RMSNorm]  # before attention, feed-forward
    attention_input: Linear  # to queries, keys and values, side by side
    attention_output: Linear  # from the heads' results to the stream
    attention_scale: float  # what q · k is multiplied by
    mlp_input: Linear  # the feed-forward layer's first; of a gated one gate and up, side by side
    mlp_output: Linear  # … and its last

    def __init__(self, name: str, layer: int):
        self.name = name  # its parameters' names begin so
        self.layer = layer
        self.hooks = f"blocks.{layer}."  # … and its hooks' names so


class BaseModel(Generic[ConfigT, CacheT]):
    """A config, parameters, and the blocks that are built on them."""

    config_class: ClassVar[type[Config]]
    # The names of the tables that ids and positions read.
    embeddings: ClassVar[tuple[str, ...]] = ()
    embedding_hooks: ClassVar[tuple[str, ...]] = ()
    blocks: Sequence[BaseBlock] = ()
    trained: Layout  # of the gradients: what is not frozen

    def __init__(
        self,
        config: ConfigT,
        seed: int = 0,
        dtype: np.typing.DTypeLike = np.float32,
        parameters: Parameters | None = None,
    ):
        """Random weights drawn with `seed`, unless `parameters` are given.  Raises ValueError for a
        bad config."""
        if not isinstance(config, self.config_class):
            kind = self.config_class.__name__
            raise TypeError(
                f"{type(self).__name__} is made of a {kind}, not of {shown(config)}: pass {kind}(…)"
            )
        config.validate()
        self.config = config
        self.name_or_path: str | None = None  # where it was loaded from
        # What its files say of how to generate: options of `generate` where nothing is given.
        self.generation_config: dict[str, object] = {}
        if parameters is None:
            parameters = Parameters.empty(self.layout(config), dtype)
            self.initialise(parameters, np.random.default_rng(seed))
        self.parameters = parameters

    @property
    def parameters(self) -> Parameters:
        """The weights, by name."""
        return self._parameters

    @parameters.setter
    def parameters(self, parameters: Parameters) -> None:
        self.trained = self._trained_at_first(parameters)
        self._parameters = parameters
        self.gradients: Gradients | None = None
        self._build()

    def _trained_at_first(self, parameters: Parameters) -> Layout:
        """The layout of the gradients while nobody has frozen anything."""
        return parameters.layout

    def _build(self) -> None:
        before = set(self.__dict__)
        self.build()
        self._built = set(self.__dict__) - before

    def __getstate__(self) -> dict[str, object]:
        # What is built holds views on the parameters: a copy builds its own.
        return {name: value for name, value in self.__dict__.items() if name not in self._built}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._build()

    def __repr__(self) -> str:
        config = self.config
        return (
            f"<{type(self).__name__}: {self.num_parameters():,} parameters, {config.layers} layers,"
            f" {config.kv_heads} KV heads, vocabulary {config.vocab_size}, context"
            f" {self.context_length}, {self.parameters.dtype}>"
        )

    # --- what a family supplies ---

    @staticmethod
    def shapes(config: ConfigT) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter, in the order of the forward pass."""
        raise NotImplementedError

    def build(self) -> None:
        """Make the modules and blocks on the parameters."""
        raise NotImplementedError

    def init_std(self, name: str) -> float:
        """The standard deviation that a matrix is drawn with."""
        return self.config.initializer_range

    def forward(self, ids: np.ndarray, ctx: Context) -> tuple[np.ndarray, CacheT]:
        """ids (B, T) -> the hidden states that the unembedding reads, (N, C), and the caches for
        `backward`; with ctx.last_only those of each sequence's last token, (B, C)."""
        raise NotImplementedError

    def backward(self, dy: np.ndarray, cache: CacheT, ctx: Context, g: Gradients) -> None:
        """dy (N, C), the gradient at forward's result -> adds to the gradients."""
        raise NotImplementedError

    @property
    def final_norm(self) -> LayerNorm | RMSNorm:
        """The norm before the unembedding."""
        raise NotImplementedError

    @property
    def unembedding(self) -> str:
        """The name of the parameter (V, C) that turns hidden states into logits."""
        raise NotImplementedError

    # --- sizes and first weights ---

    @property
    def context_length(self) -> int:
        """The most tokens that the model sees at once."""
        return self.config.context_length

    def num_parameters(self, trainable: bool = False) -> int:
        """How many weights there are, or are not frozen; a tied unembedding counts once."""
        if trainable:
            return size_of(self.trained)
        return sum(array.size for array in self.all_parameters.values())

    @classmethod
    def layout(cls, config: ConfigT) -> Layout:
        """Where each parameter lies on the flat buffer."""
        return layout_of(cls.shapes(config))

    def initialise(self, parameters: Parameters, rng: np.random.Generator) -> None:
        """Matrices normal around 0, gains of norms 1, biases 0."""
        for name, array in parameters.items():
            if array.ndim == 2:
                rng.standard_normal(out=array, dtype=array.dtype)
                array *= self.init_std(name)
            else:
                array.fill(1 if name.endswith("weight") else 0)

    # --- what trains ---

    @property
    def all_parameters(self) -> dict[str, np.ndarray]:
        """The weights by name, and with them what an adapter has."""
        return {name: array for part in self._parts() for name, array in part.items()}

    def pieces(self, layout: Layout) -> Iterator[tuple[slice, np.ndarray, int]]:
        """The weights in the places of a layout: see Parameters.pieces."""
        for part in self._parts():
            yield from part.pieces({name: place for name, place in layout.items() if name in part})

    def _parts(self) -> list[Parameters]:
        return [self.parameters]

    def freeze(self, *patterns: str) -> None:
        """Leave parameters as they are from now on: those of these names or patterns ("wte",
        "h.0.*"), without any all of them.

        What is frozen gets no gradient, and has no place in the optimizer's moments: make the
        optimizer afterwards. Raises ValueError for a pattern that fits no name.
        """
        frozen = matching_names(patterns, self.all_parameters)
        self.train_only(name for name in self.trained if name not in frozen)

    def unfreeze(self, *patterns: str) -> None:
        """Train parameters again: those of these names or patterns, without any all of them."""
        chosen = matching_names(patterns, self.all_parameters)
        self.train_only(n for n in self.all_parameters if n in self.trained or n in chosen)

    def train_only(self, names: Iterable[str]) -> None:
        """Train the parameters of these names, and no others."""
        chosen, shapes = set(names), dict[str, tuple[int, ...]]()
        for part in self._parts():
            if chosen == part.layout.keys():
                self.trained = part.layout
                break
            for name, (_, shape) in sorted(part.layout.items(), key=lambda item: item[1][0]):
                if name in chosen:
                    shapes[name] = shape
        else:
            self.trained = layout_of(shapes)
        self.gradients = None

    def _lowest_trained(self) -> int:
        """The lowest block that a backward has to reach; it reaches the embeddings by 0."""
        if any(name in self.trained for name in self.embeddings):
            return 0
        for block in self.blocks:
            if any(name.startswith(f"{block.name}.") for name in self.trained):
                return block.layer
        return len(self.blocks)
