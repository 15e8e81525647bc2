"""Plain folders of images, each image with its points in CSV or JSON."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycc.data.dataset import (
    Layout,
    NotAnnotatedError,
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
from pycc.data.missing import Places
from pycc.data.origin import origin
from pycc.data.pictures import is_picture, pictures, some
from pycc.data.reading import USUAL, Reading
from pycc.registry import nearest

_POINT_SUFFIXES = (".csv", ".json")
_IMAGES, _POINTS, _JSONS = "images", "points", "jsons"


class Folder:
    """Images ``NAME.jpg`` (or .png, …) with ``NAME.csv`` or ``NAME.json`` beside or in ``points/``.

    CSV: one x,y per row, in pixels, after an optional header ``x,y``. JSON: a list of [x, y], or
    ``{"points": [[x, y], …]}``. A folder without images of its own may have them in ``images/``;
    their points then lie beside them, or in ``points/`` or ``jsons/`` beside or in ``images/``.
    Such a folder is one split and is opened for any requested split. In a folder of such folders
    each is a split of its name.
    """

    def splits(self, root: Path) -> tuple[str, ...]:
        """Return the names of the folders in it that are splits, or all."""
        if _holds_files(root):
            return ("all",)
        inner = [path for path in listing(root) if path.is_dir() and _recognised(path) is None]
        names = [path.name for path in inner if _holds_files(path)]
        if not names:
            nothing = f"neither images nor a known layout of folders in it{_further_down(root)}"
            raise ValueError(f"{root}: {_data_sets(root) or nothing}")
        return tuple(names)

    def folder_of(self, root: Path, split: str) -> Path:
        """Return the folder of a split; ValueError that lists the splits for an unknown one."""
        if _holds_files(root):
            return root
        splits = self.splits(root)
        if split not in splits:
            others = _data_sets(root)
            raise ValueError(
                f"{root}: has splits {', '.join(splits)}, got {split!r}{nearest(split, splits)}"
                + (f"; {others}" if others else "")
            )
        return root / split

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """Pair up all images of the folder, in numeric order; ValueError naming a missing file."""
        root = root.resolve()
        folder = self.folder_of(root, split)
        name = root.name if folder == root else f"{root.name}/{split}"
        where = _images_of(folder)
        images = by_name(pictures(where))
        _warn_of_folders(where)
        if not annotated:
            return PairedFiles(name, pair_up(images, None, refuse), read_points)
        folders = _places(folder)
        places = Places(folders, [f"{{name}}{suffix}" for suffix in _POINT_SUFFIXES], root)
        annotations = [path for place in folders for path in _point_files(place)]
        pairs = pair_up(images, by_name(annotations), refuse, places)
        return PairedFiles(name, pairs, read_points)


def _images_of(folder: Path) -> Path:
    """Return the folder of a split's images: the folder itself, or ``images`` if it has none."""
    inner = folder / _IMAGES
    if inner.is_dir() and not _any_picture(folder) and _any_picture(inner):
        return inner
    return folder


def _places(folder: Path) -> list[Path]:
    """Return the existing folders in which the points of one split may lie."""
    where = _images_of(folder)
    places = [where, where / _POINTS]
    if where != folder:
        places += [where / _JSONS, folder / _POINTS, folder / _JSONS]
    return [place for place in places if place == where or place.is_dir()]


def _any_picture(folder: Path) -> bool:
    return any(map(is_picture, listing(folder)))


def _point_files(folder: Path) -> list[Path]:
    return [path for path in listing(folder) if path.suffix.lower() in _POINT_SUFFIXES]


def _holds_files(folder: Path) -> bool:
    """Return whether a folder is one split: whether it holds images or points."""
    return _any_picture(_images_of(folder)) or any(map(_point_files, _places(folder)))


def _recognised(folder: Path) -> str | None:
    """Return the name of the published layout of a folder, or None."""
    return next((name for name in formats.names() if formats[name].recognises(folder)), None)


def _data_sets(root: Path) -> str:
    """Return the end of a message if data sets lie one or two folders below; "" otherwise."""
    data_sets = []
    for path in _folders(root):
        for inner in [path] if _recognised(path) else _folders(path):
            layout = _recognised(inner)
            if layout:
                data_sets.append(f"{inner.relative_to(root)} ({layout})")
    return f"open one of the data sets in it: {', '.join(data_sets)}" if data_sets else ""


def _further_down(root: Path) -> str:
    """Return the end of a message if folders two or three levels down hold images; "" otherwise."""
    inner = [path for folder in _folders(root) for path in _folders(folder)]
    inner += [path for folder in inner for path in _folders(folder)]
    names = [str(path.relative_to(root)) for path in inner if _any_picture(path)]
    return f"; pictures lie in {some(names)}: open one of these folders" if names else ""


def _warn_of_folders(where: Path) -> None:
    """Warn of folders beside the images of a split that hold images too: they are not read."""
    inner = [path for path in _folders(where) if path.name not in (_POINTS, _JSONS)]
    names = [path.name for path in inner if _any_picture(_images_of(path))]
    if names:
        warnings.warn(
            f"{where}: left out the pictures of its folders {some(names)}; open each of them, or "
            "move their pictures beside the others",
            stacklevel=4,
        )


def _folders(root: Path) -> list[Path]:
    return [path for path in listing(root) if path.is_dir()]


def layout_of(root: Path) -> tuple[str, Layout]:
    """Return the name and layout of a folder: a published one, or ``"folder"`` and ``Folder``.

    ValueError if the folder does not exist or is empty.
    """
    if not root.exists():
        names = builtin.names()
        raise ValueError(
            f"{root}: no such file or folder; built-in data sets: {', '.join(names)}"
            f"{nearest(str(root), names)}"
        )
    if not listing(root):
        raise ValueError(f"{root}: the folder is empty")
    name = _recognised(root)
    return ("folder", Folder()) if name is None else (name, formats[name])


def splits_of(root: Path) -> tuple[str, ...]:
    """The splits of a folder that together hold each image once; ValueError as of ``layout_of``."""
    return layout_of(root)[1].splits(root)


def has_annotations(root: Path, split: str) -> bool:
    """Whether a split was published, or is stored, with head annotations.

    A folder of images in no published layout has them if any CSV or JSON file lies where its points
    would. ValueError as of ``layout_of``.
    """
    layout = layout_of(root)[1]
    if isinstance(layout, Folder):
        return any(map(_point_files, _places(layout.folder_of(root, split))))
    try:
        layout.open(root, split=split, refuse=skip)
    except NotAnnotatedError:
        return False
    return True


def open_folder(
    root: Path,
    split: str,
    on_error: OnError,
    limit: int | None,
    annotated: bool = True,
    reading: Reading = USUAL,
) -> PairedFiles:
    """Open the first ``limit`` samples of a split, as ``pycc.data.open`` returns them."""
    refuse = skip if on_error == "skip" else fail
    name, layout = layout_of(root)
    samples = layout.open(root, split=split, refuse=refuse, annotated=annotated)
    samples.origin, samples.reading = origin(name, root), reading
    if on_error == "skip":
        samples = samples.usable(limit)
    elif limit is not None:
        samples = samples.first(limit)
    if not len(samples):
        raise ValueError(f"{root}: no sample can be read")
    return samples


def read_points(path: Path) -> NDArray[np.float64]:
    """Read points [N,2] (x, y) from a CSV or JSON file; ValueError naming the file and problem."""
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
        if any("_" in cell for cell in cells):  # Python's digit separator is not CSV
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
