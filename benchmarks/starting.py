"""The import, and a single product: what the machine and the libraries bring along."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any


def import_module(name: str) -> Callable[[], Any]:
    """A new interpreter that imports the module."""
    return lambda: subprocess.run([sys.executable, "-c", f"import {name}"], check=True)


def numgpt_product() -> Callable[[], Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    a, b = rng.random((1024, 768), np.float32), rng.random((768, 3072), np.float32)
    out = np.empty((1024, 3072), np.float32)
    return lambda: np.matmul(a, b, out=out)


def torch_product() -> Callable[[], Any]:
    import torch

    a, b, out = torch.rand(1024, 768), torch.rand(768, 3072), torch.empty(1024, 3072)
    return lambda: torch.matmul(a, b, out=out)
