"""A known counter among other tensors of a flat state dict: its part is found, or named."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support import narrow
from support.states import State, other_than, prefixed

from pycc import models
from pycc.models.base import CounterModel
from pycc.models.families import state_parts
from pycc.models.weights import read_weights


def as_averaged(counter: CounterModel) -> State:
    return torch.optim.swa_utils.AveragedModel(counter.net).state_dict()


@pytest.mark.parametrize(
    ("wrapped", "left_out"),
    [
        (lambda s: {"n_averaged": torch.tensor(0), **prefixed("module.", s)}, None),
        (lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.module.", s)}, None),
        (lambda s: {"initted": torch.tensor([True]), **prefixed("ema_model.", s)}, None),
        (
            lambda s: {"n_averaged": torch.tensor(0), **prefixed("module._orig_mod.model.", s)},
            None,
        ),
        (
            lambda s: {**prefixed("model.", s), "train_mae.total": torch.tensor(3.5)},
            r"under '(state_dict\.)?model' alone, without train_mae\.total",
        ),
        (
            lambda s: {"criterion.weight": torch.full((3, 3), torch.nan), **prefixed("model.", s)},
            r"under '(state_dict\.)?model' alone, without criterion\.weight",
        ),
        (
            lambda s: {
                **prefixed("module.net.", s),
                **{f"module.loss.{i}": torch.ones(2) for i in range(5)},
                "n_averaged": torch.tensor(1),
            },
            r"under '(state_dict\.)?module\.net' alone, without module\.loss\.0, module\.loss\.1, "
            r"module\.loss\.2 and 2 more",
        ),
    ],
)
@pytest.mark.parametrize("name", [None, "mcnn"])
def test_a_family_under_a_prefix_that_not_all_keys_have(
    tmp_path: Path,
    wrapped: Callable[[State], State],
    left_out: str | None,
    name: str | None,
) -> None:
    state = models.load("mcnn-synthetic").net.state_dict()
    for content in (wrapped(state), {"epoch": 3, "state_dict": wrapped(state)}):
        torch.save(content, tmp_path / "w.pth")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = models.load(tmp_path / "w.pth", name=name).net.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
        messages = [str(warning.message) for warning in caught]
        assert len(messages) == (left_out is not None)
        assert all(re.search(f"{left_out}$", text) for text in messages)


def test_torchs_own_averages(counter: CounterModel, tmp_path: Path) -> None:
    torch.save(as_averaged(counter), tmp_path / "w.pth")
    loaded = models.load(tmp_path / "w.pth")
    assert loaded.origin.startswith("mcnn by its keys (26 tensors of w.pth)")
    for key, value in counter.net.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[key], value)


def test_a_c3_prefix_that_not_all_keys_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow.narrow(monkeypatch)
    state = prefixed("CCN.module.", narrow.create("csrnet", variant="c3").net.state_dict())
    torch.save({**state, "gs.kernel": torch.zeros(1, 1, 3, 3)}, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"without gs\.kernel$"):
        assert models.load(tmp_path / "w.pth").options()["variant"] == "c3"


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
@pytest.mark.parametrize(
    ("first", "second", "more"),
    [
        ("model.", "ema.module.", {}),
        (
            "online_model.",
            "ema_model.",
            {"initted": torch.tensor([True]), "step": torch.tensor([9])},
        ),
    ],
)
def test_two_families_under_prefixes(
    counter: CounterModel,
    tmp_path: Path,
    suffix: str,
    first: str,
    second: str,
    more: State,
    refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are refused, and the call that the message gives saves the first alone."""
    state = counter.net.state_dict()
    content = {**more, **prefixed(first, state), **prefixed(second, other_than(state))}
    path = tmp_path / f"w{suffix}"
    if suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in content.items()})
    else:
        torch.save(content, path)
    names = [first.split(".")[0], second.split(".")[0]]
    refused(
        path,
        rf"several state dicts: '{names[0]}' \(26 tensors\), '{names[1]}' \(26 tensors\); save the "
        r"one to load alone: (torch\.save|np\.savez)\(",
    )
    with pytest.raises(ValueError, match="several state dicts") as caught:
        models.load(path)
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).split("load alone: ")[1], {"np": np, "torch": torch})
    loaded = models.load(tmp_path / f"chosen{suffix}").net.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_the_requested_family_of_two_under_prefixes(
    counter: CounterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow.narrow(monkeypatch)
    other = narrow.create("csrnet").net.state_dict()
    state = {**prefixed("a.", counter.net.state_dict()), **prefixed("b.", other)}
    torch.save(state, tmp_path / "w.pth")
    for name, without in (("mcnn", "b"), ("csrnet", "a")):
        stored = read_weights(tmp_path / "w.pth", name=name)
        assert {key.split(".")[0] for key in stored.left_out} == {without}


@pytest.mark.parametrize("name", models.names())
def test_no_part_of_a_family_is_another(name: str) -> None:
    with torch.device("meta"):
        state = models.create(name).net.state_dict()
    del state[next(iter(state))]  # so that it is not recognised by its first key
    assert list(state_parts(state, None)) == []


def test_a_part_that_begins_like_a_counter(tmp_path: Path, refused) -> None:
    """GoogLeNet's have the keys of a few of MCNN's."""
    keys = [f"{part}.branch{i}.0.conv.weight" for part in ("a3", "b3") for i in (2, 3)]
    torch.save({key: torch.zeros(8, 1, 3, 3) for key in keys}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", r"shares no key .*; its keys are a3\.branch2\.0\.conv\.weight, ")


def test_parts_of_a_network_that_a_checkpoint_keeps_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow.narrow(monkeypatch)
    state = narrow.create("mask_aware").net.state_dict()
    parts: defaultdict[str, State] = defaultdict(dict)
    for key, value in state.items():
        part, _, rest = key.partition(".")
        parts[part][rest] = value
    torch.save({"epoch": 3, "model": dict(parts)}, tmp_path / "w.pth")
    stored = read_weights(tmp_path / "w.pth")
    assert (stored.place, list(stored.state)) == ("model", list(state))
