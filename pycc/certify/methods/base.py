"""What every certificate method shares: its settings, its needs, its interval and its defense."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

from torch import Tensor

from pycc.certify.calibration import CalibratedNumber, Calibration
from pycc.certify.maps import Objective, slack_map, weakest_window
from pycc.defense.ablated_maps import Pixels, ablated_counts
from pycc.registry import Registry
from pycc.types import Counter, Interval, Progress


@dataclass(frozen=True)
class CertifiedImage:
    """One image of a run, and what the counter predicts for it."""

    image: Tensor
    """[3,H,W], RGB in [0,1]."""
    density: Tensor
    """[1,h,w], people per cell, 0 outside the region of interest."""
    parts: tuple[Tensor, ...] = ()
    """The density maps of the counters of an ensemble; of another counter its own."""
    index: int = 0
    """Number of the image in the run."""
    intervals: int = 1
    """Intervals of one method in the run, which are to hold all at once."""
    seed: int = 0
    """Key of the run's randomness."""
    progress: Progress | None = None
    """For the draws or pairs of masks of this image."""
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
        """Counts [samples] of random ablations, kept: no patch size changes them."""
        key = k, samples, seed
        if key not in self._counts:
            self._counts[key] = ablated_counts(
                counter, self.image, Pixels(k), draws=samples, seed=seed, fill=fill,
                progress=self.progress,
            )  # fmt: skip
        return self._counts[key]


@dataclass(frozen=True)
class CalibrationMaps:
    """What a counter, or each counter of an ensemble, predicts for the calibration images."""

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


@dataclass(frozen=True)
class NeededNumber:
    """A number that a method needs from a calibration."""

    kind: str
    patch_size: int | None = None
    counter: int | None = None
    given: float | None = None
    """Its value, if it is a setting of the method."""


class Certificate(ABC):
    """A certificate method: a frozen dataclass of its settings, which are flags of the command.

    A subclass is registered by ``certificates.register(name)``; the command, the data-set run and
    its attacks know it from then on.

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
    """Whether the interval follows from the density map alone: one forward pass for all patch
    sizes. The counter then needs a bounded receptive field."""
    needs_fill: ClassVar[bool] = False
    """Whether it hides pixels, in the mean colour of the calibration images."""
    slack_label: ClassVar[str] = "people in the fullest window around"
    """What ``slack_map`` shows."""

    @property
    def needs_heads(self) -> bool:
        """Whether calibration needs annotated heads."""
        return False

    @property
    def needs_images(self) -> bool:
        """Whether calibration needs images at all, rather than having all numbers given."""
        return self.needs_fill or bool(self.uncalibrated)

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """Settings without a value, whose numbers come from calibration images."""
        return ()

    def needed_numbers(self, patch_sizes: Sequence[int], counters: int) -> Iterator[NeededNumber]:
        """The numbers that a run of these patch sizes needs, for an ensemble of ``counters``."""
        return iter(())

    def calibrate(
        self, images: CalibrationMaps, patch_sizes: Sequence[int]
    ) -> Iterator[CalibratedNumber]:
        """The needed numbers, from calibration images or as they are given."""
        return iter(())

    def check_image(self, name: str, shape: tuple[int, int]) -> None:  # noqa: B027
        """ValueError, naming the image, if one of ``shape`` (H, W) cannot be certified."""

    @abstractmethod
    def interval(
        self, counter: Counter, image: CertifiedImage, patch_size: int, calibration: Calibration
    ) -> Interval:
        """The interval that no square patch of ``patch_size`` pixels can push the count out of."""

    def defended(
        self, counter: Counter, patch_size: int, calibration: Calibration, *, seed: int
    ) -> Counter | None:
        """The defended counter that the interval is about; None if no gradient reaches it."""
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
        """First cells (row, column) of the windows at which an end of the interval is reached.

        The upper end belongs to the emptiest window, where a patch has most to add, the lower end
        to the fullest one. ``density`` is [1,h,w] of the counter with this ``number`` in the
        ensemble, ``window`` (height, width) in cells. Called for methods with ``from_map`` alone.
        """
        return [weakest_window(density, window, objective)]

    def slack_map(
        self, density: Tensor, window: tuple[int, int], calibration: Calibration
    ) -> Tensor:
        """[h,w], people: how much a patch around each cell can change (``slack_label``)."""
        return slack_map(density, window)

    def check_positive(self, *names: str) -> None:
        """ValueError unless these settings are at least 1."""
        for name in names:
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{self.name}: {name} must be at least 1, got {value}")

    def check_people(self, name: str, *, positive: bool) -> None:
        """ValueError unless this setting is None or a number of people."""
        value = getattr(self, name)
        if value is None or (0 <= value < float("inf") and (value > 0 or not positive)):
            return
        expected = "above 0" if positive else "at least 0"
        raise ValueError(
            f"{self.name}: {name} must be a finite number of people {expected}, got {value}"
        )

    def settings(self) -> dict[str, object]:
        """Its name and all settings, as JSON values."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **own}


certificates: Registry[type[Certificate]] = Registry("certificate method")
"""The methods by the names that the command takes."""


def chosen(method: str | Certificate | Sequence[str | Certificate]) -> tuple[Certificate, ...]:
    """The methods that are meant, each name with its default settings.

    ValueError for none, an unknown name, or two of one name.
    """
    several = [method] if isinstance(method, str | Certificate) else method
    methods = tuple(certificates[one]() if isinstance(one, str) else one for one in several)
    names = [one.name for one in methods]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"certify: expected methods of different names, got {names or 'none'}")
    return methods
