"""CVAT for images 1.1: an XML file with points or boxes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np

from pycc.data.dataset import Refuse, formats
from pycc.data.labels import counted_labels
from pycc.data.points import number
from pycc.data.tables import AnnotationTable, Entry, stated_size
from pycc.data.target import Picture, Target, targets

_NO_SHAPES = ("attribute", "tag")
"""Elements in an image that describe it as a whole."""


def read(path: Path, content: bytes, refuse: Refuse) -> list[Entry]:
    """Return the images of a CVAT file, with each point and the centre of each box or ellipse.

    ``counted_labels`` chooses among several labels. An image with another shape, such as a polygon,
    is refused. ValueError for broken XML, for tracks of videos, and for any document type
    declaration: CVAT writes none, and entities in one can grow without limit or name files.
    """
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.StartDoctypeDeclHandler = reader.doctype
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, LookupError) as error:
        raise ValueError(f"{path}: not an XML file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: line {parser.CurrentLineNumber}: {error}") from error
    labels = (label for image in reader.images for label, _, _ in image.heads)
    counted = counted_labels(path, labels)
    return [image.entry(counted) for image in reader.images]


class _Image:
    """The shapes of one image while the file is read."""

    def __init__(self, file: str, size: tuple[int, int] | None) -> None:
        self.file, self.size = file, size
        self.heads: list[tuple[str, float, float]] = []
        self.problem = ""

    def add(self, kind: str, shape: Mapping[str, str]) -> None:
        """Add the heads of a shape, or remember what is wrong with it."""
        try:
            label = shape.get("label", "")
            self.heads += [(label, x, y) for x, y in _heads(kind, shape)]
        except (KeyError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            self.problem = self.problem or f"{kind}: {reason}"

    def entry(self, counted: Collection[str]) -> Entry:
        """Return the image with the heads of the labels that count."""
        rows = [(x, y) for label, x, y in self.heads if label in counted]
        points = np.array(rows, np.float64).reshape(-1, 2)
        return Entry(self.file, points, problem=self.problem, size=self.size)


class _Reader:
    """Handlers of expat that collect the images of a file."""

    def __init__(self) -> None:
        self.images: list[_Image] = []
        self._path: list[str] = []

    def doctype(self, *_: object) -> None:
        raise ValueError("has a document type declaration (DOCTYPE), which is not read")

    def start(self, kind: str, attributes: dict[str, str]) -> None:
        above = self._path[-1:]
        if not above and kind != "annotations":
            raise ValueError(f"expected the element annotations, got {kind}")
        if above == ["annotations"] and kind == "track":
            raise ValueError("has tracks of a video; export it from CVAT as images")
        if above == ["annotations"] and kind == "image":
            if not attributes.get("name"):
                raise ValueError("image without a name")
            size = stated_size(attributes.get("height"), attributes.get("width"))
            self.images.append(_Image(attributes["name"], size))
        elif above == ["image"] and kind not in _NO_SHAPES:
            self.images[-1].add(kind, attributes)
        self._path.append(kind)

    def end(self, kind: str) -> None:
        self._path.pop()


def _heads(kind: str, shape: Mapping[str, str]) -> list[tuple[float, float]]:
    if kind == "points":
        pairs = [pair.split(",") for pair in shape["points"].split(";") if pair.strip()]
        if not all(len(pair) == 2 for pair in pairs):
            raise ValueError(f"expected x,y;x,y;…, got {shape['points'][:60]!r}")
        heads = [(number(x), number(y)) for x, y in pairs]
    elif kind == "box":
        left, top, right, bottom = (number(shape[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        heads = [((left + right) / 2, (top + bottom) / 2)]
    elif kind == "ellipse":
        heads = [(number(shape["cx"]), number(shape["cy"]))]
    else:
        raise ValueError("expected points, box or ellipse")
    if not np.isfinite(heads).all():
        raise ValueError("coordinates must be finite")
    return heads


def _write(path: Path, pictures: Sequence[Picture]) -> None:
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    for index, picture in enumerate(pictures):
        lines.append(
            f'  <image id="{index}" name={quoteattr(picture.file.name)} '
            f'width="{picture.width}" height="{picture.height}">'
        )
        lines += [
            f'    <points label="head" source="manual" occluded="0" points="{x!r},{y!r}" '
            'z_order="0"></points>'
            for x, y in picture.points
        ]
        lines.append("  </image>")
    path.write_text("\n".join([*lines, "</annotations>", ""]), "utf-8")


formats.register("cvat")(
    AnnotationTable("cvat", (".xml",), lambda content: b"<annotations" in content, read)
)
targets.register("cvat")(
    Target("{split}", "images/{name}", table="{split}/annotations.xml", write_table=_write)
)
