"""How models are written: blocks that fit on a screen, backward as the mirror of forward."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import numgpt
from numgpt.models import gpt2, llama

SOURCES = sorted(Path(numgpt.__file__).parent.rglob("*.py"))
SCREEN = 45  # lines


@pytest.mark.parametrize("page", [gpt2, llama], ids=["gpt2", "llama"])
def test_a_blocks_backward_is_the_mirror_of_its_forward(page):
    modules = {}
    for method in ("forward", "backward"):
        source = inspect.getsource(getattr(page.Block, method))
        assert source.count("\n") <= SCREEN, method
        modules[method] = re.findall(rf"self\.(\w+)\.{method}\(", textwrap.dedent(source))
    assert len(modules["forward"]) >= 6
    assert modules["backward"] == modules["forward"][::-1]


def test_models_are_typed_and_gradients_need_no_flags():
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                assert node.arg != "accumulate", path
            if isinstance(node, ast.Name) and "models" in path.parts:
                assert node.id != "Any", path
