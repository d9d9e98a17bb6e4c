"""LoRA on a model: which matrices, how they begin, and each one's term in its linear layer.

The mathematics is in layers/lora.py. The options, names and shapes are those of PEFT.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from numgpt.layers.lora import LoRACache, lora_backward, lora_forward
from numgpt.messages import shown
from numgpt.models.parameters import Gradients, Parameters, layout_of
from numgpt.options import OptionError, number, require, truth, whole

T = TypeVar("T")
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
    # For projections whose names, or their last parts, fit a pattern: another rank, another alpha.
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    # Of target_modules, none of these (as they name projections), and none of other layers.
    exclude_modules: Sequence[str] | str | None = None
    layers_to_transform: Sequence[int] | int | None = None
    layers_pattern: Sequence[str] | str | None = None  # what stands before a layer's number

    def rank_of(self, name: str) -> int:
        """r of a projection."""
        return fitting(self.rank_pattern, name, self.r)

    def scale_of(self, name: str) -> float:
        """s of a projection, by which its product is multiplied."""
        rank, alpha = self.rank_of(name), fitting(self.alpha_pattern, name, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def validate(self) -> None:
        """Raises ValueError naming the option that is invalid."""
        self._validate_numbers()
        require(self, number(least=0, below=1), "lora_dropout")
        require(self, truth(), "use_rslora")
        targets = self.target_modules
        listed = isinstance(targets, Sequence) and all(isinstance(name, str) for name in targets)
        if targets is not None and not (listed and targets):
            raise OptionError.of(
                self,
                "{target_modules}: expected a list of names, a regular expression, or {0}",
                ALL_LINEAR,
            )
        self._validate_choice()

    def _validate_numbers(self) -> None:
        require(self, whole(1, MOST_RANK), "r")  # … and no more than a matrix has rows
        require(self, number(above=0, below=MOST_ALPHA, hint="; 2 r is usual"), "lora_alpha")
        for name, field in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
            patterns = getattr(self, name)
            if not isinstance(patterns, Mapping):
                raise ValueError(f"{name}={shown(patterns)}: expected names with numbers")
            for pattern, value in patterns.items():
                one = LoRAConfig()
                setattr(one, field, value)
                try:
                    re.compile(pattern)
                    one._validate_numbers()
                except (re.error, TypeError, ValueError) as error:
                    raise ValueError(f"{name}, {shown(pattern)}: {error}") from None

    def _validate_choice(self) -> None:
        """exclude_modules, layers_to_transform and layers_pattern."""
        kinds = {"exclude_modules": str, "layers_to_transform": int, "layers_pattern": str}
        for name, kind in kinds.items():
            value = getattr(self, name)
            listed = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
            if not all(type(one) is kind for one in listed):
                raise ValueError(f"{name}={shown(value)}: expected {kind.__name__}, or a list")
            for pattern in listed if kind is str else ():
                try:  # of names as well, which are patterns that fit themselves
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{name}={shown(pattern)}: {error}") from None
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform={shown(self.layers_to_transform)} goes with a list of"
                " target_modules"
            )

    def chosen(
        self,
        projections: Iterable[str],
        usual: Sequence[str],
        called: Callable[[str], str] = lambda name: name,
        strict: bool = True,
    ) -> list[str]:
        """The projections that it is for, whose names for targets are `called(name)`.  Raises
        ValueError, where this is strict, for a target that is none of them."""
        found = self._targeted([called(name) for name in projections], usual, strict)
        return [n for n in projections if called(n) in found and not self._left_out(called(n))]

    def _left_out(self, name: str) -> bool:
        excluded = self.exclude_modules or ()
        if isinstance(excluded, str):
            if re.fullmatch(excluded, name):
                return True
        elif any(_is_called(name, target) for target in excluded):
            return True
        layers = self.layers_to_transform
        if layers is None or layers == [] or name in (self.target_modules or ()):
            return False
        before = self.layers_pattern or r"[^.]*"
        for pattern in [before] if isinstance(before, str) else before:
            if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
                return int(match[1]) not in ([layers] if isinstance(layers, int) else layers)
        return True

    def _targeted(self, projections: list[str], usual: Sequence[str], strict: bool) -> list[str]:
        targets = usual if self.target_modules is None else self.target_modules
        if targets == ALL_LINEAR:
            return projections
        there = sorted({name.rpartition(".")[2] for name in projections})
        if isinstance(targets, str):
            try:
                found = [name for name in projections if re.fullmatch(targets, name)]
            except re.error as error:
                raise OptionError.of(
                    self, "{target_modules} is no regular expression ({0})", error
                ) from None
            if not found and strict:
                raise OptionError(
                    "{target_modules:name}: the regular expression {0} matches no whole name, such"
                    " as {1}; for last parts give a list: [{2!r}]",
                    shown(targets),
                    projections[0],
                    there[0],
                )
            return found
        missing = [t for t in targets if not any(_is_called(n, t) for n in projections)]
        if missing and strict:
            raise OptionError(
                "{target_modules:name}: {0} is none of the model's projections: {1}, or {2} for all"
                " of them",
                shown(missing[0]),
                ", ".join(there),
                ALL_LINEAR,
            )
        return [n for n in projections if any(_is_called(n, target) for target in targets)]


def fitting(patterns: Mapping[str, T], name: str, usual: T) -> T:
    """What the first pattern that fits a name says."""
    fitting = (p for p in patterns if re.match(rf"(.*\.)?({p})$", name))
    return next((patterns[pattern] for pattern in fitting), usual)


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
            if config.rank_of(name) > min(shape):
                size = f"{name}, {shape[0]} x {shape[1]}"
                raise OptionError("{r} is larger than {0}: lower it", size, r=config.rank_of(name))
        layout = layout_of(adapter_shapes(shapes, config))
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


def adapter_shapes(
    shapes: Mapping[str, tuple[int, int]], config: LoRAConfig
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of an adapter's parameters, for projections of shapes (I, O)."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in shapes.items():
        rank = config.rank_of(name)
        found[f"{name}.lora_A.weight"] = (rank, inputs)
        found[f"{name}.lora_B.weight"] = (outputs, rank)
    return found


class LoRA:
    """An adapter's term in one projection: s · x Aᵀ Bᵀ, on these columns of y."""

    def __init__(self, adapter: Adapter, name: str, columns: slice):
        self.name, self.columns = name, columns
        self.weights = (f"{name}.lora_A.weight", f"{name}.lora_B.weight")
        self.a, self.b = (adapter.parameters[weight] for weight in self.weights)  # (r, I), (O, r)
        self.scale, self.dropout = adapter.config.scale_of(name), adapter.config.lora_dropout

    def delta(self) -> np.ndarray:
        """s · B A (O, I): what it changes the projection's matrix by."""
        product = self.b @ self.a
        return product.dtype.type(self.scale) * product

    def trains(self, g: Gradients) -> bool:
        """Whether A or B gets a gradient."""
        return any(weight in g for weight in self.weights)

    def forward(
        self, x: np.ndarray, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, LoRACache]:
        """x (N, I) -> the term (N, O), cache.  What backward needs beside it is x."""
        y, cache = lora_forward(x, self.a, self.b, self.scale, self.dropout, rng)
        return y, cache._replace(x=None)

    def backward(
        self, dy: np.ndarray, x: np.ndarray | None, cache: LoRACache, g: Gradients
    ) -> np.ndarray:
        """dy (N, O) -> dx (N, I)."""
        da, db = (g.accumulator(weight) for weight in self.weights)
        return lora_backward(dy, cache._replace(x=x), da, db)[0]
