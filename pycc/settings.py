"""Settings: frozen dataclasses whose fields are the flags of a command.

A field made with ``flag`` is a setting with its help; a field made with ``group`` is a dataclass of
such fields, shown under a title of its own. ``flags_of`` lists them, ``build`` makes the settings
from values by name, and ``values_of`` returns what a run's manifest stores: every value, defaults
included.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from pycc.registry import nearest

S = TypeVar("S")

Options = dict[str, bool | int | float | str | None]
"""Named values of a free choice, such as the options of a counter: ``--option NAME=VALUE``."""


def flag(
    default: Any = MISSING,
    help: str = "",
    *,
    factory: Callable[[], Any] | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | tuple[str, ...] | None = None,
    advanced: bool = False,
    names: Callable[[], Sequence[str]] | None = None,
    positional: bool = False,
) -> Any:
    """A field of a settings dataclass that is a flag of the command.

    Args:
        default: its value if the flag is not given; MISSING with ``factory`` or for a flag that
            has to be given.
        help: one line, in plain English.
        choices: the values that are allowed.
        metavar: how help names the value.
        advanced: shown by ``--help-all`` alone.
        names: for a path: built-in names that may stand in its place, often none. A path is made
            absolute, so that a run can be resumed from another folder.
        positional: given without the flag's name.
    """
    metadata = {
        "help": help, "choices": choices, "metavar": metavar, "advanced": advanced,
        "names": names, "positional": positional,
    }  # fmt: skip
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def group(kind: type[S], title: str) -> Any:
    """A field of a settings dataclass that holds the flags of another, under ``title`` in help."""
    return field(default_factory=kind, metadata={"title": title})


def no_names() -> Sequence[str]:
    """The built-in names of a path that has none."""
    return ()


@dataclass(frozen=True)
class Flag:
    """One setting, as a parser needs to know it."""

    name: str
    annotation: Any
    """Its type, without ``| None``; a tuple of types where it may be one of several."""
    title: str
    """The group that it is shown in; empty: that of the command."""
    help: str
    default: Any
    """MISSING if it has to be given."""
    choices: Sequence[str] | None
    metavar: str | tuple[str, ...] | None
    advanced: bool
    names: Callable[[], Sequence[str]] | None
    positional: bool

    def checked(self, value: Any) -> Any:
        """The value, or each of several, if it is one of the choices; ValueError if not."""
        values = value if isinstance(value, list | tuple) else [value]
        for one in values if value is not None else ():
            if self.choices is not None and one not in self.choices:
                raise ValueError(
                    f"{self.shown}: expected one of {', '.join(self.choices)}, got {one!r}"
                    f"{nearest(str(one), self.choices)}"
                )
        return value

    @property
    def shown(self) -> str:
        """The flag as it is written on the command line."""
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")


def flags_of(
    kind: type[Any], variants: Mapping[str, type[Any]] | None = None, title: str = ""
) -> list[Flag]:
    """The flags of a settings dataclass and of the groups in it, in order, each name once.

    ``variants`` names other dataclasses for groups whose kind the command chooses, such as the
    settings of the attack that ``--attack`` names. A flag of an outer dataclass hides one of the
    same name in a group.
    """
    flags: list[Flag] = []
    own = {entry.name for entry in fields(kind) if "title" not in entry.metadata}
    for entry, inner in _entries(kind, variants):
        if "title" in entry.metadata:
            known = own | {one.name for one in flags}
            inside = flags_of(inner, variants, entry.metadata["title"])
            flags += [one for one in inside if one.name not in known]
        elif "help" in entry.metadata:
            flags.append(_flag(entry, inner, title))
    return flags


def _entries(
    kind: type[Any], variants: Mapping[str, type[Any]] | None
) -> Iterator[tuple[Field[Any], Any]]:
    hints = typing.get_type_hints(kind)
    for entry in fields(kind):
        yield entry, (variants or {}).get(entry.name, hints[entry.name])


def _flag(entry: Field[Any], annotation: Any, title: str) -> Flag:
    default = entry.default
    if entry.default_factory is not MISSING:
        default = entry.default_factory()
    about = entry.metadata
    return Flag(
        entry.name, _plain(annotation), title, about["help"], default, about.get("choices"),
        about.get("metavar"), bool(about.get("advanced")), about.get("names"),
        bool(about.get("positional")),
    )  # fmt: skip


def _plain(annotation: Any) -> Any:
    """A type without ``| None``; several types as a tuple."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = tuple(kind for kind in typing.get_args(annotation) if kind is not type(None))
        return kinds[0] if len(kinds) == 1 else kinds
    return annotation


def build(
    kind: type[S], values: Mapping[str, Any], variants: Mapping[str, type[Any]] | None = None
) -> S:
    """The settings with these values by the names of their flags, and defaults for the others.

    Values may be those of JSON: a list stands for a tuple. ValueError of the dataclass itself for a
    value out of range; unknown names are ignored.

    >>> @dataclass(frozen=True)
    ... class Size:
    ...     side: tuple[int, int] = flag((1, 1), "height and width")
    >>> build(Size, {"side": [2, 3]})
    Size(side=(2, 3))
    """
    own = {entry.name for entry in fields(kind) if "title" not in entry.metadata}  # type: ignore[arg-type]
    inner_values = {name: value for name, value in values.items() if name not in own}
    arguments: dict[str, Any] = {}
    for entry, inner in _entries(kind, variants):
        if "title" in entry.metadata:
            arguments[entry.name] = build(inner, inner_values, variants)
        elif entry.name in values:
            arguments[entry.name] = _typed(values[entry.name], _plain(inner))
    return kind(**arguments)


def _typed(value: Any, annotation: Any) -> Any:
    return tuple(value) if typing.get_origin(annotation) is tuple and value is not None else value


def values_of(settings: object) -> dict[str, Any]:
    """All values of settings by the names of their flags, as a manifest stores them.

    >>> @dataclass(frozen=True)
    ... class Size:
    ...     side: tuple[int, int] = flag((1, 1), "height and width")
    >>> values_of(Size((2, 3)))
    {'side': [2, 3]}
    """
    assert is_dataclass(settings)
    values: dict[str, Any] = {}
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if "title" in entry.metadata:
            values = {**values_of(value), **values}  # outer flags hide those of groups
        else:
            values[entry.name] = list(value) if isinstance(value, tuple) else value
    return values
