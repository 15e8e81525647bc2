"""A plain folder of images, each with its points in CSV or JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycc.data.dataset import (
    IMAGE_SUFFIXES,
    Layout,
    OnError,
    PairedFiles,
    Refuse,
    builtin,
    by_name,
    fail,
    formats,
    listing,
    pair_up,
    read_bytes,
    skip,
)
from pycc.data.origin import origin

_POINT_SUFFIXES = (".csv", ".json")


class Folder:
    """Images ``NAME.jpg`` (or .png, …) with ``NAME.csv`` or ``NAME.json`` beside or in ``points/``.

    CSV: x,y per row, in pixels, after an optional header ``x,y``; JSON: a list of [x, y], or
    ``{"points": [[x, y], …]}``. Such a folder is one split: it serves as whichever is asked for.
    A folder of such folders, without images of its own, has a split by the name of each.
    """

    def splits(self, root: Path) -> tuple[str, ...]:
        """The folders in it that are splits, or all."""
        if _holds_files(root):
            return ("all",)
        inner = [path.name for path in listing(root) if path.is_dir() and _holds_files(path)]
        if not inner:
            raise ValueError(f"{root}: neither images nor a known layout of folders in it")
        return tuple(inner)

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """All of the folder's images, in numeric order; ValueError naming what is missing."""
        root = root.resolve()
        folder, name = root, root.name
        if not _holds_files(root):
            known = self.splits(root)
            if split not in known:
                raise ValueError(f"{root}: has splits {', '.join(known)}, got {split!r}")
            folder, name = root / split, f"{root.name}/{split}"
        images, annotations = _files(folder)
        pairs = pair_up(by_name(images), by_name(annotations) if annotated else None, refuse)
        return PairedFiles(name, pairs, read_points)


def layout_of(root: Path) -> tuple[str, Layout]:
    """The published layout that a folder has, by name, else ``"folder"``: a ``Folder``.

    ValueError if there is no such folder, or nothing in it.
    """
    if not root.exists():
        known = ", ".join(builtin.names())
        raise ValueError(f"{root}: no such folder; built-in data sets: {known}")
    if not listing(root):
        raise ValueError(f"{root}: the folder is empty")
    for name in formats.names():
        if formats[name].recognises(root):
            return name, formats[name]
    return "folder", Folder()


def open_folder(
    root: Path, split: str, on_error: OnError, limit: int | None, annotated: bool = True
) -> PairedFiles:
    """The first ``limit`` samples of a split, as ``pycc.data.open`` gives them."""
    refuse = skip if on_error == "skip" else fail
    name, layout = layout_of(root)
    samples = layout.open(root, split=split, refuse=refuse, annotated=annotated)
    samples.origin = origin(name, root)
    if on_error == "skip":
        samples = samples.usable(limit)
    elif limit is not None:
        samples = samples.first(limit)
    if not len(samples):
        raise ValueError(f"{root}: no sample can be read")
    return samples


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images and the annotations of one split."""
    files = listing(folder)
    if (folder / "points").is_dir():
        files += listing(folder / "points")
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    annotations = [path for path in files if path.suffix.lower() in _POINT_SUFFIXES]
    return images, annotations


def _holds_files(folder: Path) -> bool:
    return any(_files(folder))


def read_points(path: Path) -> NDArray[np.float64]:
    """Points [N,2] (x, y) of a CSV or JSON file; ValueError naming the file and what is wrong."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text: {error.reason}") from error
    rows = _json(path, text) if path.suffix.lower() == ".json" else _csv(path, text)
    points = np.array(rows, np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        first = int(np.argmin(np.isfinite(points).all(1)))
        raise ValueError(f"{path}: point {first + 1} must be finite, got {points[first].tolist()}")
    return points


def _csv(path: Path, text: str) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    reader = csv.reader(text.splitlines())
    header_allowed = True
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if not (header_allowed and [cell.lower() for cell in cells] == ["x", "y"]):
                points.append(_row(path, reader.line_num, cells))
            header_allowed = False
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from error
    return points


def _row(path: Path, line: int, cells: list[str]) -> tuple[float, float]:
    try:
        if any("_" in cell for cell in cells):  # Python's digit separator is no CSV
            raise ValueError("_")
        x, y = (float(cell) for cell in cells)
    except ValueError as error:
        got = ",".join(cells)[:60]
        raise ValueError(f"{path}: line {line}: expected two numbers x,y, got {got!r}") from error
    return x, y


def _json(path: Path, text: str) -> list[tuple[float, float]]:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    if isinstance(content, dict):
        content = content.get("points")
    if not isinstance(content, list):
        raise ValueError(f'{path}: expected a list of [x, y] or {{"points": [[x, y], …]}}')
    points = []
    for number, point in enumerate(content, start=1):
        if not (isinstance(point, list) and len(point) == 2 and all(map(_is_number, point))):
            got = json.dumps(point)[:60]
            raise ValueError(f"{path}: point {number}: expected [x, y], got {got}")
        try:
            points.append((float(point[0]), float(point[1])))
        except OverflowError as error:
            raise ValueError(f"{path}: point {number}: number too large") from error
    return points


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
