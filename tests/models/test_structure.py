"""How models are written: blocks that fit on a screen, backward as the mirror of forward."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import numgpt
from numgpt.models import GPT, Llama
from numgpt.models.blocks import MLP, Attention, Block, GatedMLP

SOURCES = sorted(Path(numgpt.__file__).parent.rglob("*.py"))
HALF_A_SCREEN = 20  # lines


@pytest.mark.parametrize("part", [Block, Attention, MLP, GatedMLP])
def test_a_backward_is_the_mirror_of_its_forward(part):
    modules = {}
    for method in ("forward", "backward"):
        source = inspect.getsource(getattr(part, method))
        assert source.count("\n") <= HALF_A_SCREEN, method
        modules[method] = re.findall(rf"self\.(\w+)\.{method}\(", source)
    assert len(modules["forward"]) == (4 if part is Block else 2)
    assert modules["backward"] == modules["forward"][::-1]


@pytest.mark.parametrize("family", [GPT, Llama])
def test_what_a_family_inherits_is_two_classes(family):
    ours = [c for c in family.__mro__ if c.__module__.startswith("numgpt.")]
    assert [c.__name__ for c in ours[1:]] == ["LanguageModel", "BaseModel"]


def test_models_are_typed_and_gradients_need_no_flags():
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                assert node.arg != "accumulate", path
            if isinstance(node, ast.Name) and "models" in path.parts:
                assert node.id != "Any", path
