"""Points in NumPy's ``.npy`` files, as Bayesian Loss's preprocessing and others write them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pycc.data.points import PointFile, finite_points, point_files
from pycc.data.target import Picture, Target, targets

_DAMAGED = (ValueError, OSError, EOFError, MemoryError, RecursionError)
"""Exceptions that NumPy raises for damaged files."""


def read_points(path: Path, content: bytes) -> NDArray[np.float64]:
    """Return the heads [N,2] (x, y) of an array [N,2], or [N,3] with distances to neighbours.

    Nothing is unpickled. An empty array of any shape means nobody. ValueError naming the file for
    anything else.
    """
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot read the .npy file: {reason}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iufU":
        raise ValueError(f"{path}: expected an array of N x 2 numbers")
    if values.size == 0:
        return np.zeros((0, 2))
    if values.ndim != 2 or values.shape[1] not in (2, 3):
        got = " x ".join(map(str, values.shape)) or "one number"
        raise ValueError(f"{path}: expected an array of N x 2 numbers (x, y), got {got}")
    try:
        return finite_points(path, values[:, :2].astype(np.float64))
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: expected numbers: {error}") from error


def _is_points(content: bytes) -> bool:
    try:
        read_points(Path(), content)
    except ValueError:  # a density map, say
        return False
    return True


def _write(path: Path, picture: Picture) -> None:
    np.save(path, np.array(picture.points, np.float64).reshape(-1, 2))


point_files.register("npy")(PointFile(".npy", _is_points, read_points))
targets.register("npy")(Target("{split}", "{name}", "{name}.npy", _write))
