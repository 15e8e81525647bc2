from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pycc.attack import APAM, Problem, objectives
from pycc.attack.evaluation.cells import cell_density
from pycc.attack.objective import Aim
from pycc.attack.patch import Place
from pycc.attack.problem import pasted
from pycc.data import quantize
from pycc.grid import cell_weight
from pycc.local import aligned
from pycc.types import Sample

AIMS = {
    "density": {"factor": 10.0},
    "over": {},
    "under": {},
    "target": {"target_count": 12.0},
    "pap": {},
    "erase": {},
}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def written_out(objective: str, aim: Aim, out: np.ndarray, clean: np.ndarray, truth: np.ndarray,
                weight: np.ndarray, heads: int) -> float:  # fmt: skip
    """Each objective from full maps [h,w], as its source states it."""
    if objective == "density":  # eq. 7 of APAM, a mean in place of half a sum
        return float((weight * (out - aim.factor * truth) ** 2).sum() / weight.sum())
    if objective == "pap":
        return float(-(weight * sigmoid(truth - out) * out).sum())
    count = float((weight * out).sum())
    if objective == "target":
        wanted = aim.factor * heads if aim.target_count is None else aim.target_count
        far = abs(float((weight * clean).sum()) - wanted)
        return (count - wanted) ** 2 / (2 * max(far, 1.0))
    return -count if objective == "over" else count


def test_every_objective_is_tried_here() -> None:
    assert set(objectives.names()) == set(AIMS)


def whole_map(counter: nn.Module, image: Tensor) -> np.ndarray:
    with torch.no_grad():
        return counter.eval()(image[None])[0, 0].double().numpy()


def attacked(sample: Sample, attack: APAM, patch: Tensor) -> Tensor:
    image, side = quantize(sample.image), patch.shape[-1]
    height, width = image.shape[1:]
    y, x = (height - side) // 2, (width - side) // 2
    inside = attack.patch_mask(side).bool()
    image[:, y : y + side, x : x + side][:, inside] = patch[:, inside]
    return image


def loud(counter: Any) -> Any:
    """So that cells hold about one person: no term is negligible beside another."""
    forward = counter.forward
    counter.forward = lambda images: 10 * forward(images)
    return counter


@pytest.mark.parametrize(
    ("objective", "wanted"),
    [
        *AIMS.items(),
        ("density", {"factor": 0.0}),
        ("density", {"factor": -2.5}),
        ("target", {"target_count": 0.0}),
        ("target", {"target_count": 400.0}),
        ("target", {"factor": 3.0}),
    ],
)
@pytest.mark.parametrize("with_roi", [False, True])
def test_the_loss_is_that_of_the_full_maps(
    objective: str, wanted: dict[str, float], with_roi: bool, tiny: Callable[..., Any],
    sample: Callable[..., Sample], problem: Callable[..., Problem],
) -> None:  # fmt: skip
    """Differences of losses, since a constant is left out; the box cuts out a part of the map."""
    counter = loud(tiny())
    samples = [sample(0, region=with_roi), sample(1, region=with_roi)]
    attack = APAM(patch_size=14, shape="disc", objective=objective, **wanted)
    made = problem(attack, counter, samples)
    mask = attack.patch_mask(14)
    one, other = (attack.start(made.index, 14, seed) for seed in (1, 2))
    pair = torch.stack([one, other], 1).flatten(0, 1)  # two draws of each image
    (region,) = made.regions
    both = [region.change(pasted(region, patch, mask)) for patch in (one, other)]
    assert both[0].shape[-1] < 80 // 4
    losses = objectives[objective](torch.cat(both, 1), region, attack.aim)
    assert losses.shape == (2, 2)
    for row, each in enumerate(samples):
        clean = whole_map(counter, quantize(each.image))
        truth = cell_density(each, clean.shape, 4).double().numpy()
        weight = cell_weight(each.roi, clean.shape, 4).double().numpy()
        heads = int(region.truth[row])
        if objective == "erase":  # without the cells that the patch may lie in, however turned
            shape = (each.image.shape[1], each.image.shape[2])
            middle = ((shape[0] - 14) // 2, (shape[1] - 14) // 2)
            box = aligned(attack.extent(Place(14, middle)), shape, 4)
            weight[box.top // 4 : box.bottom // 4, box.left // 4 : box.right // 4] = 0.0
        expected = [
            written_out(objective, attack.aim, whole_map(counter, attacked(each, attack, patch)),
                        clean, truth, weight, heads)
            for patch in pair[2 * row : 2 * row + 2]
        ]  # fmt: skip
        without = written_out(objective, attack.aim, clean, clean, truth, weight, heads)
        assert abs(expected[0] - without) > 1e-4
        nothing = objectives[objective](torch.zeros_like(both[0]), region, attack.aim)[row, 0]
        differences = losses[row].double().numpy() - float(nothing)
        assert differences == pytest.approx(np.array(expected) - without, rel=2e-4, abs=2e-5)


def region_of(cells: int, images: int = 2, *, seed: int = 0, dtype: Any = torch.float64) -> Any:
    """AttackedRegion of random numbers, as far as objectives read them."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    return SimpleNamespace(
        local=SimpleNamespace(clean=rand(images, 1, cells, cells)),
        density=rand(images, 1, cells, cells),
        weight=rand(images, 1, cells, cells),
        cells=torch.full((images,), 50.0, dtype=dtype),
        count=10 + rand(images),
        truth=torch.arange(images).to(dtype) + 3,
        own=None,
    )


@given(
    st.integers(0, 2**16), st.floats(-20, 20), st.one_of(st.none(), st.floats(0, 1e3)),
    st.sampled_from(list(AIMS)),
)  # fmt: skip
def test_without_change_nothing_is_lost(seed, factor, target_count, objective) -> None:
    region, aim = region_of(3, seed=seed), Aim(factor, target_count)
    change = torch.zeros(2, 2, 1, 3, 3, dtype=torch.float64)
    losses = objectives[objective](change, region, aim)
    assert losses.shape == (2, 2)
    if objective != "target":
        assert torch.all(losses == 0)
        return
    for row in range(2):
        wanted = factor * (3 + row) if target_count is None else target_count
        far = abs(float(region.count[row]) - wanted)
        expected = far**2 / (2 * far) if far >= 1 else far**2 / 2
        assert losses[row].tolist() == pytest.approx([expected] * 2)


@pytest.mark.parametrize("objective", ["density", "over", "under", "target", "erase"])
def test_what_lies_outside_the_region_does_not_matter(objective: str) -> None:
    region, aim = region_of(3), Aim(10.0, None)
    region.weight[:, :, 0] = 0.0
    change = torch.rand(2, 1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    loss = objectives[objective](change, region, aim).sum()
    (gradient,) = torch.autograd.grad(loss, change)
    assert torch.all(gradient[..., 0, :] == 0)
    assert torch.all(gradient[..., 1:, :] != 0)


@pytest.mark.parametrize("objective", list(AIMS))
def test_gradients_by_finite_differences(objective: str) -> None:
    """Of all but ``pap``, whose weights are held fixed."""
    region, aim = region_of(2), Aim(10.0, None)
    change = torch.rand(2, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)

    def loss(moved: Tensor) -> Tensor:
        return objectives[objective](moved, region, aim)

    if objective != "pap":
        assert torch.autograd.gradcheck(loss, (change,))
        return
    (gradient,) = torch.autograd.grad(loss(change).sum(), change)
    out = region.local.clean[:, None] + change.detach()
    fixed = sigmoid((region.density[:, None] - out).numpy())
    assert np.allclose(gradient.numpy(), -region.weight[:, None].numpy() * fixed)


def test_the_slope_of_a_target_is_near_one_at_first() -> None:
    """Images of small and large crowds then weigh alike; too many people push down, too few up."""
    region = region_of(2)
    for wanted, sign in ((0.0, 1.0), (1000.0, -1.0)):
        change = torch.zeros(2, 1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
        loss = objectives["target"](change, region, Aim(10.0, wanted)).sum()
        (gradient,) = torch.autograd.grad(loss, change)
        assert torch.allclose(gradient, sign * region.weight[:, None])


@given(st.floats(0.1, 1e4), st.floats(0, 1e4), st.floats(0, 1e4))
def test_a_target_loss_falls_exactly_where_the_count_comes_nearer(clean, wanted, count) -> None:
    region = region_of(1, images=1)
    region.weight[:], region.count[:] = 1.0, clean
    change = torch.tensor([0.0, count - clean], dtype=torch.float64).view(1, 2, 1, 1, 1)
    losses = objectives["target"](change, region, Aim(10.0, wanted))[0]
    nearer = abs(count - wanted) - abs(clean - wanted)
    if abs(nearer) > 1e-6:
        assert bool(losses[1] < losses[0]) == (nearer < 0)


@pytest.mark.parametrize(
    ("objective", "aim", "count", "expected"),
    [
        ("over", Aim(10.0, None), 130.0, 30.0),
        ("over", Aim(10.0, None), 80.0, -20.0),
        ("under", Aim(10.0, None), 130.0, -30.0),
        ("under", Aim(10.0, None), 80.0, 20.0),
        ("pap", Aim(10.0, None), 130.0, 30.0),
        ("erase", Aim(10.0, None), 80.0, 20.0),
        ("density", Aim(10.0, None), 130.0, 30.0),
        ("density", Aim(1.0, None), 130.0, -30.0),  # the truth is what is wanted
        ("density", Aim(0.5, None), 80.0, 20.0),
        ("density", Aim(0.0, None), 130.0, -30.0),
        ("density", Aim(-5.0, None), 60.0, 40.0),
        ("target", Aim(10.0, 150.0), 130.0, 30.0),  # 50 off, then 20
        ("target", Aim(10.0, 150.0), 190.0, 10.0),  # overshot: 40 off
        ("target", Aim(10.0, 150.0), 210.0, -10.0),  # overshot by more than it was off
        ("target", Aim(10.0, 150.0), 90.0, -10.0),
        ("target", Aim(10.0, 40.0), 70.0, 30.0),
        ("target", Aim(10.0, 40.0), 20.0, 40.0),
        ("target", Aim(10.0, 0.0), 0.0, 100.0),
        ("target", Aim(2.0, None), 130.0, 30.0),  # wants twice 90
        ("target", Aim(0.5, None), 45.0, 55.0),  # wants half of 90
    ],
)
def test_attack_gain_by_hand(objective: str, aim: Aim, count: float, expected: float) -> None:
    """Of a clean count of 100 where 90 people are annotated."""
    assert objectives[objective].attack_gain(
        aim, count=count, clean=100.0, truth=90.0
    ) == pytest.approx(expected)
    assert objectives[objective].attack_gain(aim, count=100.0, clean=100.0, truth=90.0) == 0


@pytest.mark.parametrize("objective", ["over", "under", "target"])
@given(count=st.floats(0, 500), clean=st.floats(0, 500))
def test_attack_gain_and_loss_agree_in_sign(objective: str, count: float, clean: float) -> None:
    region, aim = region_of(1, images=1), Aim(10.0, 120.0 if objective == "target" else None)
    region.weight[:], region.count[:] = 1.0, clean
    change = torch.tensor([0.0, count - clean], dtype=torch.float64).view(1, 2, 1, 1, 1)
    losses = objectives[objective](change, region, aim)[0]
    done = objectives[objective].attack_gain(aim, count=count, clean=clean, truth=12.0)
    if abs(done) > 1e-6:
        assert bool(losses[1] < losses[0]) == (done > 0)


@pytest.mark.parametrize(
    ("objective", "aim", "clean", "expected"),
    [
        ("over", Aim(10.0, None), 0.0, True),
        ("pap", Aim(10.0, None), 0.0, True),
        ("under", Aim(10.0, None), 0.5, True),
        ("under", Aim(10.0, None), 0.0, False),
        ("target", Aim(10.0, None), 9.0, True),
        ("target", Aim(10.0, None), 90.0, False),
        ("density", Aim(10.0, None), 90.0, False),
        ("target", Aim(10.0, 3.0), 90.0, True),
        ("target", Aim(10.0, 3.0), 3.0, False),
    ],
)
def test_there_is_no_room_where_the_clean_count_is_what_is_wanted(
    objective: str, aim: Aim, clean: float, expected: bool
) -> None:
    assert objectives[objective].can_gain(aim, clean=clean, truth=9.0) == expected
    if not expected:
        assert (
            max(
                objectives[objective].attack_gain(aim, count=count, clean=clean, truth=9.0)
                for count in (0.0, clean, clean + 5.0)
            )
            <= 0.0
        )
