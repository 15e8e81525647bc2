"""Pages about the commands, written from their settings: what ``--help-all`` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pycc.attack import attacks
from pycc.commands import COMMANDS
from pycc.commands.attack import command as attack_command
from pycc.commands.attack_physical import MODES
from pycc.commands.base import Command, CommandGroup, Entry
from pycc.commands.entry import exit_codes
from pycc.settings import Flag
from pycc_docs.tables import markdown

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FOLDER = "reference/commands"


def write_pages(app: Sphinx) -> None:
    """Write one page per command into the sources, unless the same page is there."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        text, file = page(name), folder / f"{name}.md"
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")


def page(name: str) -> str:
    """The page of the command ``name``."""
    entry: Entry = import_module(f"pycc.commands.{name}").command
    parts = list(_sections(entry, f"pycc {name}", level=1))
    if name == "attack":
        parts += list(_methods()) + [
            part for mode in MODES for part in _sections(mode(()), f"pycc {mode.name}", level=2)
        ]
    return "\n\n".join(parts) + "\n"


def _sections(entry: Entry, prog: str, *, level: int) -> Iterator[str]:
    yield f"{'#' * level} {prog}"
    yield entry.summary
    if isinstance(entry, CommandGroup):
        for inner in entry.entries:
            yield from _sections(inner, f"{prog} {inner.name}", level=level + 1)
        return
    assert isinstance(entry, Command)
    yield from _flags(entry.flags(()))
    if entry.epilog:
        yield _plain(entry.epilog)
    yield exit_codes(entry.failure)


def _methods() -> Iterator[str]:
    """The flags that ``--attack NAME`` adds or whose defaults it changes."""
    shown = {flag.name for flag in attack_command.flags(())}
    for name in attacks.names():
        own = [flag for flag in attack_command.flags(["--attack", name]) if flag.name not in shown]
        if own:
            yield f"## pycc attack --attack {name}"
            yield "Its flags besides those above:"
            yield from _flags(own)


def _flags(flags: Sequence[Flag]) -> Iterator[str]:
    """One table for each group of flags."""
    titles = list(dict.fromkeys(flag.title for flag in flags))
    for title in titles:
        group = [flag for flag in flags if flag.title == title]
        yield f"**{title or 'options'}**"
        yield markdown(["flag", "meaning", "default"], [_row(flag) for flag in group])


def _row(flag: Flag) -> list[str]:
    metavar = flag.metavar
    value = " ".join(metavar) if isinstance(metavar, tuple) else metavar or ""
    value = value.replace("|", "\\|")
    if flag.positional:
        name = f"`{value or flag.shown}`"
    else:
        name = f"`{flag.shown}{' ' + value if value else ''}`"
    if flag.choices:
        choices = ", ".join(f"`{choice}`" for choice in flag.choices)
        return [name, f"{_plain(flag.help)}. One of {choices}", _default(flag)]
    return [name, _plain(flag.help), _default(flag)]


def _default(flag: Flag) -> str:
    default = flag.default
    if default is MISSING:
        return "must be given"
    if default is None or default in ((), "", [], {}):
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    values = default if isinstance(default, list | tuple) else [default]
    return "`" + " ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values) + "`"


def _plain(text: str) -> str:
    """A help text in Markdown: its flags are code, so that ``--`` does not become a dash."""
    escaped = re.sub(r"[|<*]", lambda mark: f"\\{mark[0]}", text)
    return re.sub(r"(?<![\w-])--[a-z][\w-]*", lambda flag: f"`{flag[0]}`", escaped)
