"""Reading of annotations in MATLAB files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import scipy.io
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
"""What scipy's reader has been seen to raise on damaged files, and its like."""


def read_variable(path: Path, name: str) -> Any:
    """Variable ``name`` of a .mat file, in scipy's form; None if it is not there.

    Raises ValueError naming the file if scipy cannot read it (MATLAB 7.3 files are HDF5: save them
    with -v7).
    """
    content = read_bytes(path)
    try:
        return scipy.io.loadmat(io.BytesIO(content), variable_names=[name]).get(name)
    except NotImplementedError:
        raise ValueError(f"{path}: expected MATLAB 7 or older (save with -v7)") from None
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot read the .mat file: {reason}") from error
