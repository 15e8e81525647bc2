"""The crowd labeller of NWPU-Crowd (CCLabeler): ``images``, ``jsons`` and ``marks``."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pycc.data.dataset import read_bytes
from pycc.data.points import (
    PointFile,
    finite_points,
    listed_points,
    number,
    parse_json,
    point_files,
)
from pycc.data.target import Picture, Target, targets

MARKS = "marks"
"""The folder of the blocks, 16 x 16 in an image, that the labeller has marked as done."""
PLACEHOLDER = "default"
"""The image that the tool shows when all others are done."""
_CORNERS = ("sx", "sy", "ex", "ey")
_BLOCKS = 256


def read_points(path: Path, content: bytes) -> NDArray[np.float64]:
    """Return the heads [N,2] of a file of the labeller: its points and the centres of its boxes.

    A box {sx, sy, ex, ey} is a person of its own. Boxes that are lists, as in NWPU-Crowd, belong to
    the points and are not read. An image whose blocks are marked in part is incomplete: a warning
    says so. ValueError naming the file and what is wrong in it.
    """
    value = parse_json(path, content)
    points = value.get("points") if isinstance(value, dict) else None
    if not isinstance(points, list):
        raise ValueError(f'{path}: expected {{"points": [{{"x": x, "y": y}}, …]}}')
    boxes = value.get("boxes") or []
    if not isinstance(boxes, list):
        raise ValueError(f"{path}: boxes must be a list")
    centres = []
    for index, box in enumerate(boxes, start=1):
        if isinstance(box, list):
            continue
        try:
            left, top, right, bottom = (number(box[corner]) for corner in _CORNERS)
        except (LookupError, TypeError, ValueError) as error:
            expected = ", ".join(_CORNERS)
            raise ValueError(f"{path}: box {index}: expected numbers {expected}") from error
        centres.append(((left + right) / 2, (top + bottom) / 2))
    _warn_of_blocks(path)
    return np.concatenate((listed_points(path, points), finite_points(path, centres)))


def _warn_of_blocks(path: Path) -> None:
    """Warn if only some blocks of an image are marked."""
    marks = path.parent.parent / MARKS / path.name
    if path.parent.name != "jsons" or not marks.is_file():
        return
    blocks = parse_json(marks, read_bytes(marks))
    if not isinstance(blocks, list):
        raise ValueError(f"{marks}: expected a list of {_BLOCKS} zeros and ones")
    done = sum(bool(block) for block in blocks)
    if 0 < done < len(blocks):
        warnings.warn(
            f"{path}: incomplete: {done} of {len(blocks)} blocks are marked as labelled in {marks}",
            stacklevel=4,
        )


def _write(path: Path, picture: Picture) -> None:
    value = {
        "img_id": picture.file.name,
        "human_num": len(picture.points),
        "boxes": [],
        "points": [{"x": x, "y": y} for x, y in picture.points],
    }
    path.write_text(json.dumps(value) + "\n", "utf-8")
    marks = path.parent.parent / MARKS / path.name
    marks.parent.mkdir(exist_ok=True)
    marks.write_text(json.dumps([1] * _BLOCKS) + "\n", "utf-8")


point_files.register("cclabeler")(
    PointFile(
        ".json", lambda content: b'"img_id"' in content and b'"points"' in content, read_points
    )
)
targets.register("cclabeler")(Target("{split}", "images/{name}", "jsons/{name}.json", _write))
