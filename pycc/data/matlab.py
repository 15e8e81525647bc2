"""Annotations in MATLAB files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

from pycc.data.dataset import read_bytes

_DAMAGED = (
    MatReadError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    OSError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""Exceptions that scipy's reader raises for damaged files."""


def read_variable(path: Path, name: str) -> Any:
    """Read variable ``name`` of a .mat file, in scipy's form; None if the file lacks it.

    ValueError naming the file if scipy cannot read it (MATLAB 7.3 files are HDF5: save them with
    -v7).
    """
    content = read_bytes(path)
    try:
        return scipy.io.loadmat(io.BytesIO(content), variable_names=[name]).get(name)
    except NotImplementedError:
        raise ValueError(f"{path}: expected MATLAB 7 or older (save with -v7)") from None
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot read the .mat file: {reason}") from error


def read_pairs(path: Path, name: str) -> NDArray[np.float64]:
    """Read variable ``name`` of a .mat file as points [N,2]; N may be 0.

    ValueError naming the file if the variable is missing, has another shape, or is not finite
    numbers.
    """
    return points_of(path, name, read_variable(path, name))


def frames_of(path: Path, name: str, value: object) -> list[object]:
    """Return ``loc`` of each frame in cell array ``name``, which published videos have.

    ValueError naming the file if it is not a cell array of structures with ``loc``.
    """
    try:
        cells = np.asarray(value, object).ravel()
        return [cell["loc"].ravel()[0] for cell in cells]
    except (TypeError, IndexError, ValueError, AttributeError):
        raise ValueError(f"{path}: {name} must be a cell array of structures with loc") from None


def points_of(path: Path, name: str, value: object) -> NDArray[np.float64]:
    """Check value ``name`` of a .mat file and return it as points [N,2].

    An empty array of any shape means that there are no heads. ValueError as for ``read_pairs``.
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {name} must be N x 2 numbers")
    if value.size == 0:
        return np.zeros((0, 2))
    if value.ndim != 2 or value.shape[1] != 2:
        got = " x ".join(map(str, value.shape))
        raise ValueError(f"{path}: {name} must be N x 2 numbers, got {got}")
    if not np.isfinite(value).all():
        raise ValueError(f"{path}: points must be finite, got NaN or infinity")
    return value.astype(np.float64)
