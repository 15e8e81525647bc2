"""Ablated draws: keyed, independent of batches, and structured ones equal to whole images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.marks import long
from support.toys import Coarse, Plain, Tiny, Whole, pictures

from pycc import ops
from pycc.defense.ablated_maps import (
    Bands,
    Blocks,
    Elements,
    Kind,
    Pixels,
    ablated_counts,
    ablated_maps,
)
from pycc.defense.retained import corners
from pycc.types import Counter

FILL = (0.5, 0.25, 0.125)
COLOUR = torch.tensor(FILL)
KINDS: list[Kind] = [Pixels(45), Elements(100), Bands(5), Blocks(7)]
SHAPE = (37, 53)


def counts(kind: Kind, counter: Counter | None = None, **options: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {"draws": 8, "seed": 4, "fill": FILL, **options}
    image = pictures(SHAPE)[0]
    return ablated_counts(counter or Tiny(), image, kind, **arguments)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("budget", [1, 37 * 53 * 5])
def test_batches_do_not_matter(kind: Kind, budget: int) -> None:
    result = counts(kind, budget=budget)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, counts(kind), rtol=1e-6, atol=0)
    assert result.unique().numel() > 4


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_draw_is_known_by_its_number(kind: Kind) -> None:
    every = counts(kind)
    torch.testing.assert_close(counts(kind, draws=3, first_draw=5), every[5:], rtol=1e-6, atol=0)
    assert not torch.allclose(counts(kind, seed=5), every, rtol=1e-6)


@pytest.mark.parametrize("unit", ["pixel", "element"])
def test_pixels_are_those_of_the_op(unit: str) -> None:
    image, counter = pictures(SHAPE)[0], Tiny()
    kind = Pixels(45) if unit == "pixel" else Elements(45)
    with torch.no_grad():
        for draw in range(3, 6):
            kept = ops.ablate(image[None], 45, seed=4, fill=COLOUR, unit=unit, first_draw=draw)
            (result,) = counts(kind, draws=1, first_draw=draw)
            assert float(result) == pytest.approx(float(counter(kept).double().sum()), rel=1e-6)


@pytest.mark.parametrize(
    "counter", [Tiny(), Plain(), Whole(), Coarse()], ids=lambda c: type(c).__name__
)
@pytest.mark.parametrize("shape", [(20, 24), *long((37, 53), (14, 81))])
@pytest.mark.parametrize("kind", [Bands(5), Bands(18), Blocks(7)], ids=str)
def test_windows_equal_whole_images(
    kind: Bands | Blocks, shape: tuple[int, int], counter: Counter
) -> None:
    """At all places: inside, at borders, and around them, where cells may see both ends."""
    image = pictures(shape)[0]
    window = kind.window(shape)
    options: dict[str, Any] = {"draws": 20, "first_draw": 0, "seed": 9}
    if isinstance(kind, Bands):
        options["draws"] = None
    places = corners(kind, shape, **options)
    wraps = [y + window[0] > shape[0] or x + window[1] > shape[1] for y, x in places]
    assert any(wraps)
    with torch.no_grad():
        kept = ops.keep_windows(image[None], torch.tensor(places), window, fill=COLOUR)
        wanted = counter(kept)
    seen = []
    for rows, maps in ablated_maps(counter, image, kind, fill=FILL, budget=4000, **options):
        torch.testing.assert_close(maps, wanted[rows], rtol=2e-6, atol=1e-7)
        seen += rows
    assert sorted(seen) == list(range(len(places)))
    result = ablated_counts(counter, image, kind, fill=FILL, **options)
    torch.testing.assert_close(result, wanted.double().sum((1, 2, 3)), rtol=1e-6, atol=0)


def test_only_surroundings_are_looked_at() -> None:
    """The counter sees less than whole images would be."""
    seen = 0

    class Counting(Plain):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += images.numel() // 3
            return super().__call__(images)

    ablated_counts(Counting(), pictures((32, 400))[0], Bands(5), draws=50, seed=0, fill=FILL)
    assert seen < 0.35 * 50 * 32 * 400


def test_places_are_uniform() -> None:
    places = corners(Blocks(3), (8, 9), draws=1440, first_draw=0, seed=1)
    each = torch.zeros(8, 9)
    for y, x in places:
        each[y, x] += 1
    assert float(((each - 20) ** 2 / 20).sum()) < 71 + 5 * (2 * 71) ** 0.5


def test_progress() -> None:
    reported: list[tuple[int, int]] = []
    counts(Bands(5), budget=1, progress=lambda done, total, _: reported.append((done, total)))
    assert reported == [(done, 8) for done in range(1, 9)]


BAD: dict[str, tuple[Kind, dict[str, Any], str]] = {
    "too many pixels": (Pixels(37 * 53 + 1), {}, "ablated: k must be at most the 1961 pixels"),
    "too many elements": (Elements(3 * 37 * 53 + 1), {}, "ablated: k must be at most the 5883"),
    "wide": (Bands(54), {}, r"banded: width must be within \[1, 53\], got 54"),
    "large": (Blocks(38), {}, r"blocked: side must be within \[1, 37\], got 38"),
    "no draws": (Pixels(3), {"draws": 0}, "ablated: draws must be within"),
    "all draws": (Pixels(3), {"draws": None}, "ablated: draws must be a number"),
    "before the first": (Bands(3), {"first_draw": -1}, "banded: first_draw must be within"),
    "colour": (Pixels(3), {"fill": 1.5}, r"ablated: fill must be a number or three \(RGB\)"),
    "not a number": (Pixels(3), {"fill": float("nan")}, "ablated: fill must be"),
    "two colours": (Blocks(3), {"fill": (0.1, 0.2)}, "blocked: fill must be"),
    "budget": (Blocks(3), {"budget": 0}, "blocked: budget must be at least 1, got 0"),
    "train mode": (Bands(3), {"counter": Tiny().train()}, "banded: counter must be in eval mode"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    kind, options, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        counts(kind, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [Pixels, Elements, Bands, Blocks])
def test_bad_kinds(kind: type[Any]) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        kind(0)
    with pytest.raises(TypeError, match=r"must be a whole number, got 2\.0"):
        kind(2.0)


def test_bad_images() -> None:
    for image in (pictures(SHAPE), pictures(SHAPE)[0].to(torch.uint8), pictures(SHAPE)[0, :2]):
        with pytest.raises(ValueError, match="banded: image must be"):
            ablated_counts(Tiny(), image, Bands(3), draws=3, seed=0, fill=0.5)
