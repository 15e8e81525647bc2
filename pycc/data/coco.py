"""COCO: a JSON file with images, and people as keypoints or boxes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pycc.data.dataset import Refuse, formats
from pycc.data.labels import counted_labels
from pycc.data.pictures import some
from pycc.data.points import number, parse_json
from pycc.data.tables import AnnotationTable, Entry, stated_size
from pycc.data.target import Picture, Target, targets

_HEAD_KEYPOINTS = ("head", "nose")
_KEYS = (b'"images"', b'"annotations"', b'"file_name"', b'"image_id"')


def read(path: Path, content: bytes, refuse: Refuse) -> list[Entry]:
    """Return the images of a COCO file, each with one point per annotation.

    The point is the keypoint ``head`` or ``nose``, else the mean of the labelled keypoints, else
    the box's centre. Annotations with ``iscrowd`` are groups of unknown size: left out, with a
    warning that counts them. ``counted_labels`` chooses among several categories in use. Ids
    without an image, and ids of several images, are refused.
    """
    value = parse_json(path, content)
    images, annotations = (_records(path, value, key) for key in ("images", "annotations"))
    files = _files(path, images, refuse)
    categories = {str(each.get("id")): each for each in _records(path, value, "categories", True)}
    used = (str(each.get("category_id")) for each in annotations)
    names = {key: str(categories.get(key, {}).get("name", key)) for key in used}
    counted = counted_labels(path, names.values())
    heads: dict[str, list[tuple[float, float]]] = {key: [] for key in files}
    problems: dict[str, str] = {}
    groups = 0
    orphans = []
    for annotation in annotations:
        image, category = str(annotation.get("image_id")), str(annotation.get("category_id"))
        label = f"annotation {annotation.get('id')}"
        if image not in files:
            orphans.append(f"{label} (image_id {image})")
        elif annotation.get("iscrowd"):
            groups += 1
        elif names[category] in counted:
            try:
                heads[image].append(_head(annotation, categories.get(category, {})))
            except ValueError as error:
                problems.setdefault(image, f"{label}: {error}")
    if orphans:
        refuse(f"{path}: annotations of no image: {some(orphans)}")
    if groups:
        warnings.warn(
            f"{path}: left out {groups} annotations of groups of unknown size (iscrowd)",
            stacklevel=3,
        )
    sizes = {str(each.get("id")): stated_size(each.get("height"), each.get("width"))
             for each in images}  # fmt: skip
    return [
        Entry(file, np.array(heads[key], np.float64).reshape(-1, 2), size=sizes[key],
              problem=problems.get(key, ""))
        for key, file in files.items()
    ]  # fmt: skip


def _records(path: Path, value: Any, key: str, optional: bool = False) -> list[dict[str, Any]]:
    records = value.get(key, [] if optional else None) if isinstance(value, dict) else None
    if not isinstance(records, list) or not all(isinstance(each, dict) for each in records):
        raise ValueError(f"{path}: expected COCO's list of objects {key!r}")
    return records


def _files(path: Path, images: Sequence[Mapping[str, Any]], refuse: Refuse) -> dict[str, str]:
    """Return the names of the image files by id."""
    files: dict[str, str] = {}
    repeated = set()
    for image in images:
        key, file = str(image.get("id")), image.get("file_name")
        if image.get("id") is None or not isinstance(file, str) or not file:
            refuse(f"{path}: image {json.dumps(image)[:60]}: expected id and file_name")
        elif key in files:
            refuse(f"{path}: images {files[key]!r} and {file!r} have the same id {key}")
            repeated.add(key)
        else:
            files[key] = file
    return {key: file for key, file in files.items() if key not in repeated}


def _head(annotation: Mapping[str, Any], category: Mapping[str, Any]) -> tuple[float, float]:
    """Return the point of one annotation; ValueError if it has neither keypoints nor a box."""
    keypoints = annotation.get("keypoints")
    if keypoints:
        values = _numbers("keypoints", keypoints, 3)
        labelled = {index: (x, y) for index, (x, y, seen) in enumerate(values) if seen > 0}
        names = category.get("keypoints")
        names = names if isinstance(names, list) else []
        for name in _HEAD_KEYPOINTS:
            if name in names and names.index(name) in labelled:
                return labelled[names.index(name)]
        if labelled:
            x, y = np.mean(list(labelled.values()), 0).tolist()
            return x, y
    box = annotation.get("bbox")
    if not box:
        raise ValueError("expected a bbox or labelled keypoints")
    ((x, y, width, height),) = _numbers("bbox", box, 4, 1)
    return x + width / 2, y + height / 2


def _numbers(name: str, value: object, each: int, rows: int | None = None) -> list[list[float]]:
    """Return a flat list as rows of ``each`` finite numbers."""
    expected = f"{name} must be {each} finite numbers" + (" each" if rows is None else "")
    try:
        if not isinstance(value, list):
            raise ValueError(expected)
        numbers = [number(item) for item in value]
    except ValueError as error:
        raise ValueError(f"{expected}, got {json.dumps(value)[:60]}") from error
    wrong = len(numbers) % each != 0 or (rows is not None and len(numbers) != each * rows)
    if wrong or not np.isfinite(numbers).all():
        raise ValueError(f"{expected}, got {json.dumps(value)[:60]}")
    return [numbers[start : start + each] for start in range(0, len(numbers), each)]


def _write(path: Path, pictures: Sequence[Picture]) -> None:
    images: list[object] = []
    annotations: list[object] = []
    for image, picture in enumerate(pictures, start=1):
        images.append({
            "id": image, "file_name": picture.file.name,
            "width": picture.width, "height": picture.height,
        })  # fmt: skip
        annotations += [
            {
                "id": len(annotations) + index, "image_id": image, "category_id": 1,
                "keypoints": [x, y, 2], "num_keypoints": 1, "bbox": [x, y, 0.0, 0.0], "area": 0.0,
                "iscrowd": 0,
            }
            for index, (x, y) in enumerate(picture.points, start=1)
        ]  # fmt: skip
    category = {"id": 1, "name": "head", "keypoints": ["head"], "skeleton": []}
    value = {"images": images, "annotations": annotations, "categories": [category]}
    path.write_text(json.dumps(value) + "\n", "utf-8")


def _is_coco(content: bytes) -> bool:
    # Not all of these: in large files one list hides the key of the next, and a file that was cut
    # off must be named as broken.
    return sum(key in content for key in _KEYS) > 1


formats.register("coco")(AnnotationTable("coco", (".json",), _is_coco, read))
targets.register("coco")(
    Target("{split}", "{name}", table="{split}/_annotations.coco.json", write_table=_write)
)
