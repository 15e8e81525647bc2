"""Data sets: the base class that all formats share, and the registries of formats."""

from __future__ import annotations

import hashlib
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from pycc.registry import Registry, nearest
from pycc.runs import fingerprint
from pycc.types import Sample, each

if TYPE_CHECKING:
    from pycc.data.missing import Places

OnError = Literal["raise", "skip"]

Refuse = Callable[[str], None]
"""A callback for each problem of an item: it raises, or returns so that the item is left out."""

Region = Callable[[Path, int, int], NDArray[np.bool_]]
"""(file, H, W) -> [H,W], the region of interest; ValueError naming a file that has none."""


class NotAnnotatedError(ValueError):
    """A split whose annotation was never published; a ValueError, but no file is broken.

    >>> issubclass(NotAnnotatedError, ValueError)
    True
    """


class Dataset(Sequence[Sample], ABC):
    """A sequence of images, annotated or not, each loaded when it is accessed.

    Every access reads the files again; nothing is cached.

    >>> from pycc import data
    >>> scenes = data.open("synthetic", split="test", shape=(96, 128), heads=20, limit=3)
    >>> scenes.name, scenes.names
    ('synthetic/test', ['test-0-0', 'test-0-1', 'test-0-2'])
    >>> scenes[1]
    Sample('test-0-1', image [3, 96, 128], 20 heads)
    >>> scenes
    Scenes('synthetic/test', 3 images)
    """

    name: str
    """The name of the data set in tables and manifests."""
    names: list[str]
    """Names of the samples, in order; unique."""
    origin: str = ""
    """The published data set that it belongs to, as ``pycc.data.origin`` returns it; ""
    if unknown."""
    groups: Sequence[str] | None = None
    """The group of each sample, if errors are published by group: the scenes of WorldExpo'10."""

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} images)"

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
        """Load sample ``index`` of {0, …, len − 1}."""

    def points(self, index: int) -> Tensor:
        """Return the head annotations [N,2] of a sample, without decoding its pixels if possible.

        ValueError if it is not annotated.
        """
        return self._load(index).points


def check_sample(sample: Sample) -> None:
    """Check one image and its annotation, as every run requires them.

    ValueError, with the sample's name, for an image that is not [3,H,W] float32 in [0,1], for
    points that are not [N,2] finite numbers, and for a region of interest that is not [H,W] bool.
    """
    image, roi = sample.image, sample.roi
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
    if roi is not None and (roi.dtype != torch.bool or roi.shape != image.shape[1:]):
        raise ValueError(
            f"{sample.name}: roi must be {list(image.shape[1:])} bool, "
            f"got {list(roi.shape)} {roi.dtype}"
        )


class Fingerprint:
    """The fingerprint of a data set, computed sample by sample; see ``data_fingerprint``."""

    def __init__(self) -> None:
        self._images = 0
        self._parts = {part: hashlib.sha256() for part in ("names", "pixels", "points", "regions")}

    def add(self, sample: Sample) -> str:
        """Check the next sample, add it, and return the fingerprint of its pixels alone.

        ValueError as for ``check_sample``.
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
            digest = fingerprint([] if value is None else [(part, value)])
            self._parts[part].update(digest.encode())
        self._images += 1
        return pixels

    def json(self) -> dict[str, int | str]:
        """Return it as a JSON object, a part of a run's manifest."""
        return {
            "images": self._images,
            **{part: digest.hexdigest() for part, digest in self._parts.items()},
        }


def data_fingerprint(samples: Sequence[Sample]) -> dict[str, int | str]:
    """Compute the record of the data in a run's manifest, so that a resumed run detects a change.

    It holds the number of ``images`` and SHA-256 digests, in hexadecimal, of their ``names``,
    ``pixels``, ``points`` (head annotations) and ``regions`` (of interest), each over all samples
    in order. It depends only on the content of the samples, not on the files that they are read
    from.
    """
    fingerprint_of_all = Fingerprint()
    for sample in each(samples):
        fingerprint_of_all.add(sample)
    return fingerprint_of_all.json()


@dataclass(frozen=True)
class Pair:
    """An image and its annotation, if it has one.

    >>> Pair("a", Path("images/a.jpg"), Path("heads/a.csv")).region is None
    True
    """

    name: str
    image: Path
    annotation: Path | None = None
    region: Path | None = None
    """The file of its region of interest."""
    group: str | None = None
    points: NDArray[np.float64] | None = field(default=None, compare=False)
    """[N,2], its heads, if ``annotation`` holds those of many images and has been read."""

    size: tuple[int, int] | None = None
    """(H, W) of the image that was annotated, if the annotation states it."""

    @property
    def files(self) -> list[Path]:
        """The image and its annotation."""
        return [self.image] if self.annotation is None else [self.image, self.annotation]


class PairedFiles(Dataset):
    """Images with annotation files, in any format that ``read`` understands; or images alone.

    ``read(annotation)`` returns the points [N,2] (x, y) or raises ValueError naming the file.
    Points outside the image are dropped, with a warning that counts them. If there is a region of
    interest, ``region`` reads it. It becomes the sample's ``roi``, and only heads whose pixel
    (int(x), int(y)) lies in it are points of the sample, without a warning: this is how such data
    sets count. ValueError for names that are not unique.

    >>> import tempfile
    >>> from pycc import data
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data.save_image(f"{folder}/a.png", torch.zeros(3, 4, 6))
    ...     pair = Pair("a", Path(folder, "a.png"), Path(folder, "a.txt"))
    ...     PairedFiles("mine", [pair], lambda path: np.array([[1.0, 2.0], [5.0, 3.5]]))[0]
    Sample('a', image [3, 4, 6], 2 heads)
    """

    format: str = ""
    """The format of annotation files that hold many images each; "" for a file per image."""

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
            repeated = max(self.names, key=self.names.count)
            raise ValueError(f"{self.name}: names must be unique, got {repeated!r} twice")

    def _load(self, index: int) -> Sample:
        sample, inside = self._examine(index)
        height, width = sample.image.shape[1:]
        self._warn(index, inside, height, width)
        return sample

    def points(self, index: int) -> Tensor:
        """Return the head annotations [N,2] of a sample, reading only the header of its image.

        ValueError if it is not annotated.
        """
        height, width = image_size(self.pairs[index].image, self.reading)
        points, _, inside = self._annotation(index, height, width)
        if points is None:
            raise ValueError(f"{self.pairs[index].image}: not annotated, so its heads are unknown")
        self._warn(index, inside, height, width)
        return points

    def examine(self, index: int) -> tuple[Sample, int]:
        """Load sample ``index``; also return the number of its points outside the image."""
        with naming(self.names[index]):
            sample, inside = self._examine(index)
        return sample, int(np.count_nonzero(~inside))

    def usable(self, limit: int | None) -> PairedFiles:
        """Return the samples that load, at most ``limit``; warn of each one that does not.

        Every item is read, since nothing else shows whether it is intact.
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
        """Return the first ``limit`` samples."""
        return self._of(self.pairs[:limit])

    def _of(self, pairs: Sequence[Pair]) -> PairedFiles:
        part = PairedFiles(self.name, pairs, self._read, region=self._region, reading=self.reading)
        part.origin, part.format = self.origin, self.format
        return part

    def _examine(self, index: int) -> tuple[Sample, NDArray[np.bool_]]:
        """Load sample ``index``; also return which of its annotated points lie inside its image."""
        pair = self.pairs[index]
        image = read_image(pair.image, self.reading)
        points, roi, inside = self._annotation(index, *image.shape[1:])
        return Sample(pair.name, image, points, roi), inside

    def _annotation(
        self, index: int, height: int, width: int
    ) -> tuple[Tensor | None, Tensor | None, NDArray[np.bool_]]:
        """Return the points that count, the region, and which annotated points lie inside."""
        pair = self.pairs[index]
        region = self._roi(pair, height, width)
        roi = None if region is None else torch.from_numpy(region)
        if pair.annotation is None:
            return None, roi, np.ones(0, np.bool_)
        if pair.size not in (None, (height, width)):
            raise ValueError(
                f"{pair.image}: has {width} x {height} pixels upright, but its annotation in "
                f"{pair.annotation} is of {pair.size[1]} x {pair.size[0]}"
            )
        points = self._read(pair.annotation) if pair.points is None else pair.points
        heads = torch.from_numpy(np.ascontiguousarray(points))
        inside = heads_in(heads, (height, width))
        counted = heads[inside if roi is None else heads_in(heads, roi)]
        return counted, roi, inside.numpy()

    def _roi(self, pair: Pair, height: int, width: int) -> NDArray[np.bool_] | None:
        """Read the region of interest [H,W], if there is one."""
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
    """Check that a folder has the split; ValueError that lists its splits otherwise."""
    if split not in known:
        raise ValueError(
            f"{root}: has splits {', '.join(known)}, got {split!r}{nearest(split, known)}"
        )


def fail(problem: str) -> None:
    """Raise ValueError with the problem of an item."""
    raise ValueError(problem)


def skip(problem: str) -> None:
    """Warn that an item is left out, and why."""
    warnings.warn(f"skipped: {problem}", stacklevel=3)


def pair_up(
    images: dict[str, list[Path]],
    annotations: dict[str, list[Path]] | None,
    refuse: Refuse | Literal["raise"] = "raise",
    places: Places | None = None,
) -> list[Pair]:
    """Pair images with annotations by name, in numeric order; ``annotations`` None: images alone.

    A name without image, without annotation, or with several files of one kind is refused, by
    default with ValueError. ``places`` describes which annotation files were expected.

    >>> images, heads = by_name([Path("a.jpg")]), by_name([Path("heads/a.txt")])
    >>> [(pair.name, pair.annotation.name) for pair in pair_up(images, heads)]
    [('a', 'a.txt')]
    """
    if not callable(refuse):
        refuse = fail
    expected = 0 if annotations is None else 1
    annotations = annotations or {}
    pairs = []
    for name in sorted(images.keys() | annotations.keys(), key=numeric):
        image, annotation = images.get(name, []), annotations.get(name, [])
        if len(image) == 1 and len(annotation) == expected:
            pairs.append(Pair(name, image[0], annotation[0] if expected else None))
        elif expected and not annotation:
            lacks = places.no_annotation(image[0], name) if places else "image without annotation"
            refuse(f"{image[0]}: {lacks}")
        elif not image:
            refuse(f"{annotation[0]}: annotation without image")
        else:
            many = sorted(image if len(image) > 1 else annotation)
            refuse(f"{many[1]}: one file expected per name, but there is also {many[0].name}")
    return pairs


def by_name(files: Sequence[Path], prefix: str = "") -> dict[str, list[Path]]:
    """Group files by their stem, without the prefix.

    >>> list(by_name([Path("GT_IMG_1.mat"), Path("GT_IMG_2.mat")], prefix="GT_"))
    ['IMG_1', 'IMG_2']
    """
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(path.stem.removeprefix(prefix), []).append(path)
    return groups


def numeric(name: str) -> tuple[tuple[int | str, ...], str]:
    """Return a sort key that orders IMG_2 before IMG_10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def read_bytes(path: Path) -> bytes:
    """Read a file; ValueError if it cannot be read."""
    try:
        with memory_errors():
            return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the file: {error.strerror}") from error


class Layout(Protocol):
    """One layout of files."""

    def splits(self, root: Path) -> tuple[str, ...]:
        """Return the existing splits that together hold each image once.

        The result is ("all",) if there is only one.
        """

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """Pair up the samples of a split; ValueError naming a missing file.

        NotAnnotatedError if the split has images, but was published without annotation. With
        ``annotated`` False annotations are ignored: the images alone.
        """


class Format(Layout, Protocol):
    """A published layout of files, which ``formats.register(name)(...)`` adds.

    >>> from pycc import data
    >>> data.formats["nwpu"].recognises(Path("elsewhere"))
    False
    """

    def recognises(self, root: Path) -> bool:
        """Whether this folder has the layout."""


formats: Registry[Format] = Registry("data format")
"""Published layouts of files; a folder that none of them recognises is a plain folder of images."""

builtin: Registry[Callable[..., Dataset]] = Registry("built-in data set")
"""Data sets without files, called with ``split`` and their own options."""
