"""A model with adapters: several by name, one of them active, merged into the weights and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from numgpt.messages import shown
from numgpt.models.base import BaseModel, CacheT, ConfigT
from numgpt.models.lora import Adapter, LoRAConfig
from numgpt.models.modules import Linear
from numgpt.models.parameters import Layout, Parameters

DEFAULT = "default"


class AdaptableModel(BaseModel[ConfigT, CacheT]):
    """A model whose projections can have adapters."""

    usual_targets: ClassVar[Sequence[str]] = ()  # what PEFT adapts where nothing is named

    def __init__(
        self,
        config: ConfigT,
        seed: int = 0,
        dtype: np.typing.DTypeLike = np.float32,
        parameters: Parameters | None = None,
    ):
        self.adapters: dict[str, Adapter] = {}
        self.active_adapter: str | None = None
        # The weights as they were before an adapter was merged into them.
        self._pristine: dict[str, np.ndarray] | None = None
        super().__init__(config, seed, dtype, parameters)

    @property
    def adapter(self) -> Adapter | None:
        """The active adapter."""
        return None if self.active_adapter is None else self.adapters[self.active_adapter]

    @property
    def is_merged(self) -> bool:
        """Whether the weights hold the active adapter."""
        return self._pristine is not None

    def add_adapter(
        self, config: LoRAConfig | None = None, name: str = DEFAULT, seed: int = 0
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
        chosen = config.chosen(shapes, self.usual_targets)
        adapter = Adapter.new(
            config,
            {projection: shapes[projection] for projection in chosen},
            self.parameters.dtype,
            np.random.default_rng(seed),
        )
        return self.attach_adapter(adapter, name)

    def attach_adapter(self, adapter: Adapter, name: str = DEFAULT) -> Adapter:
        """Take an adapter that was made elsewhere, as `add_adapter` does."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"the adapter's name is {shown(name)}: expected a string")
        if name in self.adapters:
            raise ValueError(
                f"there is an adapter {shown(name)} already: delete_adapter, or give another name"
            )
        self._check_not_merged()
        self.adapters[name] = adapter
        self.set_adapter(name)
        return adapter

    def set_adapter(self, name: str | None) -> None:
        """Compute with this adapter, and train it; None: with the model's own weights alone, which
        stay frozen until `unfreeze`."""
        if name is not None and name not in self.adapters:
            there = ", ".join(self.adapters) or "none"
            raise ValueError(f"there is no adapter {shown(name)}: there are {there}")
        self._check_not_merged()
        self.active_adapter = name
        self._attach()
        self.train_only(() if self.adapter is None else self.adapter.parameters)

    def delete_adapter(self, name: str = DEFAULT) -> None:
        """Forget an adapter; without any the model's own weights stay frozen until `unfreeze`."""
        if name not in self.adapters:
            self.set_adapter(name)  # tells which there are
        if name == self.active_adapter:
            self.set_adapter(None)
        del self.adapters[name]

    def merge_adapter(self) -> None:
        """Add the active adapter's s · B A to the weights: nothing is computed beside them any
        more. The weights as they were are kept, for `unmerge_adapter`."""
        adapter = self.adapter
        if adapter is None:
            raise ValueError("there is no active adapter to merge: add_adapter or set_adapter")
        self._check_not_merged()
        merged = adapter.names()
        self._pristine = {n: self.parameters[f"{n}.weight"].copy() for n in merged}
        transposed = {n: linear.transposed for linear in self._linears() for n in linear.names}
        for name in merged:
            delta = adapter.delta(name)  # (O, I)
            self.parameters[f"{name}.weight"][...] += delta if transposed[name] else delta.T
        self._attach()

    def unmerge_adapter(self) -> None:
        """Put the weights back, bit for bit, and compute the adapter beside them again."""
        if self._pristine is None:
            raise ValueError("no adapter is merged: there is nothing to take out")
        for name, weight in self._pristine.items():
            self.parameters[f"{name}.weight"][...] = weight
        self._pristine = None
        self._attach()

    @property
    def own_parameters(self) -> dict[str, np.ndarray]:
        """The model's own weights, by name, whatever is merged into them."""
        pristine = {f"{name}.weight": array for name, array in (self._pristine or {}).items()}
        return dict(self.parameters) | pristine

    def projection_shapes(self) -> dict[str, tuple[int, int]]:
        """Name -> (I, O) of every linear layer within the blocks, in their order."""
        return {
            name: (part.weight.shape[0], part.weight.shape[1])
            for linear in self._linears()
            for name, part in zip(linear.names, linear.parts, strict=True)
        }

    def train_only(self, names: Iterable[str]) -> None:
        """Train the parameters of these names, and no others."""
        self._check_not_merged()
        super().train_only(names)

    def _trained_at_first(self, parameters: Parameters) -> Layout:
        self._check_not_merged()
        adapter = self.adapter
        return super()._trained_at_first(parameters if adapter is None else adapter.parameters)

    def _parts(self) -> list[Parameters]:
        adapter = None if self.is_merged else self.adapter
        return super()._parts() + ([] if adapter is None else [adapter.parameters])

    def _linears(self) -> Iterator[Linear]:
        for block in self.blocks:
            yield from (module for module in vars(block).values() if isinstance(module, Linear))

    def _build(self) -> None:
        super()._build()
        self._attach()

    def _attach(self) -> None:
        """Let each linear layer know its part of the active adapter."""
        adapter = None if self.is_merged else self.adapter
        for linear in self._linears():
            linear.adapt(adapter)

    def _check_not_merged(self) -> None:
        if self.is_merged:
            raise ValueError("an adapter is merged into the weights: unmerge_adapter first")
