"""``pycc attack`` on a small data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.crowds import make_sample, write_folder, write_weights
from support.small import Small, registered
from support.threads import one_thread as one_thread

from pycc import models
from pycc.commands import main
from pycc.types import Sample


@pytest.fixture
def sample() -> Callable[..., Sample]:
    return make_sample


@pytest.fixture(autouse=True)
def small_counter() -> Iterator[None]:
    """The counter of three layers is known by its name and its weights."""
    with registered():
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with weights of a counter of three layers whose count depends on the image."""
    counter, generator = Small(), torch.Generator().manual_seed(2)
    for parameter in counter.parameters():
        if parameter.ndim > 1:
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(draw * (2 / parameter[0].numel()) ** 0.5)
    counter.net[0].bias.data.zero_()
    path = tmp_path_factory.mktemp("weights") / "lively.npz"
    with registered():
        models.save(counter, path, metadata={})
    return path


@pytest.fixture(scope="session")
def mcnn_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with weights of an MCNN whose count depends on the image."""
    return write_weights(tmp_path_factory.mktemp("weights") / "mcnn.npz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of three small images with points in CSV files."""
    return write_folder(tmp_path / "crowd")


@pytest.fixture(scope="session")
def finished(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two patch sizes on one image; tests leave it unchanged."""
    root = tmp_path_factory.mktemp("finished")
    flags = ["--steps", "2", "--patch-size", "6", "0.2", "--pgd-steps", "0", "--max-images", "1"]
    flags += ["--data", str(write_folder(root / "crowd")), "--weights", str(weights)]
    with registered():
        out = str(root / "run")
        assert main("attack", [*flags, "--no-checks", "--no-pictures", "--out", out]) == 0
    return root / "run"


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
        code = main("attack", [str(argument) for argument in arguments])
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
