"""VGG Image Annotator 1 and 2: its project, and its annotations as JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pycc.data.dataset import Refuse, formats
from pycc.data.points import decode, number, parse_json
from pycc.data.tables import AnnotationTable, Entry
from pycc.data.target import Picture, Target, targets

_COLUMNS = (
    "filename",
    "file_size",
    "file_attributes",
    "region_count",
    "region_id",
    "region_shape_attributes",
    "region_attributes",
)
_SHAPE = "region_shape_attributes"


def read(path: Path, content: bytes, refuse: Refuse) -> list[Entry]:
    """Return the images of a VIA file, each with a point per region.

    A region is a point, or the centre of a rectangle, circle or ellipse; an image with another
    shape, such as a polygon, is refused. An image without regions has no heads.
    """
    if path.suffix.lower() == ".csv":
        shapes = _shapes_of_csv(path, content)
    else:
        shapes = _shapes_of_json(path, content)
    return [_entry(file, regions) for file, regions in shapes]


def _entry(file: str, shapes: Sequence[object]) -> Entry:
    heads = []
    for index, shape in enumerate(shapes, start=1):
        try:
            heads.append(_head(shape))
        except ValueError as error:
            return Entry(file, problem=f"region {index}: {error}")
    return Entry(file, np.array(heads, np.float64).reshape(-1, 2))


def _head(shape: object) -> tuple[float, float]:
    if not isinstance(shape, Mapping):
        raise ValueError("expected an object of shape attributes")
    kind = shape.get("name")
    try:
        if kind in ("point", "circle", "ellipse"):
            x, y = number(shape["cx"]), number(shape["cy"])
        elif kind == "rect":
            x = number(shape["x"]) + number(shape["width"]) / 2
            y = number(shape["y"]) + number(shape["height"]) / 2
        else:
            raise ValueError(f"expected point, rect, circle or ellipse, got {kind!r}")
    except KeyError as error:
        raise ValueError(f"{kind} without {error}") from error
    if not np.isfinite((x, y)).all():
        raise ValueError(f"must be finite, got {[x, y]}")
    return x, y


def _shapes_of_json(path: Path, content: bytes) -> list[tuple[str, list[object]]]:
    value = parse_json(path, content, unique=True)
    images = value.get("_via_img_metadata", value) if isinstance(value, dict) else None
    if not isinstance(images, dict):
        raise ValueError(f"{path}: expected a VIA project or its annotations as JSON")
    return [_shapes_of_image(path, key, image) for key, image in images.items()]


def _shapes_of_image(path: Path, key: str, image: Any) -> tuple[str, list[object]]:
    file = image.get("filename") if isinstance(image, dict) else None
    regions = image.get("regions", []) if isinstance(image, dict) else None
    if isinstance(regions, dict):  # VIA 1
        regions = list(regions.values())
    if not isinstance(file, str) or not isinstance(regions, list):
        raise ValueError(f"{path}: image {key!r}: expected filename and regions")
    shapes = [each.get("shape_attributes") if isinstance(each, dict) else None for each in regions]
    return file, shapes


def _shapes_of_csv(path: Path, content: bytes) -> list[tuple[str, list[object]]]:
    reader = csv.DictReader(io.StringIO(decode(path, content), newline=""))
    images: dict[tuple[str, str], list[object]] = {}
    try:
        names = [name.lstrip("#").strip() for name in reader.fieldnames or ()]
        if not {"filename", _SHAPE} <= set(names):
            raise ValueError(f"{path}: expected the columns {', '.join(_COLUMNS)}")
        reader.fieldnames = names
        for row in reader:
            file, text = row["filename"], row[_SHAPE]
            if not file or text is None:
                raise ValueError(
                    f"{path}: line {reader.line_num}: expected {len(names)} cells with a filename"
                )
            shapes = images.setdefault((file, row.get("file_size") or ""), [])
            try:
                shape = json.loads(text or "{}")
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}: line {reader.line_num}: {_SHAPE} is not JSON: {error}"
                ) from error
            if shape != {}:  # the row of an image without regions
                shapes.append(shape)
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from error
    return [(file, shapes) for (file, _), shapes in images.items()]


def _write_json(path: Path, pictures: Sequence[Picture]) -> None:
    value = {}
    for picture in pictures:
        size = picture.file.stat().st_size
        regions = [
            {"shape_attributes": {"name": "point", "cx": x, "cy": y}, "region_attributes": {}}
            for x, y in picture.points
        ]
        value[f"{picture.file.name}{size}"] = {
            "filename": picture.file.name, "size": size, "regions": regions, "file_attributes": {},
        }  # fmt: skip
    path.write_text(json.dumps(value) + "\n", "utf-8")


def _write_csv(path: Path, pictures: Sequence[Picture]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for picture in pictures:
            start = [picture.file.name, picture.file.stat().st_size, "{}", len(picture.points)]
            shapes = [json.dumps({"name": "point", "cx": x, "cy": y}) for x, y in picture.points]
            for index, shape in enumerate(shapes or ["{}"]):
                writer.writerow([*start, index, shape, "{}"])


def _is_json(content: bytes) -> bool:
    return b'"_via_' in content or (b'"filename"' in content and b'"regions"' in content)


def _is_csv(content: bytes) -> bool:
    header = content.split(b"\n", 1)[0]
    return b"filename" in header and _SHAPE.encode() in header


formats.register("via")(AnnotationTable("via", (".json",), _is_json, read))
formats.register("via_csv")(AnnotationTable("via_csv", (".csv",), _is_csv, read))
targets.register("via")(
    Target("{split}", "{name}", table="{split}/via_region_data.json", write_table=_write_json)
)
targets.register("via_csv")(
    Target("{split}", "{name}", table="{split}/via_region_data.csv", write_table=_write_csv)
)
