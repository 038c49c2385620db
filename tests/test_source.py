"""Guards over every source file: examples run, names are listed, and nothing forbidden is done."""

import ast
import doctest
import importlib
from functools import cache
from pathlib import Path

import pytest

from qvae import registry
from qvae.schema import arguments

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "qvae"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def named(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NEEDS_WEIGHTS = {"qvae.clock": PACKAGE / "weights" / "clock"}
"""Modules whose examples draw with the model that ships in the package."""
MODULES = [module_of(path) for path in SOURCES if path.stem != "__main__"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_right(name, tmp_path, monkeypatch):
    weights = NEEDS_WEIGHTS.get(name)
    if weights is not None and not weights.is_dir():
        pytest.skip(f"{weights.name}: the shipped weights are not in this tree")
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    names = {key: value for key, value in vars(module).items() if not key.startswith("__")}
    outcome = doctest.testmod(
        module, extraglobs=names, optionflags=doctest.IGNORE_EXCEPTION_DETAIL, verbose=False
    )
    assert not outcome.failed


@pytest.mark.parametrize("path", SOURCES, ids=named(SOURCES))
def test_all_names_what_a_module_gives(path):
    tree = parsed(path)
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    if path.stem == "__main__" or (path.stem == "__init__" and len(tree.body) == 1):
        return  # it runs; or there is a docstring and nothing else
    module = importlib.import_module(module_of(path))
    listed = getattr(module, "__all__", None)
    assert listed is not None, "has no __all__"
    assert len(set(listed)) == len(listed)
    assert not [name for name in listed if not hasattr(module, name)]
    assert defined <= set(listed), f"not in __all__: {sorted(defined - set(listed))}"


COMPONENTS = [(kind, name) for kind, table in registry.COMPONENTS.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_argument_that_a_recipe_may_set_is_documented(kind, name):
    found = arguments(registry.resolve(kind, name))
    assert not [argument.name for argument in found if not argument.doc]


def imports(path):
    """Every module that a file imports, wherever in the file."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(path):
    """Every call by its dotted name, such as ``torch.load``."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


DISTRIBUTED = {"train/engine.py", "bottlenecks/functional.py"}
PICKLES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")


@pytest.mark.parametrize("path", SOURCES, ids=named(SOURCES))
def test_what_no_file_may_do(path):
    where = path.relative_to(PACKAGE).as_posix()
    found = set(imports(path))
    roots = {name.split(".")[0] for name in found}
    assert not roots & set(PICKLES), "unpickling runs code"
    assert "__future__" not in roots, "it defeats the shape checks"
    assert where in DISTRIBUTED or not any(n.startswith("torch.distributed") for n in found)
    names = {"torch.distributed"} if where not in DISTRIBUTED else set()
    text = {ast.unparse(n) for n in ast.walk(parsed(path)) if isinstance(n, ast.Attribute)}
    assert not names & text
    for name, node in calls(path):
        assert name != "print" or where.startswith("cli/"), "print belongs to the command line"
        assert name not in ("torch.load", "torch.save", "eval", "exec"), name
        if name in ("np.load", "numpy.load", "np.save", "numpy.save"):
            allowed = [k.value for k in node.keywords if k.arg == "allow_pickle"]
            assert [ast.unparse(value) for value in allowed] == ["False"], f"{name}: allow_pickle"
