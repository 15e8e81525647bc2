"""The loss of every counter is a mean over images, of what lies in the region of interest."""

from __future__ import annotations

import pytest
import torch
from support import narrow
from torch import Tensor, nn

from pycc import models
from pycc.models import CounterModel
from pycc.ranks import Ranks
from pycc.train.config import TrainConfig
from pycc.train.items import Item
from pycc.train.step import Stepper, together

STILL = (nn.BatchNorm2d, nn.Dropout)


CASES: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in models.names()},
    "clip_ebc, dmcount": ("clip_ebc", {"count_loss": "dmcount"}),
    "clip_ebc, vgg19": ("clip_ebc", {"backbone": "vgg19"}),
    "clip_ebc, vit": ("clip_ebc", {"backbone": "vit_b_16"}),
    "zip, t": ("zip", {"variant": "t", "block": 8}),
    "vgg19, dm_count": ("vgg19", {"variant": "dm_count"}),
    "sfanet, qnrf": ("sfanet", {"variant": "m_sfanet_qnrf"}),
    "vgg19, generalized_loss": ("vgg19", {"variant": "generalized_loss"}),
}


@pytest.fixture(params=CASES)
def counter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CounterModel:
    """Narrow, in train mode but for what looks at the whole batch, or draws."""
    narrow.narrow(monkeypatch)
    name, options = CASES[request.param]
    model = narrow.create(name, **options)
    if options.get("variant") == "dm_count":
        narrow.positive(model)  # else its last ReLU is 0 everywhere
    for module in model.modules():
        if isinstance(module, STILL):
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
    return model.train()


def item(counter: CounterModel, number: int, shape: tuple[int, int]) -> Item:
    """An image with heads on distinct cells, as whole numbers: what every loss takes."""
    generator = torch.Generator().manual_seed(number)
    s = counter.stride
    cells = torch.zeros(1, shape[0] // s, shape[1] // s)
    chosen = torch.randperm(cells.numel(), generator=generator)[: 3 + number]
    cells.view(-1)[chosen] = 1.0
    rows, columns = chosen // cells.shape[2], chosen % cells.shape[2]
    points = torch.stack([columns, rows], 1).double() * s + s / 2
    return Item(f"{number}", torch.rand(3, *shape, generator=generator), cells, points)


def gradient(counter: CounterModel, plan: TrainConfig, items: list[Item]) -> tuple[float, Tensor]:
    counter.zero_grad(set_to_none=True)
    loss = Stepper(counter, plan, 0, Ranks(), None).gradient(0, 0, len(items), items)
    parts = [p.grad.flatten() for p in counter.parameters() if p.grad is not None]
    return loss, torch.cat(parts)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_loss_has_a_gradient_in_mixed_precision(counter: CounterModel) -> None:
    items = [item(counter, n, (64, 64)) for n in range(2)]
    exact, _ = gradient(counter, TrainConfig(), items)
    loss, grad = gradient(counter.cuda(), TrainConfig(amp=True), items)
    assert loss == pytest.approx(exact, rel=0.1)
    assert grad.isfinite().all()
    assert grad.abs().max() > 0


@pytest.mark.long
@pytest.mark.parametrize("shapes", [[(64, 64)] * 4, [(64, 64), (96, 64), (64, 64), (64, 96)]])
def test_a_batch_has_one_gradient_however_it_is_computed(
    counter: CounterModel, shapes: list[tuple[int, int]]
) -> None:
    """In one part, in two, and as the mean of its images' own."""
    items = [item(counter, n, shape) for n, shape in enumerate(shapes)]
    alone = [gradient(counter, TrainConfig(), [item]) for item in items]
    loss = sum(value for value, _ in alone) / len(alone)
    expected = torch.stack([grad for _, grad in alone]).mean(0)
    assert expected.abs().max() > 0
    for accumulate in (1, 2, 3):
        value, grad = gradient(counter, TrainConfig(accumulate=accumulate), items)
        assert value == pytest.approx(loss, rel=1e-4, abs=1e-6)
        assert (grad - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_what_is_outside_the_region_is_no_error(counter: CounterModel) -> None:
    """Predictions there can be anything: no gradient of the loss by them."""
    if counter.name in ("p2pnet", "fidtm", "steerer"):
        pytest.skip("its loss is not of the counted map: see its own tests")
    crop = item(counter, 1, (64, 64))
    region = torch.ones_like(crop.target)
    region[..., : region.shape[1] // 2, :] = 0.0
    inside = (crop.points[:, 1] >= 32).nonzero()[:, 0]
    target, points = crop.target * region, [crop.points[inside]]
    seen: list[Tensor] = []
    density = counter.density

    def watched(output: object) -> Tensor:
        maps = density(output)
        if maps.requires_grad:
            maps.retain_grad()
        seen.append(maps)
        return maps

    counter.density = watched  # type: ignore[method-assign]
    arguments = (crop.image[None], target[None])
    counter.loss(*arguments, points=points, region=region[None]).backward()
    for maps in seen:
        # CMTL's class and mask-aware networks' masks are of the whole image; cells are of the half.
        half = maps.shape[2] // 2
        assert maps.grad is not None
        assert (maps.grad[:, :, :half] == 0).all()
    assert any((maps.grad[:, :, maps.shape[2] // 2 :] != 0).any() for maps in seen)
    with pytest.raises(ValueError, match=r"loss: region must be \[1, 1, .* like the density map"):
        counter.loss(*arguments, points=points, region=region[None, ..., 1:])


def test_items_with_and_without_a_region_are_one_part() -> None:
    everywhere, half = (
        Item(n, torch.rand(3, 8, 8), torch.ones(1, 2, 2), torch.zeros(0, 2)) for n in "ab"
    )
    assert together([everywhere, half], 1.0, torch.device("cpu")).region is None
    shares = torch.tensor([[[1.0, 0.0], [0.5, 0.0]]])
    half = Item("b", half.image, half.target, half.points, region=shares)
    part = together([everywhere, half], 0.5, torch.device("cpu"))
    assert part.region is not None
    assert torch.equal(part.region, torch.stack([torch.ones(1, 2, 2), shares]))
    assert part.weight == 0.5
