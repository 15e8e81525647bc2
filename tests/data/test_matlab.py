import io
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from pycc.data.matlab import read_variable


def saved(compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    variables = {"before": "text", "points": np.arange(12.0).reshape(6, 2)}
    scipy.io.savemat(buffer, variables, do_compression=compressed)
    return buffer.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_one_variable_is_read(tmp_path: Path, compressed: bool) -> None:
    (tmp_path / "a.mat").write_bytes(saved(compressed))
    points = read_variable(tmp_path / "a.mat", "points")
    assert np.array_equal(points, np.arange(12.0).reshape(6, 2))
    assert read_variable(tmp_path / "a.mat", "missing") is None


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, compressed: bool, share: float) -> None:
    intact = saved(compressed)
    path = tmp_path / "a.mat"
    path.write_bytes(intact[: int(len(intact) * share)])
    with pytest.raises(ValueError, match=r"a\.mat: cannot read the \.mat file") as raised:
        read_variable(path, "points")
    assert "\n" not in str(raised.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(b"x,y\n" * 100)
    with pytest.raises(ValueError, match=r"a\.mat: cannot read the \.mat file"):
        read_variable(path, "points")
    newer = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)
    path.write_bytes(newer)
    with pytest.raises(ValueError, match=r"a\.mat: expected MATLAB 7 or older"):
        read_variable(path, "points")
    with pytest.raises(ValueError, match=r"missing\.mat: cannot read the file"):
        read_variable(tmp_path / "missing.mat", "points")
