"""The public names of each package and module: listed, documented, with an example.

That the examples are right is tested by ``test_examples``.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

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
    assert {f"pycc.{name}" for name in folders - {"commands"}} == {*PACKAGES} - {"pycc"}


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
