"""Weights files: published formats, this package's own, and files that must be refused."""

from __future__ import annotations

import argparse
import collections
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from support import narrow

from pycc import models
from pycc.models import known
from pycc.models.base import CounterModel
from pycc.models.probe import probe_count, probe_image
from pycc.models.weights import locate, read_weights

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


def same(first: CounterModel, second: CounterModel) -> bool:
    a, b = first.net.state_dict(), second.net.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


# --- published formats


@pytest.mark.parametrize("prefix", ["", "DME.", "module.DME.", "CCN.module."])
def test_h5(counter: CounterModel, tmp_path: Path, prefix: str, write_h5) -> None:
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
    shared: Path,
    tmp_path: Path,
    file: str,
    options: dict[str, object],
    wrong: dict[str, object],
    refused,
) -> None:
    """Counted as with the right options given; wrong ones are refused, in any format."""
    pytest.importorskip("h5py")
    path = shared / "data/weights" / file
    images = torch.rand(1, 3, 61, 90, generator=torch.Generator().manual_seed(1))
    by_hand = models.create("mcnn", **options).eval()
    by_hand.net.load_state_dict(read_weights(path).state)
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
    shared: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    path = shared / "data/weights/mcnn_tf_uestc_A.pth"
    others = [replace(e, options={**e.options, "final_relu": True}) for e in known.CHECKPOINTS]
    monkeypatch.setattr(known, "CHECKPOINTS", others)
    refused(path, r"states a count of 13\.8671 on the probe image, got ")


def test_changed_public_weights_are_not_recognised(shared: Path) -> None:
    state = read_weights(shared / "data/weights/mcnn_embrace_A.pth").state
    assert known.metadata_of(state) is not None
    backwards = dict(reversed(list(state.items())))
    assert known.metadata_of(backwards) == known.metadata_of(state)
    state["fuse.0.conv.bias"] = state["fuse.0.conv.bias"] + 1e-3
    assert known.metadata_of(state) is None
    assert known.metadata_of({"w": torch.zeros(3, dtype=torch.bfloat16)}) is None


# --- this package's own format


@pytest.mark.parametrize("suffix", ["npz", "pth"])
def test_round_trip_is_bit_equal(counter: CounterModel, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own.{suffix}"
    models.save(counter, path, metadata={"recipe": {"minutes": 3}, "data": "scenes"})
    loaded = models.load(path)
    assert same(loaded, counter)
    assert loaded.options() == counter.options()
    images = torch.rand(1, 3, 40, 52)
    assert torch.equal(loaded(images), counter(images))
    metadata = read_weights(path).metadata
    assert metadata["recipe"] == {"minutes": 3}
    assert metadata["probe_count"] == probe_count(counter)


def test_saving_is_deterministic_and_leaves_nothing_else(
    counter: CounterModel, tmp_path: Path
) -> None:
    for name in ("a.npz", "b.npz", "a.pth", "b.pth"):
        models.save(counter, tmp_path / name)
    for suffix in ("npz", "pth"):
        both = [(tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab"]
        assert both[0] == both[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.pth", "b.npz", "b.pth"]


def test_a_torch_file_with_damaged_metadata_is_refused(
    counter: CounterModel, tmp_path: Path
) -> None:
    path, state = tmp_path / "own.pth", counter.net.state_dict()
    for text, message in (("{", "has damaged metadata"), ("[1]", "must be a JSON object")):
        torch.save({"state_dict": state, "pycc": text}, path)
        with pytest.raises(ValueError, match=message):
            models.load(path)


def test_a_failed_save_keeps_the_old_file(
    counter: CounterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.npz"
    models.save(counter, path, metadata={})
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        models.save(models.create("mcnn"), path, metadata={})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["own.npz"]
    with pytest.raises(ValueError, match="metadata must be JSON"):
        models.save(counter, path, metadata={"tensor": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"writes \.pth, \.npz or .* files, .*own\.bin"):
        models.save(counter, tmp_path / "own.bin", metadata={})


def test_contradicting_the_metadata(counter: CounterModel, tmp_path: Path, refused) -> None:
    path = tmp_path / "own.npz"
    models.save(counter, path, metadata={})
    refused(path, "was trained with input='gray255', got input='gray_half'", input="gray_half")
    assert models.load(path, resize=4).options()["resize"] == 4


@pytest.mark.parametrize(
    ("variant", "scales"),
    [("gray", ("gray255", "gray_unit")), ("rgb", ("rgb_unit", "rgb255"))],
)
def test_another_scale_of_the_input_is_the_same_counter(
    tmp_path: Path, refused, variant: str, scales: tuple[str, str]
) -> None:
    """First kernels take the factor: counts stay, but for rounding, at the border too."""
    path = tmp_path / "own.npz"
    torch.manual_seed(3)
    before = models.create("mcnn", variant=variant, input=scales[0], final_relu=False).eval()
    models.save(before, path, metadata={"data": "scenes"})
    after = models.load(path, input=scales[1], resize=4)
    assert after.options() == {**before.options(), "input": scales[1], "resize": 4}
    assert not after.training
    image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(after(image), before(image), rtol=1e-4, atol=1e-7)
    other = models.load(path).net.state_dict()
    changed = [k for k, v in after.net.state_dict().items() if not torch.equal(v, other[k])]
    assert len(changed) == 3
    models.save(after, tmp_path / "after.npz", metadata={"data": "scenes"})
    again = models.load(tmp_path / "after.npz")
    assert same(again, after)
    assert again.options() == after.options()
    refused(path, f"was trained with input='{scales[0]}', got input='gray_half'", input="gray_half")


def test_tuples_agree_with_the_lists_of_a_metadata(tmp_path: Path, refused) -> None:
    counter = models.create("mcnn", variant="c3", mean=(0.5, 0.25, 0.5))
    models.save(counter, tmp_path / "own.npz", metadata={})
    assert models.load(tmp_path / "own.npz", mean=(0.5, 0.25, 0.5)).options() == counter.options()
    refused(tmp_path / "own.npz", "was trained with mean=", mean=(0.5, 0.25, 0.25))


def test_changed_weights_fail_their_metadata(
    counter: CounterModel, tmp_path: Path, refused
) -> None:
    path = tmp_path / "own.npz"
    models.save(counter, path, metadata={})
    with np.load(path) as arrays:
        content = dict(arrays)
    content["fuse.0.conv.bias"] = content["fuse.0.conv.bias"] + 0.01
    np.savez(path, **content)
    refused(path, "states a count of .* on the probe image, got")


@pytest.mark.parametrize(
    ("metadata", "message"),
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
def test_broken_metadatas(
    counter: CounterModel, tmp_path: Path, metadata: str, message: str, refused
) -> None:
    arrays = {key: value.numpy() for key, value in counter.net.state_dict().items()}
    np.savez(tmp_path / "own.npz", metadata=np.array(metadata), **arrays)
    refused(tmp_path / "own.npz", message)


def test_the_model_of_the_metadata_must_be_known_and_requested(
    counter: CounterModel, tmp_path: Path, refused
) -> None:
    arrays = {key: value.numpy() for key, value in counter.net.state_dict().items()}
    np.savez(tmp_path / "own.npz", metadata=np.array('{"model": "vgg"}'), **arrays)
    with pytest.raises(
        ValueError, match="is of model 'vgg', which no imported code registers; name its"
    ):
        models.load(tmp_path / "own.npz")
    refused(tmp_path / "own.npz", "is of model 'vgg', not 'mcnn'", name="mcnn")


# --- files that must be refused


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
    metadata = read_weights(locate(BUILTIN)).metadata
    assert probe_count(counter) == pytest.approx(metadata["probe_count"], rel=1e-4)
    errors = {tuple(table["shape"]): table for table in metadata["test"]}
    assert errors[480, 640]["scenes"] == 120
    # The first weights that were shipped had 17.6, 12.1, 10.4 and 5.7 people.
    bounds = {(480, 640): 10.5, (768, 1024): 9.5, (384, 512): 7.5, (240, 320): 3.0}
    assert all(errors[shape]["mae"] < bound for shape, bound in bounds.items())


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
    fixture: Callable[[str], NpzFile], tmp_path: Path, write_h5
) -> None:
    """The 26 published names, in a file as published, fit without a word about the model."""
    data = fixture("MCNN")
    shapes = [tuple(int(side) for side in str(shape).split(",")) for shape in data["shapes"]]
    state = {str(k): torch.rand(s) for k, s in zip(data["keys"], shapes, strict=True)}
    loaded = models.load(write_h5(tmp_path / "MCNN_A.h5", state, prefix=""))
    assert torch.equal(loaded.net.state_dict()["branch1.0.conv.weight"], next(iter(state.values())))


def test_what_training_scripts_keep_beside_weights(tmp_path: Path, refused) -> None:
    """Scores by numpy and settings by argparse are read; what cannot be is named."""
    counter = models.create("mcnn")
    content = {
        "epoch": 7,
        "scores": {"mae": [np.float64(3.5)], "rmse": np.array([1.0, 2.0])},
        "best_prec1": np.float32(110.2),
        "args": argparse.Namespace(lr=1e-5, model="mcnn"),
        "model_state_dict": counter.net.state_dict(),
        "optimizer_state_dict": torch.optim.Adam(counter.parameters()).state_dict(),
    }
    torch.save(content, tmp_path / "ckpt.pth")
    assert same(models.load(tmp_path / "ckpt.pth"), counter)
    content["history"] = collections.defaultdict(list, {"loss": [0.5]})
    torch.save(content, tmp_path / "ckpt.pth")
    refused(tmp_path / "ckpt.pth", r"asks for more than tensors \(collections\.defaultdict\)")


def test_batch_norms_without_counts_of_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch before 0.4.1 saved them."""
    narrow.narrow(monkeypatch)
    counter = narrow.create("can", variant="weizheliu")
    state = counter.net.state_dict()
    old = {key: value for key, value in state.items() if "num_batches" not in key}
    assert len(old) < len(state)
    torch.save({"state_dict": old}, tmp_path / "part_B_pre.pth.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights
        loaded = models.load(tmp_path / "part_B_pre.pth.tar")
    assert same(loaded, counter)


def test_only_what_can_be_built_again_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'wrap' is made of a user's network"):
        models.save(
            models.wrap(torch.nn.Conv2d(3, 1, 1), stride=1), tmp_path / "w.npz", metadata={}
        )
    with pytest.raises(ValueError, match=r"save writes float32 counters, got \['torch.float16'\]"):
        models.save(models.create("mcnn").half(), tmp_path / "w.npz", metadata={})
    assert list(tmp_path.iterdir()) == []
