"""A small counter with a bounded receptive field, and small scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pycc import models
from pycc.attack import PatchAttack, Problem
from pycc.attack.__main__ import main
from pycc.attack.evaluation.builder import CleanCounts, Member, ProblemBuilder
from pycc.attack.evaluation.checked import SampleCache, check_samples
from pycc.data import save_image
from pycc.types import Sample

FIELD = 20
"""5 pixels, pooled 6, + 2·2 = 10, pooled 12, + 2·4 = 20."""


class TinyCounter(nn.Module):
    """Three convolutions and two poolings: stride 4, a field of 20 pixels, positive maps."""

    stride = 4

    def __init__(self, receptive_field: int | None = FIELD) -> None:
        super().__init__()
        self.receptive_field = receptive_field
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.5),
            nn.Conv2d(4, 1, 3, padding=1),
            nn.Softplus(),
        )
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            fan = max(1, parameter[0].numel())
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(draw * (2 / fan) ** 0.5 if parameter.ndim > 1 else 0.01 * draw)

    def forward(self, images: Tensor) -> Tensor:
        density: Tensor = 0.05 * self.net(images)
        return density


def make_sample(
    index: int = 0, shape: tuple[int, int] = (64, 80), heads: int = 9, region: bool = False
) -> Sample:
    """A random picture with random heads; the region of interest is its right part."""
    generator = torch.Generator().manual_seed(100 + index)
    image = (torch.rand(3, *shape, generator=generator) * 255).round() / 255
    points = torch.rand(heads, 2, generator=generator, dtype=torch.float64)
    mask = None
    if region:
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[5:, 30:] = True
    return Sample(f"scene {index}", image, points * torch.tensor([shape[1], shape[0]]), mask)


def make_problem(
    attack: PatchAttack, counter: Any, samples: list[Sample], seed: int = 0
) -> Problem:
    """What a run would hand to ``attack`` as one batch."""
    found = check_samples(samples, [attack], counter.stride, seed=seed)
    if isinstance(counter, nn.Module):
        counter.eval().requires_grad_(False)
    stage = ProblemBuilder([Member(counter)], SampleCache(samples), CleanCounts())
    places = [attack.place(item.shape, seed=seed, image=item.index) for item in found.items]
    return stage.problem(attack, found.items, places)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Images this small only lose by being shared among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> Callable[..., TinyCounter]:
    return TinyCounter


@pytest.fixture
def sample() -> Callable[..., Sample]:
    return make_sample


@pytest.fixture
def problem() -> Callable[..., Problem]:
    return make_problem


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with weights of an MCNN that answers to what it sees."""
    counter = models.create("mcnn")
    generator = torch.Generator().manual_seed(2)
    for parameter in counter.parameters():
        draw = torch.randn(parameter.shape, generator=generator)
        fan = parameter[0].numel() if parameter.ndim > 1 else 10_000
        parameter.data.copy_(draw * (2 / fan) ** 0.5)
    counter.net.fuse[0].conv.weight.data.abs_().mul_(1e-3)
    path = tmp_path_factory.mktemp("weights") / "lively.npz"
    models.save(counter, path, metadata={})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of three small images with points in CSV files."""
    root = tmp_path / "crowd"
    root.mkdir()
    for index, shape in enumerate([(48, 64), (48, 64), (52, 60)]):
        one = make_sample(index, shape)
        save_image(root / f"{one.name.replace(' ', '_')}.png", one.image)
        lines = [f"{x},{y}" for x, y in one.points.tolist()]
        (root / f"{one.name.replace(' ', '_')}.csv").write_text("x,y\n" + "\n".join(lines))
    return root


class Called:
    """What a call of the command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Called]:
    """Runs the command in an empty folder; the arguments may be paths."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)

    def run(*arguments: object) -> Called:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Called(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(call: Callable[..., Called], tmp_path: Path) -> Callable[..., str]:
    """Runs the command with bad input: one line on stderr, exit code 2, nothing left behind."""

    def run(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        done = call(*arguments)
        assert done.code == 2
        assert done.out == ""
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        assert done.err.endswith("\n")
        assert sorted(tmp_path.rglob("*")) == before
        return done.err

    return run
