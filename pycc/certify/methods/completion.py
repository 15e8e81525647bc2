"""Certificate C6: the count with two hidden windows, predicted from their surroundings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from torch import Tensor

from pycc import defense
from pycc.certify.calibration import CalibratedCompletion, Calibration
from pycc.certify.completion_fit import fit_completion
from pycc.certify.maps import Objective, map_of, mixed, rounding_room, shape_of
from pycc.certify.methods.base import CalibrationMaps, Certificate, CertifiedImage, certificates
from pycc.counters import identity
from pycc.defense.completed import CompletionModel
from pycc.defense.min_max import WindowGrid, plan_of
from pycc.defense.mixture import parts_of, with_parts
from pycc.defense.windows import check_patch
from pycc.grid import reached_window
from pycc.settings import check_fields, flag
from pycc.types import Counter, Interval, Progress

PACKAGED = Path(__file__).parents[1] / "pretrained" / "mcnn-synthetic.json"
"""Networks for the built-in counter (tools/fit_builtin_completions.py)."""


def completion(
    counter: Counter, image: Tensor, *, patch_size: int, calibration: Calibration
) -> Interval:
    """Bound the completed count of every attacked image (C6).

    ``image`` is [3,H,W], RGB in [0,1]. ``patch_size`` is the side in pixels of a square patch, at
    any place and of any content. ``calibration`` is from ``calibrate``, with the same counter and
    patch size. The defended counter is ``pycc.defense.completed``.

    For windows W and W' of which one contains all cells that the patch reaches, the count is
    min_W max_W' A(W, W'), where A sees neither W nor W': the sum of all other cells, and what a
    network predicts for both. With W* around the patch, row W* does not see it, so the count is at
    most max_W' A(W*, W') of the clean image; and each row's maximum is at least its entry of column
    W*, so it is at least min_W A(W, W*). The interval's ends are the extremes over W*. They are
    exact (``pycc.defense.min_max``), and moved outward by what the rounding of cells outside the
    patch's reach can change, with the network's Lipschitz constant. Deterministic.

    ValueError for a counter in train mode or without a bounded receptive field, an image of another
    type or range, cells that are negative or not finite, a patch that does not fit into the image,
    and a calibration without this patch size or for another counter.

    >>> from pycc import data, models
    >>> from pycc.certify import calibrate
    >>> counter = models.load("mcnn-synthetic")
    >>> scenes = data.open("synthetic", split="train", shape=(96, 128), limit=2)
    >>> calibration = calibrate(counter, scenes, patch_sizes=[20])
    >>> interval = completion(counter, scenes[0].image, patch_size=20, calibration=calibration)
    >>> interval.low <= interval.count <= interval.high
    True
    """
    _check(counter, calibration.completed(patch_size), None)
    cells = map_of(counter, image)
    check_patch("completion", patch_size, shape_of(image))
    return completion_of(cells, calibration.completion(patch_size=patch_size))


def completion_of(cells: Tensor, model: CompletionModel) -> Interval:
    """Compute ``completion`` from a density map [1,h,w]."""
    low, count, high = model.min_max(cells[0]).people
    # The rounding of cells moves the visible sum by this much, and two predictions by slope times.
    room = rounding_room(float(cells.double().sum())) * (1.0 + 2.0 * model.network.slope)
    everywhere = plan_of(model.grid, shape_of(cells)).everywhere
    return Interval(
        low=max(0.0, low - room),
        high=high + room,
        method="completion",
        deterministic=True,
        count=count,
        vacuous=everywhere,
        reason="one window that a patch can touch is the full map" if everywhere else None,
    )


def _check(counter: Counter, stored: CalibratedCompletion, grid_step: int | None) -> None:
    """Raise ValueError unless a completion is that of this counter and of windows on this grid."""
    where = f"completion: the network for {stored.patch_size} pixels"
    stored.model.check("completion", counter, stored.patch_size)
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


@certificates.register("completion")
@dataclass(frozen=True)
class Completion(Certificate):
    """The completed count; each counter of an ensemble is completed separately.

    >>> from pycc.certify import Completion
    >>> Completion(grid_step=2).settings()
    {'name': 'completion', 'grid_step': 2, 'fit_seed': 0, 'refit': False}
    """

    name = "completion"
    from_map = True
    grid_step: int | None = flag(
        None, "cells between windows (default: a twelfth of the cells a patch reaches)",
        advanced=True,
    )  # fmt: skip
    fit_seed: int = flag(0, "key of the randomness of the network's fit", advanced=True)
    refit: bool = flag(
        False, "fit networks to the calibration images for the built-in counter too", advanced=True
    )

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        if self.grid_step is not None:
            self.check_positive("grid_step")

    @property
    def needs_maps(self) -> bool:
        """Whether calibration needs density maps: a network is fitted to them."""
        return True

    def complete(
        self, images: CalibrationMaps, patch_sizes: Sequence[int], progress: Progress | None
    ) -> Iterator[CalibratedCompletion]:
        """Fit a network for each patch size and counter, on images that the patch fits into.

        The package has networks for the built-in counter, which are taken unless ``refit``.
        """
        identities = [identity(counter) for counter in images.counters]
        for patch_size in patch_sizes:
            for number, counter in enumerate(images.counters):
                known, grid = identities[number], self._grid(counter, patch_size)
                packaged = None if self.refit else packaged_completion(known, patch_size, grid)
                if packaged is not None:
                    yield replace(packaged, counter=number, identity=known)
                    continue
                usable = [
                    cells
                    for cells, shape in zip(images.maps[number], images.shapes, strict=True)
                    if patch_size <= min(shape)
                ]
                if not usable:
                    raise ValueError(
                        f"{images.source}: a completion network for {patch_size} pixels must be "
                        "fitted on images at least as large, got none among "
                        f"{len(images.shapes)}; give larger calibration images"
                    )
                network = fit_completion(usable, grid, seed=self.fit_seed, progress=progress)
                yield CalibratedCompletion(
                    CompletionModel(grid, network), patch_size, number, known,
                    images.source, len(usable),
                )  # fmt: skip

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
                _check(counter, calibration.completed(patch_size, number), self.grid_step)

    def interval(
        self, counter: Counter, image: CertifiedImage, patch_size: int, calibration: Calibration
    ) -> Interval:
        """Return the interval of the counter, or of the weighted sum of an ensemble."""
        _, shares = parts_of(counter)
        intervals = [
            completion_of(cells, calibration.completion(patch_size=patch_size, counter=number))
            for number, cells in enumerate(image.parts)
        ]
        return mixed(intervals, shares)

    def defended(
        self, counter: Counter, patch_size: int, calibration: Calibration, *, seed: int
    ) -> Counter:
        """Return ``pycc.defense.completed``, with the gradient of the counter without it."""

        def completed(number: int, part: Counter) -> Counter:
            model = calibration.completion(patch_size=patch_size, counter=number)
            return defense.completed(
                part, patch_size=patch_size, completion=model, straight_through=True
            )

        return with_parts(counter, completed)

    def weakest_windows(
        self,
        density: Tensor,
        window: tuple[int, int],
        objective: Objective,
        calibration: Calibration,
        patch_size: int,
        number: int,
    ) -> list[tuple[int, int]]:
        """Return the middle of the window at which the interval's end is reached."""
        model = calibration.completion(patch_size=patch_size, counter=number)
        result = model.min_max(density[0])
        plan = plan_of(model.grid, shape_of(density))
        corner = plan.corner(result.high_at if objective == "over" else result.low_at)
        middle = (model.grid.step - 1) // 2
        (row, column), (height, width) = corner, shape_of(density)
        return [(min(row + middle, height - window[0]), min(column + middle, width - window[1]))]
