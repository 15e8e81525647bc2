"""The completed count: what two hidden windows hold is predicted from their surroundings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pycc.checks import check_type, check_whole
from pycc.defense.base import Defended, DefendedModule, defended
from pycc.defense.cells import OnMap
from pycc.defense.completion_net import CompletionNetwork
from pycc.defense.min_max import MinMax, WindowGrid, guess, min_max, plan_of
from pycc.defense.surroundings import UNIT, whole_units
from pycc.defense.windows import check_maps, check_patch
from pycc.grid import reached_window
from pycc.types import Counter

_OP = "completed"


@dataclass(frozen=True)
class CompletionModel:
    """A completion network with the windows that it was fitted for.

    ``pycc.certify.calibrate`` fits one for each counter and patch size.

    >>> from pycc import certify, data, models
    >>> scenes = data.open("synthetic", split="train", shape=(96, 128), limit=2)
    >>> calibration = certify.calibrate(models.load("mcnn-synthetic"), scenes, patch_sizes=[40])
    >>> calibration.completion(patch_size=40).grid.side  # cells per axis of a window
    29
    """

    grid: WindowGrid
    network: CompletionNetwork

    def min_max(self, cells: Tensor) -> MinMax:
        """Compute the completed count of a map [h,w], people per cell, and its interval."""
        return min_max(whole_units(cells), self.grid, self.network)

    def check(self, op: str, counter: Counter, patch_size: int) -> None:
        """Raise ValueError, naming ``op``, unless the windows are those of this counter and patch.

        The counter needs a bounded receptive field.
        """
        if counter.receptive_field is None:
            raise ValueError(
                f"{op}: the counter must have a bounded receptive field, got none: a patch can "
                "change every cell; count isolated tiles (pycc.defense.tiled)"
            )
        reach = reached_window(patch_size, counter.stride, counter.receptive_field)
        if reach != self.grid.reach:
            raise ValueError(
                f"{op}: a patch of {patch_size} pixels reaches {reach} cells of the counter per "
                f"axis, and the completion network was fitted for {self.grid.reach}; calibrate "
                "for this counter and patch size"
            )


@dataclass(frozen=True)
class OnCompletion(OnMap):
    """A defense that compares or replaces windows with what a completion network predicts."""

    patch_size: int
    completion: CompletionModel

    def __post_init__(self) -> None:
        check_whole(self.op, "patch_size", self.patch_size, 1)
        check_type(
            self.op, "completion", self.completion, CompletionModel,
            "a completion of a calibration (pycc.certify.calibrate)",
        )  # fmt: skip

    def check_counter(self, counter: Counter) -> None:
        """Raise ValueError for a counter that the completion was not fitted for."""
        self.completion.check(self.op, counter, self.patch_size)


@dataclass(frozen=True)
class Completed(OnCompletion):
    """Completion of the map under the two windows that attain the minimum of maxima."""

    straight_through: bool = False
    op: ClassVar[str] = _OP

    def after(self, counter: Counter, density: Tensor, shape: tuple[int, int]) -> Tensor:
        """Compute the map with the cells of both windows replaced."""
        check_patch(self.op, self.patch_size, shape)
        maps = check_maps(self.op, density)
        if self.straight_through:
            completed = torch.stack([self._completed(cells) for cells in maps.detach()])
            return density + (completed[:, None] - density).detach()
        return torch.stack([self._completed(cells) for cells in maps])[:, None]

    def _completed(self, cells: Tensor) -> Tensor:
        """Spread the prediction for each window over its cells: first W, then W' without W."""
        model = self.completion
        result = model.min_max(cells)
        plan = plan_of(model.grid, (cells.shape[0], cells.shape[1]))
        network = model.network.to(cells.device)
        # Only the rounding of the sum of these cells separates it from the exact prediction.
        completed = cells
        hidden = torch.zeros_like(cells, dtype=torch.bool)
        windows = (result.first, result.second), (result.second, result.first)
        for (window, other), exact in zip(windows, result.guesses, strict=True):
            if window is None:
                continue
            people = _valued(exact * UNIT, cells, guess(cells, plan, network, window, other))
            inside = torch.zeros_like(hidden)
            inside[plan.inside(window)] = True
            share = (people / int(inside.sum())).to(cells)
            completed = torch.where(inside & ~hidden, share, completed)
            hidden |= inside
        return completed


def _valued(value: float, like: Tensor, gradient: Tensor) -> Tensor:
    """Return a number with the gradient of another."""
    return value + (gradient - gradient.detach()).to(like)


def completed(
    counter: Counter,
    *,
    patch_size: int,
    completion: CompletionModel,
    straight_through: bool = False,
) -> Defended | DefendedModule:
    """Defend a counter by completion: predict what two windows hold from what surrounds them.

    The count is the minimum over windows W of the maximum over windows W' of the sum of all cells
    outside both, plus what a small network predicts for W and for the rest of W'
    (``pycc.defense.min_max``). The map is that of the pair of windows that attains it; cells of the
    counter's map are rounded to multiples of 2^-32 people. ``pycc.certify.completion`` certifies
    these counts. The receptive field is None.

    Args:
        counter: a counter with a bounded receptive field, in eval mode when it is called.
        patch_size: side of the patch, in pixels.
        completion: fitted on other images, for this counter and patch size
            (``pycc.certify.calibrate``, ``Calibration.completion``).
        straight_through: whether the gradient is that of the counter without the defense, for
            attacks; counts are the same. Otherwise it passes through the visible cells and the
            network.

    Raises:
        TypeError: a completion of another type.
        ValueError: a counter without a bounded receptive field or a completion for other windows;
            when the counter is called, a patch larger than the image, negative cells (use
            ``clipped``), or a network that predicts NaN.

    Source:
        Minima over masks of maxima over second masks are PatchCleanser's (Xiang, Mahloujifar and
        Mittal, USENIX Security 2022), for classifiers.

    Example:
        >>> from pycc import certify, data, defense, models
        >>> counter = models.load("mcnn-synthetic")
        >>> scenes = data.open("synthetic", split="train", shape=(96, 128), limit=2)
        >>> calibration = certify.calibrate(counter, scenes, patch_sizes=[20])
        >>> completion = calibration.completion(patch_size=20)
        >>> victim = defense.completed(counter, patch_size=20, completion=completion)
        >>> list(victim(scenes[0].image[None]).shape)
        [1, 1, 24, 32]
    """
    return defended(counter, Completed(patch_size, completion, straight_through))
