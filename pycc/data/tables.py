"""Annotation files that hold the heads of many images, as labelling tools export them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pycc.data.dataset import (
    Pair,
    PairedFiles,
    Refuse,
    check_split,
    listing,
    numeric,
    read_bytes,
)
from pycc.data.pictures import has_image_suffix, pictures, some
from pycc.data.points import number, read_points
from pycc.data.reading import memory_errors

_PLACES = (".", "annotations", "labels", "points", "images")
"""Where in a folder its annotation files may lie."""
_PREFIXES = ("instances_", "person_keypoints_", "annotations_")
"""Starts of COCO's names that are not part of the split's."""


_END = 1 << 20
"""Bytes from the start and from the end of a file that tell its kind."""


@dataclass(frozen=True)
class Entry:
    """One image of an annotation file."""

    file: str
    """The name of the image file, as the annotation has it."""
    points: NDArray[np.float64] | None = None
    """[N,2], its heads."""
    annotation: str | None = None
    """The name of the file of its heads, if they are not in this one."""
    problem: str = ""
    """Why its heads cannot be used."""
    size: tuple[int, int] | None = None
    """(H, W) of the image that was annotated, if it is stated."""


@dataclass(frozen=True)
class AnnotationTable:
    """A layout: images anywhere in a folder, and one annotation file for all of a split.

    The file lies in the folder, or in its ``annotations``, ``labels``, ``points`` or ``images``.
    A single one is opened for any requested split; of several, each is a split of its name. Names
    of images are relative to the file, to the folder, or to a folder ``images`` or of the split's
    name in either; absolute ones and those that lead out of the folder are refused. Samples are in
    numeric order. A warning names images that no file lists.
    """

    name: str
    """Of the layout."""
    suffixes: tuple[str, ...]
    """Of the annotation files, in lower case."""
    is_table: Callable[[bytes], bool]
    """Whether a file with this start and end is such an annotation."""
    read: Callable[[Path, bytes, Refuse], Sequence[Entry]]
    """Reads the images of a file and its content; refuses what belongs to none of them."""
    places: tuple[str, ...] = _PLACES
    may_be_split: ClassVar[bool] = True
    """Whether a folder with one split of this layout can be a split of a plain folder."""

    def recognises(self, root: Path) -> bool:
        """Return whether ``root`` holds annotation files of the format."""
        return bool(self._files(root))

    def splits(self, root: Path) -> tuple[str, ...]:
        """Return ``all`` for one file, else the names of the files."""
        files = self._files(root)
        return ("all",) if len(files) == 1 else tuple(_names(files))

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """Read the annotation of a split and find its images; ValueError naming a missing one.

        With ``annotated`` False the images are those that it lists and those that no file lists.
        """
        root = root.resolve()
        files, name = self._files(root), root.name
        if len(files) == 1:
            chosen = files[0]
        else:
            check_split(root, split, self.splits(root))
            chosen, name = _names(files)[split], f"{name}/{split}"
        entries = self.read(chosen, read_bytes(chosen), refuse)
        found = _found(chosen, root, split, entries, refuse)
        others = [path for path in files if path != chosen]
        unlisted = self._unlisted(root, split, others, found)
        if annotated:
            pairs = _pairs(chosen, root, split, found, refuse)
        else:
            pairs = {image: Pair("", image) for image in (*found, *unlisted)}
        if not pairs:
            raise ValueError(f"{chosen}: lists no image that can be read")
        if annotated:
            _warn_of_unlisted(root, unlisted)
        samples = PairedFiles(name, _named(root, pairs), read_points)
        samples.format = self.name
        return samples

    def _files(self, root: Path) -> list[Path]:
        """Return the annotation files of a folder; one named as an image holds its points alone."""
        files: list[Path] = []
        folders = [path for path in (root, root / "images") if path.is_dir()]
        images = {path.stem for folder in folders for path in listing(folder)
                  if has_image_suffix(path)}  # fmt: skip
        for place in self.places:
            folder = root / place
            if not folder.is_dir():
                continue
            files += [
                path for path in listing(folder)
                if path.suffix.lower() in self.suffixes and path.stem not in images
                and path.is_file() and self.is_table(_ends(path))
            ]  # fmt: skip
        return files

    def _unlisted(
        self, base: Path, split: str, files: Sequence[Path], found: Iterable[Path]
    ) -> list[Path]:
        """Return the images below a folder that neither ``found`` nor other ``files`` list."""
        listed = set(found)
        for file in files:
            try:
                with warnings.catch_warnings(action="ignore"):
                    entries = self.read(file, read_bytes(file), _ignore)
            except ValueError:
                continue  # this file is reported when its split is opened
            listed |= _found(file, base, split, entries, _ignore).keys()
        return [path for path in _below(base) if path not in listed]


def _ends(path: Path) -> bytes:
    """Return the start and the end of a file, which tell its kind; ValueError if it is unreadable.

    Not all of it, since folders hold large files of other kinds too.
    """
    try:
        with memory_errors(), path.open("rb") as stream:
            start = stream.read(_END)
            stream.seek(max(_END, path.stat().st_size - _END))
            return start + stream.read(_END)
    except OSError as error:
        raise ValueError(f"{path}: cannot read the file: {error.strerror}") from error


def stated_size(height: object, width: object) -> tuple[int, int] | None:
    """Return the (H, W) that an annotation states; None if it states none."""
    try:
        size = int(number(height)), int(number(width))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def place_of(file: Path, base: Path, split: str, name: str) -> Path | str:
    """Return the file of this name in an annotation file, or why there is none.

    ``file`` is the annotation, ``base`` the opened folder: nothing outside it is looked at.
    """
    relative = name.replace("\\", "/")
    if relative.startswith("/") or PureWindowsPath(name).drive:
        return f"{name!r} is an absolute path; expected a name inside {base}"
    folders = dict.fromkeys(
        folder / inner
        for folder in (file.parent, base)
        for inner in ("", "images", split, f"images/{split}")
    )
    places = [Path(os.path.normpath(folder / relative)) for folder in folders]
    inside = [path for path in places if path.is_relative_to(base) and path != base]
    if not inside:
        return f"{name!r} leads out of {base}"
    try:
        existing = next((path for path in inside if path.is_file()), None)
    except OSError:  # the name is too long
        existing = None
    return existing or f"{name!r}: no such file in {base}"


def _found(
    file: Path, base: Path, split: str, entries: Sequence[Entry], refuse: Refuse
) -> dict[Path, Entry]:
    """Return the entries by their image files; refuse those without one."""
    found: dict[Path, Entry] = {}
    for entry in entries:
        image = place_of(file, base, split, entry.file)
        if isinstance(image, str):
            refuse(f"{file}: image {image}")
        elif image in found:
            found[image] = replace(entry, problem="is listed twice")
        else:
            found[image] = entry
    return found


def _pairs(
    file: Path, base: Path, split: str, found: dict[Path, Entry], refuse: Refuse
) -> dict[Path, Pair]:
    """Return the pairs by image file, as yet without names; refuse entries with a problem."""
    pairs = {}
    for image, entry in found.items():
        if entry.problem:
            refuse(f"{file}: image {entry.file!r}: {entry.problem}")
        elif entry.annotation is None:
            pairs[image] = Pair("", image, file, points=entry.points, size=entry.size)
        else:
            annotation = place_of(file, base, split, entry.annotation)
            if isinstance(annotation, str):
                refuse(f"{file}: annotation {annotation}")
            else:
                pairs[image] = Pair("", image, annotation)
    return pairs


def _named(base: Path, pairs: dict[Path, Pair]) -> list[Pair]:
    """Name the pairs by their stems, or by their paths if stems repeat; in numeric order."""
    for name_of in (_stem, _path_without_suffix, _path):
        names = {name_of(image.relative_to(base)): pair for image, pair in pairs.items()}
        if len(names) == len(pairs):
            break
    return [replace(names[name], name=name) for name in sorted(names, key=numeric)]


def _stem(path: Path) -> str:
    return path.stem


def _path_without_suffix(path: Path) -> str:
    return "_".join(path.with_suffix("").parts)


def _path(path: Path) -> str:
    return "_".join(path.parts)


def _names(files: Sequence[Path]) -> dict[str, Path]:
    """Return annotation files by the names of their splits."""
    for name_of in (_short, _stem, lambda path: path.name, str):
        names = {name_of(path): path for path in files}
        if len(names) == len(files):
            break
    return names


def _short(path: Path) -> str:
    stem = path.stem.removesuffix(".coco")
    return next((stem.removeprefix(p) for p in _PREFIXES if stem.startswith(p)), stem)


def _below(folder: Path, before: frozenset[Path] = frozenset()) -> list[Path]:
    """List the images in a folder and in the folders in it; links may lead back to it."""
    before |= {folder.resolve()}
    images = pictures(folder)
    for path in listing(folder):
        if path.is_dir() and path.resolve() not in before:
            images += _below(path, before)
    return images


def _warn_of_unlisted(base: Path, images: Sequence[Path]) -> None:
    if images:
        names = [str(path.relative_to(base)) for path in images]
        number = "1 image" if len(images) == 1 else f"{len(images)} images"
        warnings.warn(
            f"{base}: left out {number} that no annotation lists: {some(names)}", stacklevel=4
        )


def _ignore(problem: str) -> None:
    """Leave an item out silently: it is reported elsewhere."""
