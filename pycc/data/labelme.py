"""labelme: one JSON file per image, with points, rectangles or circles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycc.data.labels import counted_labels
from pycc.data.points import PointFile, finite_points, listed_points, parse_json, point_files
from pycc.data.target import Picture, Target, targets

_SHAPES = ("point", "points", "rectangle", "circle")


def read_points(path: Path, content: bytes) -> NDArray[np.float64]:
    """Return the heads [N,2] of a labelme file: points, and centres of rectangles and circles.

    The file belongs to the image of its own name; ``imagePath`` is not followed. ValueError naming
    the file and a shape that is no head, such as a polygon.
    """
    value = parse_json(path, content)
    shapes = value.get("shapes") if isinstance(value, dict) else None
    if not isinstance(shapes, list):
        raise ValueError(f"{path}: expected labelme's list of shapes")
    heads: list[tuple[str, NDArray[np.float64]]] = []
    for index, shape in enumerate(shapes, start=1):
        try:
            if not isinstance(shape, dict):
                raise ValueError("expected an object")
            heads.append((str(shape.get("label", "")), _heads(path, shape)))
        except ValueError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise ValueError(f"{path}: shape {index}: {reason}") from error
    counted = counted_labels(path, (label for label, _ in heads))
    return finite_points(path, [row for label, rows in heads if label in counted for row in rows])


def _heads(path: Path, shape: dict[str, Any]) -> NDArray[np.float64]:
    corners = shape.get("points")
    if not isinstance(corners, list) or not corners:
        raise ValueError("expected a list of points")
    points = listed_points(path, corners)
    kind = shape.get("shape_type") or ("point" if len(points) == 1 else "polygon")
    if kind not in _SHAPES:
        raise ValueError(f"expected one of {', '.join(_SHAPES)}, got {kind!r}")
    if kind == "point" and len(points) != 1:
        raise ValueError(f"expected one point, got {len(points)}")
    if kind == "rectangle":  # of two or four corners
        return np.asarray(points.mean(0)[None])
    return points[:1] if kind == "circle" else points  # a circle's centre comes first


def _write(path: Path, picture: Picture) -> None:
    shapes: list[object] = [
        {
            "label": "head", "points": [point], "group_id": None, "description": "",
            "shape_type": "point", "flags": {},
        }
        for point in picture.points
    ]  # fmt: skip
    value: dict[str, object] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": picture.file.name,
        "imageData": None,
        "imageHeight": picture.height,
        "imageWidth": picture.width,
    }
    path.write_text(json.dumps(value) + "\n", "utf-8")


point_files.register("labelme")(
    PointFile(".json", lambda content: b'"shapes"' in content, read_points)
)
targets.register("labelme")(Target("{split}", "{name}", "{name}.json", _write))
