"""FIDTM against the published network and its rule of counting; the rest on a narrow one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from support import narrow
from support.published import close, images_of, published_input, published_state
from torch import Tensor, nn

from pycc import attack, models
from pycc.commands import main
from pycc.models.convention import IMAGENET
from pycc.models.fidtm import FIDTM
from pycc.models.fidtm_net import fidt, peaks, soft_peaks

Fixture = Callable[[str], NpzFile]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> FIDTM:
    narrow.narrow(monkeypatch)
    counter = narrow.create("fidtm", cells="points")
    assert isinstance(counter, FIDTM)
    return counter


def images(height: int, width: int, number: int = 1) -> Tensor:
    return torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.command
@torch.no_grad()
def test_output_is_the_published_networks(fixture: Fixture) -> None:
    numbers = fixture("FIDTM")
    with torch.device("meta"):
        counter = FIDTM().eval()
    assert list(counter.net.state_dict()) == [str(key) for key in numbers["keys"]]
    assert sum(p.numel() for p in counter.parameters()) == numbers["n_params"] == 66_584_049
    counter.net.load_state_dict(published_state(numbers), strict=True, assign=True)
    for case in range(len(numbers["seeds"])):
        x = published_input(numbers, case)
        assert close(counter.net(x), numbers[f"out_{case}"])
        # The counter, from RGB in [0,1], counts the published heads, exactly.
        shown = images_of(numbers, case)
        density = counter(shown)
        assert density.shape == (1, 1, *shown.shape[2:])
        assert float(density.sum()) == numbers[f"count_{case}"]
        (heads,) = counter.heads(shown)
        np.testing.assert_array_equal(heads.flip(1), numbers[f"points_{case}"])
        counter.averaged = True
        assert float(counter(shown).sum()) == numbers[f"count_avg_{case}"]
        counter.averaged = False


def test_heads_are_the_published_rules(fixture: Fixture) -> None:
    """Among others of a map with one bright spot, a faint one, and one with plateaus."""
    numbers = fixture("FIDTM_count")
    for name in numbers["names"]:
        maps = torch.from_numpy(numbers[f"map_{name}"])[None, None]
        for averaged, suffix in ((False, ""), (True, "_avg")):
            found = peaks(maps, averaged=averaged)
            assert int(found.sum()) == numbers[f"count{suffix}_{name}"]
            np.testing.assert_array_equal(found[0, 0].nonzero(), numbers[f"points{suffix}_{name}"])
    assert numbers["count_heads"] == 25
    assert numbers["count_bright"] == 1


def test_a_bright_spot_erases_everyone(fixture: Fixture) -> None:
    """In the count, and in the slope of its stand-in by the spot."""
    maps = torch.from_numpy(fixture("FIDTM_count")["map_heads"])[None, None].clone()
    assert int(peaks(maps).sum()) == 25
    row, column = (int(value) for value in peaks(maps)[0, 0].nonzero()[0])
    counts, soft = [], []
    for bright in (1.0, 1.5, 2.0, 2.6):
        maps[0, 0, row, column] = bright
        counts.append(int(peaks(maps).sum()))
        spot = maps.clone().requires_grad_()
        total = soft_peaks(spot).sum()
        (slope,) = torch.autograd.grad(total, spot)
        soft.append((float(total.detach()), float(slope[0, 0, row, column])))
    assert counts[0] == 25
    assert counts[-1] == 1
    assert sorted(counts, reverse=True) == counts
    assert all(slope < 0 for _, slope in soft)
    totals = [total for total, _ in soft]
    assert sorted(totals, reverse=True) == totals
    assert totals[0] > 20 > 10 > totals[-1]


class Bright(nn.Module):
    """A planted network: its map is the image's brightness."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = torch.tensor(IMAGENET, dtype=x.dtype)[..., None, None]
        return (std * x + mean).mean(1, keepdim=True)


@pytest.mark.command
def test_erase_finds_the_weakness(counter: FIDTM) -> None:
    """25 people of brightness 0.35 among darkness; a patch in the corner erases them all."""
    counter.net = Bright()  # type: ignore[assignment]
    scene = torch.full((3, 60, 60), 0.05)
    scene[:, 8::12, 8::12] = 0.35
    assert float(counter(scene[None]).sum()) == 25
    others = {}
    for objective in ("erase", "over"):
        apam = attack.APAM(
            patch_size=5, steps=20, step_size=0.1, objective=objective, transform="none",
            location="given", top_left=(0, 0), smoothness=0.0,
        )  # fmt: skip
        attacked = apam(counter, scene[None]).images
        cells = counter(attacked)[0, 0]
        others[objective] = int(cells.sum() - cells[:6, :6].sum())
    assert others == {"erase": 0, "over": 25}


def test_cells_are_heads_with_the_slopes_of_the_stand_in(counter: FIDTM) -> None:
    shown = images(40, 56).requires_grad_()
    weight = torch.rand(1, 1, 40, 56)
    slopes, maps = [], []
    for cells in ("points", "scores"):
        counter.cells = cells
        density = counter(shown)
        maps.append(density.detach())
        slopes.append(torch.autograd.grad((density * weight).sum(), shown)[0])
    assert {*maps[0].unique().tolist()} == {0.0, counter.most_per_cell} == {0.0, 1.0}
    assert torch.equal(*slopes)
    assert slopes[0].abs().max() > 0
    counter.cells = "points"
    (heads,) = counter.heads(shown.detach())
    assert torch.equal(heads.flip(1), maps[0][0, 0].nonzero().float())


def test_each_image_has_a_maximum_of_its_own(counter: FIDTM) -> None:
    shown = torch.stack([images(32, 48)[0], 0.1 * images(32, 48)[0]])
    with torch.no_grad():
        together = counter(shown)
        for row in (0, 1):
            assert torch.equal(together[row], counter(shown[row : row + 1])[0])
    assert counter.receptive_field is None


def test_the_target_is_a_function_of_the_nearest_head() -> None:
    points = torch.tensor([[0.2, 0.0], [30.9, 20.0], [30.1, 20.9], [63.0, 47.9]])
    target = fidt(points, (48, 64))
    heads = [(1, 1), (20, 30), (20, 30), (47, 63)]  # the first row and column stay free
    for y, x in ((1, 1), (0, 0), (20, 30), (10, 12), (47, 63), (47, 0)):
        d = min(((y - v) ** 2 + (x - u) ** 2) ** 0.5 for v, u in heads)
        value = 1 / (1 + d ** (0.02 * d + 0.75))
        assert float(target[y, x]) == pytest.approx(value if value >= 0.01 else 0.0, rel=1e-6)
    assert int((target == 1).sum()) == 3
    assert not fidt(torch.zeros(0, 2), (5, 7)).any()


def test_the_loss_is_the_sum_of_squares_in_the_region(counter: FIDTM) -> None:
    shown, heads = images(24, 32, number=2), [torch.tensor([[5.0, 9.0]]), torch.zeros(0, 2)]
    target = torch.zeros(2, 1, 24, 32)
    target[0, 0, 9, 5] = 1.0
    maps = counter.net(counter.preprocess(shown)).detach()
    wanted = torch.stack([fidt(points, (24, 32)) for points in heads])[:, None]
    loss = counter.loss(shown, target, points=heads)
    torch.testing.assert_close(loss.detach(), (maps - wanted).square().sum() / 2)
    assert torch.equal(counter.loss(shown, target), loss)  # dots are heads
    region = torch.zeros_like(target)
    region[..., :12, :] = 1.0
    inside = counter.loss(shown, target, points=heads, region=region).detach()
    torch.testing.assert_close(inside, (region * (maps - wanted).square()).sum() / 2)
    with pytest.raises(ValueError, match=r"fidtm\.loss: target must be \[2, 1, 24, 32\]"):
        counter.loss(shown, target[..., 1:])


@torch.no_grad()
def test_hrnet_becomes_the_trunk(counter: FIDTM) -> None:
    state = {k: torch.rand_like(v.float()) for k, v in counter.net.state_dict().items()}
    state = {k: v for k, v in state.items() if not k.startswith("last_layer.")}
    state["classifier.weight"] = torch.zeros(1000, 8)
    head = counter.net.last_layer[0].weight.clone()
    taken = counter.adopt(state)
    assert taken == f"the trunk of HRNet-W48 ({len(state) - 1} of {len(state)} tensors)"
    key = "stage4.0.branches.3.0.conv2.weight"
    assert torch.equal(counter.net.state_dict()[key], state[key])
    assert torch.equal(counter.net.last_layer[0].weight, head)
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert counter.adopt(old) == f"the trunk of HRNet-W48 ({len(old) - 1} of {len(old)} tensors)"
    wrong = {"got [2] of torch.float32": torch.zeros(2), "got nothing": None,
             "got [4, 3, 3, 3] of torch.int64": torch.ones(4, 3, 3, 3).long()}  # fmt: skip
    for got, tensor in wrong.items():
        given = {**old, "conv1.weight": tensor} if tensor is not None else dict(old)
        if tensor is None:
            del given["conv1.weight"]
        message = f"hrnet: conv1.weight must be floats [4, 3, 3, 3], {got}; the trunk is HRNet-W48"
        with pytest.raises(ValueError, match=re.escape(message)):
            counter.adopt(given)
    assert counter.adopt(models.create("mcnn").net.state_dict()) is None
    assert counter.adopt(counter.net.state_dict()) is None


def test_its_weakness_is_reported(
    counter: FIDTM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.save(counter, tmp_path / "w.npz", metadata={})
    assert main("models", ["check", str(tmp_path / "w.npz")]) in (0, 1)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "caution" in line]
    assert line.endswith("one bright spot can erase all others (pycc attack --objective erase)")
    main("models", ["check", "mcnn-synthetic"])
    assert "caution" not in capsys.readouterr().out


def test_options_and_recipe(counter: FIDTM) -> None:
    cases = [
        ({"cells": "soft"}, "cells must be 'points' or 'scores', got 'soft'"),
        ({"averaged": 1}, "averaged must be True or False, got 1"),
        ({"input": "gray255"}, "3 input channels"),
        ({"scale": 1.0}, "unknown option 'scale'; known: cells, averaged"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            models.create("fidtm", **options)
    with pytest.raises(ValueError, match="fidtm: images must be at least 4x4 pixels, got 3x64"):
        counter(images(3, 64))
    assert FIDTM.recognise(counter.net.state_dict()) == {}
    recipe = counter.recipe()
    (optimiser,) = recipe.optimisers
    assert (optimiser.lr, optimiser.weight_decay, recipe.batch) == (1e-4, 5e-4, 16)
    assert (recipe.crop.size, recipe.epochs, recipe.flip) == ((256, 256), 3000, 0.5)
