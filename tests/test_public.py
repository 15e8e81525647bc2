"""The public names of each package and module: listed, documented, with an example.

Pages and example scripts use listed names alone. That the examples are right is tested by
``test_examples``.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import pytest
from support.documents import ROOT, blocks, name_of, pages

import pycc

MODULES = (
    "pycc.checks",
    "pycc.counters",
    "pycc.grid",
    "pycc.random",
    "pycc.ranks",
    "pycc.registry",
    "pycc.settings",
    "pycc.types",
)
PACKAGES = (
    "pycc",
    "pycc.adapters",
    "pycc.attack",
    "pycc.attack.physical",
    "pycc.backdoor",
    "pycc.certify",
    "pycc.data",
    "pycc.defense",
    "pycc.local",
    "pycc.metrics",
    "pycc.models",
    "pycc.ops",
    "pycc.report",
    "pycc.runs",
    "pycc.train",
)


def test_no_package_is_left_out() -> None:
    folders = {path.parent.name for path in Path(pycc.__file__).parent.glob("*/__init__.py")}
    listed = {name.split(".")[1] for name in PACKAGES if "." in name}
    assert listed == folders - {"commands"}


def order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, each in alphabetical order, as ruff sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def public_names(module: ModuleType) -> set[str]:
    """Names of a module's namespace without underscore, except its submodules."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not (inspect.ismodule(value) and value.__name__ == f"{module.__name__}.{name}")
        and value is not annotations
    }


def defined_names(module: ModuleType) -> set[str]:
    """Names without underscore that a module itself defines, except type variables."""
    statements = ast.parse(inspect.getsource(module)).body
    targets = [
        target
        for each in statements
        for target in (each.targets if isinstance(each, ast.Assign) else [])
    ] + [each.target for each in statements if isinstance(each, ast.AnnAssign)]
    names = {each.name for each in statements if isinstance(each, ast.FunctionDef | ast.ClassDef)}
    names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {
        name
        for name in names
        if not name.startswith("_") and not isinstance(getattr(module, name), TypeVar)
    }


def listed_names(module: str) -> set[str]:
    """The names in ``__all__`` of a module's file, which may need a library to be imported."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for statement in ast.parse(Path(spec.origin).read_text("utf-8")).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return set(ast.literal_eval(statement.value))
    return set()


def uses(code: str) -> Iterator[tuple[str, str]]:
    """The (module, name) that code imports from pycc, or reads from such a module."""
    modules: dict[str, str] = {}
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name == "pycc":
                    modules[each.asname or each.name] = "pycc"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pycc":
            for each in node.names:
                if f"{node.module}.{each.name}" in PACKAGES + MODULES:
                    modules[each.asname or each.name] = f"{node.module}.{each.name}"
                else:
                    yield str(node.module), each.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and f"{module}.{node.attr}" not in PACKAGES + MODULES:
                yield module, node.attr


def unlisted(code: str) -> set[str]:
    """The names that code uses and that no ``__all__`` lists."""
    return {f"{module}.{name}" for module, name in uses(code) if name not in listed_names(module)}


def without_example(module: ModuleType) -> list[str]:
    """The listed functions and classes whose docstring has no example."""
    listed = {name: getattr(module, name) for name in module.__all__}
    return [
        name
        for name, value in listed.items()
        if (inspect.isclass(value) or inspect.isroutine(value))
        and ">>> " not in (value.__doc__ or "")
    ]


@pytest.mark.parametrize("name", PACKAGES + MODULES)
def test_public_names_are_listed_in_order(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__, key=order)
    assert all(hasattr(module, each) for each in module.__all__)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_holds_nothing_else(name: str) -> None:
    module = importlib.import_module(name)
    assert public_names(module) - set(module.__all__) == set()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_defines_nothing_else(name: str) -> None:
    module = importlib.import_module(name)
    assert defined_names(module) - set(module.__all__) == set()


def test_pages_and_examples_use_listed_names_alone() -> None:
    codes = {
        block.where: block.text
        for page in pages()
        for block in blocks(page)
        if block.language == "python"
    }
    codes |= {name_of(path): path.read_text("utf-8") for path in ROOT.glob("examples/*.py")}
    assert sum(1 for code in codes.values() for _ in uses(code)) > 100
    assert {where: names for where, code in codes.items() if (names := unlisted(code))} == {}


@pytest.mark.parametrize("name", PACKAGES + MODULES)
def test_examples_of_public_names_use_listed_names_alone(name: str) -> None:
    module = importlib.import_module(name)
    texts = {each: getattr(module, each).__doc__ or "" for each in module.__all__}
    read = doctest.DocTestParser().get_examples
    codes = {each: "".join(line.source for line in read(text)) for each, text in texts.items()}
    assert {each: names for each, code in codes.items() if (names := unlisted(code))} == {}


@pytest.mark.parametrize("name", PACKAGES + MODULES)
def test_each_public_function_and_class_has_an_example(name: str) -> None:
    assert without_example(importlib.import_module(name)) == []


def test_what_is_missing_is_found() -> None:
    def documented() -> None:
        """Return nothing.

        >>> documented()
        """

    def described() -> None:
        """Return nothing."""

    module = ModuleType("pycc.example")
    public = {"described": described, "documented": documented, "limit": 3}
    vars(module).update(public, __all__=["described", "documented"], annotations=annotations)
    assert without_example(module) == ["described"]
    assert public_names(module) == {"described", "documented", "limit"}
    code = "import pycc\nfrom pycc import data\nfrom pycc.models.base import CounterModel\n"
    assert unlisted(code + "data.open, data.opening, pycc.count, pycc.data") == {
        "pycc.data.opening", "pycc.models.base.CounterModel",
    }  # fmt: skip
    assert {"TOLERANCE", "check_image"} <= defined_names(pycc.checks)
