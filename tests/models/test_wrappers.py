"""State dicts are found in whatever they are wrapped in; what may be meant twice is refused."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from support import narrow, python2
from support.states import State, other_than, prefixed
from torch import Tensor, nn

from pycc import models
from pycc.commands import main
from pycc.models.base import MODELS, CounterModel
from pycc.models.families import unprefixed
from pycc.models.weights import read_weights
from pycc.models.wrappers import leaves


def adam(state: State) -> dict[str, object]:
    """An optimizer after a step: its state holds tensors of the shapes of the weights."""
    parameters = [nn.Parameter(value.clone()) for value in state.values()]
    optimizer = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def lightning(state: State) -> dict[str, object]:
    return {
        "epoch": 3,
        "global_step": 900,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": prefixed("model.", state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {
            "EarlyStopping": {"best_score": torch.tensor(98.5), "patience": 3},
            "ModelCheckpoint": {"best_k_models": {"epoch=2.ckpt": torch.tensor(98.5)}},
        },
        "optimizer_states": [adam(state)],
        "lr_schedulers": [{"last_epoch": 3, "_last_lr": [1e-5]}],
        "hyper_parameters": {"lr": 1e-5},
    }


Write = Callable[[State, Path], object]


def as_torch(wrapped: Callable[[State], object]) -> tuple[str, Write]:
    return "w.pth", lambda state, path: torch.save(wrapped(state), path)


def numpy_file(state: State, path: Path) -> None:
    np.savez(path, **{key: value.numpy() for key, value in state.items()})


def of_python_2(state: State, path: Path) -> None:
    best = np.frombuffer(b"\x8d\x00\xff\x00\xc3\xa9\x5b\x40", "<f8")[0]
    python2.save({"best_prec1": best, "state_dict": prefixed("module.", state)}, path)


def in_groups(state: State, path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, value in state.items():
            file[f"model/module.{key}"] = value.numpy()
        file["optimizer/momentum"] = np.zeros((3, 3))


WRAPPINGS: dict[str, tuple[str, Write]] = {
    "bare": as_torch(dict),
    "state_dict": as_torch(lambda s: {"epoch": 3, "state_dict": s, "optimizer": adam(s)}),
    "model": as_torch(lambda s: {"model": s}),
    "model, module.": as_torch(lambda s: {"model": prefixed("module.", s), "opt": adam(s)}),
    "net": as_torch(lambda s: {"net": s}),
    "_orig_mod.": as_torch(lambda s: prefixed("_orig_mod.", s)),
    "Lightning": as_torch(lightning),
    "module._orig_mod.model.": as_torch(
        lambda s: {"state_dict": prefixed("module._orig_mod.model.", s)}
    ),
    "params, module.": as_torch(lambda s: {"params": prefixed("module.", s)}),
    "DME.": as_torch(lambda s: prefixed("DME.", s)),
    "checkpoint, state_dict, a_name.": as_torch(
        lambda s: {"checkpoint": {"state_dict": prefixed("a_name.", s), "epoch": torch.tensor(3)}}
    ),
    "a tuple": as_torch(lambda s: (3, s, adam(s))),
    "compiled parts": as_torch(
        lambda s: {k.replace("branch2.", "branch2._orig_mod."): v for k, v in s.items()}
    ),
    "scores as tensors": as_torch(
        lambda s: {"best": torch.tensor(3.5), "scores": {"mae": torch.ones(9)}, "weights": s}
    ),
    "random states": as_torch(
        lambda s: {"rng": {"torch": torch.get_rng_state(), "cuda": []}, "network": s}
    ),
    "a critic beside it": as_torch(
        lambda s: {"generator": s, "discriminator": {"main.0.weight": torch.ones(4, 3, 3, 3)}}
    ),
    "the same twice": as_torch(lambda s: {"model": s, "ema": {k: v.clone() for k, v in s.items()}}),
    "modules apart": as_torch(
        lambda s: {
            "model": {
                part: {k[len(part) + 1 :]: v for k, v in s.items() if k.startswith(part + ".")}
                for part in ("branch1", "branch2", "branch3", "fuse")
            }
        }
    ),
    "npz": ("w.npz", numpy_file),
    "Python 2": ("w.pth.tar", of_python_2),
    "HDF5 groups": ("w.h5", in_groups),
}


def written(wrapping: str, state: State, folder: Path) -> Path:
    name, write = WRAPPINGS[wrapping]
    write(state, folder / name)
    return folder / name


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_any_wrapping_is_the_same_counter(
    counter: CounterModel, tmp_path: Path, wrapping: str
) -> None:
    loaded = models.load(written(wrapping, counter.net.state_dict(), tmp_path))
    assert (loaded.name, loaded.options()) == (counter.name, counter.options())
    state = loaded.net.state_dict()
    assert list(state) == list(counter.net.state_dict())
    assert all(torch.equal(state[key], value) for key, value in counter.net.state_dict().items())
    images = torch.rand(1, 3, 41, 52, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert float(loaded(images).sum()) == float(counter(images).sum())


class Public(NamedTuple):
    """Public weights, and their count of a part of a test image."""

    state: State
    image: Tensor
    count: float


@pytest.fixture(scope="module")
def public(shared: Path) -> Public:
    pytest.importorskip("h5py")
    source = shared / "data/weights/mcnn_shtechA_660.h5"
    picture = shared / "data/shanghaitech/part_A/test_data/images/IMG_1.jpg"
    pixels = np.asarray(Image.open(picture).convert("RGB"), np.float32) / 255
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, -256:, :320]
    with torch.no_grad():
        count = float(models.load(source)(image).sum())
    assert count > 1
    return Public(read_weights(source).state, image, count)


@pytest.mark.command
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_any_wrapping_of_public_weights(
    public: Public, tmp_path: Path, wrapping: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same count to the bit; recognised by content, so in the right convention."""
    path = written(wrapping, public.state, tmp_path)
    with torch.no_grad():
        assert float(models.load(path)(public.image).sum()) == public.count
    assert main("models", ["check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "recognised       mcnn by its content: mcnn_shtechA_660.h5" in out
    assert out.endswith("verdict          agrees with its metadata\n")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_wrappers(
    counter: CounterModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    half = {key: value.to(dtype) for key, value in counter.net.state_dict().items()}
    torch.save({"model": prefixed("module._orig_mod.", half)}, tmp_path / "w.pth")
    state = models.load(tmp_path / "w.pth").net.state_dict()
    assert all(torch.equal(state[key], value.float()) for key, value in half.items())


def test_an_unusual_place_is_part_of_the_origin(counter: CounterModel, tmp_path: Path) -> None:
    state = counter.net.state_dict()
    for content, place in (
        ({"checkpoint": {"model": state, "epoch": 3}}, ""),
        ({"nets": {"generator": state}}, ", under 'nets.generator'"),
    ):
        torch.save(content, tmp_path / "w.pth")
        origin = models.load(tmp_path / "w.pth").origin
        assert origin.startswith(f"mcnn by its keys (26 tensors of w.pth{place})")


# --- prefixes


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "backbone.", "x.y."])
@pytest.mark.parametrize("name", models.names())
def test_prefixes_hide_no_family(
    name: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a family has keys of its own that begin with such a word."""
    narrow.narrow(monkeypatch)
    state = narrow.create(name).net.state_dict()
    stripped = unprefixed(prefixed(prefix, state))
    assert list(stripped.state) == list(state)
    assert stripped.prefixes == {part + "." for part in prefix.split(".")[:-1]}
    assert unprefixed(state).prefixes == frozenset()


class _Wrapped(CounterModel):
    """A family whose own keys all begin with a wrapper's word."""

    name = "wrapped"

    def __init__(self) -> None:
        super().__init__(
            nn.ModuleDict({"model": nn.ModuleDict({"net": nn.Conv2d(3, 1, 1)})}),
            stride=1,
            receptive_field=1,
        )

    @classmethod
    def recognise(cls, state: dict[str, Tensor]) -> dict[str, object] | None:
        return {} if "model.net.weight" in state else None


@pytest.fixture
def wrapped() -> Iterator[None]:
    """A family whose keys begin like a wrapper."""
    with MODELS.registered("wrapped", _Wrapped):
        yield


@pytest.mark.usefixtures("wrapped")
def test_prefixes_of_a_familys_own_are_kept() -> None:
    state = {"model.net.weight": torch.zeros(1, 3, 1, 1), "model.net.bias": torch.zeros(1)}
    for prefix, removed in (("", set()), ("module.", {"module."}), ("model.", {"model."})):
        bare = unprefixed(prefixed(prefix, state))
        assert list(bare.state) == list(state)
        assert bare.prefixes == removed
    # Without a first key nothing is recognised: the reading that shares most keys is taken.
    part = {"module.model.net.bias": torch.zeros(1)}
    assert list(unprefixed(part).state) == ["model.net.bias"]


def test_the_requested_family_comes_first(
    counter: CounterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow.narrow(monkeypatch)
    other = narrow.create("csrnet").net.state_dict()
    torch.save({"first": other, "second": counter.net.state_dict()}, tmp_path / "w.pth")
    assert models.load(tmp_path / "w.pth", name="mcnn").name == "mcnn"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights
        assert models.load(tmp_path / "w.pth", name="csrnet").name == "csrnet"


def test_a_c3_prefix_in_wrappers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow.narrow(monkeypatch)
    state = narrow.create("csrnet", variant="c3").net.state_dict()
    torch.save({"model": prefixed("module.CCN.module.", state)}, tmp_path / "w.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights
        assert models.load(tmp_path / "w.pth").options()["variant"] == "c3"


def test_a_backbone_in_wrappers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    narrow.narrow(monkeypatch)
    front = models.create("csrnet").net.frontend.state_dict()
    for prefix in ("module.", "encoder.vgg.", "model.module."):
        torch.save({"model": prefixed(f"{prefix}features.", front)}, tmp_path / "w.pth")
        refused(tmp_path / "w.pth", "holds a backbone, not a counter")
        with pytest.warns(UserWarning, match="gives csrnet the first 10"):
            loaded = models.load(tmp_path / "w.pth", name="csrnet")
        assert torch.equal(loaded.net.frontend[0].weight, front["0.weight"])


# --- what is ambiguous


@pytest.mark.parametrize(
    ("wrapped", "places"),
    [
        (lambda a, b: {"generator": a, "discriminator": b}, ("generator", "discriminator")),
        (lambda a, b: {"generator": a, "discriminator": a}, ("generator", "discriminator")),
        (lambda a, b: {"model": a, "ema": b}, ("model", "ema")),
        (lambda a, b: {"state_dict": a, "state_dict_ema": b}, ("state_dict", "state_dict_ema")),
        (lambda a, b: {"best": {"net": a}, "last": {"net": b}}, ("best.net", "last.net")),
        (lambda a, b: [a, b], ("0", "1")),
        (
            lambda a, b: {"teacher": a, "state_dict": {"main.weight": torch.ones(4, 3)}},
            ("teacher", "state_dict"),
        ),
    ],
)
def test_two_that_may_be_meant(
    counter: CounterModel, tmp_path: Path, wrapped: Callable[..., object], places, refused
) -> None:
    state = counter.net.state_dict()
    torch.save(wrapped(state, other_than(state)), tmp_path / "w.pth")
    refused(
        tmp_path / "w.pth",
        rf"holds several state dicts: '{places[0]}' \(26 tensors\), '{places[1]}' \(\d+ tensors\); "
        r"save the one to load alone: torch\.save\(torch\.load\('w\.pth'\)\[",
    )


def test_the_advice_for_two_works(
    counter: CounterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = counter.net.state_dict()
    torch.save({"best": {"net": state}, "last": {"net": other_than(state)}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="several state dicts") as caught:
        models.load(tmp_path / "w.pth")
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).split("load alone: ")[1], {"torch": torch})
    loaded = models.load(tmp_path / "chosen.pth").net.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_two_groups_of_hdf5(counter: CounterModel, tmp_path: Path, refused) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for key, value in counter.net.state_dict().items():
            file[f"a/{key}"], file[f"b/{key}"] = value.numpy(), value.numpy() + 1
    refused(tmp_path / "w.h5", r"several state dicts: 'a' .*, 'b' .*; save the one to load alone$")


def test_optimizers_are_no_weights(counter: CounterModel, tmp_path: Path, refused) -> None:
    state = adam(counter.net.state_dict())
    for content in (state, {"optimizer": state}, {"epoch": 3, "state": state["state"]}):
        torch.save(content, tmp_path / "w.pth")
        refused(
            tmp_path / "w.pth",
            r"holds the state of an optimizer, scheduler or scaler"
            r"( \(under '(optimizer|state)'\))? and no weights: give the file of the weights, "
            r"torch\.save\(model\.state_dict\(\), FILE\)$",
        )
    # Nor are states of random numbers and scores.
    others = {"rng": torch.get_rng_state(), "best": torch.tensor(3.5), "lr_scheduler": {"epoch": 3}}
    torch.save({"optimizer_states": [state], **others}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", r"\(under 'optimizer_states', 'lr_scheduler'\) and no weights")
    # By name, too, where the moments are kept under the keys of the weights.
    moments = {"optimizer": {"exp_avg": other_than(counter.net.state_dict())}}
    torch.save({"net": counter.net.state_dict(), **moments}, tmp_path / "w.pth")
    assert models.load(tmp_path / "w.pth").origin.startswith("mcnn by its keys (26 tensors")


NAMES_OF_TRAINING = (
    *("optimizer", "optimizers", "optimizer_states", "optimizerG", "optimizer1", "optimiser"),
    *("optim", "generator_optim", "optimState", "scheduler", "lr_scheduler", "lrScheduler"),
    *("lrscheduler", "sched", "LR_Schedulers", "scaler", "amp_scaler", "GradScaler"),
)


@pytest.mark.parametrize("name", NAMES_OF_TRAINING)
def test_names_of_optimizers_are_whole_words(
    counter: CounterModel, tmp_path: Path, name: str
) -> None:
    """Moments under the keys of the weights differ from them by their name alone."""
    state = counter.net.state_dict()
    torch.save({"a": state, name: {"moments": other_than(state)}}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").place == "a"


@pytest.mark.parametrize(
    "place", ["best_optimised", "optimal", "scheduled_sampling", "rescaler_net", 0, 7]
)
def test_other_names_hide_no_weights(
    counter: CounterModel, tmp_path: Path, place: str | int
) -> None:
    state = counter.net.state_dict()
    torch.save({place: state, ("a", 1): 3, "epoch": 2}, tmp_path / "w.pth")
    stored = read_weights(tmp_path / "w.pth")
    assert (stored.place, list(stored.state)) == (str(place), list(state))


def test_two_under_numbers(counter: CounterModel, tmp_path: Path, refused) -> None:
    state = counter.net.state_dict()
    torch.save({0: state, 1: other_than(state)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", r"several state dicts: '0' .*, '1' .*torch\.load\('w\.pth'\)\[0\]")


@pytest.mark.parametrize(
    "other",
    [3, 0.5, True, None, "mcnn", [0.5, 0.25], ["a", "b"], np.float32(3), argparse.Namespace(lr=1)],
    ids=repr,
)
def test_settings_among_weights_are_passed_over(
    counter: CounterModel, tmp_path: Path, other: object
) -> None:
    state = counter.net.state_dict()
    for content in ({**state, "epoch": other}, {"net": {"version": other, **state}}):
        torch.save(content, tmp_path / "w.pth")
        stored = read_weights(tmp_path / "w.pth")
        assert list(stored.state) == list(state)
        assert stored.left_out == []


def test_what_is_no_tensor_among_weights_is_named(
    counter: CounterModel, tmp_path: Path, refused
) -> None:
    content = {"epoch": 3, "state_dict": {**counter.net.state_dict(), "names": np.array(["a"])}}
    torch.save(content, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "entry 'names' must be a tensor, got ndarray")


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2"])
def test_arrays_are_tensors(counter: CounterModel, tmp_path: Path, kind: str) -> None:
    state = {key: value.numpy().astype(kind) for key, value in counter.net.state_dict().items()}
    state["branch1.0.conv.weight"] = np.asfortranarray(state["branch1.0.conv.weight"])
    torch.save({"model": state}, tmp_path / "w.pth")
    np.savez(tmp_path / "w.npz", **state)
    for name in ("w.pth", "w.npz"):
        loaded = models.load(tmp_path / name).net.state_dict()
        assert all(np.array_equal(loaded[k], v.astype("<f4")) for k, v in state.items())


def test_endless_nesting_ends(counter: CounterModel, tmp_path: Path, refused) -> None:
    """A few bytes of a pickle describe a cycle, or billions of entries that are one."""
    cycle: dict[str, object] = {"model": counter.net.state_dict()}
    cycle["itself"] = cycle
    many: object = {"w": torch.zeros(1)}
    for _ in range(14):
        many = dict.fromkeys("abcdefgh", many)
    for content in (cycle, many):
        torch.save(content, tmp_path / "w.pth")
        refused(tmp_path / "w.pth", "is nested too deeply to be a checkpoint: expected at most")
    long = {"losses": [0.5] * 300_000, "model": counter.net.state_dict()}
    assert len(leaves(long, tmp_path)) == 27


# --- what is no counter of a known family


def test_no_key_of_any_family(tmp_path: Path, refused) -> None:
    torch.save(
        {"model": {"stem.weight": torch.zeros(4, 3), "a.b": torch.zeros(4)}}, tmp_path / "w.pth"
    )
    refused(
        tmp_path / "w.pth",
        rf"shares no key with any family of counters \({', '.join(models.names())}\); its keys are "
        r"stem\.weight, a\.b; a family of your own needs --import FILE or its import in "
        r"Python, and pycc\.models\.wrap makes a counter of any network$",
    )


@pytest.mark.parametrize(
    ("keys", "network"),
    [
        (["conv1.weight", "layer1.0.conv1.weight", "layer4.1.bn2.bias"], "a ResNet backbone"),
        ([f"features.{i}.weight" for i in range(16)], "a VGG-19 backbone"),
        (
            [*(f"features.{3 * i}.weight" for i in range(13)), "features.1.running_mean"],
            "a VGG-16 backbone with batch normalisation",
        ),
        (["features.0.0.weight", "classifier.1.bias"], "a MobileNet, EfficientNet or ConvNeXt"),
        (["patch_embed.proj.weight", "blocks.0.attn.qkv.weight"], "a vision transformer"),
    ],
)
def test_well_known_networks_are_named(
    tmp_path: Path, keys: list[str], network: str, refused
) -> None:
    torch.save({f"module.{key}": torch.zeros(4, 4, 3, 3) for key in keys}, tmp_path / "w.pth")
    refused(
        tmp_path / "w.pth",
        f"(shares no key with|is not of) any .*, which seem to be those of {network}",
    )
