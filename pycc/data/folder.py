"""Plain folders of images, each image with a file of its points."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pycc.data.cclabeler import MARKS, PLACEHOLDER
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
from pycc.data.points import holds_points, kind_of, read_points, suffixes
from pycc.data.reading import USUAL, Reading
from pycc.registry import nearest

_SURE = (".csv", ".json")
"""Suffixes of points; files of the others beside images may be something else."""
_IMAGES = "images"
_POINTS = ("points", "labels", "annotations")
"""Folders of points, beside or in that of the images."""
_BESIDE_IMAGES = (*_POINTS, "jsons")
_NO_POINTS = frozenset(("classes", "notes", "readme"))
"""Names of files in folders of points that belong to no image."""


class Folder:
    """Images ``NAME.jpg`` (or .png, …) with ``NAME.csv`` or ``NAME.json`` beside or in ``points/``.

    CSV: one x,y per row, in pixels, after an optional header that names x and y among any columns.
    JSON: a list of [x, y], or ``{"points": [[x, y], …]}``, or the file of a labelling tool. If an
    image has neither, ``NAME.txt`` (x y per line) or ``NAME.npy`` holds its points. Instead of
    ``points/`` the folder may be ``labels/`` or ``annotations/``. A folder without images of its
    own may have them in ``images/``; their points then lie beside them, or in one of these folders,
    or in ``jsons/``, beside or in ``images/``. Such a folder is one split and is opened for any
    requested split. In a folder of such folders each is a split of its name.
    """

    def splits(self, root: Path) -> tuple[str, ...]:
        """Return the names of the folders in it that are splits, or all."""
        if _holds_files(root):
            return ("all",)
        names = [path.name for path in _folders(root) if _is_split(path)]
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
        layout = _recognised(folder)
        if layout is not None:
            samples = formats[layout].open(folder, split=split, refuse=refuse, annotated=annotated)
            samples.name = name
            return samples
        where = _images_of(folder)
        images = by_name(pictures(where))
        _warn_of_folders(where)
        if not annotated:
            return PairedFiles(name, pair_up(images, None, refuse), read_points)
        annotations = _annotations(folder, images)
        if (folder / MARKS).is_dir() and PLACEHOLDER in images.keys() - annotations.keys():
            warnings.warn(
                f"{where}: left out {images.pop(PLACEHOLDER)[0].name}, which the labeller shows "
                "when all images are done",
                stacklevel=4,
            )
        places = Places(_places(folder), [f"{{name}}{suffix}" for suffix in _SURE], root)
        return PairedFiles(name, pair_up(images, annotations, refuse, places), read_points)

    def kinds(self, samples: PairedFiles) -> set[str]:
        """Return the names of the formats of the samples' annotation."""
        if samples.format:
            return {samples.format}
        kinds = set()
        for pair in samples.pairs:
            if pair.annotation is not None:
                with suppress(ValueError):  # unreadable, which reading the sample reports
                    kinds.add(kind_of(pair.annotation, read_bytes(pair.annotation)))
        return kinds


def _images_of(folder: Path) -> Path:
    """Return the folder of a split's images: the folder itself, or ``images`` if it has none."""
    inner = folder / _IMAGES
    if inner.is_dir() and not _any_picture(folder) and _any_picture(inner):
        return inner
    return folder


def _places(folder: Path) -> list[Path]:
    """Return the existing folders in which the points of one split may lie."""
    where = _images_of(folder)
    places = [where, *(where / name for name in _POINTS)]
    if where != folder:
        places += [place / name for name in _BESIDE_IMAGES for place in (where, folder)]
        places = list(dict.fromkeys(places))
    return [place for place in places if place == where or place.is_dir()]


def _any_picture(folder: Path) -> bool:
    return any(map(is_picture, listing(folder)))


def _point_files(folder: Path) -> list[Path]:
    return [path for path in listing(folder) if path.suffix.lower() in _SURE]


def _annotations(folder: Path, images: Iterable[str]) -> dict[str, list[Path]]:
    """Return the files of points of one split by name."""
    where, *others = _places(folder)
    annotations = by_name([path for place in (where, *others) for path in _point_files(place)])
    names = set(images)
    unsure: list[Path] = []
    for place in (where, *others):
        for path in listing(place):
            if path.suffix.lower() not in suffixes() or path.stem in annotations:
                continue
            if place != where:
                unsure += [path] if path.stem.lower() not in _NO_POINTS else []
            elif path.stem in names and path.is_file() and holds_points(path):
                unsure.append(path)
    return annotations | by_name(unsure)


def _holds_files(folder: Path) -> bool:
    """Return whether a folder is one split: whether it holds images or points."""
    return _any_picture(_images_of(folder)) or any(map(_point_files, _places(folder)))


def _is_split(folder: Path) -> bool:
    """Return whether a folder in a plain one is a split of it."""
    name = _recognised(folder)
    if name is None:
        return _holds_files(folder)
    layout = formats[name]
    return getattr(layout, "may_be_split", False) and layout.splits(folder) == ("all",)


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
    inner = [path for path in _folders(where) if path.name not in _BESIDE_IMAGES]
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

    A folder of images in no published layout has them if a file of points lies where they would.
    ValueError as of ``layout_of``.
    """
    layout = layout_of(root)[1]
    if isinstance(layout, Folder):
        folder = layout.folder_of(root, split)
        if _recognised(folder) is not None:
            return True
        images = [path.stem for path in listing(_images_of(folder)) if is_picture(path)]
        return bool(_annotations(folder, images))
    try:
        with warnings.catch_warnings(action="ignore"):  # they come when the split is opened
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
