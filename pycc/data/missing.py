"""Messages about missing annotations: what was expected, and which similar files exist."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pycc.data.dataset import formats

_OTHER_NAMES = ("{name}{suffix}", "{name}_ann{suffix}", "GT_{name}{suffix}", "{file}{suffix}")
_SUFFIXES = (".csv", ".json", ".txt", ".mat", ".npy", ".npz", ".xml", ".h5")
_BESIDE = ("points", "jsons", "json", "annotations", "labels", "gt", "ground-truth", "ground_truth")
"""Usual names of annotation folders beside a folder of images."""
_HEAD = 1 << 16
"""Bytes from the start and from the end of a file that are searched for its kind."""
_FEW = 20
"""Most JSON files in a folder that are searched for annotations of all images."""


@dataclass(frozen=True)
class Places:
    """The places where a layout looks for the annotations of its images."""

    folders: Sequence[Path]
    files: Sequence[str]
    """Names of the files in them, with {name} for the name of the image."""
    plain: Path | None = None
    """The opened folder if it has no published layout."""

    def no_annotation(self, image: Path, name: str) -> str:
        """Describe which files were expected for an image, and what to do about similar files."""
        files = " or ".join(file.format(name=name) for file in self.files)
        folders = " or ".join(map(str, self.folders))
        return (
            f"image without annotation, expected {files} in {folders}{self._hint(image, name)}; "
            "to count or attack the images alone use annotated=False (--unannotated)"
        )

    def no_image(self, annotation: Path) -> str:
        """Describe an annotation file without an image."""
        kind = _kind(annotation)
        if kind:
            return f"annotation without image: {self._split_up(kind)}"
        return "annotation without image"

    def _split_up(self, kind: str) -> str:
        files = " or ".join(file.format(name="NAME") for file in self.files)
        return f"it is {kind}, which is not read; write the points of each image as {files}"

    def _hint(self, image: Path, name: str) -> str:
        """Describe what near the image may be the missing annotation."""
        folder_of_image, above = image.parent, image.parent.parent
        if self.plain is not None:
            for folder in list(self.plain.parents)[:2]:
                for kind in formats.names():
                    if formats[kind].recognises(folder):
                        return f"; {folder} is laid out as {kind}: open that folder"
        expected = {folder / file.format(name=name) for folder in self.folders
                    for file in self.files}  # fmt: skip
        here = {folder_of_image: None, **dict.fromkeys(self.folders)}
        for path in _named_alike(here, image, name):
            if path not in expected:
                return f"; {path} is there, but is not of this name and format"
        beside = [above / folder for folder in _BESIDE if above / folder not in here]
        for path in _named_alike(beside, image, name):
            if folder_of_image.name == "images" and path.parent.name in ("points", "jsons"):
                return f"; {path} lies beside the folder: open {above}"
            return f"; {path} is there, but is not looked for"
        for folder in dict.fromkeys((*here, above, above / "annotations")):
            several = sorted(folder.glob("*.json"))
            for path in several if len(several) <= _FEW else ():
                kind = _kind(path)
                if kind:
                    return f"; {path} is there: {self._split_up(kind)}"
        return ""


def _named_alike(folders: Iterable[Path], image: Path, name: str) -> Iterator[Path]:
    """Yield annotation files in the folders whose names match an image's."""
    for folder in folders:
        for suffix in _SUFFIXES:
            for other in _OTHER_NAMES:
                path = folder / other.format(name=name, suffix=suffix, file=image.name)
                if path.is_file():
                    yield path


def _kind(path: Path) -> str:
    """Return what a JSON file with the annotations of many images is; "" for any other file."""
    if path.suffix.lower() != ".json":
        return ""
    try:
        with path.open("rb") as stream:
            ends = stream.read(_HEAD)
            stream.seek(max(stream.tell(), path.stat().st_size - _HEAD))
            ends += stream.read(_HEAD)
    except OSError:
        return ""
    if b'"_via_' in ends or path.name.lower().startswith("via_"):
        return "a VIA project of several images"
    if b'"images"' in ends and b'"annotations"' in ends:
        return "a COCO file of several images"
    return ""
