"""CLIP-EBC's loss against the published one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from pycc.models import dace

Fixture = Callable[[str], NpzFile]
CASES = [(kind, case) for kind in dace.COUNT_LOSSES for case in (0, 1)]


def tensor(data: NpzFile, name: str, case: int) -> Tensor:
    return torch.from_numpy(data[f"{name}_{case}"])


def heads(data: NpzFile, case: int) -> list[Tensor]:
    return [tensor(data, f"points{image}", case) for image in range(2)]


def blocks(points: Tensor) -> Tensor:
    """[1,8,8] heads per block: one head a pixel, coincident ones merged, as published."""
    dots = np.zeros((64, 64))
    x, y = points.numpy().astype(int).T
    dots[y, x] = 1.0
    return torch.from_numpy(dots.reshape(1, 8, 8, 8, 8).sum((2, 4)))


@pytest.mark.parametrize(("kind", "case"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_the_published_ones(
    fixture: Fixture, kind: dace.CountLoss, case: int, dtype: torch.dtype
) -> None:
    data = fixture("dace_loss")
    logits = tensor(data, "logits", case).to(dtype).requires_grad_()
    density = tensor(data, "density", case).to(dtype).requires_grad_()
    points = heads(data, case)
    target = torch.stack([blocks(xy) for xy in points])
    loss = dace.dace_loss(logits, density, target, count_loss=kind, points=points)
    if kind == "dmcount":  # published is the sum of the transport over both images
        loss = loss + dace.TRANSPORT_WEIGHT * dace.transport_loss(density, points, stride=8)
    loss.backward()
    assert loss.item() == pytest.approx(float(data[f"{kind}_loss_{case}"]), rel=1e-6)
    for leaf, name in ((logits, "logits"), (density, "density")):
        expected = tensor(data, f"{kind}_grad_{name}", case)
        assert leaf.grad is not None
        difference = (leaf.grad - expected).abs().max()
        assert difference <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("case", [0, 1])
def test_each_term_is_the_published_one(fixture: Fixture, case: int) -> None:
    data = fixture("dace_loss")
    logits, density = tensor(data, "logits", case), tensor(data, "density", case)
    points = heads(data, case)
    target = torch.stack([blocks(xy) for xy in points]).float()
    terms = {
        "dmcount_ce": dace.classification_loss(logits, target),
        "mae_mae": dace.dace_loss(logits, density, target)
        - dace.classification_loss(logits, target),
        "dmcount_tv": dace.variation(density, target, torch.tensor([37.0, len(points[1])])).mean(),
    }
    for name, value in terms.items():
        assert value.item() == pytest.approx(float(data[f"{name}_loss_{case}"]), rel=1e-6)
    # Its value is rounding: 0 beside a count of 30 to 100.
    assert abs(float(dace.transport_loss(density, points, stride=8))) < 1e-4


def test_bins(fixture: Fixture) -> None:
    for index, (low, high) in enumerate(fixture("dace_loss")["bins"]):
        ends = torch.tensor([low, min(high, 1e4)])
        assert dace.block_classes(ends, 5).tolist() == [index, index]
    assert dace.block_classes(torch.tensor([3, 9]), 5).tolist() == [3, 4]
    assert dace.block_classes(torch.tensor([2.9995, 0.0004]), 5).tolist() == [3, 0]


def test_transport_pulls_people_towards_heads() -> None:
    """Descending only the transport moves mass to the head's block and keeps the count."""
    density = torch.full((1, 1, 6, 6), 0.1, dtype=torch.float64, requires_grad=True)
    head = torch.tensor([[12.0, 28.0]], dtype=torch.float64)
    (slope,) = torch.autograd.grad(dace.transport_loss(density, [head], stride=8), density)
    assert int(slope.argmin()) == 3 * 6 + 1
    # Along the map itself nothing changes: the loss does not depend on the count.
    assert abs((slope * density).sum().item()) < 1e-9


def test_images_without_heads_take_no_part_in_transport() -> None:
    density = torch.rand(2, 1, 4, 4, requires_grad=True)
    nobody = torch.zeros(0, 2)
    somebody = torch.tensor([[3.0, 5.0], [20.0, 9.0]])
    loss = dace.transport_loss(density, [nobody, somebody], stride=8)
    (slope,) = torch.autograd.grad(loss, density)
    assert (slope[0] == 0).all()
    assert (slope[1] != 0).any()
    empty = dace.dace_loss(
        torch.rand(2, 5, 4, 4),
        density,
        torch.zeros(2, 1, 4, 4),
        count_loss="dmcount",
        points=[nobody, nobody],
    )
    (slope,) = torch.autograd.grad(empty, density)
    assert torch.isfinite(empty)
    torch.testing.assert_close(slope, torch.full_like(slope, 0.5))  # of the difference of counts


def test_crowds_far_from_each_other_stay_finite() -> None:
    """Distances at which the transport's kernel is 0 in float32, many heads on one pixel."""
    density = torch.rand(1, 1, 56, 56, requires_grad=True)
    points = torch.cat([torch.full((50, 2), 3.5), torch.full((1, 2), 440.0)])
    loss = dace.transport_loss(density, [points], stride=8)
    (slope,) = torch.autograd.grad(loss, density)
    assert torch.isfinite(slope).all()
    assert slope[0, 0, 0, 0] < slope[0, 0, 28, 28]


def test_half_precision_is_computed_in_single() -> None:
    logits, density = torch.rand(1, 5, 4, 4), torch.rand(1, 1, 4, 4).half().float()
    arguments = {"count_loss": "dmcount", "points": [torch.tensor([[4.0, 20.0]])]}
    target = torch.zeros(1, 1, 4, 4)
    target[0, 0, 2, 0] = 1.0
    expected = dace.dace_loss(logits.half().float(), density, target, **arguments)
    loss = dace.dace_loss(logits.half(), density.half(), target, **arguments)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"count_loss": "mape"}, "count_loss must be 'mae' or 'mse' or 'dmcount', got 'mape'"),
        ({"logits": torch.zeros(2, 4, 4)}, r"logits must be \[N,B,h,w\], got \[2, 4, 4\]"),
        ({"density": torch.zeros(1, 1, 4, 4)}, r"density must be \[2, 1, 4, 4\] .* got \[1, 1"),
        ({"target": torch.zeros(2, 1, 4, 5)}, r"target must be \[2, 1, 4, 4\] .* got \[2, 1, 4, 5"),
        (
            {"target": torch.full((2, 1, 4, 4), 0.3)},
            "numbers of heads .* not a smoothed .* got 0.3",
        ),
        ({"target": torch.full((2, 1, 4, 4), -1.0)}, r"numbers of heads per cell .* got -1\.0"),
        ({"target": torch.full((2, 1, 4, 4), torch.nan)}, "numbers of heads per cell .* got nan"),
        ({"target": torch.zeros(2, 1, 4, 4, dtype=torch.cfloat)}, "target must be real"),
        ({"points": None}, "count_loss 'dmcount' needs points"),
        ({"points": [torch.zeros(1, 2)]}, "points must be those of 2 images, got 1"),
        ({"points": [torch.zeros(3), torch.zeros(1, 2)]}, r"must be \[M,2\] .* got \[3\]"),
        ({"points": [[], []]}, r"must be \[M,2\] .* got list"),
        ({"points": [torch.full((1, 2), torch.inf)] * 2}, "points must be finite"),
    ],
)
def test_bad_arguments(changed: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "logits": torch.zeros(2, 5, 4, 4),
        "density": torch.ones(2, 1, 4, 4),
        "target": torch.zeros(2, 1, 4, 4),
        "count_loss": "dmcount",
        "points": [torch.zeros(0, 2)] * 2,
    }
    with pytest.raises(ValueError, match=message) as caught:
        dace.dace_loss(**{**arguments, **changed})
    assert "\n" not in str(caught.value)
