"""The base class of certificate methods, the data they receive, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from pycc.certify.calibration import CalibratedCompletion, CalibratedNumber, Calibration
from pycc.certify.maps import Objective, slack_map, weakest_window
from pycc.checks import check_type
from pycc.defense.ablated_maps import Pixels, ablated_counts
from pycc.registry import Registry
from pycc.settings import values_of
from pycc.types import Counter, Interval, Progress


@dataclass(frozen=True)
class CertifiedImage:
    """One image of a run, with the counter's density map."""

    image: Tensor
    """[3,H,W], RGB in [0,1]."""
    density: Tensor
    """[1,h,w], people per cell, 0 outside the region of interest."""
    parts: tuple[Tensor, ...] = ()
    """The density maps of the counters of an ensemble; the single map of any other counter."""
    index: int = 0
    """Number of the image in the run."""
    intervals: int = 1
    """Number of intervals of one method in the run, which must hold simultaneously."""
    seed: int = 0
    """Key of the run's randomness."""
    progress: Progress | None = None
    """Progress of the draws or pairs of masks of this image."""
    _counts: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W), pixels."""
        return self.image.shape[-2], self.image.shape[-1]

    @property
    def cells(self) -> tuple[int, int]:
        """(h, w) of the density map."""
        return self.density.shape[-2], self.density.shape[-1]

    def ablated_counts(
        self, counter: Counter, k: int, samples: int, *, fill: tuple[float, ...], seed: int
    ) -> Tensor:
        """Return the counts [samples] of random ablations, kept for the other patch sizes."""
        key = k, samples, seed
        if key not in self._counts:
            self._counts[key] = ablated_counts(
                counter, self.image, Pixels(k), draws=samples, seed=seed, fill=fill,
                progress=self.progress,
            )  # fmt: skip
        return self._counts[key]


@dataclass(frozen=True)
class CalibrationMaps:
    """The density maps of the calibration images, by a counter or each counter of an ensemble."""

    source: str
    """The data that the images are from."""
    counters: tuple[Counter, ...]
    shares: tuple[float, ...]
    """Weights of the counters in the ensemble."""
    maps: tuple[tuple[Tensor, ...], ...] = ()
    """For each counter one density map [h,w] per image, people per cell."""
    truths: tuple[float, ...] = ()
    """Annotated counts, if a method needs them."""
    shapes: tuple[tuple[int, int], ...] = ()
    """(H, W) of the images."""
    completions: tuple[CalibratedCompletion, ...] = ()
    """The networks of all methods (``Certificate.complete``), when numbers are computed."""

    def usable(self, number: int, patch_size: int) -> list[Tensor]:
        """Return the maps of a counter of the images that a patch fits into; none if not needed."""
        shaped = zip(self.maps[number], self.shapes, strict=bool(self.maps[number]))
        return [cells for cells, shape in shaped if patch_size <= min(shape)]


@dataclass(frozen=True)
class NeededNumber:
    """A number that a method needs from a calibration."""

    kind: str
    patch_size: int | None = None
    counter: int | None = None
    given: float | None = None
    """Its value if it is a setting of the method, else None."""


class Certificate(ABC):
    """A certificate method: a frozen dataclass of its settings, which are flags of the command.

    A subclass that is registered by ``certificates.register(name)`` is available in the command, in
    ``certify.run`` and to its attacks.

    >>> from dataclasses import dataclass
    >>> from pycc.certify import Certificate, Interval
    >>> @dataclass(frozen=True)
    ... class Trivial(Certificate):
    ...     name = "trivial"
    ...
    ...     def interval(self, counter, image, patch_size, calibration):
    ...         return Interval(0.0, float("inf"), self.name, deterministic=True, vacuous=True)
    >>> Trivial().needs_images, Trivial().settings()
    (False, {'name': 'trivial'})
    """

    name: ClassVar[str]
    from_map: ClassVar[bool] = False
    """Whether the interval follows from the density map alone, so that one forward pass serves all
    patch sizes. The counter then needs a bounded receptive field."""
    needs_fill: ClassVar[bool] = False
    """Whether it hides pixels, with the mean colour of the calibration images."""
    slack_label: ClassVar[str] = "people in the fullest window around"
    """Label of the values of ``slack_map``."""

    @property
    def needs_heads(self) -> bool:
        """Whether calibration needs annotated heads."""
        return False

    @property
    def needs_maps(self) -> bool:
        """Whether calibration needs the density maps of images."""
        return bool(self.uncalibrated)

    def needs_maps_of(self, counters: Sequence[Counter], patch_sizes: Sequence[int]) -> bool:
        """Whether calibration for these counters needs the density maps of images."""
        return self.needs_maps

    @property
    def needs_images(self) -> bool:
        """Whether calibration needs images; if not, all numbers are given."""
        return self.needs_fill or self.needs_maps

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """Names of the settings without a value, which are computed from calibration images."""
        return ()

    def needed_numbers(self, patch_sizes: Sequence[int], counters: int) -> Iterator[NeededNumber]:
        """Iterate over the numbers that a run needs for an ensemble of ``counters`` counters."""
        return iter(())

    def calibrate(
        self, images: CalibrationMaps, patch_sizes: Sequence[int]
    ) -> Iterator[CalibratedNumber]:
        """Iterate over the needed numbers, given or computed from calibration images.

        Networks are fitted before (``complete``), and part of ``images``.
        """
        return iter(())

    def complete(
        self, images: CalibrationMaps, patch_sizes: Sequence[int], progress: Progress | None
    ) -> Iterator[CalibratedCompletion]:
        """Iterate over the needed completion networks, fitted to the maps of calibration images."""
        return iter(())

    def check_calibration(  # noqa: B027
        self, counters: Sequence[Counter], patch_sizes: Sequence[int], calibration: Calibration
    ) -> None:
        """Raise ValueError unless a calibration has what this method alone needs of it."""

    def check_image(self, name: str, shape: tuple[int, int]) -> None:  # noqa: B027
        """Raise ValueError that names the image if its ``shape`` (H, W) cannot be certified."""

    @abstractmethod
    def interval(
        self, counter: Counter, image: CertifiedImage, patch_size: int, calibration: Calibration
    ) -> Interval:
        """Return the interval that no square patch of this side can push the count out of."""

    def defended(
        self, counter: Counter, patch_size: int, calibration: Calibration, *, seed: int
    ) -> Counter | None:
        """Return the defended counter that is certified; None if it has no useful gradient."""
        return None

    def weakest_windows(
        self,
        density: Tensor,
        window: tuple[int, int],
        objective: Objective,
        calibration: Calibration,
        patch_size: int,
        number: int,
    ) -> list[tuple[int, int]]:
        """Return the first cells (row, column) of the windows that determine an interval's end.

        The upper end belongs to the emptiest window, to which a patch can add most, the lower end
        to the fullest window. ``density`` is the map [1,h,w] of the counter with this ``number`` in
        the ensemble, ``window`` (height, width) in cells. Called only for methods with
        ``from_map``.
        """
        return [weakest_window(density, window, objective)]

    def slack_map(
        self, density: Tensor, window: tuple[int, int], calibration: Calibration
    ) -> Tensor:
        """Compute how many people [h,w] a patch around each cell can change (``slack_label``)."""
        return slack_map(density, window)

    def check_positive(self, *names: str) -> None:
        """Raise ValueError unless these settings are at least 1."""
        for name in names:
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{self.name}: {name} must be at least 1, got {value}")

    def check_people(self, name: str, *, positive: bool) -> None:
        """Raise ValueError unless this setting is None or a number of people."""
        value = getattr(self, name)
        if value is None or (0 <= value < float("inf") and (value > 0 or not positive)):
            return
        expected = "above 0" if positive else "at least 0"
        raise ValueError(
            f"{self.name}: {name} must be a finite number of people {expected}, got {value}"
        )

    def settings(self) -> dict[str, object]:
        """Return its name and all settings, as JSON values."""
        return {"name": self.name, **values_of(self)}


certificates: Registry[type[Certificate]] = Registry("certificate method")
"""The methods by the names that the command takes."""


def chosen(method: str | Certificate | Sequence[str | Certificate]) -> tuple[Certificate, ...]:
    """Return the methods; a name stands for the method with its default settings.

    Raise TypeError for another object, ValueError for no method, an unknown name, or two methods of
    one name.
    """
    expected = "a name, a method or a list of them"
    for entry in method if isinstance(method, list | tuple) else [method]:
        check_type("certify", "method", entry, str | Certificate, expected)
    several = [method] if isinstance(method, str | Certificate) else method
    methods = tuple(certificates[entry]() if isinstance(entry, str) else entry for entry in several)
    names = [entry.name for entry in methods]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"certify: expected methods of different names, got {names or 'none'}")
    return methods
