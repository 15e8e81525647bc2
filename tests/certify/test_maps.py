"""Deterministic intervals: no patch pushes a count out, and what breaks them is refused."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from support.marks import long
from support.patched import counter_of
from torch import Tensor, nn

from pycc import attack, certify, data, defense, models
from pycc.data import quantize
from pycc.defense.capping import Caps, capped_maps
from pycc.defense.masking import masked_maps
from pycc.defense.windows import window_of
from pycc.types import Interval, Sample


def with_patches(image: Tensor, patch: int, number: int, generator: torch.Generator) -> Tensor:
    """``number`` copies [n,3,H,W], each with a patch of its own content at its own place."""
    height, width = image.shape[1:]
    images = image.expand(number, *image.shape).clone()
    kinds = torch.randint(0, 3, (number,), generator=generator)
    top = torch.randint(0, height - patch + 1, (number,), generator=generator)
    left = torch.randint(0, width - patch + 1, (number,), generator=generator)
    rows = torch.arange(height)[None, :, None]
    columns = torch.arange(width)[None, None]
    inside = (rows >= top[:, None, None]) & (rows < (top + patch)[:, None, None])
    inside = inside & (columns >= left[:, None, None]) & (columns < (left + patch)[:, None, None])
    content = torch.rand(images.shape, generator=generator)
    content[kinds == 1] = content[kinds == 1].round()
    content[kinds == 2] = content[kinds == 2][:, :1, :1, :1].round()
    return torch.where(inside[:, None], content, images)


@pytest.mark.long
@torch.no_grad()
def test_no_violation_in_a_hundred_thousand_trials() -> None:
    generator = torch.Generator().manual_seed(1)
    trials = 0
    for seed in range(25):
        counter = counter_of(seed, side=3 + 2 * (seed % 2))
        image = torch.rand(3, 18, 22, generator=generator)
        cells = counter(image[None])[:, 0]
        window = window_of(counter, 3, (18, 22), (9, 11))
        allowance, cap = 0.3 * float(cells.sum()) * (seed % 4), float(cells.max()) * 1.1
        masked = certify.masked(counter, image, patch_size=3, allowance=allowance)
        additive = certify.additive(counter, image, patch_size=3, caps=cap)
        caps = Caps(cap * torch.rand(9, 11, generator=generator).add(0.1), cap * 1.5, 3)
        blocks = certify.additive(
            counter, image, patch_size=3, caps=caps.cell, block_cap=caps.block, block=3
        )
        for _ in range(4):
            maps = counter(with_patches(image, 3, 1000, generator))[:, 0]
            trials += len(maps)
            for interval, result in (
                (masked, masked_maps(maps, window, allowance).double().sum((1, 2))),
                (additive, maps.clamp(max=cap).double().sum((1, 2))),
                (blocks, capped_maps(maps, caps).double().sum((1, 2))),
            ):
                assert interval.low <= float(result.min())
                assert float(result.max()) <= interval.high
    assert trials >= 100_000


def test_two_windows_of_a_patch_too_few_are_a_violation() -> None:
    """The check can fail: for a patch that is larger than certified, counts do leave."""
    generator = torch.Generator().manual_seed(2)
    counter = counter_of(3)
    for parameter in counter.parameters():
        parameter.data.abs_()
    image = torch.ones(3, 18, 22)  # a black patch takes all that it can
    interval = certify.additive(counter, image, patch_size=1, caps=1e3)
    lowest = certify.additive(counter, image, patch_size=9, caps=1e3)
    with torch.no_grad():
        result = counter(with_patches(image, 9, 4000, generator)).sum((1, 2, 3))
    assert float(result.min()) < interval.low
    assert float(result.min()) >= lowest.low


@pytest.mark.long
@pytest.mark.parametrize("objective", ["over", *long("under")])
def test_an_attack_on_the_defended_counter_stays_inside(objective: str) -> None:
    counter = counter_of(5, side=5)
    image = quantize(torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(3)))
    sample = Sample("one", image, torch.tensor([[12.0, 12.0]], dtype=torch.float64))
    for defended, interval in (
        (
            defense.masked(counter, patch_size=6, allowance=1.0),
            certify.masked(counter, image, patch_size=6, allowance=1.0),
        ),
        (defense.clipped(counter, 0.4), certify.additive(counter, image, patch_size=6, caps=0.4)),
        (
            defense.clipped(counter, 0.4, block_cap=1.5, block=3),
            certify.additive(counter, image, patch_size=6, caps=0.4, block_cap=1.5, block=3),
        ),
        (
            defense.two_mask(counter, patch_size=6, masks=4, fill=0.5),
            certify.two_mask(counter, image, patch_size=6, masks=4, fill=0.5),
        ),
        (
            defense.blocked(counter, 6, draws=11, fill=0.5, combine="median", seed=4),
            certify.fixed_ablations(
                counter, image, patch_size=6, block=6, draws=11, fill=0.5, seed=4
            ),
        ),
    ):
        apam = attack.APAM(
            patch_size=6, steps=5, step_size=0.3, objective=objective, transform="none"
        )
        run = attack.run(defended, [sample], apam, pgd=None, checks=False)
        counts = {record["condition"]: record["count"] for record in run.run.records}
        assert counts["clean"] == pytest.approx(interval.count, abs=1e-3)
        assert all(count in interval for count in counts.values()), (interval, counts)
        lead = counts["apam"] - counts["noise"]
        assert lead >= -1e-3 if objective == "over" else lead <= 1e-3


def test_a_masked_count_of_no_allowance_hides_its_fullest_window() -> None:
    counter = counter_of(7)
    image = torch.rand(3, 18, 22, generator=torch.Generator().manual_seed(4))
    cells = counter(image[None])[0, 0].detach()
    interval = certify.masked(counter, image, patch_size=3, allowance=0.0)
    window = window_of(counter, 3, (18, 22), (9, 11))
    sums = nn.functional.avg_pool2d(cells[None, None], window, stride=1) * window[0] * window[1]
    assert interval.count == pytest.approx(float(cells.sum() - sums.max()), rel=1e-5)
    assert interval.high == pytest.approx(float(cells.sum() - sums.min()), rel=1e-3, abs=0.02)
    assert interval.deterministic
    assert interval.confidence == 1.0
    assert not interval.vacuous


def test_vacuous_intervals_are_marked() -> None:
    counter = counter_of(8)
    image = torch.rand(3, 18, 22, generator=torch.Generator().manual_seed(5))
    for interval in (
        certify.masked(counter, image, patch_size=18, allowance=2.0),
        certify.additive(counter, image, patch_size=18, caps=1.0),
    ):
        assert interval.vacuous
        assert interval.low == 0.0
        assert "every cell" in str(interval.reason)


def test_several_patches_cost_as_many_windows() -> None:
    counter = counter_of(9)
    image = torch.rand(3, 18, 22, generator=torch.Generator().manual_seed(6))
    once, two = (
        certify.additive(counter, image, patch_size=2, caps=5.0, patches=n) for n in (1, 2)
    )
    assert two.high - two.count == pytest.approx(2 * (once.high - once.count), rel=0.02)
    with pytest.raises(ValueError, match="patches must be at least 1, got 0"):
        certify.additive(counter, image, patch_size=2, caps=5.0, patches=0)


# --- what silently breaks soundness


def test_resizing_gives_up_the_window() -> None:
    """A patch grows by resizing: a counter that resizes declares no field and is refused."""
    image = torch.rand(3, 30, 33)
    counter = models.create("mcnn", resize=4).eval()
    with pytest.raises(ValueError, match="must have a bounded receptive field, got none"):
        certify.masked(counter, image, patch_size=3, allowance=1.0)


def test_global_context_is_refused_but_for_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from support import narrow

    narrow.narrow(monkeypatch)
    counter = defense.clipped(narrow.create("can"))
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(7))
    for certificate in (
        lambda victim: certify.masked(victim, image, patch_size=5, allowance=1.0),
        lambda victim: certify.additive(victim, image, patch_size=5, caps=1.0),
    ):
        with pytest.raises(ValueError, match=r"tiles \(pycc\.defense\.tiled\)"):
            certificate(counter)
        assert certificate(defense.tiled(counter, 16)).width > 0


def test_statistics_of_the_full_image_are_detected() -> None:
    """A field is declared, but every pixel has a part in the mean that all are divided by."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1), nn.ReLU())
    for parameter in net.parameters():
        parameter.data.abs_()
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(9))
    honest = models.wrap(net, stride=1, receptive_field=3).eval()
    certify.check_field(honest, image, 6)
    standardised = models.wrap(
        net, stride=1, receptive_field=3, preprocess=lambda x: x / x.mean((1, 2, 3), keepdim=True)
    ).eval()
    with pytest.raises(ValueError, match="changes 40 cells along an axis, at most 8 by"):
        certify.check_field(standardised, image, 6)


def test_a_rotated_patch_is_its_bounding_box() -> None:
    """Turned by 45°, a patch of 9 pixels touches cells that one of 9 upright pixels cannot."""
    counter = counter_of(11)
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    turned = (rows - 20).abs() + (columns - 20).abs() <= 6  # a square of about 9 on its corner
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(8))
    other = torch.where(turned, 1 - image, image)
    with torch.no_grad():
        moved = ((counter(image[None]) - counter(other[None])).abs() > 0)[0, 0]
    extent = [int(axis.max() - axis.min()) + 1 for axis in moved.nonzero().T]
    upright = window_of(counter, 9, (40, 40), (20, 20))
    box = window_of(counter, 13, (40, 40), (20, 20))
    assert max(extent) > upright[0]
    assert max(extent) <= box[0]


def test_parts_in_train_mode_are_refused() -> None:
    counter = counter_of(12)
    counter.net[0].train()
    with pytest.raises(ValueError, match="must be in eval mode"):
        certify.masked(counter, torch.rand(3, 18, 22), patch_size=3, allowance=1.0)


def test_negative_cells_are_refused() -> None:
    net = nn.Conv2d(3, 1, 1)
    nn.init.constant_(net.weight, -1.0)
    counter = models.wrap(net, stride=1, receptive_field=1).eval()
    image = torch.rand(3, 18, 22)
    with pytest.raises(ValueError, match=r"must not be negative, .* pycc\.defense\.clipped"):
        certify.masked(counter, image, patch_size=3, allowance=1.0)
    assert certify.masked(defense.clipped(counter), image, patch_size=3, allowance=1.0).count == 0


def test_negative_counts_are_refused() -> None:
    net = nn.Conv2d(3, 1, 1)
    nn.init.constant_(net.weight, -1.0)
    counter = models.wrap(net, stride=1, receptive_field=1).eval()
    image = torch.rand(3, 18, 22)
    for call in (
        lambda: certify.two_mask(counter, image, patch_size=3, masks=4, fill=0.5),
        lambda: certify.quantile(counter, image, patch_size=3, k=40, fill=0.5, draws=5),
        lambda: certify.fixed_ablations(counter, image, patch_size=3, k=4, fill=0.5, draws=5),
    ):
        with pytest.raises(ValueError, match="counts must not be negative, got -"):
            call()


@pytest.mark.command
@pytest.mark.parametrize("objective", ["over", "under"])
def test_straight_through_an_attack_beats_every_flat_patch(objective: str) -> None:
    """The mask takes the gradient of what it hides, not the count: noise would stand still."""
    counter = models.load("mcnn-synthetic")
    image = quantize(data.open("synthetic", shape=(96, 128))[0].image)
    sample = Sample("one", image, torch.tensor([[12.0, 12.0]], dtype=torch.float64))
    victim = defense.masked(counter, patch_size=20, allowance=6.0, straight_through=True)
    with torch.no_grad():
        plain = defense.masked(counter, patch_size=20, allowance=6.0)(image[None])
        torch.testing.assert_close(victim(image[None]), plain, rtol=1e-5, atol=1e-7)
    apam = attack.APAM(patch_size=20, steps=30, step_size=0.25, decay="cosine", objective=objective,
        transform="none", smoothness=0.0, location="given", top_left=(40, 50),
    )  # fmt: skip
    run = attack.run(victim, [sample], apam, pgd=None, checks=False)
    counts = {r["condition"]: r["count"] for r in run.run.records}
    flat = [counts[name] for name in ("grey", "black", "noise")]
    if objective == "over":
        assert counts["apam"] >= max(flat) - 1e-3
    else:
        assert counts["apam"] <= min(flat) + 1e-3
    interval = certify.masked(counter, image, patch_size=20, allowance=6.0)
    assert all(count in interval for count in counts.values())


def test_alpha_is_shared_by_images_and_patch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def spied(counts, shape, patch_size, kind, *, alpha, images, patches):
        requested.append((alpha, images))
        return Interval(0.0, 1.0, "quantile", False)

    module = importlib.import_module("pycc.certify.methods.quantile")
    monkeypatch.setattr(module, "quantile_of", spied)
    certify.run(
        counter_of(3), [Sample(str(n), torch.rand(3, 18, 22), None) for n in range(4)],
        method=certify.Quantile(k=20, ablation_samples=4, alpha=0.1), patch_sizes=[2, 3, 5],
        calibration=certify.Calibration(fill=(0.5, 0.5, 0.5)),
    )  # fmt: skip
    assert requested == [(0.1, 4 * 3)] * (4 * 3)


def test_room_for_the_last_bits() -> None:
    """Cells of another batch shape differ by rounding; an interval of width 0 still holds them."""
    counter = counter_of(13)
    image = torch.zeros(3, 18, 22)
    interval = certify.additive(counter, image, patch_size=1, caps=1e-9)
    assert 0.01 <= interval.width < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda c, i: certify.masked(c, i, patch_size=19, allowance=1.0),
            "must fit into .* 18x22, got 19",
        ),
        (
            lambda c, i: certify.masked(c, i, patch_size=0, allowance=1.0),
            "patch_size must be at least 1, got 0",
        ),
        (
            lambda c, i: certify.masked(c, i, patch_size=3, allowance=-1.0),
            "allowance must be a number of people, at least 0, got -1.0",
        ),
        (
            lambda c, i: certify.additive(c, i, patch_size=3, caps=0.0),
            "must be a number of people above 0, or None, got 0.0",
        ),
        (lambda c, i: certify.additive(c, i, patch_size=3), "needs caps of cells or of blocks"),
        (
            lambda c, i: certify.additive(c, i, patch_size=3, caps=torch.ones(9, 9)),
            "9x9 cells, got 9x11",
        ),
        (
            lambda c, i: certify.masked(c, i[None], patch_size=3, allowance=1.0),
            r"image must be \[3,H,W\]",
        ),
        (lambda c, i: certify.quantile(c, i, patch_size=3, fill=0.5), "one of k, band and block"),
        (
            lambda c, i: certify.quantile(c, i, patch_size=3, k=5, band=2, fill=0.5),
            "one of k, band and",
        ),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(counter_of(14), torch.rand(3, 18, 22))


def test_a_run_has_the_published_sizes_and_the_completed_count() -> None:
    for function in (certify.run, certify.calibrate):
        defaults = inspect.signature(function).parameters
        assert defaults["patch_sizes"].default == (20, 40, 81, 163)
        assert defaults["method"].default == "completion"
