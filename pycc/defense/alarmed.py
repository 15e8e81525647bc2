"""The count, or an alarm: windows are compared with what their surroundings predict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pycc.defense.bands import Bands, inside_of
from pycc.defense.base import Defended, DefendedModule, defended
from pycc.defense.completed import CompletionModel, OnCompletion
from pycc.defense.surroundings import MOST_PEOPLE, UNIT
from pycc.defense.windows import check_maps, check_patch
from pycc.types import Counter


@dataclass(frozen=True)
class Alarmed(OnCompletion):
    """The counter's own map unless a window leaves its band, which then holds its prediction."""

    margin: float
    straight_through: bool = False
    op: ClassVar[str] = "alarmed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"alarmed: margin must be finite and at least 0, got {self.margin}")

    def after(self, counter: Counter, density: Tensor, shape: tuple[int, int]) -> Tensor:
        """Compute the map, with the outlier of a map that raises an alarm replaced."""
        check_patch(self.op, self.patch_size, shape)
        maps = check_maps(self.op, density)
        return torch.stack([self._silenced(cells) for cells in maps])[:, None]

    def alarms(self, counter: Counter, images: Tensor) -> Tensor:
        """Return which images raise an alarm: [N] bool."""
        check_patch(self.op, self.patch_size, (images.shape[2], images.shape[3]))
        with torch.no_grad():
            maps = check_maps(self.op, counter(images))
        raised = [Bands.of(cells, self.completion, self.margin).alarm for cells in maps]
        return torch.tensor(raised, dtype=torch.bool, device=maps.device)

    def _silenced(self, cells: Tensor) -> Tensor:
        """Return a map [h,w] unchanged, or with the prediction in place of the outlier."""
        # Bands clamp cells likewise: a larger one must not count more than it is compared with.
        counted = cells.clamp(max=MOST_PEOPLE / max(1, cells.numel()))
        bands = Bands.of(cells, self.completion, self.margin)
        if not bands.alarm:
            return counted
        place = bands.outlier
        inside = inside_of(cells, self.completion, place)
        people = float(counted.detach()[inside].double().sum())
        guess = int(bands.guesses[place]) * UNIT
        if people > 0:
            replaced = counted.detach() * (guess / people)
        else:
            replaced = torch.full_like(counted, guess / int(inside.sum()))
        silenced = torch.where(inside, replaced, counted)
        if not self.straight_through:
            return silenced
        side = 1.0 if people > guess else -1.0
        return _towards(counted, inside, side) + (silenced - counted).detach()


def _towards(cells: Tensor, inside: Tensor, side: float) -> Tensor:
    """Return cells whose gradient inside a window points out of the band, to ``side``.

    A descent of any loss, whether it pushes counts up or down, then moves the window into its band.
    """
    cells = cells.view_as(cells)
    if cells.requires_grad:
        cells.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: torch.where(inside, side * gradient.abs(), gradient)
        )
    return cells


def alarmed(
    counter: Counter,
    *,
    patch_size: int,
    completion: CompletionModel,
    margin: float,
    straight_through: bool = False,
) -> Defended | DefendedModule:
    """Defend a counter by an alarm: compare windows with what their surroundings predict.

    A small network predicts the people g(W) of each window W from what surrounds it, and an image
    raises an alarm if the sum of some window differs from g(W) by more than
    margin sqrt(g(W) + 10) people (``pycc.defense.bands``). The map is the counter's own if no
    alarm is raised; ``pycc.certify.alarm`` certifies these counts. After an alarm the window that
    leaves its band the most is scaled to g(W). The method ``alarms`` takes images [N,3,H,W] and
    returns [N] bool. The receptive field is None.

    Args:
        counter: a counter with a bounded receptive field, in eval mode when it is called.
        patch_size: side of the patch, in pixels.
        completion: fitted on other images, for this counter and patch size
            (``pycc.certify.calibrate``, ``Calibration.completion``).
        margin: half the width of a band, in units of sqrt(g(W) + 10), at least 0; fixed on images
            that took no part in the fit (``pycc.certify.Alarm``).
        straight_through: for attacks: after an alarm the gradient is that of the counter without
            the defense, but inside the window it leads a descent of any loss back into the band.
            Otherwise the window gets no gradient: its count is a constant.

    Raises:
        TypeError: a completion of another type.
        ValueError: a counter without a bounded receptive field, a completion for other windows, or
            a negative margin; when the counter is called, a patch larger than the image, negative
            cells (use ``clipped``), or a network that predicts NaN.

    Example:
        >>> from pycc import certify, data, defense, models
        >>> counter = models.load("mcnn-synthetic")
        >>> scenes = data.open("synthetic", split="train", shape=(96, 128), limit=2)
        >>> calibration = certify.calibrate(counter, scenes, patch_sizes=[20])
        >>> completion = calibration.completion(patch_size=20)
        >>> victim = defense.alarmed(counter, patch_size=20, completion=completion, margin=9.0)
        >>> victim.alarms(scenes[0].image[None])
        tensor([False])
    """
    return defended(counter, Alarmed(patch_size, completion, float(margin), straight_through))
