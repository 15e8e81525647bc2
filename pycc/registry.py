"""Registries of named things: tests, command lines and documentation enumerate them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Generic, TypeVar

__all__ = ["Registry", "nearest"]

T = TypeVar("T")


def nearest(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return the end of an error message about a mistyped name: the nearest known name, if any.

    ``prefix`` is what users write before all these names; names are compared without it.

    >>> nearest("mcn", ["mcnn", "csrnet"])
    "; did you mean 'mcnn'?"
    >>> nearest("sed", ["seed"], prefix="--")
    "; did you mean '--seed'?"
    >>> nearest("resnet", ["mcnn"])
    ''
    """
    close = get_close_matches(name, list(known), n=1, cutoff=0.65)
    return f"; did you mean {prefix + close[0]!r}?" if close else ""


class Registry(Generic[T]):
    """A mapping from names to things of one kind, filled by a decorator.

    Looking up an unknown name raises ValueError with the known names.

    >>> models: Registry[type] = Registry("model")
    >>> @models.register("mcnn")
    ... class Mcnn: ...
    >>> models.names()
    ['mcnn']
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument under ``name``.

        ValueError if the name is already registered.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")

        def add(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return add

    @contextmanager
    def registered(self, name: str, entry: T) -> Iterator[None]:
        """Register an entry within a ``with`` block; ValueError if the name is taken.

        >>> colours: Registry[str] = Registry("colour")
        >>> with colours.registered("red", "#f00"):
        ...     colours.names()
        ['red']
        >>> colours.names()
        []
        """
        self.register(name)(entry)
        try:
            yield
        finally:
            del self._entries[name]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Forget, after a ``with`` block, what was registered in it.

        >>> colours: Registry[str] = Registry("colour")
        >>> with colours.restored():
        ...     red = colours.register("red")("#f00")
        >>> colours.names()
        []
        """
        before = dict(self._entries)
        try:
            yield
        finally:
            self._entries = before

    def names(self) -> list[str]:
        """Return all names, in the order of registration."""
        return list(self._entries)

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            known = ", ".join(self._entries)
            raise ValueError(
                f"unknown {self.kind} {name!r}; known: {known}{nearest(name, self._entries)}"
            )
        return self._entries[name]
