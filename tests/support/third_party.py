"""An attack, a model and a data set layout as a user adds them, outside the package.

Within ``registered`` they are known as ``sign``, ``dots`` and ``heads_in_text``. A user's package
would decorate them instead (``attacks.register("sign")``), as ``examples/add_attack.py`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pycc.attack import BestTracker, OptimisedPatches, PatchAttack, Problem, attacks, look_at
from pycc.data import save_image
from pycc.data.dataset import PairedFiles, Refuse, by_name, formats, pair_up
from pycc.models.base import MODELS, CounterModel
from pycc.settings import flag
from pycc.types import Sample


@dataclass(frozen=True)
class SignDescent(PatchAttack):
    """Plain sign descent on the objective, from one start."""

    name = "sign"
    uses_gradient = True

    step_size: float = flag(0.1, "change of a patch pixel in one step, of [0,1]")

    def optimise(
        self, problem: Problem, *, seed: int, step_done: Callable[[int], None]
    ) -> OptimisedPatches:
        """The best patches of all steps."""
        best, looks = BestTracker(self, problem), look_at(self.steps)
        patch = self.start(problem.index, problem.side, seed).to(problem.like)
        zero: list[float] = []
        for step in range(self.steps + 1):
            for _ in range(looks.count(step)):
                best.look(patch)
                best.note()
            if step < self.steps:
                gradient = self.step_gradient(problem, patch, seed, step)
                zero = zero or self.zero_share(gradient)
                patch = (patch - self.step_size * gradient.sign()).clamp(0.0, 1.0)
                step_done(step + 1)
        return best.result(zero)


class Dots(CounterModel):
    """Two convolutions and a pooling: stride 2, a receptive field of 8 pixels."""

    name = "dots"
    minimum_side = 2

    def __init__(self, *, channels: int = 4) -> None:
        net = nn.Sequential(
            nn.Conv2d(3, channels, 5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(channels, 1, 3, padding=1),
            nn.Softplus(),
        )
        super().__init__(net, stride=2, receptive_field=10)
        self._channels = channels

    def options(self) -> dict[str, object]:
        """The options that rebuild it."""
        return {"channels": self._channels}


class HeadsInText:
    """``pictures/NAME.png`` beside ``heads/NAME.txt``, one head "x y" per line."""

    def recognises(self, root: Path) -> bool:
        """Whether ``root`` holds both folders."""
        return (root / "pictures").is_dir() and (root / "heads").is_dir()

    def splits(self, root: Path) -> tuple[str, ...]:
        """One part, of all images."""
        return ("all",)

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """All images, paired with their text files by name."""
        images, heads = (by_name(sorted((root / name).iterdir())) for name in ("pictures", "heads"))
        pairs = pair_up(images, heads if annotated else None, refuse)
        return PairedFiles(root.name, pairs, read_heads)


def read_heads(path: Path) -> NDArray[np.float64]:
    """[N,2] (x, y): the heads of one text file."""
    rows = [line.split() for line in path.read_text().splitlines()]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


@contextmanager
def registered() -> Iterator[None]:
    """Register the attack, the model and the layout within a ``with`` block."""
    with (
        attacks.registered("sign", SignDescent),
        MODELS.registered("dots", Dots),
        formats.registered("heads_in_text", HeadsInText()),
    ):
        yield


def write_heads_in_text(root: Path, samples: list[Sample]) -> Path:
    """Write samples in the layout ``heads_in_text``; returns the folder."""
    for name in ("pictures", "heads"):
        (root / name).mkdir(parents=True)
    for sample in samples:
        save_image(root / "pictures" / f"{sample.name}.png", sample.image)
        lines = [f"{x} {y}\n" for x, y in sample.points.tolist()]
        (root / "heads" / f"{sample.name}.txt").write_text("".join(lines))
    return root


def small_dots() -> Dots:
    """The model with fixed weights whose counts depend on what it sees."""
    counter, generator = Dots(), torch.Generator().manual_seed(3)
    for parameter in counter.parameters():
        fan = max(1, parameter[0].numel())
        draw = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(draw * (2 / fan) ** 0.5 if parameter.ndim > 1 else 0.01 * draw)
    return counter.eval()
