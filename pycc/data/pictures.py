"""Decide which files of a folder are images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from PIL import Image

from pycc.data.reading import BROKEN, memory_errors, open_picture

_NO_PHOTOGRAPHS = {
    "BUFR": "data that Pillow cannot decode",
    "EPS": "a page, not a photograph",
    "GRIB": "data that Pillow cannot decode",
    "HDF5": "data that Pillow cannot decode",
    "MPEG": "a video",
    "WMF": "a drawing, not a photograph",
}
"""Formats that Pillow knows by name, and why none of their files is a photograph to count."""
_BY_CONTENT = ("GIF", "JPEG", "JPEG2000", "PNG", "WEBP")
"""Formats that are tried for files without a known suffix: their first bytes are unmistakable. Not
TIFF, since raw camera files start like it and hold a small preview first."""
_BESIDE = frozenset(
    (
        *(".cfg", ".csv", ".h5", ".hdf", ".hdf5", ".html", ".ini", ".json", ".jsonl", ".list"),
        *(".log", ".mat", ".md", ".npy", ".npz", ".pkl", ".rst", ".tsv", ".txt", ".xml"),
        *(".yaml", ".yml"),
    )
)
"""Suffixes of annotations, density maps and notes, which usually lie beside images."""
_NOTES = frozenset(("citation", "copying", "licence", "license", "makefile", "readme"))
"""Names of notes that usually have no suffix."""
_REASONS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF: save as JPEG, or register pillow-heif"),
    **dict.fromkeys((".db", ".thm"), "thumbnails"),
    **dict.fromkeys(
        (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mts", ".webm", ".wmv"), "a video"
    ),
    **dict.fromkeys(
        (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
        "a camera's raw file: develop it",
    ),
    **dict.fromkeys((".ai", ".pdf", ".svg"), "a page or drawing, not a photograph"),
}
"""Why files of a suffix are left out."""
_COPY = "by its name a backup of another image here"
_SHOWN = 3
"""Number of names of one kind that a message shows."""


def listing(folder: Path) -> list[Path]:
    """List the files and folders in a folder, except hidden ones.

    ValueError if it cannot be read.
    """
    try:
        with memory_errors():
            return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{folder}: cannot read the folder: {error.strerror}") from error


def pictures(folder: Path, *, published: str = "") -> list[Path]:
    """List the image files in a folder that Pillow opens, in the order of their names.

    One warning names the files that are neither images nor annotation or notes, with the reasons
    why they are left out. A backup such as ``a.jpg~`` is left out too: it has no image suffix, but
    the name of another image. Hidden files and folders are ignored, and so are other files of a
    published data set, which match the pattern ``published``. ValueError if the folder cannot be
    read.
    """
    images, others = _sorted_out(folder, published)
    if others:
        kinds = sorted(others.items(), key=lambda kind: -len(kind[1]))
        named = "; ".join(f"{some(names)} ({reason})" for reason, names in kinds)
        total = sum(map(len, others.values()))
        files = "1 file that is not an image" if total == 1 else f"{total} files that are no images"
        warnings.warn(f"{folder}: left out {files}: {named}", stacklevel=3)
    return images


def number_of_pictures(folder: Path) -> int:
    """Return how many files ``pictures`` would list, without its warning."""
    return len(_sorted_out(folder, "")[0])


def is_picture(path: Path) -> bool:
    """Return whether ``pictures`` would list this file if it were alone in its folder."""
    return _reason(path) == ""


def some(names: Sequence[str]) -> str:
    """Format the first few names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _sorted_out(folder: Path, published: str) -> tuple[list[Path], dict[str, list[str]]]:
    """Return the images in a folder, and the names of files left out, by reason."""
    reasons = {path: _reason(path) for path in listing(folder) if not fnmatch(path.name, published)}
    known = [path for path, reason in reasons.items() if reason == "" and has_image_suffix(path)]
    names = {name for path in known for name in (path.stem, path.name)}
    images: list[Path] = []
    others: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        if reason == "" and path.stem in names and not has_image_suffix(path):
            reason = _COPY
        if reason == "":
            images.append(path)
        elif reason is not None:
            others.setdefault(reason, []).append(path.name)
    return images, others


def has_image_suffix(path: Path) -> bool:
    """Return whether a file has the suffix of a format that Pillow opens."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


def _reason(path: Path) -> str | None:
    """Return why a file is left out: "" for an image, None for files that belong beside images."""
    if path.is_dir():
        return None
    suffix = path.suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    if kind in _NO_PHOTOGRAPHS:
        return None if suffix in _BESIDE else _NO_PHOTOGRAPHS[kind]
    if kind in Image.OPEN:
        return ""
    if suffix in _BESIDE or path.name.lower() in _NOTES:
        return None
    return _REASONS.get(suffix) or _by_content(path)


def _by_content(path: Path) -> str:
    if not path.is_file():  # a pipe would wait for its writer
        return "not a file"
    try:
        with open_picture(path, _BY_CONTENT):
            return ""
    except BROKEN:
        return "not a format that Pillow opens"
