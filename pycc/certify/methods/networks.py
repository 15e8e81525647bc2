"""The base of certificates by completion networks: fits, checks, and the package's networks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from torch import Tensor

from pycc.certify.calibration import CalibratedCompletion, Calibration
from pycc.certify.completion_fit import fit_completion
from pycc.certify.methods.base import CalibrationMaps, Certificate
from pycc.counters import identity
from pycc.defense.completed import CompletionModel
from pycc.defense.min_max import Place, WindowGrid, plan_of
from pycc.grid import reached_window
from pycc.settings import check_fields, flag
from pycc.types import Counter, Progress

PACKAGED = Path(__file__).parents[1] / "pretrained" / "mcnn-synthetic.json"
"""Networks for the built-in counter (tools/fit_builtin_completions.py)."""


_Fit = tuple[
    int, int, str, WindowGrid, CalibratedCompletion | None, Sequence[Tensor]
]  # fmt: skip
"""Patch size, number and identity of the counter, windows, the package's completion, maps."""


def check_fitted(
    counter: Counter, stored: CalibratedCompletion, grid_step: int | None = None
) -> None:
    """Raise ValueError unless a completion is that of this counter and of windows on this grid."""
    op = stored.method
    where = f"{op}: the network for {stored.patch_size} pixels"
    stored.model.check(op, counter, stored.patch_size)
    if grid_step is not None and grid_step != stored.model.grid.step:
        raise ValueError(
            f"{where} was fitted for windows every {stored.model.grid.step} cells, and the grid "
            f"step is {grid_step}; calibrate with this grid"
        )
    if identity(counter) != stored.identity:
        raise ValueError(
            f"{where} was fitted for another counter (other weights, options or image scale); "
            "calibrate for this counter"
        )


def packaged_completion(
    known: str, patch_size: int, grid: WindowGrid
) -> CalibratedCompletion | None:
    """Return the package's completion for a counter of this identity, or None.

    >>> packaged_completion("another counter", 40, WindowGrid.of(28)) is None
    True
    """
    identities, completions = _packaged()
    if known not in identities:
        return None
    wanted = patch_size, grid
    fitting = (entry for entry in completions if (entry.patch_size, entry.model.grid) == wanted)
    return next(fitting, None)


@cache
def _packaged() -> tuple[frozenset[str], tuple[CalibratedCompletion, ...]]:
    """Read the identities of the built-in counter, plain and clipped, and its completions."""
    stored = json.loads(PACKAGED.read_text())
    completions = map(CalibratedCompletion.of_json, stored["completions"])
    return frozenset(stored["identities"]), tuple(completions)


@dataclass(frozen=True)
class NetworkCertificate(Certificate):
    """A certificate that needs a completion network for each patch size and counter."""

    from_map = True
    grid_step: int | None = flag(
        None, "cells between windows (default: a twelfth of the cells a patch reaches)",
        advanced=True,
    )  # fmt: skip
    fit_seed: int = flag(0, "key of the randomness of the network's fit", advanced=True)

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        if self.grid_step is not None:
            self.check_positive("grid_step")

    @property
    def needs_maps(self) -> bool:
        """Whether calibration needs density maps: a network is fitted to them."""
        return True

    def needs_maps_of(self, counters: Sequence[Counter], patch_sizes: Sequence[int]) -> bool:
        """Whether a network is fitted: the package does not have all of them."""
        return any(
            self.packaged(identity(part), patch_size, self._grid(part, patch_size)) is None
            for part in counters
            for patch_size in patch_sizes
        )

    def packaged(
        self, known: str, patch_size: int, grid: WindowGrid
    ) -> CalibratedCompletion | None:
        """Return the package's completion that replaces a fit; by default none does."""
        return None

    def maps_to_fit(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the maps that a network is fitted to; by default all calibration maps."""
        return maps

    def complete(
        self, images: CalibrationMaps, patch_sizes: Sequence[int], progress: Progress | None
    ) -> Iterator[CalibratedCompletion]:
        """Fit a network for each patch size and counter, on images that the patch fits into.

        Networks that the package has are taken as they are.
        """
        jobs = list(self._fits(images, patch_sizes))  # refuse bad images before the first fit
        for patch_size, number, known, grid, packaged, maps in jobs:
            if packaged is not None:
                yield replace(packaged, counter=number, identity=known, method=self.name)
                continue
            network = fit_completion(maps, grid, seed=self.fit_seed, progress=progress)
            yield CalibratedCompletion(
                CompletionModel(grid, network), patch_size, number, known, images.source,
                len(maps), self.name,
            )  # fmt: skip

    def _fits(self, images: CalibrationMaps, patch_sizes: Sequence[int]) -> Iterator[_Fit]:
        """Iterate over the needed networks; ValueError for too few or too small images."""
        identities = [identity(counter) for counter in images.counters]
        for patch_size in patch_sizes:
            for number, counter in enumerate(images.counters):
                known, grid = identities[number], self._grid(counter, patch_size)
                packaged = self.packaged(known, patch_size, grid)
                usable = images.usable(number, patch_size)
                self.check_images(images, patch_size, len(usable), fitted=packaged is None)
                yield patch_size, number, known, grid, packaged, self.maps_to_fit(usable)

    def check_images(
        self, images: CalibrationMaps, patch_size: int, usable: int, *, fitted: bool
    ) -> None:
        """Raise ValueError unless a patch fits into enough images, ``usable`` of all.

        ``fitted`` states whether a network is fitted to them.
        """
        if fitted and not usable:
            raise ValueError(
                f"{images.source}: a completion network for {patch_size} pixels must be fitted on "
                f"images at least as large, got none among {len(images.shapes)}; give larger "
                "calibration images"
            )

    def _grid(self, counter: Counter, patch_size: int) -> WindowGrid:
        assert counter.receptive_field is not None  # the engine has checked it
        reach = reached_window(patch_size, counter.stride, counter.receptive_field)
        grid = WindowGrid.of(reach)
        return grid if self.grid_step is None else WindowGrid(reach, self.grid_step)

    def check_calibration(
        self, counters: Sequence[Counter], patch_sizes: Sequence[int], calibration: Calibration
    ) -> None:
        """Raise ValueError unless all networks are there, for these counters and windows."""
        for patch_size in patch_sizes:
            for number, counter in enumerate(counters):
                stored = calibration.completed(patch_size, number, method=self.name)
                check_fitted(counter, stored, self.grid_step)


def patch_cell(
    grid: WindowGrid, cells: tuple[int, int], reached: tuple[int, int], place: Place
) -> Place:
    """Return the first of the ``reached`` cells of a patch in the middle of a window.

    ``cells`` is the size (h, w) of the map, ``place`` the window.
    """
    row, column = plan_of(grid, cells).corner(place)
    middle = (grid.step - 1) // 2
    return min(row + middle, cells[0] - reached[0]), min(column + middle, cells[1] - reached[1])
