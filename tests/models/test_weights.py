"""Weights files: published formats, this package's own, and files that must be refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from pycc import models
from pycc.models.base import CounterModel
from pycc.models.weights import locate, probe_count, probe_image, read_weights

BUILTIN = "mcnn-synthetic"


@pytest.fixture
def counter() -> CounterModel:
    torch.manual_seed(5)
    counter = models.create("mcnn")
    for parameter in counter.net.parameters():
        torch.nn.init.uniform_(parameter, -0.004, 0.008)
    return counter.eval()


def write_h5(path: Path, state: dict[str, Tensor], prefix: str = "DME.") -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, value in state.items():
            file.create_dataset(prefix + key, data=value.numpy())
    return path


def same(first: CounterModel, second: CounterModel) -> bool:
    a, b = first.net.state_dict(), second.net.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def refused(path: Path | str, message: str, **options: object) -> None:
    """Loading fails on one line that names the file."""
    with pytest.raises(ValueError, match=message) as caught:
        models.load(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 900


# --- published formats


@pytest.mark.parametrize("prefix", ["", "DME.", "module.DME.", "CCN.module."])
def test_h5(counter: CounterModel, tmp_path: Path, prefix: str) -> None:
    path = write_h5(tmp_path / "w.h5", counter.net.state_dict(), prefix)
    loaded = models.load(path)
    assert same(loaded, counter)
    assert not loaded.training
    assert loaded.options()["variant"] == "gray"


@pytest.mark.parametrize("nested", [None, "state_dict", "net", "model_state_dict"])
@pytest.mark.parametrize("name", ["w.pth", "w.pth.tar", "epoch_3.param"])
def test_torch_files(tmp_path: Path, nested: str | None, name: str) -> None:
    counter = models.create("mcnn", variant="rgb")
    state = {"module." + key: value for key, value in counter.net.state_dict().items()}
    content = state if nested is None else {"epoch": 3, "best_prec1": 110.2, nested: state}
    torch.save(content, tmp_path / name)
    loaded = models.load(tmp_path / name)
    assert same(loaded, counter)
    assert loaded.options()["variant"] == "rgb"


def test_torch_files_of_the_old_kind(counter: CounterModel, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(counter.net.state_dict(), path, _use_new_zipfile_serialization=False)
    assert same(models.load(path), counter)


def test_c3_is_recognised_by_its_channels(tmp_path: Path) -> None:
    counter = models.create("mcnn", variant="c3")
    state = {"CCN.module." + key: value for key, value in counter.net.state_dict().items()}
    torch.save({"net": state}, tmp_path / "latest_state.pth")
    loaded = models.load(tmp_path / "latest_state.pth")
    assert (loaded.options()["variant"], loaded.scale) == ("c3", 0.16)


def test_explicit_options_take_precedence(counter: CounterModel, tmp_path: Path) -> None:
    torch.save(counter.net.state_dict(), tmp_path / "w.pth")
    loaded = models.load(tmp_path / "w.pth", input="gray_half", final_relu=False, resize=4)
    options = loaded.options()
    assert (options["input"], options["final_relu"], options["resize"]) == ("gray_half", False, 4)
    assert same(loaded, counter)


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("mcnn_shtechA_660.h5", {}),
        ("mcnn_shtechB_110.h5", {}),
        ("mcnn_tf_uestc_A.pth", {"input": "gray_half", "final_relu": False}),
        ("mcnn_tf_uestc_B.pth", {"input": "gray_half", "final_relu": False}),
        ("mcnn_embrace_A.pth", {"final_relu": False}),
    ],
)
def test_public_weights_see_heads(shared: Path, file: str, options: dict[str, object]) -> None:
    """Each in its own convention counts something on the probe image, and less without discs."""
    pytest.importorskip("h5py")
    loaded = models.load(shared / "data/weights" / file, name="mcnn", **options)
    with torch.no_grad():
        blank = float(loaded(torch.full_like(probe_image(), 0.65)).sum())
    assert 5 < probe_count(loaded) < 200
    assert abs(blank) < 0.5 * probe_count(loaded)


# --- this package's own format


def test_round_trip_is_bit_equal(counter: CounterModel, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    models.save(counter, path, passport={"recipe": {"minutes": 3}, "data": "scenes"})
    loaded = models.load(path)
    assert same(loaded, counter)
    assert loaded.options() == counter.options()
    images = torch.rand(1, 3, 40, 52)
    assert torch.equal(loaded(images), counter(images))
    _, passport = read_weights(path)
    assert passport["recipe"] == {"minutes": 3}
    assert passport["probe_count"] == probe_count(counter)


def test_saving_is_deterministic_and_leaves_nothing_else(
    counter: CounterModel, tmp_path: Path
) -> None:
    for name in ("a.npz", "b.npz"):
        models.save(counter, tmp_path / name, passport={})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_a_failed_save_keeps_the_old_file(
    counter: CounterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.npz"
    models.save(counter, path, passport={})
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        models.save(models.create("mcnn"), path, passport={})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["own.npz"]
    with pytest.raises(ValueError, match="passport must be JSON"):
        models.save(counter, path, passport={"tensor": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"writes \.npz files, got .*own\.pth"):
        models.save(counter, tmp_path / "own.pth", passport={})


def test_contradicting_the_passport(counter: CounterModel, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    models.save(counter, path, passport={})
    refused(path, "was trained with input='gray255', got input='gray_half'", input="gray_half")
    assert models.load(path, resize=4).options()["resize"] == 4


def test_changed_weights_fail_their_passport(counter: CounterModel, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    models.save(counter, path, passport={})
    with np.load(path) as arrays:
        content = dict(arrays)
    content["fuse.0.conv.bias"] = content["fuse.0.conv.bias"] + 0.01
    np.savez(path, **content)
    refused(path, "promises a count of .* on the probe image, got")


@pytest.mark.parametrize(
    ("passport", "message"),
    [
        ("not JSON", "not a readable npz"),
        ("[1]", "must be a JSON object"),
        (json.dumps({"model": "mcnn", "options": [1]}), "options must be a JSON object"),
        (json.dumps({"model": "mcnn", "probe_count": "12"}), "probe_count must be a number"),
    ],
)
def test_broken_passports(
    counter: CounterModel, tmp_path: Path, passport: str, message: str
) -> None:
    arrays = {key: value.numpy() for key, value in counter.net.state_dict().items()}
    np.savez(tmp_path / "own.npz", passport=np.array(passport), **arrays)
    refused(tmp_path / "own.npz", message)


def test_the_model_of_the_passport_must_be_known_and_asked_for(
    counter: CounterModel, tmp_path: Path
) -> None:
    arrays = {key: value.numpy() for key, value in counter.net.state_dict().items()}
    np.savez(tmp_path / "own.npz", passport=np.array('{"model": "vgg"}'), **arrays)
    with pytest.raises(ValueError, match="unknown model 'vgg'; known: mcnn"):
        models.load(tmp_path / "own.npz")
    refused(tmp_path / "own.npz", "is of model 'vgg', not 'mcnn'", name="mcnn")


# --- files that must be refused


class Attack:
    """A pickle that would create a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_that_runs_code(tmp_path: Path, plain: bool) -> None:
    content = {"branch1.0.weight": Attack(tmp_path / "ran")}
    path = tmp_path / "w.pth"
    if plain:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    refused(path, "is refused: .* could run code")
    assert not (tmp_path / "ran").exists()


def test_an_npz_with_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, weight=np.array([Attack(tmp_path / "ran")], dtype=object))
    refused(path, "not a readable npz")
    assert not (tmp_path / "ran").exists()


def test_another_architecture(tmp_path: Path) -> None:
    state = {f"frontend.{index}.weight": torch.zeros(4, 3, 3, 3) for index in range(10)}
    torch.save(state, tmp_path / "csr.pth")
    refused(tmp_path / "csr.pth", r"none of the known models \(mcnn.*keys begin with frontend.0")
    refused(
        tmp_path / "csr.pth",
        r"missing branch1\.0\.conv\.weight, .* and 23 more; unexpected frontend\.0.* and 7 more",
        name="mcnn",
    )


def test_wrong_shapes(counter: CounterModel, tmp_path: Path) -> None:
    state = counter.net.state_dict()
    state["branch3.5.conv.weight"] = torch.zeros(12, 24, 5, 5)
    del state["fuse.0.conv.bias"]
    torch.save(state, tmp_path / "w.pth")
    refused(
        tmp_path / "w.pth",
        r"missing fuse\.0\.conv\.bias; wrong shape branch3\.5\.conv\.weight "
        r"\[12, 24, 5, 5\] instead of \[12, 24, 3, 3\]",
    )


def test_unreadable_files(counter: CounterModel, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    state = counter.net.state_dict()
    whole = {"w.h5": write_h5(tmp_path / "w.h5", state).read_bytes()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    whole["w.pth"] = buffer.getvalue()
    models.save(counter, tmp_path / "w.npz", passport={})
    whole["w.npz"] = (tmp_path / "w.npz").read_bytes()
    for name, content in whole.items():
        for broken in (content[: len(content) // 2], b"", b"nothing of the kind"):
            (tmp_path / name).write_bytes(broken)
            refused(tmp_path / name, "is not|cannot be read")


def test_things_that_are_no_weights(tmp_path: Path) -> None:
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
    refused(tmp_path, "is not a file")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: nowhere\.h5") as caught:
        models.load("nowhere.h5")
    assert all(name in str(caught.value) for name in models.builtin())


def test_h5py_is_asked_for_only_when_needed(
    counter: CounterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_h5(tmp_path / "w.h5", counter.net.state_dict())
    torch.save(counter.net.state_dict(), tmp_path / "w.pth")
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(path, r"needs h5py: pip install 'pycc\[h5\]'")
    assert same(models.load(tmp_path / "w.pth"), counter)


# --- the built-in weights


def test_builtin_weights_are_small_and_hold_no_pickle() -> None:
    assert BUILTIN in models.builtin()
    path = locate(BUILTIN)
    assert path.stat().st_size < 600_000
    with np.load(path, allow_pickle=False) as arrays:
        assert all(arrays[key].dtype != object for key in arrays.files)


def test_builtin_weights_are_the_published_network() -> None:
    counter = models.load(BUILTIN)
    published = models.create("mcnn")
    assert counter.options() == published.options()
    assert list(counter.net.state_dict()) == list(published.net.state_dict())
    assert not counter.training
    _, passport = read_weights(locate(BUILTIN))
    assert probe_count(counter) == pytest.approx(passport["probe_count"], rel=1e-4)
    assert passport["test"]["relative"] < 0.15
    assert passport["test"]["scenes"] >= 100


def test_probe_image_is_a_picture() -> None:
    picture = probe_image()
    assert picture.shape == (1, 3, 96, 128)
    assert picture.dtype == torch.float32
    assert 0.0 <= float(picture.min()) < 0.3 < 0.7 < float(picture.max()) <= 1.0


def test_probe_count_keeps_the_mode(counter: CounterModel) -> None:
    counter.train()
    probe_count(counter)
    assert counter.training


def test_published_fixture_weights_load_from_a_file(
    fixture: Callable[[str], NpzFile], tmp_path: Path
) -> None:
    """The 26 published names, in a file as published, fit without a word about the model."""
    data = fixture("MCNN")
    shapes = [tuple(int(side) for side in str(shape).split(",")) for shape in data["shapes"]]
    state = {str(k): torch.rand(s) for k, s in zip(data["keys"], shapes, strict=True)}
    loaded = models.load(write_h5(tmp_path / "MCNN_A.h5", state, prefix=""))
    assert torch.equal(loaded.net.state_dict()["branch1.0.conv.weight"], next(iter(state.values())))
