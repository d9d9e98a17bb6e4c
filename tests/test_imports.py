"""Imports go down: what a package may know of the others, read from the source."""

import ast
from pathlib import Path

import pytest

import numgpt

ROOT = Path(numgpt.__file__).parent
ANYWHERE = {"files", "lazy", "messages", "options", "reading"}
# A package -> those that it may import.
BELOW = {
    "runtime": set(),
    "layers": {"runtime"},
    "models": {"runtime", "layers"},
    "tokenizer": set(),
    "formats": {"runtime", "layers", "models", "tokenizer"},
    "generation": {"runtime", "layers", "models", "tokenizer", "formats"},
}
BELOW["data"] = {"runtime", "tokenizer"}
BELOW["evaluation"] = BELOW["generation"] | {"generation", "data"}
BELOW["objectives"] = set()
BELOW["training"] = BELOW["generation"] | {"generation", "data", "objectives"}
BELOW["insight"] = BELOW["evaluation"]
BELOW["lessons"] = BELOW["training"] | {"training", "evaluation", "insight"}
BELOW["cli"] = BELOW["training"] | {"training", "evaluation", "insight", "lessons", "launch"}
# The conveniences on a model or a tokenizer call upwards, in a function that imports when called.
UPWARDS = {
    ("models/language_model.py", "formats"),
    ("models/language_model.py", "generation"),
    ("tokenizer/base.py", "formats"),
}
# Third-party packages that may be imported; all but the first two in functions only.
DEPENDENCIES = {"numpy", "regex"}
OPTIONAL = {"huggingface_hub", "matplotlib", "tomli", "readline", "fcntl", "msvcrt", "pydoc_data"}
OPTIONAL |= {"reasoning_gym", "jinja2", "tqdm"}
# Files whose classes are made of an optional package's: they are themselves imported in functions.
ALONE = {"tokenizer/jinja_template.py"}


def imports(path: Path):
    """(module, whether when the file is loaded) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.Lambda))]
    later = {id(inner) for function in functions for inner in ast.walk(function)}
    checking = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
    ]
    typing = {id(inner) for block in checking for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in later
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [node.module] if node.module != "numgpt" else []
            names += [f"numgpt.{a.name}" for a in node.names if node.module == "numgpt"]
            for name in names:
                yield name, id(node) not in later


FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down(path):
    name = path.relative_to(ROOT).as_posix()
    package = name.split("/")[0]
    for module, at_once in imports(path):
        if not module.startswith("numgpt"):
            continue
        _, other, *_ = [*module.split("."), ""]
        if package == "cli" and other in ("", "runtime", "set_num_threads", "__version__"):
            continue
        if package == "lessons" and not other:  # whose readers do
            continue
        allowed = other in BELOW[package] | ANYWHERE | {package}
        upwards = not at_once and (name, other) in UPWARDS
        assert allowed or upwards, f"{name} imports {module}"


def test_the_dependencies_are_numpy_and_regex():
    import sys

    for path in ROOT.rglob("*.py"):
        for module, at_once in imports(path):
            top = module.split(".")[0]
            if top == "numgpt" or top in sys.stdlib_module_names or top in DEPENDENCIES:
                continue
            assert top in OPTIONAL, f"{path} imports {module}"
            alone = path.relative_to(ROOT).as_posix() in ALONE
            assert not at_once or alone, f"{path} imports {module} when it is loaded"


def test_what_is_made_of_an_extra_is_loaded_when_it_is_wanted():
    for path in ROOT.rglob("*.py"):
        for module, at_once in imports(path):
            assert not (
                at_once and f"{module.removeprefix('numgpt.').replace('.', '/')}.py" in ALONE
            )


def test_every_package_has_a_tenant_and_a_rule():
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert packages == set(BELOW)
