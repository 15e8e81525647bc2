"""Code from outside the package that a command imports, for what it registers.

A package names its module as an entry point of the group ``pycc.plugins``; code that is not
installed is named by ``--import MODULE_OR_FILE``, which every command takes. A run's manifest
stores its ``--import`` among the arguments of the command, and a command that resumes the run, or
takes its settings, imports the same again.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module, metadata
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from pycc.commands.arguments import earlier_manifest, earlier_run
from pycc.commands.entry import IMPORT
from pycc.commands.progress import note

__all__ = ["GROUP", "import_installed", "import_named", "with_imports"]

GROUP = "pycc.plugins"
"""The group of entry points."""


def import_installed() -> None:
    """Import the modules that installed packages name; a failure is a warning that names it."""
    for entry in metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            package = "" if entry.dist is None else f" of {entry.dist.name} {entry.dist.version}"
            warnings.warn(
                f"plugin {entry.name}{package} is left out: {entry.value}: {_reason(error)}",
                stacklevel=2,
            )


def with_imports(argv: Sequence[str]) -> list[str]:
    """Import what ``--import`` names in arguments, or named for the earlier run that they name.

    Returns the arguments with all these ``--import`` at their end, files by their absolute paths.
    ValueError for what cannot be imported.
    """
    names, others = _split(argv)
    names = list(dict.fromkeys(map(_absolute, names)))
    for name in _stored(argv):
        if name not in names:
            flag, folder = earlier_run(argv) or ("", "")
            if _is_file(name) and Path(folder).resolve() in Path(name).resolve().parents:
                raise ValueError(
                    f"{flag} {folder}: that run imported {name}, a file in its own folder; to run "
                    f"this code, name it: {IMPORT} {name}"
                )
            note(f"{flag} {folder}: imports {name}, as that run did")
            names.append(name)
    for name in names:
        import_named(name)
    return [*others, *(text for name in names for text in (IMPORT, name))]


def import_named(name: str) -> None:
    """Import a module by its name, or a Python file by its path; ValueError if that fails."""
    try:
        _import_file(Path(name)) if _is_file(name) else import_module(name)
    except Exception as error:
        hint = f"; a file needs its suffix: {name}.py" if Path(f"{name}.py").is_file() else ""
        raise ValueError(f"{IMPORT} {name}: {_reason(error)}{hint}") from error


def _import_file(path: Path) -> None:
    """Import a file once per process, as the module that its path names.

    It may import the files beside it, as a script does.
    """
    if str(path) in sys.modules:
        return
    spec = spec_from_file_location(str(path), path)
    if spec is None or spec.loader is None:
        raise ImportError("expected the name of a module or a Python file")
    before = [*sys.path]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = sys.modules[str(path)] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[str(path)]
        sys.path[:] = before
        raise


def _stored(argv: Sequence[str]) -> list[str]:
    """The ``--import`` of the earlier run that arguments name; empty if its manifest is damaged."""
    command = earlier_manifest(argv).get("command")
    texts = command if isinstance(command, list) else []
    return list(dict.fromkeys(_split([text for text in texts if isinstance(text, str)])[0]))


def _is_file(name: str) -> bool:
    return name.endswith(".py") or "/" in name or "\\" in name


def _absolute(name: str) -> str:
    return str(Path(name).absolute()) if _is_file(name) else name


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of ``--import`` in arguments, and the other arguments."""
    names, others = [], []
    rest = iter(argv)
    for text in rest:
        if text == IMPORT:
            name = next(rest, "")
            if not name or name.startswith("-"):
                raise ValueError(f"{IMPORT}: expected a module or a Python file, got {name!r}")
            names.append(name)
        elif text.startswith(f"{IMPORT}="):
            names.append(text.partition("=")[2])
        else:
            others.append(text)
    return names, others


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"
