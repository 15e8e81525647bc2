"""The alarmed counter: its map, its alarms, its gradient, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.completions import model_of
from support.toys import Tiny, Whole, pictures

from pycc import defense
from pycc.defense.alarmed import Alarmed
from pycc.defense.bands import Bands, inside_of, score
from pycc.defense.base import alarms_of
from pycc.defense.surroundings import MOST_PEOPLE
from pycc.grid import reached_window

PATCH = 5
MODEL = model_of(3, reached_window(PATCH, Tiny.stride, 8))
IMAGES = pictures((36, 44), 2)


@torch.no_grad()
def test_images_without_an_alarm_keep_their_map() -> None:
    counter = Tiny()
    plain = counter(IMAGES)[:, 0]
    scores = [score(cells, MODEL) for cells in plain]
    assert scores[0] != scores[1]
    margin = sum(scores) / 2
    victim = defense.alarmed(counter, patch_size=PATCH, completion=MODEL, margin=margin)
    raised = victim.alarms(IMAGES)
    assert raised.tolist() == [value > margin for value in scores]
    for before, after, alarm in zip(plain, victim(IMAGES)[:, 0], raised, strict=True):
        bands = Bands.of(before, MODEL, margin)
        assert float(after.double().sum()) == pytest.approx(bands.count, rel=1e-6)
        inside = inside_of(before, MODEL, bands.outlier)
        assert torch.equal(before[~inside], after[~inside])
        assert torch.equal(before, after) != bool(alarm)
    quiet = defense.alarmed(counter, patch_size=PATCH, completion=MODEL, margin=max(scores))
    assert not quiet.alarms(IMAGES).any()
    mixture = defense.mixed([counter, quiet, victim])  # an ensemble alarms if one counter does
    assert torch.equal(alarms_of(mixture, IMAGES), raised)
    assert alarms_of(defense.mixed([counter]), IMAGES) is None
    assert alarms_of(defense.clipped(counter), IMAGES) is None
    assert alarms_of(counter, IMAGES) is None


def test_empty_outliers_and_cells_beyond_every_band() -> None:
    counter, certain = Tiny(), Alarmed(PATCH, model_of(3, MODEL.grid.reach, people=9.0), 0.0)
    empty = torch.zeros(1, 1, 18, 22)
    bands = Bands.of(empty[0, 0], certain.completion, 0.0)
    assert bands.sums[bands.outlier] == 0
    completed = certain.after(counter, empty, (36, 44))
    assert float(completed.double().sum()) == pytest.approx(bands.count, rel=1e-6)
    assert bands.count > 0
    # A cell that sums clamp counts no more than they do.
    huge = torch.zeros(1, 1, 18, 22)
    huge[..., 9, 9] = 1e12
    silent = Alarmed(PATCH, MODEL, 1e12)
    assert not Bands.of(huge[0, 0], MODEL, 1e12).alarm
    assert float(silent.after(counter, huge, (36, 44)).sum()) == pytest.approx(MOST_PEOPLE / 396)


@pytest.mark.parametrize("people", [1e-3, 9.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_lead_back_into_the_band(people: float, sign: float) -> None:
    """A descent of both losses, the count and its negative, brings the outlier nearer."""
    model = model_of(3, MODEL.grid.reach, people=people)
    with torch.no_grad():
        density = Tiny()(IMAGES[:1]).clone().requires_grad_()
    bands = Bands.of(density[0, 0], model, 0.1)
    inside = inside_of(density[0, 0], model, bands.outlier)
    loud = Alarmed(PATCH, model, 0.1, straight_through=True)
    (gradient,) = torch.autograd.grad(sign * loud.after(Tiny(), density, (36, 44)).sum(), density)
    assert bands.alarm
    assert torch.equal(gradient[0, 0, ~inside], torch.full_like(gradient[0, 0, ~inside], sign))
    with torch.no_grad():
        stepped = (density - 1e-3 * gradient).clamp(min=0.0)[0, 0]
    before = int(bands.sums[bands.outlier] - bands.guesses[bands.outlier])
    after = int(Bands.of(stepped, model, 0.1).sums[bands.outlier] - bands.sums[bands.outlier])
    assert before * after < 0
    quiet = replace(loud, margin=1e3)
    (plain,) = torch.autograd.grad(sign * quiet.after(Tiny(), density, (36, 44)).sum(), density)
    assert torch.equal(plain, torch.full_like(plain, sign))
    # Without the option the window is a constant, and the rest is the counter's.
    scaled = replace(loud, straight_through=False)
    (bare,) = torch.autograd.grad(sign * scaled.after(Tiny(), density, (36, 44)).sum(), density)
    assert torch.equal(bare[0, 0, ~inside], gradient[0, 0, ~inside])
    assert not bare[0, 0, inside].any()


def test_refusals() -> None:
    def alarmed(counter=None, **options):
        given = {"patch_size": PATCH, "completion": MODEL, "margin": 2.0} | options
        return defense.alarmed(counter or Tiny(), **given)

    for call, message in (
        (lambda: alarmed(Whole()), "alarmed: the counter must have a bounded receptive field"),
        (lambda: alarmed(patch_size=9), "alarmed: a patch of 9 pixels reaches .* was fitted for"),
        (lambda: alarmed(margin=-1.0), "margin must be finite and at least 0, got -1.0"),
        (lambda: alarmed(margin=float("nan")), "margin must be finite and at least 0, got nan"),
        (lambda: alarmed()(IMAGES[..., :4]), "patch"),
        (lambda: alarmed().alarms(IMAGES[..., :4]), "patch"),
        (lambda: alarmed().alarms(2.0 * IMAGES), r"alarmed: images must"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="alarmed: completion must be a completion of a"):
        alarmed(completion=MODEL.network)
