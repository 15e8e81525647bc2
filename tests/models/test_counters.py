"""What every registered counter promises."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from support import narrow
from support.marks import long
from torch import nn

from pycc import attack, models, ops
from pycc.attack.evaluation.builder import CleanCounts, Member, ProblemBuilder
from pycc.attack.evaluation.checked import SampleCache, check_samples
from pycc.attack.patch import Place
from pycc.data import quantize
from pycc.data.density import recipes, rules
from pycc.grid import window_field
from pycc.models.base import MODELS, CounterModel
from pycc.models.recipe import Recipe
from pycc.models.weights import read_weights
from pycc.types import Counter, Sample


@pytest.fixture(params=models.names())
def counter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CounterModel:
    """Narrow: what it promises does not depend on its number of channels."""
    narrow.narrow(monkeypatch)
    torch.manual_seed(3)
    return narrow.create(request.param)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_names_are_known() -> None:
    assert "mcnn" in models.names()
    with pytest.raises(ValueError, match=r"unknown model 'vgg'; known: .*mcnn"):
        models.create("vgg")


def test_it_is_a_counter(counter: CounterModel) -> None:
    assert isinstance(counter, Counter)
    assert isinstance(counter, nn.Module)


@torch.no_grad()
def test_stride(counter: CounterModel) -> None:
    for height, width in ((64, 96), (67, 99)):
        density = counter(torch.rand(2, 3, height, width))
        assert density.shape[:2] == (2, 1)
        for size, cells in ((height, density.shape[2]), (width, density.shape[3])):
            # Networks differ in whether a last, incomplete cell is kept.
            assert cells in (size // counter.stride, -(-size // counter.stride))


def test_receptive_field_is_the_measured_one(counter: CounterModel) -> None:
    """Neither smaller (certificates would be wrong) nor larger (they would be weak)."""
    if counter.receptive_field is None:
        pytest.skip("unbounded, or of a grid coarser than its cells: see its own tests")
    measured = models.measure_receptive_field(counter)
    assert measured is not None
    assert 2 * max(measured.before, measured.after) + counter.stride == counter.receptive_field
    # The strided layers of one encoder see more before a cell than behind it.
    assert measured.before == measured.after or counter.name == "zip"


@pytest.mark.long
@torch.no_grad()
def test_pixels_outside_the_receptive_field_do_not_matter(counter: CounterModel) -> None:
    """On weights as they are: all that lies outside a cell's square is replaced by noise."""
    if counter.receptive_field is None:
        pytest.skip("unbounded")
    counter.double()
    for parameter in counter.parameters():
        few = parameter.ndim > 1 and parameter[0].numel() < 10  # depthwise: 0.2 would be nothing
        parameter.normal_(std=0.6 if few else 0.2)
    for module in counter.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # many norms of 0.2 would let nothing through
    field, stride = counter.receptive_field, counter.stride
    side = -(-2 * field // counter.period) * counter.period
    margin = (field - stride) // 2
    images = torch.rand(1, 3, side, side, dtype=torch.float64)
    before = counter(images)
    for phase in range(counter.period // stride):
        row = column = side // stride // 2 + phase
        rows = slice(row * stride - margin, row * stride + stride + margin)
        changed = torch.rand_like(images)
        changed[:, :, rows, rows] = images[:, :, rows, rows]
        after = counter(changed)
        scale = before.abs().max()
        assert (before[0, 0, row, column] - after[0, 0, row, column]).abs() <= 1e-12 * scale
        assert (before - after).abs().max() > 1e-3 * scale


@pytest.mark.long
@torch.no_grad()
def test_shifting_by_the_stride_shifts_the_map(counter: CounterModel) -> None:
    field = window_field(counter)
    if field is None:
        pytest.skip("unbounded, or of a grid coarser than its cells")
    counter.double()
    for parameter in counter.parameters():
        parameter.normal_(std=0.2)
    stride, margin = counter.stride, -(-field // counter.stride)
    side = (3 * margin) * stride
    images = torch.rand(1, 3, side + stride, side + stride, dtype=torch.float64)
    first, second = (
        counter(images[:, :, :-stride, :-stride]),
        counter(images[:, :, stride:, stride:]),
    )
    inner, shifted = slice(margin, -margin), slice(margin + 1, 1 - margin)
    torch.testing.assert_close(first[:, :, shifted, shifted], second[:, :, inner, inner])


@torch.no_grad()
def test_batches_do_not_mix(counter: CounterModel) -> None:
    """In double precision: single ones add in another order, which deep networks amplify."""
    counter.double()
    images = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    together = counter(images)
    for index in range(3):
        alone = counter(images[index : index + 1])
        assert (together[index] - alone[0]).abs().max() <= 1e-10 * together.abs().max()


def test_bad_images(counter: CounterModel) -> None:
    small = counter.minimum_side - 1
    cases = [
        (torch.rand(3, 64, 64), r"must be \[N,3,H,W\] .* got \[3, 64, 64\]"),
        (torch.rand(1, 1, 64, 64), r"got \[1, 1, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "must be torch.float32 .* got torch.uint8"),
        (torch.rand(1, 3, 64, 64, dtype=torch.float64), "got torch.float64"),
        (torch.rand(1, 3, 64, small), f"at least {counter.minimum_side}x.* got 64x{small}"),
    ]
    for images, message in cases:
        with pytest.raises(ValueError, match=f"{counter.name}: images {message}|{message}"):
            counter(images)
    with pytest.raises(TypeError, match="must be a tensor, got list"):
        counter([[0.0]])


def test_loss_is_a_scalar_that_a_step_of_descent_lowers(counter: CounterModel) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        # Whole people: one published loss takes nothing else.
        target = torch.randint(0, 4, counter(images).shape).float()
    narrow.positive(counter)
    loss = counter.loss(images, target)
    assert loss.shape == ()
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in counter.parameters() if p.grad is not None))
    assert norm > 0
    with torch.no_grad():
        for parameter in counter.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * float(loss) / norm**2 * parameter.grad
    assert counter.loss(images, target) < loss
    with pytest.raises(ValueError, match=r"target must be \[2, 1, "):
        counter.loss(images, target[:, :, 1:])


def test_options_build_the_counter_again(counter: CounterModel) -> None:
    again = models.create(counter.name, **counter.options())
    assert type(again) is type(counter)
    assert again.options() == counter.options()
    shapes = [value.shape for value in counter.state_dict().values()]
    assert [value.shape for value in again.state_dict().values()] == shapes


def test_gradients_are_those_of_differences(counter: CounterModel) -> None:
    """In double precision, along random directions of input and output."""
    counter.double()
    side = max(32, 2 * counter.minimum_side)
    images = torch.rand(1, 3, side, side, dtype=torch.float64, generator=_generator())
    assert counter(images).abs().max() > 1e-6
    assert torch.autograd.gradcheck(counter, images.requires_grad_(), eps=1e-7, fast_mode=True)


@pytest.mark.command
def test_weights_survive_saving(counter: CounterModel, tmp_path: Path) -> None:
    """Bit by bit, recognised by their keys and by their metadata."""
    models.save(counter, tmp_path / "own.npz", metadata={})
    torch.save({"state_dict": counter.net.state_dict()}, tmp_path / "w.pth.tar")
    images = torch.rand(1, 3, 64, 64)
    settings = narrow.OPTIONS.get(counter.name, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights may look like another convention's
        from_npz = models.load(tmp_path / "own.npz")
        foreign = models.load(tmp_path / "w.pth.tar", **settings)
    for other in (from_npz, foreign):
        assert other.name == counter.name
        for key, value in counter.net.state_dict().items():
            assert torch.equal(other.net.state_dict()[key], value), key
        assert torch.equal(other(images), counter(images))
    assert from_npz.options() == counter.options()


@pytest.mark.parametrize("prefix", ["module.", "net.", "DME.", "CCN.module.", "fine."])
def test_prefixes_of_training_wrappers(counter: CounterModel, tmp_path: Path, prefix: str) -> None:
    state = {prefix + key: value for key, value in counter.net.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    state = read_weights(tmp_path / "w.pth").state
    assert set(state) == set(counter.net.state_dict())
    assert MODELS[counter.name].recognise(state) is not None
    others = [name for name in models.names() if name != counter.name]
    assert all(MODELS[name].recognise(state) is None for name in others)


def test_recipes_name_what_there_is(counter: CounterModel) -> None:
    recipe = counter.recipe()
    assert isinstance(recipe, Recipe)
    assert set(recipe.density.values()) <= {*recipes.names(), "dots"}
    assert recipe.down_sampling in {*rules.names(), "sum", None}
    assert [o.from_epoch for o in recipe.optimisers] == sorted(
        {o.from_epoch for o in recipe.optimisers}
    )
    assert recipe.optimisers[0].from_epoch == 0
    assert min(recipe.epochs, recipe.batch, recipe.crop.number) >= 1
    # What the recipe makes of a density map is what the loss takes.
    images = torch.rand(1, 3, 96, 64)
    stride = {None: 1, "sum": counter.stride}.get(recipe.down_sampling)
    stride = stride or rules[str(recipe.down_sampling)][0]
    with torch.no_grad():
        assert counter(images).shape == (1, 1, 96 // stride, 64 // stride)


def test_it_computes_under_autocast(counter: CounterModel) -> None:
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        density = counter(images)
    expected = counter(images).detach()
    share = 0.2 if counter.name == "fidtm" else 0.1  # a peak's edge is steep
    assert (density - expected).abs().max() <= share * expected.abs().max()


@pytest.mark.long
def test_a_patch_can_be_attacked(counter: CounterModel) -> None:
    """Gradients reach the patch through the engine, window by window or as a whole."""
    image = torch.rand(3, 80, 96, generator=_generator())
    sample = Sample("one", image, torch.tensor([[40.0, 30.0]], dtype=torch.float64))
    narrow.positive(counter)
    for parameter in counter.parameters():
        parameter.data.mul_(1.0 if counter.name in ("p2pnet", "zip") else 0.5)  # deep
    apam = attack.APAM(patch_size=24, steps=3, objective="over", transform="none")
    run = attack.run(counter, [sample], apam, pgd=None, checks=False)
    (record,) = [r for r in run.run.records if r["condition"] == "apam"]
    assert record["zero_gradient"] < 0.5
    assert record["count"] != run.run.records[0]["count"]


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("place", [(0, 0), *long((61, 71))])
def test_a_window_tells_what_the_full_image_does(
    counter: CounterModel, place: tuple[int, int]
) -> None:
    """Also in corners, and in an image whose sides are no multiples of anything."""
    narrow.positive(counter).double()
    shape, side = (101, 95), 24
    generator = _generator()
    image = torch.rand(3, *shape, generator=generator)
    patch = torch.rand(1, 3, side, side, generator=generator)
    sample = Sample("one", image, torch.zeros(0, 2, dtype=torch.float64))
    apam = attack.APAM(patch_size=side, transform="none", objective="over")
    (item,) = check_samples([sample], [apam], counter.stride, seed=0).items
    image, patch = quantize(image).double(), quantize(patch).double()
    pasted = image.clone()
    pasted[:, place[0] : place[0] + side, place[1] : place[1] + side] = patch[0]
    expected = float(counter(pasted[None]).sum() - counter(image[None]).sum())
    with ops.reference():  # in double precision
        stage = ProblemBuilder([Member(counter)], SampleCache([sample]), CleanCounts())
        problem = stage.problem(apam, [item], [Place(side, place)])
        added = float(problem.added(patch, apam.patch_mask(side).double())[0])
    assert expected != 0
    assert added == pytest.approx(expected, rel=1e-9)
