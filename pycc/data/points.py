"""Head annotations of one image in a file of its own: plain CSV and JSON, and other formats.

A format registers itself in ``point_files``; the content of a file decides which one reads it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycc.data.dataset import read_bytes
from pycc.data.target import Picture, Target, targets
from pycc.registry import Registry


@dataclass(frozen=True)
class PointFile:
    """A format for the points of one image."""

    suffix: str
    """Of its files, in lower case."""
    recognises: Callable[[bytes], bool]
    """Whether a file of this suffix with this content has the format."""
    read: Callable[[Path, bytes], NDArray[np.float64]]
    """Returns the points [N,2] (x, y) of a file and its content; ValueError naming the file."""


point_files: Registry[PointFile] = Registry("format of points")
"""Formats for the points of one image. Those registered later are tried first."""


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of files that may hold the points of one image."""
    return tuple(dict.fromkeys(point_files[name].suffix for name in point_files.names()))


def kind_of(path: Path, content: bytes) -> str:
    """Return the name of the format of a file; ``csv`` for an unknown suffix."""
    suffix = path.suffix.lower()
    names = [name for name in reversed(point_files.names()) if point_files[name].suffix == suffix]
    recognised = (name for name in names if point_files[name].recognises(content))
    return next(recognised, names[0] if names else "csv")


def holds_points(path: Path) -> bool:
    """Return whether the content of a file is that of a format for its suffix."""
    content = read_bytes(path)
    return point_files[kind_of(path, content)].recognises(content)


def read_points(path: Path) -> NDArray[np.float64]:
    """Read points [N,2] (x, y) from a file of any registered format, by its content.

    ValueError naming the file and the problem.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "street.csv")
    ...     _ = path.write_text("id,y,x\\n1,20,10.5\\n")
    ...     points = read_points(path)
    >>> points.tolist()
    [[10.5, 20.0]]
    """
    content = read_bytes(path)
    return point_files[kind_of(path, content)].read(path, content)


def number(value: object) -> float:
    """Convert a number, or a text that holds one, to float; ValueError for anything else.

    >>> number("3.5"), number(2)
    (3.5, 2.0)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a number")
    if isinstance(value, str) and "_" in value:  # Python's digit separator is no data
        raise ValueError("not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("number too large") from error


def finite_points(path: Path, rows: Iterable[Sequence[float]]) -> NDArray[np.float64]:
    """Return rows of (x, y) as [N,2]; ValueError naming the first point that is not finite."""
    points = np.array(list(rows), np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        first = int(np.argmin(np.isfinite(points).all(1)))
        raise ValueError(f"{path}: point {first + 1} must be finite, got {points[first].tolist()}")
    return points


def decode(path: Path, content: bytes) -> str:
    """Return the text of a file; ValueError if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text: {error.reason}") from error


def parse_json(path: Path, content: bytes, *, unique: bool = False) -> Any:
    """Return the content of a JSON file; ValueError if it is broken.

    With ``unique`` a key that an object has twice is refused; otherwise its last value counts.
    """
    text = decode(path, content)
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} occurs twice")
        values[key] = value
    return values


def rows_of_points(path: Path, rows: Iterable[tuple[int, Sequence[str]]]) -> NDArray[np.float64]:
    """Return the points of rows of cells, each with the number of its line.

    The first row may be a header that names x and y among any columns, in any order; without one a
    row is x, y. Empty rows are skipped. ValueError naming the line.
    """
    points = []
    header: list[str] | None = None
    for line, row in rows:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        names = [cell.lstrip("#").strip().lower() for cell in cells]
        if header is None and names.count("x") == names.count("y") == 1:
            header = names
            continue
        header = ["x", "y"] if header is None else header
        try:
            values = dict(zip(header, cells, strict=True))
            points.append((number(values["x"]), number(values["y"])))
        except ValueError as error:
            got = ",".join(cells)[:60]
            expected = "two numbers x,y" if len(header) == 2 else ",".join(header)
            raise ValueError(f"{path}: line {line}: expected {expected}, got {got!r}") from error
    return finite_points(path, points)


def _read_csv(path: Path, content: bytes) -> NDArray[np.float64]:
    reader = csv.reader(decode(path, content).splitlines())
    try:
        return rows_of_points(path, ((reader.line_num, row) for row in reader))
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from error


def _read_json(path: Path, content: bytes) -> NDArray[np.float64]:
    value = parse_json(path, content)
    if isinstance(value, dict):
        value = value.get("points")
    if not isinstance(value, list):
        raise ValueError(f'{path}: expected a list of [x, y] or {{"points": [[x, y], …]}}')
    return listed_points(path, value)


def listed_points(path: Path, values: Sequence[object]) -> NDArray[np.float64]:
    """Return points that are each [x, y] or {"x": x, "y": y}; ValueError naming a wrong one."""
    points = []
    for index, value in enumerate(values, start=1):
        pair = [value.get("x"), value.get("y")] if isinstance(value, dict) else value
        try:
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError("not a pair")
            points.append((number(pair[0]), number(pair[1])))
        except ValueError as error:
            if str(error) == "number too large":
                raise ValueError(f"{path}: point {index}: number too large") from error
            got = json.dumps(value)[:60]
            raise ValueError(f"{path}: point {index}: expected [x, y], got {got}") from error
    return finite_points(path, points)


def _write_json(path: Path, picture: Picture) -> None:
    path.write_text(json.dumps({"points": picture.points}) + "\n", "utf-8")


targets.register("folder")(Target("{split}", "{name}", "{name}.json", _write_json))
point_files.register("csv")(PointFile(".csv", lambda content: True, _read_csv))
point_files.register("json")(PointFile(".json", lambda content: True, _read_json))
