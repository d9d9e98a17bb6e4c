"""What every model has: config, parameters, blocks, adapters, and which of its weights train.

A family (gpt2.py, llama.py) supplies the shapes of its parameters, the blocks and modules on them,
and the two passes over the blocks, `forward` and `backward`. What a model is asked for, and so what
calls these, is in language_model.py. To lessons/gpt.py this page adds a config in place of sizes,
copies, frozen weights and adapters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Generic, TypeVar

import numpy as np

from numgpt.messages import shown
from numgpt.models.adapters import Adapters
from numgpt.models.blocks import Block
from numgpt.models.config import Config
from numgpt.models.context import Context
from numgpt.models.lora import Adapter, LoRAConfig
from numgpt.models.modules import SCORE, Linear, Norm, ScoreHead, Unembedding
from numgpt.models.parameters import (
    Gradients,
    Layout,
    Parameters,
    layout_of,
    matching_names,
    size_of,
)
from numgpt.runtime import rounded_weight

ConfigT = TypeVar("ConfigT", bound=Config)  # of a family
CacheT = TypeVar("CacheT")  # what its backward needs


class BaseModel(Generic[ConfigT, CacheT]):
    """A config, parameters, and the blocks that are built on them."""

    config_class: ClassVar[type[Config]]
    embeddings: ClassVar[tuple[str, ...]] = ()  # the names of the tables that ids, positions read
    embedding_hooks: ClassVar[tuple[str, ...]] = ()
    default_lora_targets: ClassVar[Sequence[str]] = ()  # what PEFT adapts where nothing is named
    trained: Layout  # of the gradients: what is not frozen

    # What `build` makes.
    blocks: Sequence[Block] = ()
    final_norm: Norm  # before the unembedding
    unembedding: Unembedding

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
        self.adapters = Adapters()
        self.head_parameters: Parameters | None = None  # of a score head, …
        self.head_of: str | None = None  # … which this adapter has brought, or the model itself
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
        self.adapters.check_not_merged()
        adapter = self.adapters.active
        trained = parameters if adapter is None else adapter.parameters
        self._parameters = parameters
        # A model in fewer bits is frozen, with the vectors that would train.
        self.trained = {} if adapter is None and self.in_fewer_bits else trained.layout
        self.gradients: Gradients | None = None
        self._build()

    def _build(self) -> None:
        for name in getattr(self, "_built", ()):
            self.__dict__.pop(name, None)
        before = set(self.__dict__)
        self.build()
        self._built = set(self.__dict__) - before
        self._adapt()

    def __getstate__(self) -> dict[str, object]:
        # What is built holds views on the parameters: a copy builds its own.
        state = {name: value for name, value in self.__dict__.items() if name not in self._built}
        return state | {"adapters": copy.copy(self.adapters)}

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
        """ids (B, T) -> the hidden states that the unembedding reads, (N, C), or with
        ctx.last_only_in those of each sequence's last token, (B, C); and the cache."""
        raise NotImplementedError

    def backward(self, dy: np.ndarray, cache: CacheT, ctx: Context, g: Gradients) -> None:
        """dy (N, C), the gradient at forward's result -> adds to the gradients."""
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

    @property
    def in_fewer_bits(self) -> bool:
        """Whether its matrices are kept in bfloat16 or int8."""
        return len(self.parameters.trainable) < len(self.parameters)

    @contextmanager
    def autocast(self, dtype: str = "bfloat16") -> Iterator[None]:
        """Within it, the products with weights are in bfloat16, as runtime/rounded.py derives; the
        weights are rounded here, once. All else stays in float32, attention's products too.

            with model.autocast():
                model.loss_and_grads(ids, targets)

        dtype "float32" changes nothing. Raises ValueError for another, or a model in float64.
        """
        if dtype == "float32":
            yield
            return
        if dtype != "bfloat16" or self.parameters.dtype != np.float32:
            raise ValueError(
                f"autocast to {shown(dtype)} of a model in {self.parameters.dtype}: expected"
                " bfloat16 and float32"
            )
        modules: list[Linear | Unembedding] = [*self._linears(), self.unembedding]
        exact = [(module, module.weight) for module in modules]
        for module, weight in exact:
            module.weight = rounded_weight(weight)  # type: ignore[assignment]
        try:
            yield
        finally:
            for module, weight in exact:
                module.weight = weight

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Within it, the model computes with its own weights alone: what an adapter began as."""
        self.adapters.check_not_merged()
        for linear in self._linears():
            linear.adapt(None)
        try:
            yield
        finally:
            self._adapt()

    # --- what trains ---

    @property
    def all_parameters(self) -> dict[str, np.ndarray]:
        """The weights by name, and with them those of an adapter and a head beside them."""
        return {name: array for owner in self._owners() for name, array in owner.items()}

    def pieces(self, layout: Layout) -> Iterator[tuple[slice, np.ndarray, int]]:
        """The weights in the places of a layout: see Parameters.pieces."""
        for owner in self._owners():
            yield from owner.pieces({n: place for n, place in layout.items() if n in owner})

    def _owners(self) -> list[Parameters]:
        """The model's parameters, and beside them those of an adapter and of a score head."""
        adapter = self.adapters.unmerged
        beside = (None if adapter is None else adapter.parameters, self.head_parameters)
        return [self.parameters, *(owner for owner in beside if owner is not None)]

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
        trainable = [name for owner in self._owners() for name in owner.trainable]
        chosen = matching_names(patterns, self.all_parameters if patterns else trainable)
        self.train_only(n for n in self.all_parameters if n in self.trained or n in chosen)

    def train_only(self, names: Iterable[str]) -> None:
        """Train the parameters of these names, and no others."""
        self.adapters.check_not_merged()
        chosen, shapes = set(names), dict[str, tuple[int, ...]]()
        for owner in self._owners():
            if fewer := next((n for n in owner if n in chosen and n not in owner.trainable), None):
                raise ValueError(
                    f"{fewer} is kept in fewer bits, which are not trained: load the model in"
                    " float32, or train an adapter"
                )
            if chosen == owner.layout.keys():
                self.trained = owner.layout
                break
            for name, (_, shape) in sorted(owner.layout.items(), key=lambda item: item[1][0]):
                if name in chosen:
                    shapes[name] = shape
        else:
            self.trained = layout_of(shapes)
        self.gradients = None

    def first_trained(self, trained: Layout) -> int:
        """The first block that a backward has to reach for gradients of this layout; 0 as well if
        an embedding trains."""
        if any(name in trained for name in self.embeddings):
            return 0
        for block in self.blocks:
            if any(name.startswith(f"{block.name}.") for name in trained):
                return block.layer
        return len(self.blocks)

    # --- a score head ---

    @property
    def score_head(self) -> ScoreHead | None:
        """What makes of a hidden state one number, where the model has it."""
        return None if self.head_parameters is None else ScoreHead(self.head_parameters)

    def add_score_head(self, weight: np.ndarray | None = None, seed: int = 0) -> ScoreHead:
        """Give the model a head of one output a position, which trains with what trains already;
        weight (1, C), by default random.  Make the optimizer afterwards."""
        shape = (1, self.config.width)
        if weight is not None and weight.shape != shape:
            raise ValueError(f"a score head's weight has shape {weight.shape}: expected {shape}")
        head = Parameters.empty(layout_of({SCORE: shape}), self.parameters.dtype)
        if weight is None:
            rng = np.random.default_rng(seed)
            weight = self.config.initializer_range * rng.standard_normal(shape)
        head[SCORE][...] = weight
        self.head_parameters, self.head_of = head, self.active_adapter
        self.train_only([*self.trained, SCORE])
        return ScoreHead(head)

    @contextmanager
    def without_score_head(self) -> Iterator[None]:
        """Within it, the model is without its head."""
        head, self.head_parameters = self.head_parameters, None
        try:
            yield
        finally:
            self.head_parameters = head

    # --- adapters ---

    @property
    def adapter(self) -> Adapter | None:
        """The active adapter."""
        return self.adapters.active

    @property
    def active_adapter(self) -> str | None:
        """Its name."""
        return self.adapters.active_name

    @property
    def is_merged(self) -> bool:
        """Whether the weights hold the active adapter."""
        return self.adapters.is_merged

    def add_adapter(
        self, config: LoRAConfig | None = None, name: str = "default", seed: int = 0
    ) -> Adapter:
        """A new adapter, active at once: from now on its A and B train, the model's own weights
        are frozen.

        Its B is 0, so nothing changes yet. Make the optimizer afterwards. Raises ValueError for a
        name that is taken, a target that matches nothing, a rank that is larger than a matrix.
        """
        config = LoRAConfig() if config is None else config
        if not isinstance(config, LoRAConfig):
            raise TypeError(f"add_adapter takes a LoRAConfig, not {shown(config)}")
        config.validate()
        shapes = self.projection_shapes()
        chosen = {name: shapes[name] for name in config.chosen(shapes, self.default_lora_targets)}
        rng = np.random.default_rng(seed)
        return self.attach_adapter(Adapter.new(config, chosen, self.parameters.dtype, rng), name)

    def attach_adapter(self, adapter: Adapter, name: str = "default") -> Adapter:
        """Take an adapter that was made elsewhere, as `add_adapter` does."""
        self.adapters.add(name, adapter)
        self.set_adapter(name)
        return adapter

    def set_adapter(self, name: str | None) -> None:
        """Compute with this adapter, and train it; None: with the model's own weights alone, which
        stay frozen until `unfreeze`."""
        self.adapters.activate(name)
        if self.head_of not in (None, name):  # it goes with the adapter that has brought it
            self.head_parameters = self.head_of = None
        self._adapt()
        self.train_only(() if self.adapter is None else self.adapter.parameters)

    def delete_adapter(self, name: str = "default") -> None:
        """Forget an adapter; without any the model's own weights stay frozen until `unfreeze`."""
        if name not in self.adapters:
            self.set_adapter(name)  # tells which there are
        if name == self.active_adapter:
            self.set_adapter(None)
        del self.adapters[name]

    def merge_adapter(self) -> None:
        """Add the active adapter's s · B A to the weights: nothing is computed beside them any
        more. The weights as they were are kept, for `unmerge_adapter`."""
        self.adapters.merge(self._linears(), self.parameters)
        self._adapt()

    def unmerge_adapter(self) -> None:
        """Put the weights back, bit for bit, and compute the adapter beside them again."""
        self.adapters.unmerge(self.parameters)
        self._adapt()

    @property
    def own_parameters(self) -> dict[str, np.ndarray]:
        """The model's own weights, by name, whatever is merged into them."""
        return dict(self.parameters) | (self.adapters.pristine or {})

    def projection_shapes(self) -> dict[str, tuple[int, int]]:
        """Name -> (I, O) of every linear layer within the blocks, in their order."""
        return {name: shape for linear in self._linears() for name, shape in linear.shapes.items()}

    def _adapt(self) -> None:
        """Let each linear layer within the blocks compute the active adapter, or none."""
        for linear in self._linears():
            linear.adapt(self.adapters.unmerged)

    def _linears(self) -> list[Linear]:
        return [linear for block in self.blocks for linear in block.linears]
