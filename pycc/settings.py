"""Settings: frozen dataclasses whose fields are the flags of a command.

A field made with ``flag`` is a setting with its help text. A field made with ``group`` is a
dataclass of such fields, shown under its own title. ``flags_of`` lists them, ``build`` makes the
settings from values by name, and ``values_of`` returns what a run's manifest stores: every value,
defaults included.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from os import PathLike
from typing import Any, TypeVar

from pycc.registry import nearest

__all__ = [
    "Flag",
    "Options",
    "build",
    "check_fields",
    "flag",
    "flags_of",
    "group",
    "misfit",
    "no_names",
    "values_of",
]

S = TypeVar("S")

Options = dict[str, bool | int | float | str | None]
"""Free named values, such as the options of a counter: ``--option NAME=VALUE``."""


def flag(
    default: Any = MISSING,
    help: str = "",
    *,
    factory: Callable[[], Any] | None = None,
    choices: Sequence[str] | Callable[[], Sequence[str]] | None = None,
    metavar: str | tuple[str, ...] | None = None,
    advanced: bool = False,
    names: Callable[[], Sequence[str]] | None = None,
    positional: bool = False,
) -> Any:
    """Make a field of a settings dataclass that is a flag of the command.

    Args:
        default: the value if the flag is not given; MISSING with ``factory``, or for a flag that
            must be given.
        help: one line, in plain English.
        factory: makes the default instead, for mutable values.
        choices: the allowed values, or a function that lists them when they are needed.
        metavar: the placeholder of the value in the help.
        advanced: shown by ``--help-all`` only.
        names: for a path: returns built-in names that are accepted in place of a path, often none.
            A path is made absolute, so that a run can be resumed from another folder; a name with
            ``://`` is none.
        positional: given without the flag's name.

    >>> @dataclass(frozen=True)
    ... class Size:
    ...     side: int = flag(8, "side of the square, pixels")
    >>> Size().side, flags_of(Size)[0].shown
    (8, '--side')
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
    """Make a field that holds another settings dataclass, shown under ``title`` in the help.

    >>> @dataclass(frozen=True)
    ... class Size:
    ...     side: int = flag(8, "side of the square, pixels")
    >>> @dataclass(frozen=True)
    ... class Settings:
    ...     size: Size = group(Size, "size of the patch")
    >>> Settings()
    Settings(size=Size(side=8))
    """
    return field(default_factory=kind, metadata={"title": title})


def no_names() -> Sequence[str]:
    """Return no names: the ``names`` of a path that accepts no built-in name.

    >>> no_names()
    ()
    """
    return ()


@dataclass(frozen=True)
class Flag:
    """One setting, as a command-line parser needs it.

    >>> Flag("patch_size", int, "", "pixels", 81, None, None, False, None, False).shown
    '--patch-size'
    """

    name: str
    annotation: Any
    """Its type, without ``| None``; a tuple of types if it may have one of several."""
    title: str
    """The group under which the help shows it; empty for the command's own flags."""
    help: str
    default: Any
    """MISSING if the flag must be given."""
    choices: Sequence[str] | None
    metavar: str | tuple[str, ...] | None
    advanced: bool
    names: Callable[[], Sequence[str]] | None
    positional: bool

    def checked(self, value: Any) -> Any:
        """The value, or each of several, if it is one of the choices; ValueError if not.

        None, an optional value that was not given, is always allowed.
        """
        values = value if isinstance(value, list | tuple) else [] if value is None else [value]
        for item in values:
            if self.choices is not None and item not in self.choices:
                raise ValueError(
                    f"{self.shown}: expected one of {', '.join(self.choices)}, got {item!r}"
                    f"{nearest(str(item), self.choices)}"
                )
        return value

    @property
    def shown(self) -> str:
        """The flag as it is written on the command line."""
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")


def flags_of(
    kind: type[Any], variants: Mapping[str, type[Any]] | None = None, title: str = ""
) -> list[Flag]:
    """List the flags of a settings dataclass and of its groups, in order, each name once.

    ``variants`` gives other dataclasses for groups whose class the command chooses, such as the
    settings of the attack that ``--attack`` names. A flag of an outer dataclass hides one of the
    same name in a group.

    >>> @dataclass(frozen=True)
    ... class Size:
    ...     side: int = flag(8, "side of the square, pixels")
    >>> [(entry.name, entry.help) for entry in flags_of(Size)]
    [('side', 'side of the square, pixels')]
    """
    flags: list[Flag] = []
    outer = {entry.name for entry in fields(kind) if "title" not in entry.metadata}
    for entry, inner in _entries(kind, variants):
        if "title" in entry.metadata:
            known = outer | {known_flag.name for known_flag in flags}
            inside = flags_of(inner, variants, entry.metadata["title"])
            flags += [inner_flag for inner_flag in inside if inner_flag.name not in known]
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
    choices = about.get("choices")
    return Flag(
        entry.name, _plain(annotation), title, about["help"], default,
        choices() if callable(choices) else choices,
        about.get("metavar"), bool(about.get("advanced")), about.get("names"),
        bool(about.get("positional")),
    )  # fmt: skip


def _plain(annotation: Any) -> Any:
    """Return a type without ``| None``; several types as a tuple."""
    kinds = tuple(kind for kind in _kinds(annotation) if kind is not type(None))
    return kinds[0] if len(kinds) == 1 else kinds


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def build(
    kind: type[S], values: Mapping[str, Any], variants: Mapping[str, type[Any]] | None = None
) -> S:
    """Make settings of a ``kind`` from values by flag name; the others take their defaults.

    ``variants`` are the classes of groups, as of ``flags_of``.

    Values may come from JSON: a list is accepted for a tuple. ValueError of the dataclass itself
    for a value out of range. Names of no field are left out: a part of a run's flags makes one
    group. Commands warn of those that ``flags_of`` does not list.

    >>> @dataclass(frozen=True)
    ... class Size:
    ...     side: tuple[int, int] = flag((1, 1), "height and width")
    >>> build(Size, {"side": [2, 3]})
    Size(side=(2, 3))
    """
    outer = {entry.name for entry in fields(kind) if "title" not in entry.metadata}  # type: ignore[arg-type]
    inner_values = {name: value for name, value in values.items() if name not in outer}
    arguments: dict[str, Any] = {}
    for entry, inner in _entries(kind, variants):
        if "title" in entry.metadata:
            arguments[entry.name] = build(inner, inner_values, variants)
        elif entry.name in values:
            arguments[entry.name] = _typed(values[entry.name], _plain(inner))
    return kind(**arguments)


def _typed(value: Any, annotation: Any) -> Any:
    return tuple(value) if typing.get_origin(annotation) is tuple and value is not None else value


def check_fields(op: str, settings: object) -> None:
    """Raise TypeError, naming ``op`` and the field, unless all fields are of their types.

    Numbers, texts and truth values are checked; a whole number is a number too. Groups check
    themselves.

    >>> @dataclass(frozen=True)
    ... class Size:
    ...     side: int | None = flag(8, "side of the square, pixels")
    >>> check_fields("size", Size("8"))
    Traceback (most recent call last):
    ...
    TypeError: size: side must be a whole number or None, got '8'
    """
    for entry, annotation in _entries(type(settings), None):
        if "title" in entry.metadata:
            continue
        value = getattr(settings, entry.name)
        expected = misfit(annotation, value)
        if expected is not None:
            raise TypeError(f"{op}: {entry.name} must be {expected}, got {value!r}")


def misfit(annotation: Any, value: object) -> str | None:
    """Return what a field of this type expects, for an error; None if a value is of the type.

    Values of other types than numbers, texts, truth values and lists of texts always fit.

    >>> misfit(int | None, 8.5), misfit(int | float, 8.5)
    ('a whole number or None', None)
    """
    words = [_word(kind, value) for kind in _kinds(annotation)]
    if None in words:
        return None
    return " or ".join(
        str(word) for word in words if word != "a whole number" or "a number" not in words
    )


_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("True or False", (bool,)),
    int: ("a whole number", (Integral,)),
    float: ("a number", (Real,)),
    str: ("text", (str, PathLike)),
    type(None): ("None", (type(None),)),
}


def _word(kind: Any, value: object) -> str | None:
    """Return the name of a type that a value is not of; None if it is, or if none is checked."""
    if kind == list[str]:
        fits = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
        return None if fits else "a list of names"
    if kind not in _KINDS:
        return None
    word, kinds = _KINDS[kind]
    fits = isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))
    return None if fits else word


def values_of(settings: object) -> dict[str, Any]:
    """Return all values of settings by flag name, as a manifest stores them.

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
