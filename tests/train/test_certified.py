"""Training on the certified error: its value, its gradient, and that it is what is learned."""

from __future__ import annotations

import pytest
import torch
from support import narrow as small
from support.scenes import QUICK, changed, counter, scenes
from torch import Tensor, nn

from pycc import certify, models
from pycc.models import CounterModel
from pycc.train import BestErrors, fit
from pycc.train.certified import CertifiedError, MaskedRule

STEP = 2.0**-12
"""Of finite differences; all values are multiples of it, so that only masking rounds."""


def pixels() -> CounterModel:
    """A counter of one cell per pixel: its red channel."""
    return models.wrap(nn.Identity(), preprocess=lambda x: x[:, :1], stride=1, receptive_field=1)


@pytest.mark.parametrize("allowance", [0.0, 2.5, 100.0])
@pytest.mark.parametrize("heads", [[0, 0], [90, 40]])
def test_the_gradient_is_that_of_finite_differences(allowance: float, heads: list[int]) -> None:
    """For every cell of two images, with a region that excludes some of them in part."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 1000, (2, 3, 7, 9), generator=generator) / 1024
    region = torch.randint(0, 3, (2, 1, 7, 9), generator=generator) / 2
    error, model = CertifiedError(MaskedRule(allowance), patch_size=3), pixels().train()

    def loss(images: Tensor) -> Tensor:
        return error.loss(model, images, heads, region=region)

    images.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(images), images)
    assert (gradient[:, 1:] == 0).all()
    assert gradient[:, 0].unique().numel() > 2  # more than the sign of the count's error
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(7), torch.arange(9)).tolist():
        n, row, column = place
        change = torch.zeros_like(images)
        change[n, 0, row, column] = STEP
        with torch.no_grad():
            slope = float(loss(images + change) - loss(images - change)) / (2 * STEP)
        # Slopes are multiples of 1/8.
        assert slope == pytest.approx(float(gradient[n, 0, row, column]), abs=1e-3)


def test_it_is_the_error_that_the_certificate_states() -> None:
    (sample,) = scenes(1, (96, 128))
    model = models.load("mcnn-synthetic")
    rule = MaskedRule.fitted(model, [sample], [0], 20)
    error = CertifiedError(rule, patch_size=20)
    interval = certify.masked(model, sample.image, patch_size=20, allowance=rule.allowance)
    loss = error.loss(model, sample.image[None], [sample.count]).detach()
    assert interval.count is not None
    stated = abs(interval.count - sample.count) + (interval.high - interval.low) / 2
    assert float(loss) == pytest.approx(stated, abs=0.02)  # the interval has room for rounding
    worst = abs(error.worst_count(model, sample) - sample.count)
    largest = max(abs(end - sample.count) for end in (interval.low, interval.high))
    assert worst == pytest.approx(largest, abs=0.02)


@pytest.mark.command
def test_it_is_learned_and_chooses_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a warm-up, on whole images, by narrow on VGG-16 at a reduced width."""
    small.narrow(monkeypatch)
    model = small.create("narrow", variant="vgg", columns="train")
    plan = changed(
        QUICK, recipe="certified", patch_size=8, warmup=3, epochs=16, lr=1e-2, ema=0.5, crop=None
    )
    run = fit(model, scenes(8, (96, 128), heads=20), plan)
    rows = run.validations
    assert [row.score is not None for row in rows] == [False] * 3 + [True] * 13
    assert all(row.score == row.certified_mae for row in rows)
    assert min(row.loss for row in run.epochs[3:]) < 0.5 * run.epochs[3].loss
    best = min(rows[3:], key=lambda row: row.score)
    assert best.certified_mae < 0.7 * rows[3].certified_mae
    assert run.summary.best_epoch == best.epoch
    expected = BestErrors(2, mae=best.errors.mae, certified_mae=best.certified_mae)
    assert run.summary.validation == expected


@pytest.mark.command
def test_what_has_no_certificate_is_refused() -> None:
    plan = changed(QUICK, recipe="certified", warmup=0, patch_size=8)
    endless = models.wrap(nn.AvgPool2d(4), preprocess=lambda x: x[:, :1], stride=4)
    with pytest.raises(ValueError, match="recipe certified needs a counter with a bounded"):
        fit(endless, scenes(), plan)
    with pytest.raises(ValueError, match=r"crops of 32x32 .* do not hold a patch of 40 pixels"):
        fit(counter(), scenes(), changed(plan, patch_size=40))
    negative = counter()
    with torch.no_grad():
        negative.net[5] = nn.Tanh()
    with pytest.raises(ValueError, match="cells must not be negative"):
        fit(negative, scenes(), plan)
