"""Names of a package that are imported when first used, so that importing it does not wait for
all that it offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """What a package takes as its __getattr__ and __dir__ to offer names out of modules of its
    own: name -> module (a name that is its own module stands for the module itself)."""

    def look_up(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{modules[name]}")
        return module if name == modules[name] else getattr(module, name)

    def list_names() -> list[str]:
        return sorted({*vars(import_module(package)), *modules})

    return look_up, list_names
