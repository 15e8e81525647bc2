"""What all tests share: where the real data and the published numbers lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile

import pycc.ops

_REPOSITORY = Path(__file__).resolve().parents[1]
_SHARED = Path(os.environ.get("PYCC_SHARED", _REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and published numbers beside the repository."""
    if not (_SHARED / "fixtures").is_dir():
        pytest.skip("no ../shared beside the repository: real data and fixtures are not there")
    return _SHARED


@pytest.fixture(scope="session")
def fixture(shared: Path) -> Callable[[str], NpzFile]:
    """Opens ``shared/fixtures/NAME.npz``."""
    return lambda name: np.load(shared / "fixtures" / f"{name}.npz", allow_pickle=False)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that pycc was built for and that is there."""
    if request.param == "cuda":
        if pycc.ops.info()["cuda"] is None:
            pytest.skip("pycc was built without CUDA")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
    return torch.device(request.param)
