"""What the tests of weights share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pycc import models
from pycc.models.base import CounterModel


@pytest.fixture
def counter() -> CounterModel:
    torch.manual_seed(5)
    counter = models.create("mcnn")
    for parameter in counter.net.parameters():
        torch.nn.init.uniform_(parameter, -0.004, 0.008)
    return counter.eval()


def _write_h5(path: Path, state: dict[str, Tensor], prefix: str = "DME.") -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, value in state.items():
            file.create_dataset(prefix + key, data=value.numpy())
    return path


@pytest.fixture
def write_h5() -> Callable[..., Path]:
    """Writes a state as the published .h5 files hold it."""
    return _write_h5


def _refused(path: Path | str, message: str, **options: object) -> None:
    """Loading fails on one line that names the file."""
    with pytest.raises(ValueError, match=message) as caught:
        models.load(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 900


@pytest.fixture
def refused() -> Callable[..., None]:
    """Loads a file that has to be refused with a message of one line."""
    return _refused
