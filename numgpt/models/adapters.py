"""The adapters that a model has: several by name, one of them active, merged into the weights and
back. To lessons/gpt.py they add what lora.py computes beside a weight, s · x Aᵀ Bᵀ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from numgpt.messages import shown
from numgpt.models.lora import Adapter
from numgpt.models.modules import Linear
from numgpt.models.parameters import Parameters
from numgpt.runtime import Weight


class Adapters(dict[str, Adapter]):
    """Adapters by name.  The active one is computed beside the weights, or merged into them."""

    def __init__(self) -> None:
        self.active_name: str | None = None
        # The weights as they were before the active adapter was merged into them.
        self.pristine: dict[str, np.ndarray] | None = None

    def __repr__(self) -> str:
        return f"<Adapters: {super().__repr__()}, active: {self.active_name}>"

    @property
    def active(self) -> Adapter | None:
        """The one that the model computes with."""
        return None if self.active_name is None else self[self.active_name]

    @property
    def unmerged(self) -> Adapter | None:
        """The active one, where it is computed beside the weights."""
        return None if self.is_merged else self.active

    @property
    def is_merged(self) -> bool:
        """Whether the weights hold the active one."""
        return self.pristine is not None

    def add(self, name: str, adapter: Adapter) -> None:
        """Raises ValueError for a name that is no string, or is taken."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"the adapter's name is {shown(name)}: expected a string")
        if name in self:
            raise ValueError(
                f"there is an adapter {shown(name)} already: delete_adapter, or give another name"
            )
        self.check_not_merged()
        self[name] = adapter

    def activate(self, name: str | None) -> None:
        """Compute with this one, or with none.  Raises ValueError for a name that is not there."""
        if name is not None and name not in self:
            there = ", ".join(self) or "none"
            raise ValueError(f"there is no adapter {shown(name)}: there are {there}")
        self.check_not_merged()
        self.active_name = name

    def merge(self, linears: Iterable[Linear], parameters: Parameters) -> None:
        """Add the active one's s · B A to the weights, and keep these as they were."""
        if self.active is None:
            raise ValueError("there is no active adapter to merge: add_adapter or set_adapter")
        self.check_not_merged()
        names = [f"{name}.weight" for name in self.active.names()]
        if any(isinstance(parameters[name], Weight) for name in names):
            raise ValueError(
                "the weights are kept in fewer bits, which nothing is merged into: load the model"
                " in float32"
            )
        pristine = {name: parameters[name].copy() for name in names}
        try:
            for linear in linears:
                for lora in linear.loras:
                    delta = lora.delta()  # (O, I)
                    weight = parameters[f"{lora.name}.weight"]
                    weight[...] += delta if linear.transposed else delta.T
        except BaseException:  # some of the weights would have it, others not
            self._put_back(pristine, parameters)
            raise
        self.pristine = pristine

    def unmerge(self, parameters: Parameters) -> None:
        """Put the weights back, bit for bit."""
        if self.pristine is None:
            raise ValueError("no adapter is merged: there is nothing to take out")
        self._put_back(self.pristine, parameters)
        self.pristine = None

    @staticmethod
    def _put_back(pristine: Mapping[str, np.ndarray], parameters: Parameters) -> None:
        for name, weight in pristine.items():
            if parameters[name].flags.writeable:  # else it could not have been changed
                parameters[name][...] = weight

    def check_not_merged(self) -> None:
        """Raises ValueError while one is merged."""
        if self.is_merged:
            raise ValueError("an adapter is merged into the weights: unmerge_adapter first")
