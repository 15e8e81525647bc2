"""Checkpoints that Python 2 wrote."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch
from support import python2

from pycc import models
from pycc.models.base import CounterModel
from pycc.models.python2 import translated
from pycc.models.weights import read_weights

# 0x8d begins no character of UTF-8, 0xc3 0xa9 is one: both are bytes of a number here.
SCORE = np.frombuffer(b"\x8d\x00\xff\x00\xc3\xa9\x5b\x40", "<f8")[0]


def checkpoint(counter: CounterModel) -> dict[str, object]:
    return {
        "epoch": 7,
        "time": 1_500_000_000_000,
        "best_prec1": SCORE,
        "history": np.linspace(0.1, 9.0, 99),
        "arch": "MCNN \xfc",
        "args": argparse.Namespace(lr=1e-5, name="a" * 300),
        "state_dict": counter.net.state_dict(),
        "optimizer": torch.optim.SGD(counter.parameters(), lr=0.1, momentum=0.9).state_dict(),
    }


@pytest.mark.parametrize("zipped", [False, True])
def test_numbers_of_numpy_beside_weights(
    counter: CounterModel, tmp_path: Path, zipped: bool
) -> None:
    path = python2.save(checkpoint(counter), tmp_path / "w.pth.tar", zipped=zipped)
    with pytest.raises(UnicodeDecodeError, match="can't decode byte"):
        torch.load(path, weights_only=False)
    loaded = models.load(path)
    state = loaded.net.state_dict()
    assert all(torch.equal(state[key], value) for key, value in counter.net.state_dict().items())
    stored = read_weights(path)
    assert all(type(key) is str for key in stored.state)
    assert stored.place == "state_dict"


def test_the_numbers_are_those_that_were_written(counter: CounterModel, tmp_path: Path) -> None:
    path = python2.save(checkpoint(counter), tmp_path / "w.pth.tar")
    translation = translated(path)
    assert translation is not None
    content = torch.load(translation, weights_only=False)  # written here
    assert content["best_prec1"].tobytes() == SCORE.tobytes()
    assert np.array_equal(content["history"], np.linspace(0.1, 9.0, 99))
    assert content["time"] == 1_500_000_000_000
    assert content["arch"] == "MCNN \xfc"
    assert content["args"].name == "a" * 300


def test_the_opcodes_are_python_2s(counter: CounterModel, tmp_path: Path) -> None:
    """The files of these tests are what they stand for: a scalar is a dtype and raw bytes."""
    with python2.save({"best": SCORE}, tmp_path / "w.pth").open("rb") as file:
        for _ in range(4):
            operations = [(op.name, value) for op, value, _ in pickletools.genops(file)]
    names = [name for name, _ in operations]
    assert ("GLOBAL", "numpy.core.multiarray scalar") in operations
    assert ("SHORT_BINSTRING", SCORE.tobytes().decode("latin-1")) in operations
    assert "BINUNICODE" not in names
    buffer = io.BytesIO()
    python2.dump({"long": b"\x8d" * 300, "time": 2**40}, buffer)
    names = [op.name for op, _, _ in pickletools.genops(buffer.getvalue())]
    assert {"BINSTRING", "INT", "SHORT_BINSTRING"} <= set(names)


def test_bytes_written_by_hand(tmp_path: Path) -> None:
    """The state dict {'w': Parameter-less tensor} beside a scalar, opcode by opcode."""
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    version = b"\x80\x02M\xe9\x03."
    sizes = b"\x80\x02}q\x01U\rlittle_endianq\x02\x88s."
    tensor = (
        b"ctorch._utils\n_rebuild_tensor\nq\x05"
        b"((U\x07storageq\x06ctorch\nFloatStorage\nq\x07U\x011q\x08U\x03cpuq\x09K\x02Nt"
        b"Q"
        b"K\x00K\x02\x85K\x01\x85tR"
    )
    scalar = (
        b"cnumpy.core.multiarray\nscalar\nq\x0acnumpy\ndtype\nq\x0bU\x02f8K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x08"
        + SCORE.tobytes()
        + b"\x86R"
    )
    content = b"\x80\x02}q\x00(U\x03maeq\x01" + scalar + b"U\x05modelq\x03}q\x04"
    content += b"U\x01wq\x0c" + tensor + b"su."
    storages = b"\x80\x02]U\x011a." + (2).to_bytes(8, "little") + np.float32([0.5, -2]).tobytes()
    (tmp_path / "w.pth").write_bytes(magic + version + sizes + content + storages)
    state = read_weights(tmp_path / "w.pth").state
    assert {key: value.tolist() for key, value in state.items()} == {"w": [0.5, -2.0]}


def test_files_of_python_3_are_left_alone(counter: CounterModel, tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save(checkpoint(counter), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        assert translated(tmp_path / "w.pth") is None
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    assert translated(tmp_path / "w.pth") is None


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("zipped", [False, True])
def test_code_of_python_2_is_not_run(
    counter: CounterModel,
    tmp_path: Path,
    zipped: bool,
    monkeypatch: pytest.MonkeyPatch,
    refused,
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {**checkpoint(counter), "evil": _Runs()}
    path = python2.save(content, tmp_path / "w.pth", zipped=zipped)
    refused(path, r"is refused: .*\(posix\.mkdir\), which could run code")
    assert not (tmp_path / "ran").exists()


def test_damaged_files_of_python_2_are_one_line(
    counter: CounterModel, tmp_path: Path, refused
) -> None:
    intact = python2.save(checkpoint(counter), tmp_path / "w.pth").read_bytes()
    for length in np.linspace(1, len(intact) - 1, 40):
        (tmp_path / "w.pth").write_bytes(intact[: int(length)])
        refused(tmp_path / "w.pth", "cannot be read|is refused|is not a torch file|must be a dense")
