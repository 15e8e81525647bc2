"""P2PNet (Song et al., ICCV 2021): ``.txt`` files of points, and ``.list`` files of splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pycc.data.dataset import Refuse, formats
from pycc.data.points import PointFile, decode, point_files, rows_of_points
from pycc.data.tables import AnnotationTable, Entry
from pycc.data.target import Picture, Target, targets

_YOLO = 5
"""Columns of its text files: class, x, y, width, height."""


def read_points(path: Path, content: bytes) -> NDArray[np.float64]:
    """Return the heads [N,2] of a file with one ``x y`` per line; no line means nobody.

    Cells are separated by spaces, tabs or commas; a header may name x and y among others.
    ValueError naming the file and line.
    """
    lines = decode(path, content).splitlines()
    rows = [re.split(r"[\s,]+", line.strip()) for line in lines]
    if {len(row) for row in rows if any(row)} == {_YOLO}:
        raise ValueError(
            f"{path}: five columns, as YOLO's boxes, which are not read; export them as COCO"
        )
    return rows_of_points(path, enumerate(rows, start=1))


def read_list(path: Path, content: bytes, refuse: Refuse) -> list[Entry]:
    """Return the lines of a list: each an image and the file of its points.

    ValueError for a line that is not two names without spaces.
    """
    entries = []
    for index, line in enumerate(decode(path, content).splitlines(), start=1):
        names = line.split()
        if names and len(names) != 2:
            got = line.strip()[:60]
            raise ValueError(f"{path}: line {index}: expected IMAGE POINTS, got {got!r}")
        if names:
            entries.append(Entry(names[0], annotation=names[1]))
    return entries


def _is_points(content: bytes) -> bool:
    try:
        read_points(Path(), content)
    except ValueError:  # a caption, say
        return False
    return True


def _is_list(content: bytes) -> bool:
    return len(content.strip().split(b"\n", 1)[0].split()) == 2


def _write_points(path: Path, picture: Picture) -> None:
    path.write_text("".join(f"{x!r} {y!r}\n" for x, y in picture.points), "utf-8")


def _write_list(path: Path, pictures: Sequence[Picture]) -> None:
    lines = []
    for picture in pictures:
        image = picture.file.relative_to(path.parent).as_posix()
        if re.search(r"\s", image):
            raise ValueError(f"export: names in a .list hold no spaces, got {image!r}")
        points = picture.file.with_suffix(".txt").relative_to(path.parent).as_posix()
        lines.append(f"{image} {points}\n")
    path.write_text("".join(lines), "utf-8")


point_files.register("p2pnet")(PointFile(".txt", _is_points, read_points))
formats.register("p2pnet")(
    AnnotationTable("p2pnet", (".list",), _is_list, read_list, places=(".",))
)
targets.register("p2pnet")(
    Target("{split}", "{name}", "{name}.txt", _write_points, "{split}.list", _write_list)
)
