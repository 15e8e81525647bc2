"""JHU-Crowd++ (Sindagi et al., TPAMI 2020), as published."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pycc.data.dataset import (
    NotAnnotatedError,
    PairedFiles,
    Refuse,
    by_name,
    check_split,
    formats,
    listing,
    pair_up,
    read_bytes,
)
from pycc.data.missing import Places
from pycc.data.pictures import pictures

_SPLITS = ("train", "val", "test")
_COLUMNS = ("x", "y", "w", "h", "occlusion", "blur")


class JHUCrowd:
    """``{train,val,test}/images/0001.jpg`` with ``gt/0001.txt`` beside ``images``.

    Each line is one head: x y w h occlusion blur; x and y, its centre, are the point. A file
    without lines means no heads. The folder may be that of one split; it is then opened for any
    requested split. Samples are in numeric order. A test set may lack ``gt``; then it is not
    annotated.
    """

    def recognises(self, root: Path) -> bool:
        """Return whether ``root`` is the data set or one of its splits."""
        return _is_split(root) or any(_is_split(root / name) for name in _SPLITS)

    def splits(self, root: Path) -> tuple[str, ...]:
        """Return the existing ones of train, val and test."""
        if _is_split(root):
            return ("all",)
        return tuple(name for name in _SPLITS if (root / name / "images").is_dir())

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """Pair up one split; ValueError naming a missing file.

        NotAnnotatedError for a test set without ``gt``, unless ``annotated`` is False.
        """
        root = root.resolve()
        folder = root
        if not _is_split(root):
            check_split(root, split, self.splits(root))
            folder = root / split
        images = pictures(folder / "images")
        if annotated and split == "test" and not (folder / "gt").is_dir():
            raise NotAnnotatedError(
                f"{folder}: images without annotation, there is no folder gt; train and val have "
                "it; to count or attack the images alone use annotated=False (--unannotated)"
            )
        annotations = None
        if annotated:
            files = listing(folder / "gt")
            annotations = by_name([path for path in files if path.suffix.lower() == ".txt"])
        if not images and not annotations:
            raise ValueError(f"{folder / 'images'}: no images")
        pairs = pair_up(
            by_name(images), annotations, refuse, Places([folder / "gt"], ["{name}.txt"])
        )
        return PairedFiles(f"{folder.parent.name}/{folder.name}", pairs, read_points)


def _is_split(folder: Path) -> bool:
    return (folder / "images").is_dir() and any((folder / "gt").glob("*.[tT][xX][tT]"))


def read_points(path: Path) -> NDArray[np.float64]:
    """Read points [N,2] (x, y) of a ``gt/0001.txt``; N may be 0.

    ValueError naming the file and line.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text: {error.reason}") from error
    points = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = [float(cell) for cell in line.split()]
        except ValueError:
            values = []
        if len(values) != len(_COLUMNS) or not all(map(math.isfinite, values)) or "_" in line:
            expected = " ".join(_COLUMNS)
            got = line.strip()[:60]
            raise ValueError(f"{path}: line {number}: expected numbers {expected}, got {got!r}")
        points.append(values[:2])
    return np.array(points, np.float64).reshape(-1, 2)


formats.register("jhu")(JHUCrowd())
