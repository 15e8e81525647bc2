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
_READ = ("points", "labels", "annotations", "jsons")
"""Those that are read if the folder above is opened."""


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

    def _hint(self, image: Path, name: str) -> str:
        """Describe what near the image may be the missing annotation."""
        folder_of_image, above = image.parent, image.parent.parent
        if self.plain is not None:
            for folder in list(self.plain.parents)[:2]:
                kind = _recognised(folder)
                if kind:
                    return f"; {folder} is laid out as {kind}: open that folder"
        expected = {folder / file.format(name=name) for folder in self.folders
                    for file in self.files}  # fmt: skip
        here = {folder_of_image: None, **dict.fromkeys(self.folders)}
        for path in _named_alike(here, image, name):
            if path not in expected:
                return f"; {path} is there, but is not of this name and format"
        beside = [above / folder for folder in _BESIDE if above / folder not in here]
        for path in _named_alike(beside, image, name):
            if folder_of_image.name == "images" and path.parent.name in _READ:
                return f"; {path} lies beside the folder: open {above}"
            return f"; {path} is there, but is not looked for"
        return ""


def _recognised(folder: Path) -> str:
    """Return the layout of a folder above the opened one; "" if it has none or is unreadable."""
    try:
        return next((name for name in formats.names() if formats[name].recognises(folder)), "")
    except ValueError:
        return ""


def _named_alike(folders: Iterable[Path], image: Path, name: str) -> Iterator[Path]:
    """Yield annotation files in the folders whose names match an image's."""
    for folder in folders:
        for suffix in _SUFFIXES:
            for other in _OTHER_NAMES:
                path = folder / other.format(name=name, suffix=suffix, file=image.name)
                if path.is_file():
                    yield path
