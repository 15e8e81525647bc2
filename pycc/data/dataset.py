"""Data sets: what every format has in common, and the registry that formats enter."""

from __future__ import annotations

import hashlib
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycc.data.images import image_size, load_image
from pycc.registry import Registry
from pycc.types import Sample

OnError = Literal["raise", "skip"]

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


class Dataset(Sequence[Sample], ABC):
    """A sequence of annotated images, each loaded when it is asked for.

    Every access reads the files again; nothing is cached.
    """

    name: str
    """What the data set is called in tables and manifests."""
    names: list[str]
    """Names of the samples, in order; unique."""

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Sample ``index``; ValueError naming the file if it is broken."""
        if isinstance(index, slice):
            return [self._load(i) for i in range(len(self))[index]]
        return self._load(range(len(self))[index])

    def __iter__(self) -> Iterator[Sample]:
        return (self._load(index) for index in range(len(self)))

    @abstractmethod
    def _load(self, index: int) -> Sample:
        """Sample ``index`` of {0, …, len − 1}."""

    def points(self, index: int) -> Tensor:
        """Head annotations [N,2] of a sample, as in the sample; cheaper than its pixels."""
        return self._load(index).points

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the content: the same exactly where the samples are."""


@dataclass(frozen=True)
class Pair:
    """An image and its annotation."""

    name: str
    image: Path
    annotation: Path


class PairedFiles(Dataset):
    """Images beside annotations, in whatever format ``read`` understands.

    ``read(annotation)`` gives the points [N,2] (x, y) or raises ValueError naming the file. Points
    outside the image are dropped, with a warning that counts them.
    """

    def __init__(
        self, name: str, pairs: Sequence[Pair], read: Callable[[Path], NDArray[np.float64]]
    ) -> None:
        self.name = name
        self.names = [pair.name for pair in pairs]
        self._pairs = list(pairs)
        self._read = read

    def _load(self, index: int) -> Sample:
        pair = self._pairs[index]
        image = load_image(pair.image)
        height, width = image.shape[1:]
        return Sample(pair.name, image, self._inside(pair, height, width))

    def points(self, index: int) -> Tensor:
        """Head annotations [N,2] of a sample; of its image only the header is read."""
        pair = self._pairs[index]
        return self._inside(pair, *image_size(pair.image))

    def fingerprint(self) -> str:
        """SHA-256 over the samples' names and all bytes of their two files."""
        digest = hashlib.sha256()
        for pair in self._pairs:
            for content in (pair.name.encode(), *map(read_bytes, (pair.image, pair.annotation))):
                digest.update(len(content).to_bytes(8, "little"))
                digest.update(content)
        return digest.hexdigest()

    def usable(self, limit: int | None) -> PairedFiles:
        """The samples that load, at most ``limit``; a warning for each that does not.

        Every item is read, since only that tells whether it is whole.
        """
        good: list[Pair] = []
        for pair in self._pairs:
            if limit is not None and len(good) >= limit:
                break
            try:
                load_image(pair.image)
                self._read(pair.annotation)
            except ValueError as error:
                warnings.warn(f"skipped: {error}", stacklevel=2)
            else:
                good.append(pair)
        return PairedFiles(self.name, good, self._read)

    def first(self, limit: int) -> PairedFiles:
        """The first ``limit`` samples."""
        return PairedFiles(self.name, self._pairs[:limit], self._read)

    def _inside(self, pair: Pair, height: int, width: int) -> Tensor:
        points = self._read(pair.annotation)
        inside = (points >= 0).all(1) & (points < (width, height)).all(1)
        if not inside.all():
            warnings.warn(
                f"{pair.annotation}: dropped {np.count_nonzero(~inside)} of {len(points)} points "
                f"outside the image of {width} x {height} pixels",
                stacklevel=3,
            )
        return torch.from_numpy(np.ascontiguousarray(points[inside]))


def pair_up(
    images: dict[str, list[Path]], annotations: dict[str, list[Path]], on_error: OnError
) -> list[Pair]:
    """One pair per name, in numeric order, of what lies under each name.

    Raises ValueError, or warns and leaves out, where a name has no image, no annotation, or several
    of one kind.
    """
    pairs = []
    for name in sorted(images.keys() | annotations.keys(), key=_numeric):
        image, annotation = images.get(name, []), annotations.get(name, [])
        if len(image) == len(annotation) == 1:
            pairs.append(Pair(name, image[0], annotation[0]))
            continue
        if not annotation:
            problem = f"{image[0]}: image without annotation"
        elif not image:
            problem = f"{annotation[0]}: annotation without image"
        else:
            many = sorted(image if len(image) > 1 else annotation)
            problem = f"{many[1]}: one file expected per name, but there is also {many[0].name}"
        if on_error == "raise":
            raise ValueError(problem)
        warnings.warn(f"skipped: {problem}", stacklevel=2)
    return pairs


def listing(folder: Path) -> list[Path]:
    """Files and folders in a folder, hidden ones left out; ValueError if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{folder}: cannot read the folder: {error.strerror}") from error


def by_name(files: Sequence[Path], prefix: str = "") -> dict[str, list[Path]]:
    """Files grouped by their stem, without a prefix of it."""
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(path.stem.removeprefix(prefix), []).append(path)
    return groups


def _numeric(name: str) -> tuple[tuple[int | str, ...], str]:
    """Sort key that puts IMG_2 before IMG_10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def read_bytes(path: Path) -> bytes:
    """Content of a file; ValueError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the file: {error.strerror}") from error


class Format(Protocol):
    """One layout of files."""

    def recognises(self, root: Path) -> bool:
        """Whether this folder is laid out so."""

    def open(self, root: Path, *, split: str, on_error: OnError) -> PairedFiles:
        """The samples of a split, paired; ValueError naming what is missing."""


formats: Registry[Format] = Registry("data format")
"""Published layouts of files; a folder that none recognises is a plain folder of images."""

builtin: Registry[Callable[..., Dataset]] = Registry("built-in data set")
"""Data sets without files: called with ``split`` and their own options."""
