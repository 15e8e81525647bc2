"""A file imports only from floors below its own and from its own package.

Packages of one floor may use each other, except models, data, defense and report, and except
adapters, train and certify.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "pycc"

FLOORS = [
    {"_compiled", "types", "registry", "random", "checks", "ranks", "settings"},
    {"ops", "local", "metrics", "grid", "counters", "runs"},
    {"models", "data", "defense", "report"},
    {"attack"},
    {"adapters", "train", "certify"},
    {"backdoor"},
    {"commands"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
TOP = len(FLOORS)
SEPARATE = (2, 4)
"""The floors whose packages do not know each other."""
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def level(path: Path) -> int:
    """The floor of a file: commands stand on top."""
    if path.name == "__main__.py":
        return TOP
    if path == ROOT / "__init__.py":
        return FLOOR["counters"] + 1  # what users call first: pycc.count
    return FLOOR[room(path)]


def imported_rooms(source: str) -> set[str]:
    """The rooms of pycc that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    inner = [name.split(".") for name in names if name.split(".")[0] == "pycc"]
    return {parts[1] for parts in inner if len(parts) > 1 and parts[1] in FLOOR}


def violations(path: Path, source: str) -> list[str]:
    own = level(path)
    return [
        other
        for other in sorted(imported_rooms(source))
        if FLOOR[other] > own or (FLOOR[other] == own in SEPARATE and other != room(path))
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    assert not violations(path, path.read_text())


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in FILES} - {"__init__", "__main__"} <= set(FLOOR)


def test_an_upward_and_a_sideways_import_are_found() -> None:
    upward = "def f():\n    from pycc.attack import APAM\n"
    assert violations(ROOT / "models" / "mcnn.py", upward) == ["attack"]
    assert violations(ROOT / "models" / "mcnn.py", "from pycc import data\n") == ["data"]
    assert violations(ROOT / "data" / "images.py", "import pycc.data.dataset\n") == []
    assert violations(ROOT / "attack" / "__main__.py", "from pycc.commands import main\n") == []


def test_only_one_file_imports_the_compiled_module() -> None:
    importers = [path for path in FILES if "import _pycc" in path.read_text()]
    assert importers == [ROOT / "_compiled.py"]
