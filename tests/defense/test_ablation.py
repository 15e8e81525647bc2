"""Ablated counters equal ones made by hand from single draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.marks import long
from support.toys import Plain, Tiny, Whole, pictures
from torch import Tensor

from pycc import defense, ops
from pycc.defense.ablated_maps import Bands, Blocks
from pycc.defense.retained import corners
from pycc.types import Counter

FILL = (0.5, 0.25, 0.125)
COLOUR = torch.tensor(FILL)
SHAPE = (20, 44)


def make(name: str, counter: Counter | None = None, **options: Any) -> Any:
    size = {"ablated": 60, "banded": 4, "blocked": 6}[name]
    arguments: dict[str, Any] = {"draws": 10, "fill": FILL, "seed": 2, **options}
    return getattr(defense, name)(counter or Tiny(), size, **arguments)


def by_hand(name: str, counter: Counter, image: Tensor, draws: int, unit: str = "pixel") -> Tensor:
    """The maps [draws,1,h,w], each counted by itself."""
    if name == "ablated":
        kept = ops.ablate(image[None], 60, seed=2, fill=COLOUR, draws=draws, unit=unit)
    else:
        kind = Bands(4) if name == "banded" else Blocks(6)
        places = corners(kind, SHAPE, draws=draws, first_draw=0, seed=2)
        window = kind.window(SHAPE)
        kept = ops.keep_windows(image[None], torch.tensor(places), window, fill=COLOUR)
    return torch.cat([counter(single[None]) for single in kept])


@pytest.mark.parametrize("counter", [Tiny(), Plain(), Whole()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("draws", [9, 10])
@pytest.mark.parametrize("name", ["ablated", "banded", "blocked"])
def test_mean_and_median(name: str, draws: int, counter: Counter) -> None:
    images = pictures(SHAPE, 2)
    with torch.no_grad():
        mean = make(name, counter, draws=draws)(images)
        median = make(name, counter, draws=draws, combine="median")(images)
        for number, image in enumerate(images):
            maps = by_hand(name, counter, image, draws)
            torch.testing.assert_close(mean[number], maps.mean(0), rtol=2e-6, atol=1e-8)
            counts = maps.double().sum((1, 2, 3))
            middle = maps[int(counts.argsort()[(draws - 1) // 2])]
            torch.testing.assert_close(median[number], middle, rtol=2e-6, atol=1e-8)
            lower = float(counts.median())  # torch takes the lower of two
            assert float(median[number].double().sum()) == pytest.approx(lower, rel=1e-6)


def test_entries_of_the_array() -> None:
    image = pictures(SHAPE)
    with torch.no_grad():
        result = make("ablated", unit="element")(image)
        wanted = by_hand("ablated", Tiny(), image[0], 10, unit="element").mean(0, keepdim=True)
        torch.testing.assert_close(result, wanted, rtol=2e-6, atol=1e-8)
        assert not torch.allclose(result, make("ablated")(image))


@pytest.mark.parametrize("combine", [*long("mean"), "median"])
@pytest.mark.parametrize("name", ["ablated", "banded", "blocked"])
def test_neither_batch_nor_place_in_it_matters(name: str, combine: str) -> None:
    images = pictures(SHAPE, 2)
    with torch.no_grad():
        together = make(name, combine=combine)(images)
        for number in range(2):
            for budget in (1, 1 << 21):
                alone = make(name, combine=combine, budget=budget)(images[number : number + 1])
                torch.testing.assert_close(alone[0], together[number], rtol=2e-6, atol=1e-8)
        other = make(name, combine=combine, seed=3)(images)
        assert not torch.allclose(other, together, rtol=1e-4)


def test_every_band() -> None:
    image, counter = pictures(SHAPE), Tiny()
    places = torch.tensor([[0, x] for x in range(SHAPE[1])])
    with torch.no_grad():
        maps = counter(ops.keep_windows(image, places, (SHAPE[0], 4), fill=COLOUR))
        result = make("banded", draws=None, seed=5)(image)
        torch.testing.assert_close(result[0], maps.mean(0), rtol=2e-6, atol=1e-8)
        result = make("banded", draws=None, combine="median")(image)
        middle = maps[int(maps.double().sum((1, 2, 3)).argsort()[(len(maps) - 1) // 2])]
        torch.testing.assert_close(result[0], middle, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("combine", ["mean", "median"])
@pytest.mark.parametrize("name", ["ablated", "banded", "blocked"])
def test_gradient_is_that_of_whole_draws(name: str, combine: str) -> None:
    """Also where batches are computed twice to save memory."""
    counter, weights = Tiny(), pictures((10, 22))[0, :1]
    image = pictures(SHAPE).requires_grad_()
    maps = by_hand(name, counter, image[0], 10)
    middle = int(maps.detach().double().sum((1, 2, 3)).argsort()[4])
    chosen = maps.mean(0) if combine == "mean" else maps[middle]
    (wanted,) = torch.autograd.grad((chosen * weights).sum(), image)
    assert float(wanted.abs().max()) > 0
    for budget in (1, 2 * 20 * 44, 1 << 21):
        result = make(name, counter, combine=combine, budget=budget)(image)
        (slope,) = torch.autograd.grad((result * weights).sum(), image)
        torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("combine", ["mean", "median"])
@pytest.mark.parametrize("name", ["ablated", "banded", "blocked"])
def test_gradcheck(name: str, combine: str) -> None:
    size = {"ablated": 9, "banded": 3, "blocked": 3}[name]
    image = pictures((6, 8), dtype=torch.float64).requires_grad_()
    counter = getattr(defense, name)(Tiny().double(), size, draws=3, fill=0.5, combine=combine)
    with ops.reference():
        assert torch.autograd.gradcheck(counter, image, fast_mode=True)


def test_few_pixels_tell_little() -> None:
    """A patch that is rarely seen moves the mean less than it moves the counter."""
    image = pictures((40, 40))
    patched = image.clone()
    patched[..., 10:20, 10:20] = 1.0
    with torch.no_grad():
        counter = Tiny()
        defended = defense.ablated(counter, 80, draws=50, fill=float(image.mean()))
        moved = float((counter(patched) - counter(image)).sum())
        left = float((defended(patched) - defended(image)).sum())
    assert abs(left) < 0.3 * abs(moved)


@pytest.mark.parametrize("name", ["ablated", "banded", "blocked"])
def test_geometry(name: str) -> None:
    counter = make(name)
    assert counter.stride == 2
    assert counter.receptive_field is None


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "draws": ("ablated", {"draws": 0}, "ablated: draws must be at least 1, got 0"),
    "draws of bands": ("banded", {"draws": -1}, "banded: draws must be at least 1, got -1"),
    "fill": ("ablated", {"fill": 1.01}, r"ablated: fill must be a number or three \(RGB\) in"),
    "fills": ("blocked", {"fill": (0.1, 0.2, -0.3)}, "blocked: fill must be"),
    "unit": ("ablated", {"unit": "row"}, "ablated: unit must be one of 'pixel', 'element'"),
    "combine": ("banded", {"combine": "max"}, "banded: combine must be one of 'mean', 'median'"),
    "budget": ("blocked", {"budget": 0}, "blocked: budget must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case: str) -> None:
    name, options, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        make(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ablated", "ablated: k must be at most the 30 pixels of an image of 10x3, got 60"),
        ("banded", r"banded: width must be within \[1, 3\], got 4"),
        ("blocked", r"blocked: side must be within \[1, 3\], got 6"),
    ],
)
def test_images_that_are_too_small(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name)(pictures((10, 3)))


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match=r"ablated: k must be a whole number, got 4\.5"):
        defense.ablated(Tiny(), 4.5, fill=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ablated: seed must be a whole number, got None"):
        make("ablated", seed=None)
