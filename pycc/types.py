"""What every package agrees on: a counter, a sample, progress, and an interval on a count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from pycc.checks import check_values


@runtime_checkable
class Counter(Protocol):
    """A crowd counter: all that attacks, defenses and certificates know of a model.

    Calling it maps images [N,3,H,W] (float32, RGB in [0,1]) to a density map [N,1,h,w] in people
    per cell, so that ``density.sum((1, 2, 3))`` is the count. Colour conversion, normalisation and
    output scale live inside.
    """

    @property
    def stride(self) -> int:
        """Pixels per cell: the map of an [H,W] image is [H // stride, W // stride]."""

    @property
    def receptive_field(self) -> int | None:
        """Side, in pixels, of the square, centred on its cell, that one cell depends on.

        None where it is unbounded.
        """

    def __call__(self, images: Tensor, /) -> Tensor:
        """Density [N,1,h,w] of images [N,3,H,W]."""


class Progress(Protocol):
    """What long work reports to: how far it is, in any unit."""

    def __call__(self, done: float, total: float, text: str, /) -> None:
        """``done`` of ``total`` units are done; ``text`` says what is being worked on."""


class _Points:
    """The field ``Sample.points``: whoever asks for the heads of an image without any is told."""

    def __get__(self, sample: Sample | None, _: type[Sample]) -> Tensor:
        if sample is None:
            raise AttributeError  # the field has no default
        points: Tensor | None = sample.__dict__["points"]
        if points is None:
            raise ValueError(f"{sample.name}: not annotated, how many people it shows is unknown")
        return points

    def __set__(self, sample: Sample, points: Tensor | None) -> None:
        sample.__dict__["points"] = points


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its annotated heads; points None: an image without annotation.

    ValueError for an image whose values lie outside [0,1] or are not finite.
    """

    name: str
    """Unique within its data set; the stem of its file where there is one."""
    image: Tensor
    """[3,H,W] float32, RGB in [0,1]."""
    points: _Points = _Points()
    """[N,2] float64, head annotations (x, y) in pixels of this image; to be asked for only where
    it is ``annotated``, else ValueError."""
    roi: Tensor | None = None
    """[H,W] bool, the region of interest, or None where the whole image counts."""

    def __post_init__(self) -> None:
        check_values(self.name, "image", self.image)

    @property
    def annotated(self) -> bool:
        """Whether its heads are known: it can be attacked and counted without."""
        return self.__dict__["points"] is not None

    @property
    def count(self) -> int:
        """Number of annotated heads; ValueError where it is not annotated."""
        return len(self.points)

    def __repr__(self) -> str:
        heads = f"{self.count} heads" if self.annotated else "not annotated"
        return f"Sample({self.name!r}, image {list(self.image.shape)}, {heads})"


@dataclass(frozen=True)
class Interval:
    """A certified interval on a count: no patch of the stated size pushes it out.

    It speaks of the prediction of the defended counter, not of the truth (``conformal`` does).
    """

    low: float
    """People; 0 where nothing better is known."""
    high: float
    """People; infinite where nothing is known."""
    method: str
    deterministic: bool
    """Whether it always holds; otherwise with probability ``confidence`` over its own draws."""
    confidence: float = 1.0
    count: float | None = None
    """What the defended counter says of the image at hand."""
    vacuous: bool = False
    """Whether it says nothing that a patch could break."""
    reason: str | None = None
    """Why it is vacuous, or abstains."""

    @property
    def width(self) -> float:
        """People between the ends."""
        return self.high - self.low

    def __contains__(self, count: float) -> bool:
        return self.low <= count <= self.high
