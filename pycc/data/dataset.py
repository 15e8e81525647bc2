"""Data sets: what every format has in common, and the registry that formats enter."""

from __future__ import annotations

import hashlib
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycc.checks import check_values, naming
from pycc.data.images import image_size, read_image
from pycc.data.pictures import listing as listing
from pycc.data.reading import USUAL, Reading, memory_errors
from pycc.grid import heads_in
from pycc.registry import Registry
from pycc.runs import fingerprint
from pycc.types import Sample

if TYPE_CHECKING:
    from pycc.data.missing import Places

OnError = Literal["raise", "skip"]

Refuse = Callable[[str], None]
"""What is called with each problem of an item: it raises, or returns to have the item left out."""

Region = Callable[[Path, int, int], NDArray[np.bool_]]
"""(file, H, W) -> [H,W], the region of interest; ValueError naming the file without one."""


class NotAnnotatedError(ValueError):
    """A split whose annotation was never published: nothing in it is broken."""


class Dataset(Sequence[Sample], ABC):
    """A sequence of images, annotated or not, each loaded when it is asked for.

    Every access reads the files again; nothing is cached.
    """

    name: str
    """What the data set is called in tables and manifests."""
    names: list[str]
    """Names of the samples, in order; unique."""
    origin: str = ""
    """The published data set that it is of, as ``pycc.data.origin`` tells; "" where unknown."""
    groups: Sequence[str] | None = None
    """The group of each sample, where errors are published by group: the scenes of WorldExpo'10."""

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Sample ``index``; ValueError naming the file if it is broken."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = range(len(self))[index]
        with naming(self.names[place]):
            return self._load(place)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @abstractmethod
    def _load(self, index: int) -> Sample:
        """Sample ``index`` of {0, …, len − 1}."""

    def points(self, index: int) -> Tensor:
        """Head annotations [N,2] of a sample, as in the sample; cheaper than its pixels.

        ValueError where it is not annotated.
        """
        return self._load(index).points


def check_sample(sample: Sample) -> None:
    """Check one image and its annotation, as every run takes them.

    ValueError, with the sample's name, for an image that is not [3,H,W] float32 in [0,1], points
    that are not [N,2] finite numbers, and a region of interest that is not [H,W] bool.
    """
    image, mask = sample.image, sample.roi
    points = sample.points if sample.annotated else torch.zeros(0, 2)
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.float32:
        raise ValueError(
            f"{sample.name}: image must be [3,H,W] float32, got {list(image.shape)} {image.dtype}"
        )
    check_values(sample.name, "image", image)
    if points.ndim != 2 or points.shape[1] != 2 or not bool(torch.isfinite(points).all()):
        raise ValueError(
            f"{sample.name}: points must be [N,2] (x, y) and finite, got {list(points.shape)}"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != image.shape[1:]):
        raise ValueError(
            f"{sample.name}: mask must be {list(image.shape[1:])} bool, "
            f"got {list(mask.shape)} {mask.dtype}"
        )


class Fingerprint:
    """The fingerprint of a data set, sample by sample; see ``data_fingerprint``."""

    def __init__(self) -> None:
        self._images = 0
        self._parts = {part: hashlib.sha256() for part in ("names", "pixels", "points", "regions")}

    def add(self, sample: Sample) -> str:
        """Take in the next sample, checked; returns the fingerprint of its pixels alone.

        ValueError as of ``check_sample``.
        """
        check_sample(sample)
        pixels = fingerprint([("image", sample.image)])
        parts: dict[str, Tensor | str | None] = {
            "names": sample.name,
            "points": sample.points if sample.annotated else None,
            "regions": sample.roi,
        }
        self._parts["pixels"].update(pixels.encode())
        for part, value in parts.items():
            known = fingerprint([] if value is None else [(part, value)])
            self._parts[part].update(known.encode())
        self._images += 1
        return pixels

    def json(self) -> dict[str, int | str]:
        """As a run's manifest holds it."""
        return {
            "images": self._images,
            **{part: digest.hexdigest() for part, digest in self._parts.items()},
        }


def data_fingerprint(samples: Iterable[Sample]) -> dict[str, int | str]:
    """What a run's manifest says of its data, so that a resumed run notices a change.

    The number of ``images`` and SHA-256 digests, in hexadecimal, of their ``names``, ``pixels``,
    ``points`` (head annotations) and ``regions`` (of interest), each over all samples in order. It
    depends on what the samples hold alone, not on the files they are read from.
    """
    found = Fingerprint()
    for sample in samples:
        found.add(sample)
    return found.json()


@dataclass(frozen=True)
class Pair:
    """An image and its annotation, if it has any."""

    name: str
    image: Path
    annotation: Path | None = None
    region: Path | None = None
    """The file of its region of interest."""
    group: str | None = None

    @property
    def files(self) -> list[Path]:
        """The image and its annotation."""
        return [self.image] if self.annotation is None else [self.image, self.annotation]


class PairedFiles(Dataset):
    """Images beside annotations, in whatever format ``read`` understands; or images alone.

    ``read(annotation)`` gives the points [N,2] (x, y) or raises ValueError naming the file. Points
    outside the image are dropped, with a warning that counts them. Where there is a region of
    interest, which ``region`` reads, it becomes the sample's mask, and only heads whose pixel
    (int(x), int(y)) lies in it are points of the sample: so the data set counts, and no warning is
    due.
    """

    def __init__(
        self,
        name: str,
        pairs: Sequence[Pair],
        read: Callable[[Path], NDArray[np.float64]],
        *,
        region: Region | None = None,
        reading: Reading = USUAL,
    ) -> None:
        self.name = name
        self.names = [pair.name for pair in pairs]
        self.pairs = list(pairs)
        groups = [pair.group for pair in pairs if pair.group is not None]
        self.groups = groups if groups and len(groups) == len(pairs) else None
        self.reading = reading
        self._read, self._region = read, region
        if len(set(self.names)) < len(self.names):
            twice = max(self.names, key=self.names.count)
            raise ValueError(f"{self.name}: names must be unique, got {twice!r} twice")

    def _load(self, index: int) -> Sample:
        sample, inside = self._examine(index)
        height, width = sample.image.shape[1:]
        self._warn(index, inside, height, width)
        return sample

    def points(self, index: int) -> Tensor:
        """Head annotations [N,2] of a sample; of its image only the header is read.

        ValueError where it is not annotated.
        """
        height, width = image_size(self.pairs[index].image, self.reading)
        points, _, inside = self._annotation(index, height, width)
        if points is None:
            raise ValueError(f"{self.pairs[index].image}: not annotated, its heads are unknown")
        self._warn(index, inside, height, width)
        return points

    def examine(self, index: int) -> tuple[Sample, int]:
        """Sample ``index``, and how many annotated points outside its image it has lost."""
        with naming(self.names[index]):
            sample, inside = self._examine(index)
        return sample, int(np.count_nonzero(~inside))

    def usable(self, limit: int | None) -> PairedFiles:
        """The samples that load, at most ``limit``; a warning for each that does not.

        Every item is read, since only that tells whether it is whole.
        """
        good: list[Pair] = []
        for index, pair in enumerate(self.pairs):
            if limit is not None and len(good) >= limit:
                break
            try:
                self.examine(index)
            except ValueError as error:
                skip(str(error))
            else:
                good.append(pair)
        return self._of(good)

    def first(self, limit: int) -> PairedFiles:
        """The first ``limit`` samples."""
        return self._of(self.pairs[:limit])

    def _of(self, pairs: Sequence[Pair]) -> PairedFiles:
        part = PairedFiles(self.name, pairs, self._read, region=self._region, reading=self.reading)
        part.origin = self.origin
        return part

    def _examine(self, index: int) -> tuple[Sample, NDArray[np.bool_]]:
        """Sample ``index``, and which of its annotated points lie inside its image."""
        pair = self.pairs[index]
        image = read_image(pair.image, self.reading)
        points, mask, inside = self._annotation(index, *image.shape[1:])
        return Sample(pair.name, image, points, mask), inside

    def _annotation(
        self, index: int, height: int, width: int
    ) -> tuple[Tensor | None, Tensor | None, NDArray[np.bool_]]:
        """The points that count, the region, and which of the annotated points lie inside."""
        pair = self.pairs[index]
        region = self._mask(pair, height, width)
        mask = None if region is None else torch.from_numpy(region)
        if pair.annotation is None:
            return None, mask, np.ones(0, np.bool_)
        points = self._read(pair.annotation)
        heads = torch.from_numpy(np.ascontiguousarray(points))
        inside = heads_in(heads, (height, width))
        counted = heads[inside if mask is None else heads_in(heads, mask)]
        return counted, mask, inside.numpy()

    def _mask(self, pair: Pair, height: int, width: int) -> NDArray[np.bool_] | None:
        """The region of interest [H,W], where there is one."""
        if self._region is None or pair.region is None:
            return None
        return self._region(pair.region, height, width)

    def _warn(self, index: int, inside: NDArray[np.bool_], height: int, width: int) -> None:
        if not inside.all():
            warnings.warn(
                f"{self.pairs[index].annotation}: dropped {np.count_nonzero(~inside)} of "
                f"{len(inside)} points outside the image of {width} x {height} pixels",
                stacklevel=3,
            )


def check_split(root: Path, split: str, known: Sequence[str]) -> None:
    """Check that a folder has the split; ValueError that lists those that it has."""
    if split not in known:
        raise ValueError(f"{root}: has splits {', '.join(known)}, got {split!r}")


def fail(problem: str) -> None:
    """Raise ValueError with what is wrong with an item."""
    raise ValueError(problem)


def skip(problem: str) -> None:
    """Warn that an item is left out, and of what is wrong with it."""
    warnings.warn(f"skipped: {problem}", stacklevel=3)


def pair_up(
    images: dict[str, list[Path]],
    annotations: dict[str, list[Path]] | None,
    refuse: Refuse | Literal["raise"] = "raise",
    places: Places | None = None,
) -> list[Pair]:
    """One pair per name, in numeric order, of what lies under each name; None: images alone.

    Refused, or by default raised as ValueError, is a name that has no image, no annotation, or
    several of one kind; ``places`` says what was looked for.
    """
    if not callable(refuse):
        refuse = fail
    expected = 0 if annotations is None else 1
    annotations = annotations or {}
    pairs = []
    for name in sorted(images.keys() | annotations.keys(), key=_numeric):
        image, annotation = images.get(name, []), annotations.get(name, [])
        if len(image) == 1 and len(annotation) == expected:
            pairs.append(Pair(name, image[0], annotation[0] if expected else None))
        elif expected and not annotation:
            lacks = places.no_annotation(image[0], name) if places else "image without annotation"
            refuse(f"{image[0]}: {lacks}")
        elif not image:
            lacks = places.no_image(annotation[0]) if places else "annotation without image"
            refuse(f"{annotation[0]}: {lacks}")
        else:
            many = sorted(image if len(image) > 1 else annotation)
            refuse(f"{many[1]}: one file expected per name, but there is also {many[0].name}")
    return pairs


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
        with memory_errors():
            return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the file: {error.strerror}") from error


class Layout(Protocol):
    """One layout of files."""

    def splits(self, root: Path) -> tuple[str, ...]:
        """The splits that are there and together hold each image once; ("all",) where one is."""

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """The samples of a split, paired; ValueError naming what is missing.

        NotAnnotatedError where the split has images, but was published without annotation. With
        ``annotated`` False no annotation is looked for: the images alone.
        """


class Format(Layout, Protocol):
    """A published layout of files."""

    def recognises(self, root: Path) -> bool:
        """Whether this folder is laid out so."""


formats: Registry[Format] = Registry("data format")
"""Published layouts of files; a folder that none recognises is a plain folder of images."""

builtin: Registry[Callable[..., Dataset]] = Registry("built-in data set")
"""Data sets without files: called with ``split`` and their own options."""
