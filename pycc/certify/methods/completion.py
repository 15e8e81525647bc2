"""Certificate C6: the count with two hidden windows, predicted from their surroundings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pycc import defense
from pycc.certify.calibration import CalibratedCompletion, Calibration
from pycc.certify.maps import Objective, map_of, mixed, rounding_room, shape_of
from pycc.certify.methods.base import CertifiedImage, certificates
from pycc.certify.methods.networks import (
    NetworkCertificate,
    check_fitted,
    packaged_completion,
    patch_cell,
)
from pycc.defense.completed import CompletionModel
from pycc.defense.min_max import WindowGrid, plan_of
from pycc.defense.mixture import parts_of, with_parts
from pycc.defense.windows import check_patch
from pycc.settings import flag
from pycc.types import Counter, Interval


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
    check_fitted(counter, calibration.completed(patch_size))
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


@certificates.register("completion")
@dataclass(frozen=True)
class Completion(NetworkCertificate):
    """The completed count; each counter of an ensemble is completed separately.

    >>> from pycc.certify import Completion
    >>> Completion(grid_step=2).settings()
    {'name': 'completion', 'grid_step': 2, 'fit_seed': 0, 'refit': False}
    """

    name = "completion"
    refit: bool = flag(
        False, "fit networks to the calibration images for the built-in counter too", advanced=True
    )

    def packaged(
        self, known: str, patch_size: int, grid: WindowGrid
    ) -> CalibratedCompletion | None:
        """Return the package's network for the built-in counter, unless ``refit``."""
        return None if self.refit else packaged_completion(known, patch_size, grid)

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
        place = result.high_at if objective == "over" else result.low_at
        return [patch_cell(model.grid, shape_of(density), window, place)]
