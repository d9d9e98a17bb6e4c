"""LoRA, low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): what is added to a frozen linear
layer.

    y = x W + s · x Aᵀ Bᵀ            x (N, I), A (r, I), B (O, r), y (N, O)

W stays as it is; s · (B A)ᵀ, of rank r at most, is what it is changed by. With r far below I and O,
A and B have few numbers: r · (I + O) in place of I · O. s is α/r, or α/√r ("rsLoRA",
Kalajdzievski 2023, arXiv:2312.03732). B begins at 0, so that nothing changes at first. Dropout, if
any, is on this branch's x alone. A and B have PEFT's shapes; this page is the second term.

Backward. With u = x Aᵀ (N, r), the term is y = s · u Bᵀ: two linear layers, one after the other, so
that each gradient is one of theirs,

    du = s · dy B        dB = s · dyᵀ u           from y = s · u Bᵀ
    dx = du A            dA = duᵀ x               from u = x Aᵀ

With dropout u = (m · x) Aᵀ, so dA = duᵀ (m · x) and dx = m · (du A). While B is 0, so are du and
dA: the first step changes B alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numgpt.layers.checks import as_rows, floats
from numgpt.layers.dropout import DropoutCache, dropout_backward, dropout_forward
from numgpt.runtime import Accumulator, matmul


class LoRACache(NamedTuple):
    x: np.ndarray | None  # (N, I), before dropout; None where A does not train
    a: np.ndarray  # (r, I)
    b: np.ndarray  # (O, r)
    scale: float  # s
    u: np.ndarray  # x Aᵀ (N, r)
    dropout: DropoutCache


def lora_forward(
    x: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    scale: float,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, LoRACache]:
    """x (N, I), A (r, I), B (O, r) -> s · x Aᵀ Bᵀ (N, O), cache.  Dropout needs a generator.

    >>> x, a, b = (np.random.default_rng(0).normal(size=n) for n in ((5, 4), (2, 4), (3, 2)))
    >>> np.allclose(lora_forward(x, a, b, scale=0.5)[0], 0.5 * x @ (b @ a).T)
    True
    """
    if len(floats("A", a, "r, I")) != floats("B", b, "O, r").shape[1]:
        raise ValueError(f"A has shape {a.shape}, B {b.shape}: expected (r, I) and (O, r)")
    x_rows = as_rows("x", x, a.shape[1])
    dropped, cache = dropout_forward(x_rows, dropout, rng)
    u = matmul(dropped, a.T)  # (N, I) -> (N, r)
    y = matmul(u, (scale * b).T)  # (N, r) -> (N, O)
    return y.reshape(*x.shape[:-1], len(b)), LoRACache(x_rows, a, b, scale, u, cache)


def lora_backward(
    dy: np.ndarray, cache: LoRACache, da: Accumulator | None = None, db: Accumulator | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (N, O) -> dx (N, I), dA (r, I), dB (O, r): new arrays, or added to the sums that are
    handed over."""
    x, a, b, scale, u, dropout = cache
    da = Accumulator.like(a) if da is None else da
    db = Accumulator.like(b) if db is None else db
    dy_rows = as_rows("dy", dy, len(b), len(u))
    # from y = s · u Bᵀ:
    db.add_outer(dy_rows, scale * u)
    du = matmul(dy_rows, scale * b)  # (N, O) -> (N, r)
    # from u = (m · x) Aᵀ:
    da.add_outer(du, dropout_backward(x, dropout) if x is not None and da.needed else None)
    dx = dropout_backward(matmul(du, a), dropout)
    return dx.reshape(*dy.shape[:-1], a.shape[1]), da.out, db.out
