"""Weights files: published formats, this package's own, and files that must be refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor, nn

from pycc import models
from pycc.models import known
from pycc.models.base import MODELS, CounterModel
from pycc.models.weights import locate, probe_count, probe_image, read_weights

BUILTIN = "mcnn-synthetic"
GREY = {"input": "gray255", "final_relu": True}
HALF = {"input": "gray_half", "final_relu": False}
# Public weights, the options they need, and options that would count silently wrong.
PUBLIC = [
    ("mcnn_shtechA_660.h5", {}, {**HALF, "scale": 0.01}),
    ("mcnn_shtechB_110.h5", {}, HALF),
    ("mcnn_tf_uestc_A.pth", HALF, GREY),
    ("mcnn_tf_uestc_B.pth", HALF, GREY),
    ("mcnn_embrace_A.pth", {"final_relu": False}, {"input": "gray_half", "final_relu": True}),
]


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


@pytest.mark.parametrize(("file", "options"), [(file, options) for file, options, _ in PUBLIC])
def test_public_weights_see_heads(shared: Path, file: str, options: dict[str, object]) -> None:
    """Each in its own convention counts something on the probe image, and less without discs."""
    pytest.importorskip("h5py")
    loaded = models.load(shared / "data/weights" / file, name="mcnn", **options)
    with torch.no_grad():
        blank = float(loaded(torch.full_like(probe_image(), 0.65)).sum())
    assert 5 < probe_count(loaded) < 200
    assert abs(blank) < 0.5 * probe_count(loaded)


@pytest.mark.parametrize(("file", "options", "wrong"), PUBLIC)
@torch.no_grad()
def test_public_weights_bring_their_convention(
    shared: Path, tmp_path: Path, file: str, options: dict[str, object], wrong: dict[str, object]
) -> None:
    """Counted as with the right options given; wrong ones are refused, in any format."""
    pytest.importorskip("h5py")
    path = shared / "data/weights" / file
    images = torch.rand(1, 3, 61, 90, generator=torch.Generator().manual_seed(1))
    by_hand = models.create("mcnn", **options).eval()
    by_hand.net.load_state_dict(read_weights(path)[0])
    torch.save({"net": by_hand.net.state_dict()}, tmp_path / "converted.pth")
    for source in (path, tmp_path / "converted.pth"):
        loaded = models.load(source)
        assert loaded.options() == by_hand.options()
        assert torch.equal(loaded(images), by_hand(images))
        assert torch.equal(models.load(source, name="mcnn", **options)(images), by_hand(images))
        resized = models.load(source, resize=4).options()
        assert resized == {**by_hand.options(), "resize": 4}
        for option, value in wrong.items():
            right = by_hand.options()[option]
            message = f"trained with {option}={right!r}, got {option}={value!r}"
            refused(source, message, **{option: value})


def test_public_weights_are_checked_on_the_probe_image(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shared / "data/weights/mcnn_tf_uestc_A.pth"
    monkeypatch.setattr(
        known, "CHECKPOINTS", [replace(e, final_relu=True) for e in known.CHECKPOINTS]
    )
    refused(path, r"promises a count of 13\.8671 on the probe image, got ")


def test_changed_public_weights_are_not_recognised(shared: Path) -> None:
    state, _ = read_weights(shared / "data/weights/mcnn_embrace_A.pth")
    assert known.passport_of(state) is not None
    backwards = dict(reversed(list(state.items())))
    assert known.passport_of(backwards) == known.passport_of(state)
    state["fuse.0.conv.bias"] = state["fuse.0.conv.bias"] + 1e-3
    assert known.passport_of(state) is None
    assert known.passport_of({"w": torch.zeros(3, dtype=torch.bfloat16)}) is None


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


def test_tuples_agree_with_the_lists_of_a_passport(tmp_path: Path) -> None:
    counter = models.create("mcnn", variant="c3", mean=(0.5, 0.25, 0.5))
    models.save(counter, tmp_path / "own.npz", passport={})
    assert models.load(tmp_path / "own.npz", mean=(0.5, 0.25, 0.5)).options() == counter.options()
    refused(tmp_path / "own.npz", "was trained with mean=", mean=(0.5, 0.25, 0.25))


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
        (json.dumps({"model": "mcnn", "probe_count": "12"}), "probe_count must be a finite"),
        ('{"model": "mcnn", "probe_count": Infinity}', "probe_count must be a finite"),
        (f'{{"model": "mcnn", "probe_count": 1{"0" * 400}}}', "probe_count must be a finite"),
        ("[" * 100_000, "not a readable npz"),
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
    message = (
        r"does not fit mcnn \(.*missing branch1\.0\.conv\.weight, .* and 23 more; "
        r"unexpected frontend\.0.* and 7 more"
    )
    refused(tmp_path / "csr.pth", message)
    refused(tmp_path / "csr.pth", message, name="mcnn")


class Small(CounterModel):
    """A second model, of two keys."""

    name = "small"

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 1, 1), stride=1, receptive_field=1)


def test_the_nearest_model_is_the_one_that_is_complained_about(
    counter: CounterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS._entries, "small", Small)
    path = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(1, 1, 1, 1), "beta": torch.zeros(1)}, path)
    message = (
        r"does not fit small .*missing bias; unexpected beta; wrong shape weight \[1, 1, 1, 1\]"
    )
    refused(path, message)
    refused(path, message, name="small")
    refused(path, "does not fit mcnn .* and 23 more; unexpected weight, beta", name="mcnn")
    # Without the first convolutions nothing is recognised, yet MCNN is by far the nearest.
    part = {key: value for key, value in counter.net.state_dict().items() if ".0.c" not in key}
    torch.save(part, path)
    refused(path, r"does not fit mcnn .*: missing branch1\.0\.conv\.weight, .* and 5 more$")


@pytest.mark.parametrize("variant", ["gray", "rgb", "c3"])
def test_a_missing_first_column_does_not_hide_the_variant(tmp_path: Path, variant: str) -> None:
    state = models.create("mcnn", variant=variant).net.state_dict()
    del state[next(iter(state))]
    torch.save(state, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", rf"variant='{variant}'.*: missing branch1\.0\.[a-z.]*weight$")


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


@pytest.mark.parametrize("name", ["w.h5", "w.pth", "old.pth", "w.npz"])
def test_damaged_files_are_read_or_refused_in_one_line(
    counter: CounterModel, tmp_path: Path, name: str
) -> None:
    """Bytes flipped all over the headers and the directory at the end of a file."""
    path = tmp_path / name
    state = {key: value for key, value in counter.net.state_dict().items() if "fuse" in key}
    if name == "w.h5":
        write_h5(path, state)
    elif name == "w.npz":
        np.savez(path, **{key: value.numpy() for key, value in state.items()})
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "w.pth")
    whole = path.read_bytes()
    places = {int(place) for place in np.linspace(0, len(whole) - 1, 250)}
    failures = []
    for place in sorted(places | set(range(40)) | set(range(len(whole) - 40, len(whole)))):
        damaged = bytearray(whole)
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
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
def test_tensors_that_are_no_weights(tmp_path: Path, make: Callable[[], Tensor], kind: str) -> None:
    torch.save({"fuse.0.conv.bias": make()}, tmp_path / "w.pth")
    refused(
        tmp_path / "w.pth", rf"entry 'fuse\.0\.conv\.bias' must be a dense tensor .*, got {kind}"
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
def test_integers_are_no_float_parameters(
    counter: CounterModel, tmp_path: Path, dtype: torch.dtype
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


def test_keys_of_several_lines_are_folded(counter: CounterModel, tmp_path: Path) -> None:
    state = counter.net.state_dict()
    torch.save({**state, "two\nlines" * 99: torch.zeros(1)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "unexpected two linestwo lines")


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
