"""LoRA on a model: which matrices, how they begin, and each one's part in its linear layer.

The mathematics is in layers/lora.py. The options, names and shapes are those of PEFT.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from numgpt.layers.lora import Cache as LoRACache
from numgpt.layers.lora import lora_backward, lora_forward
from numgpt.messages import shown
from numgpt.models.checks import require_booleans, require_number, require_whole
from numgpt.models.parameters import Gradients, Parameters, layout_of

ALL_LINEAR = "all-linear"
MOST_ALPHA = 1_000_000
MOST_RANK = 500_000


@dataclasses.dataclass
class LoRAConfig:
    """The options of an adapter, with PEFT's names and defaults."""

    r: int = 8  # rank
    lora_alpha: float = 8
    # Names of projections, or their last parts ("c_attn"); a regular expression for whole names;
    # "all-linear"; None: those that PEFT takes for the family.
    target_modules: Sequence[str] | str | None = None
    lora_dropout: float = 0.0
    use_rslora: bool = False

    @property
    def scale(self) -> float:
        """s, by which the product is multiplied."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def validate(self) -> None:
        """Raises ValueError naming the option that is invalid."""
        require_whole(self, "r")
        if self.r > MOST_RANK:
            raise ValueError(
                f"r={self.r}: expected up to {MOST_RANK:,}, and no more than a matrix has rows"
            )
        require_number(self, "lora_alpha")
        if not self.lora_alpha <= MOST_ALPHA:
            raise ValueError(
                f"lora_alpha={shown(self.lora_alpha)}: expected up to {MOST_ALPHA:,}; 2 r is usual"
            )
        require_number(self, "lora_dropout", least=0, below=1)
        require_booleans(self, "use_rslora")
        targets = self.target_modules
        listed = isinstance(targets, Sequence) and all(isinstance(name, str) for name in targets)
        if targets is not None and not (listed and targets):
            raise ValueError(
                f"target_modules={shown(targets)}: expected a list of names, a regular"
                f" expression, or {ALL_LINEAR!r}"
            )

    def chosen(self, projections: Iterable[str], usual: Sequence[str]) -> list[str]:
        """The projections that it is for.  Raises ValueError for a target that is none of them."""
        projections = list(projections)
        targets = usual if self.target_modules is None else self.target_modules
        if targets == ALL_LINEAR:
            return projections
        there = sorted({name.rpartition(".")[2] for name in projections})
        if isinstance(targets, str):
            try:
                found = [name for name in projections if re.fullmatch(targets, name)]
            except re.error as error:
                raise ValueError(
                    f"target_modules={shown(targets)} is no regular expression ({error})"
                ) from None
            if not found:
                raise ValueError(
                    f"target_modules: the regular expression {shown(targets)} matches no whole"
                    f" name, such as {projections[0]}; for last parts give a list: [{there[0]!r}]"
                )
            missing: list[str] = []
        else:
            found = [n for n in projections if any(_is_called(n, target) for target in targets)]
            missing = [t for t in targets if not any(_is_called(n, t) for n in projections)]
        if missing:
            raise ValueError(
                f"target_modules: {shown(missing[0])} is none of the model's projections:"
                f" {', '.join(there)}, or {ALL_LINEAR} for all of them"
            )
        return found


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


class Adapter:
    """What is trained in place of a model's own weights: A and B of each matrix that it is for."""

    def __init__(self, config: LoRAConfig, parameters: Parameters):
        self.config = config
        self.parameters = parameters  # NAME.lora_A.weight (r, I), NAME.lora_B.weight (O, r)

    @classmethod
    def new(
        cls,
        config: LoRAConfig,
        shapes: Mapping[str, tuple[int, int]],
        dtype: np.dtype,
        rng: np.random.Generator,
    ) -> Adapter:
        """A uniform within ±1/√I and B 0, for projections of these shapes (I, O).  Raises
        ValueError for a rank that is larger than one of them."""
        for name, shape in shapes.items():
            if config.r > min(shape):
                raise ValueError(
                    f"r={config.r} is larger than {name}, {shape[0]} x {shape[1]}: lower it"
                )
        layout = layout_of(adapter_shapes(shapes, config.r))
        parameters = Parameters.empty(layout, dtype)
        for name, array in parameters.items():
            if name.endswith("lora_A.weight"):
                bound = 1 / math.sqrt(array.shape[1])
                array[...] = rng.uniform(-bound, bound, array.shape)
            else:
                array.fill(0)
        return cls(config, parameters)

    def __repr__(self) -> str:
        count = sum(array.size for array in self.parameters.values())
        targets = sorted({name.rpartition(".")[2] for name in self.names()})
        return f"<LoRA: r={self.config.r}, {count:,} parameters, on {', '.join(targets)}>"

    def names(self) -> list[str]:
        """The projections that it is for."""
        ending = ".lora_A.weight"
        return [name.removesuffix(ending) for name in self.parameters if name.endswith(ending)]

    def delta(self, name: str) -> np.ndarray:
        """s · B A (O, I): what a projection's matrix is changed by."""
        p = self.parameters
        product = p[f"{name}.lora_B.weight"] @ p[f"{name}.lora_A.weight"]
        return product.dtype.type(self.config.scale) * product


def adapter_shapes(shapes: Mapping[str, tuple[int, int]], rank: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of an adapter's parameters, for projections of shapes (I, O)."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in shapes.items():
        found[f"{name}.lora_A.weight"] = (rank, inputs)
        found[f"{name}.lora_B.weight"] = (outputs, rank)
    return found


class LoRA:
    """An adapter's part in one projection: s · x Aᵀ Bᵀ, on these columns of y."""

    def __init__(self, adapter: Adapter, name: str, columns: slice):
        self.columns = columns
        self.adapter, self.name = adapter, name
        self.config = adapter.config
        self.weights = (f"{name}.lora_A.weight", f"{name}.lora_B.weight")
        self.a, self.b = (adapter.parameters[part] for part in self.weights)

    def forward(
        self, x: np.ndarray, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, LoRACache]:
        """x (N, I) -> the term (N, O), cache.  What backward needs beside it is x."""
        y, cache = lora_forward(x, self.a, self.b, self.config.scale, self.config.lora_dropout, rng)
        return y, cache._replace(x=None)

    def backward(
        self, dy: np.ndarray, x: np.ndarray | None, cache: LoRACache, g: Gradients
    ) -> np.ndarray:
        """dy (N, O) -> dx (N, I)."""
        sums = [g.accumulator(name) for name in self.weights]
        return lora_backward(dy, cache._replace(x=x), *sums)[0]
