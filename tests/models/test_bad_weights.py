"""Weights that cannot be used are refused in one line that names the file."""

from __future__ import annotations

import copy
import io
import pickle
import re
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pycc import models
from pycc.commands import main
from pycc.models.base import MODELS, CounterModel
from pycc.models.weights import read_weights


class Attack:
    """A pickle that would create a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_that_runs_code(tmp_path: Path, plain: bool, refused) -> None:
    content = {"branch1.0.weight": Attack(tmp_path / "ran")}
    path = tmp_path / "w.pth"
    if plain:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    refused(path, "is refused: .* could run code")
    assert not (tmp_path / "ran").exists()


def test_an_npz_with_a_pickle(tmp_path: Path, refused) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, weight=np.array([Attack(tmp_path / "ran")], dtype=object))
    refused(path, "not a readable npz")
    assert not (tmp_path / "ran").exists()


def test_another_architecture(tmp_path: Path, refused) -> None:
    """The message lists what the nearest family lacks; with a name, what that family lacks."""
    state = {f"frontend.{index}.weight": torch.zeros(4, 3, 3, 3) for index in range(10)}
    torch.save(state, tmp_path / "csr.pth")
    refused(
        tmp_path / "csr.pth",
        r"does not fit csrnet \(.*missing frontend\.0\.bias, .* and 27 more; "
        r"unexpected frontend\.1.* and 3 more",
    )
    refused(
        tmp_path / "csr.pth",
        r"does not fit mcnn \(.*missing branch1\.0\.conv\.weight, .* and 23 more; "
        r"unexpected frontend\.0.* and 7 more",
        name="mcnn",
    )


class Small(CounterModel):
    """A second model, of two keys."""

    name = "small"

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 1, 1), stride=1, receptive_field=1)


def test_the_nearest_model_is_the_one_that_is_complained_about(
    counter: CounterModel, tmp_path: Path, refused
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(1, 1, 1, 1), "beta": torch.zeros(1)}, path)
    message = (
        r"does not fit small .*missing bias; unexpected beta; wrong shape weight \[1, 1, 1, 1\]"
    )
    with MODELS.registered("small", Small):
        refused(path, message)
        refused(path, message, name="small")
    refused(path, "does not fit mcnn .* and 23 more; unexpected weight, beta", name="mcnn")
    # Without the first convolutions nothing is recognised, yet MCNN is by far the nearest.
    part = {key: value for key, value in counter.net.state_dict().items() if ".0.c" not in key}
    torch.save(part, path)
    refused(path, r"does not fit mcnn .*: missing branch1\.0\.conv\.weight, .* and 5 more$")


@pytest.mark.parametrize("variant", ["gray", "rgb", "c3"])
def test_a_missing_first_column_does_not_hide_the_variant(
    tmp_path: Path, variant: str, refused
) -> None:
    state = models.create("mcnn", variant=variant).net.state_dict()
    del state[next(iter(state))]
    torch.save(state, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", rf"variant='{variant}'.*: missing branch1\.0\.[a-z.]*weight$")


def test_wrong_shapes(counter: CounterModel, tmp_path: Path, refused) -> None:
    state = counter.net.state_dict()
    state["branch3.5.conv.weight"] = torch.zeros(12, 24, 5, 5)
    del state["fuse.0.conv.bias"]
    torch.save(state, tmp_path / "w.pth")
    refused(
        tmp_path / "w.pth",
        r"missing fuse\.0\.conv\.bias; wrong shape branch3\.5\.conv\.weight "
        r"\[12, 24, 5, 5\] instead of \[12, 24, 3, 3\]",
    )


def test_unreadable_files(counter: CounterModel, tmp_path: Path, refused, write_h5) -> None:
    pytest.importorskip("h5py")
    state = counter.net.state_dict()
    contents = {"w.h5": write_h5(tmp_path / "w.h5", state).read_bytes()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    contents["w.pth"] = buffer.getvalue()
    models.save(counter, tmp_path / "w.npz", metadata={})
    contents["w.npz"] = (tmp_path / "w.npz").read_bytes()
    for name, content in contents.items():
        for broken in (content[: len(content) // 2], b"", b"nothing of the kind"):
            (tmp_path / name).write_bytes(broken)
            refused(tmp_path / name, "is not|cannot be read")


def test_things_that_are_no_weights(tmp_path: Path, refused) -> None:
    cases: list[tuple[str, object, str]] = [
        ("list.pth", [1, 2], "must hold a state dict, got list"),
        ("empty.pth", {}, "holds no tensors"),
        ("number.pth", {"epoch": 3}, "entry 'epoch' must be a tensor, got int"),
        ("nan.pth", {"branch1.0.weight": torch.full((2,), torch.nan)}, "holds NaN or infinity"),
    ]
    for name, content, message in cases:
        torch.save(content, tmp_path / name)
        refused(tmp_path / name, message)
    (tmp_path / "w.jpg").write_bytes(b"")
    refused(tmp_path / "w.jpg", r"unknown format '\.jpg'; known: \.h5")
    refused(tmp_path, "is a folder without model.safetensors: give the file")


@pytest.mark.parametrize("name", ["w.h5", "w.pth", "old.pth", "w.npz", "w.safetensors"])
def test_damaged_files_are_read_or_refused_in_one_line(
    counter: CounterModel, tmp_path: Path, name: str, write_h5
) -> None:
    """Bytes flipped all over the headers and the directory at the end of a file."""
    path = tmp_path / name
    state = {key: value for key, value in counter.net.state_dict().items() if "fuse" in key}
    if name == "w.h5":
        write_h5(path, state)
    elif name == "w.npz":
        np.savez(path, **{key: value.numpy() for key, value in state.items()})
    elif name == "w.safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "w.pth")
    intact = path.read_bytes()
    places = {int(place) for place in np.linspace(0, len(intact) - 1, 120)}
    failures = []
    for place in sorted(places | set(range(40)) | set(range(len(intact) - 40, len(intact)))):
        damaged = bytearray(intact)
        damaged[place] ^= 0xFF if place % 2 else 0x01
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except ValueError as error:
            failures.append(str(error))
    assert len(failures) > 20
    assert all(str(path) in failure and "\n" not in failure for failure in failures)


@pytest.mark.parametrize("error", [AssertionError, struct.error, NotImplementedError, KeyError])
def test_whatever_a_reader_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], refused
) -> None:
    h5py = pytest.importorskip("h5py")

    def fail(*_: object, **__: object) -> None:
        warnings.warn("odd header", RuntimeWarning, stacklevel=1)
        raise error("two\nlines")

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(np, "load", fail)
    monkeypatch.setattr(h5py, "is_hdf5", lambda _: True)
    monkeypatch.setattr(h5py, "File", fail)
    for name in ("w.pth", "w.npz", "w.h5"):
        (tmp_path / name).write_bytes(b"PK")
        refused(tmp_path / name, "(cannot be read|is not a readable npz): ")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 1.68 GiB for an array"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.npz", "w.h5"])
def test_a_lack_of_memory_is_no_fault_of_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    h5py = pytest.importorskip("h5py")

    def fail(*_: object, **__: object) -> None:
        raise copy.copy(error)

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(np, "load", fail)
    monkeypatch.setattr(h5py, "is_hdf5", lambda _: True)
    monkeypatch.setattr(h5py, "File", fail)
    path = tmp_path / name
    path.write_bytes(b"PK")
    with pytest.raises(type(error)) as caught:
        models.load(path)
    assert str(caught.value) == str(error)
    assert main("models", ["check", str(path)]) == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(
        rf"error: out of memory at weights {path}: (at least 9e-09 GB more are needed; )?"
        r"take a machine with more memory\n",
        printed,
    )


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="limits its address space")
def test_arrays_that_memory_cannot_hold(tmp_path: Path) -> None:
    """A compressed file of an array of 512 MB, in a process that may have 128 MB more."""
    np.savez_compressed(tmp_path / "w.npz", **{"fuse.0.conv.bias": np.zeros(1 << 27, np.float32)})
    code = """
import resource, sys
from pycc.commands import main
import pycc.commands.models
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 27),) * 2)
sys.exit(main("models", ["check", sys.argv[1]]))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "w.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: out of memory at weights {tmp_path / 'w.npz'}: ")


@pytest.mark.parametrize("name", ["w.pth", "old.pth", "w.npz"])
def test_truncated_files_are_reported_as_such(
    counter: CounterModel, tmp_path: Path, name: str, refused
) -> None:
    path = tmp_path / name
    if name == "w.npz":
        models.save(counter, path, metadata={})
    else:
        torch.save(counter.net.state_dict(), path, _use_new_zipfile_serialization=name == "w.pth")
    intact = path.read_bytes()
    for size in (100, 400, 1000, 2000, 3000, len(intact) // 2, len(intact) - 3):
        path.write_bytes(intact[:size])
        refused(path, "it seems truncated: download or copy it again$")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.eye(8).to_sparse(), "sparse_coo"),
        (lambda: torch.empty(8, device="meta"), "one on the meta device"),
        (lambda: torch.zeros(8).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda: torch.zeros(8, dtype=torch.complex64), "complex64"),
        (lambda: torch.zeros(8, dtype=torch.bool), "bool"),
        (lambda: torch.quantize_per_tensor(torch.zeros(8), 0.1, 0, torch.qint8), "qint8"),
        (lambda: torch.zeros(1).expand(10**12), "a view of shape"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights(
    tmp_path: Path, make: Callable[[], Tensor], kind: str, refused
) -> None:
    torch.save({"fuse.0.conv.bias": make()}, tmp_path / "w.pth")
    refused(
        tmp_path / "w.pth", rf"entry 'fuse\.0\.conv\.bias' must be a dense tensor .*, got {kind}"
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
def test_integers_are_no_float_parameters(
    counter: CounterModel, tmp_path: Path, dtype: torch.dtype, refused
) -> None:
    state = counter.net.state_dict()
    state["fuse.0.conv.bias"] = torch.ones(1, dtype=dtype)
    torch.save(state, tmp_path / "w.pth")
    kind = str(dtype).removeprefix("torch.")
    refused(tmp_path / "w.pth", rf"wrong type fuse\.0\.conv\.bias {kind} instead of floats")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted(
    counter: CounterModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    state = {key: value.to(dtype) for key, value in counter.net.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    for key, value in models.load(tmp_path / "w.pth").net.state_dict().items():
        assert torch.equal(value, state[key].float())


def test_keys_of_several_lines_are_folded(counter: CounterModel, tmp_path: Path, refused) -> None:
    state = counter.net.state_dict()
    torch.save({**state, "two\nlines" * 99: torch.zeros(1)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "unexpected two linestwo lines")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: nowhere\.h5") as caught:
        models.load("nowhere.h5")
    assert all(name in str(caught.value) for name in models.builtin())


def test_h5py_is_required_only_for_h5(
    counter: CounterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused, write_h5
) -> None:
    path = write_h5(tmp_path / "w.h5", counter.net.state_dict())
    torch.save(counter.net.state_dict(), tmp_path / "w.pth")
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(path, r"needs h5py: pip install 'pycc\[h5\]'")
    loaded = models.load(tmp_path / "w.pth").net.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in counter.net.state_dict().items())


# --- the built-in weights
