"""Types that all packages share: a counter, a sample, progress, and an interval on a count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor

from pycc.checks import check_values

__all__ = [
    "Counter",
    "Interval",
    "Progress",
    "Sample",
    "check_counter",
    "check_sequence",
    "check_unique",
    "each",
]


T = TypeVar("T")


@runtime_checkable
class Counter(Protocol):
    """A crowd counter: everything that attacks, defenses and certificates know of a model.

    Calling it maps images [N,3,H,W] (float32, RGB in [0,1]) to a density map [N,1,h,w] in people
    per cell, so that ``density.sum((1, 2, 3))`` is the count. Colour conversion, normalisation and
    output scale are inside the counter.

    >>> from pycc import models
    >>> isinstance(models.load("mcnn-synthetic"), Counter)
    True
    """

    @property
    def stride(self) -> int:
        """Pixels per cell: the map of an [H,W] image is [H // stride, W // stride]."""

    @property
    def receptive_field(self) -> int | None:
        """Side, in pixels, of the square around a cell that the cell depends on.

        The square is centred on the cell. None if it is unbounded.
        """

    def __call__(self, images: Tensor, /) -> Tensor:
        """Density [N,1,h,w] of images [N,3,H,W]."""


def check_counter(op: str, counter: object) -> None:
    """Raise TypeError, naming ``op``, unless an object is a ``Counter``.

    >>> import torch
    >>> check_counter("count", torch.nn.Conv2d(3, 1, 3))
    Traceback (most recent call last):
    ...
    TypeError: count: counter must have stride and receptive_field and be callable, got a Conv2d \
without receptive_field; pycc.models.wrap makes a counter of any network
    """
    lacking = [name for name in ("stride", "receptive_field") if not hasattr(counter, name)]
    if not callable(counter):
        lacking.append("a call")
    if lacking:
        kind = type(counter).__name__
        raise TypeError(
            f"{op}: counter must have stride and receptive_field and be callable, got a {kind} "
            f"without {lacking[0]}; pycc.models.wrap makes a counter of any network"
        )


class Progress(Protocol):
    """A callback that long work calls with how much of it is done, in any unit.

    >>> def show(done: float, total: float, text: str, /) -> None:
    ...     print(f"{done:g} of {total:g}: {text}")
    >>> progress: Progress = show
    >>> progress(3, 10, "image street")
    3 of 10: image street
    """

    def __call__(self, done: float, total: float, text: str, /) -> None:
        """Report that ``done`` of ``total`` units are done; ``text`` names the current item."""


class _Points:
    """The field ``Sample.points``: reading it raises ValueError if the image is not annotated."""

    def __get__(self, sample: Sample | None, _: type[Sample]) -> Tensor:
        if sample is None:
            raise AttributeError  # the field has no default
        points: Tensor | None = sample.__dict__["points"]
        if points is None:
            raise ValueError(f"{sample.name}: not annotated, so its heads are unknown")
        return points

    def __set__(self, sample: Sample, points: Tensor | None) -> None:
        sample.__dict__["points"] = points


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its annotated heads; ``points`` is None for an image without annotation.

    ValueError for an image whose values lie outside [0,1] or are not finite.

    >>> import torch
    >>> heads = torch.tensor([[1.0, 2.0], [4.5, 0.5]])  # (x, y)
    >>> Sample("street", torch.zeros(3, 4, 6), heads)
    Sample('street', image [3, 4, 6], 2 heads)
    """

    name: str
    """Unique within its data set; the stem of the image file if there is one."""
    image: Tensor
    """[3,H,W] float32, RGB in [0,1]."""
    points: _Points = _Points()
    """[N,2] float64, head annotations (x, y) in pixels of this image.

    Read it only if the sample is ``annotated``; ValueError otherwise.
    """
    roi: Tensor | None = None
    """[H,W] bool, the region of interest, or None if the whole image counts."""

    def __post_init__(self) -> None:
        check_values(self.name, "image", self.image)

    @property
    def annotated(self) -> bool:
        """Whether the heads are known; other images can be attacked and counted too."""
        return self.__dict__["points"] is not None

    @property
    def count(self) -> int:
        """Number of annotated heads; ValueError if the image is not annotated."""
        return len(self.points)

    def __repr__(self) -> str:
        heads = f"{self.count} heads" if self.annotated else "not annotated"
        return f"Sample({self.name!r}, image {list(self.image.shape)}, {heads})"


def check_sequence(op: str, samples: object) -> None:
    """Raise TypeError, naming ``op``, unless an object is a sequence of ``Sample``.

    A data set is not read: its items are samples by its type.

    >>> import torch
    >>> check_sequence("train", [torch.rand(3, 4, 6)])
    Traceback (most recent call last):
    ...
    TypeError: train: samples must be a data set (pycc.data.open) or a list of \
pycc.types.Sample(name, image, points), got Tensor at index 0
    """
    got = None
    if isinstance(samples, list | tuple):
        others = ((n, item) for n, item in enumerate(samples) if not isinstance(item, Sample))
        for number, item in others:
            got = f"{type(item).__name__} at index {number}"
            break
    elif (
        isinstance(samples, Tensor | np.ndarray | str | bytes | Mapping)
        or not hasattr(samples, "__len__")
        or not hasattr(samples, "__getitem__")
    ):
        got = type(samples).__name__
    if got is not None:
        raise TypeError(
            f"{op}: samples must be a data set (pycc.data.open) or a list of "
            f"pycc.types.Sample(name, image, points), got {got}"
        )


def check_unique(op: str, names: Iterable[str]) -> None:
    """Raise ValueError, naming ``op``, if two samples have one name, which identifies results.

    >>> check_unique("attack", ["street", "square", "street"])
    Traceback (most recent call last):
    ...
    ValueError: attack: names of samples must be unique, got 'street' twice
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{op}: names of samples must be unique, got {name!r} twice")
        seen.add(name)


def each(samples: Sequence[T]) -> Iterator[T]:
    """Iterate over samples, or images, by position, one at a time in memory.

    A plain ``for`` needs an IndexError at the end, which data sets of other libraries may not
    raise: they are only required to have a length and items.

    >>> import torch
    >>> [sample.name for sample in each([Sample("street", torch.zeros(3, 4, 6), None)])]
    ['street']
    """
    return (samples[index] for index in range(len(samples)))


@dataclass(frozen=True)
class Interval:
    """A certified interval on a count: no patch of the stated size pushes the count out of it.

    It bounds the prediction of the defended counter, not the true count (``pycc.certify.conformal``
    bounds the true count).

    >>> interval = Interval(10.0, 14.5, "two_mask", deterministic=True)
    >>> 12.0 in interval, interval.width
    (True, 4.5)
    """

    low: float
    """People; 0 if no better bound is known."""
    high: float
    """People; infinite if no bound is known."""
    method: str
    deterministic: bool
    """Whether it always holds; otherwise it holds with probability ``confidence`` over the method's
    own random draws."""
    confidence: float = 1.0
    count: float | None = None
    """The count of the image by the defended counter."""
    vacuous: bool = False
    """Whether the interval excludes nothing that a patch could cause."""
    reason: str | None = None
    """Why the interval is vacuous or the method abstains."""
    alarm: bool | None = None
    """Whether the image itself raises an alarm; None for methods without alarms. Where it is not
    None, the interval holds for attacked images that raise no alarm."""

    @property
    def width(self) -> float:
        """The length of the interval, in people."""
        return self.high - self.low

    def __contains__(self, count: float) -> bool:
        return self.low <= count <= self.high
