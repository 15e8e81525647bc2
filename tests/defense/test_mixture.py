"""Several counters as one: their maps' weighted sum, their intervals' too."""

from __future__ import annotations

import pytest
import torch
from support.toys import Plain, Signed, Tiny, Whole, pictures

from pycc import attack, certify, data, defense, models
from pycc.data import quantize
from pycc.local import Box, Local
from pycc.types import Interval, Sample


def test_the_sum_by_shares() -> None:
    images = pictures(number=2)
    first, second = Tiny(), Tiny()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(0.5)
        total = defense.mixed([first, second], [0.3, 1.2])(images)
        torch.testing.assert_close(total, 0.3 * first(images) + 1.2 * second(images))
        mean = defense.mixed([first, second])(images)
        torch.testing.assert_close(mean, (first(images) + second(images)) / 2)
    assert defense.mixed([first, second]).stride == first.stride
    assert defense.mixed([Tiny(), Signed()]).receptive_field == max(
        Tiny().receptive_field, Signed().receptive_field
    )
    assert defense.mixed([Tiny(), Whole()]).receptive_field is None
    assert not any(part.training for part in defense.mixed([first.eval()]).modules())
    assert len(list(defense.mixed([first, Plain()]).parameters())) == len(list(first.parameters()))


def test_mixtures_that_differ_in_a_share_differ() -> None:
    first, other = defense.mixed([Tiny()], [0.5]), defense.mixed([Tiny()], [0.4])
    assert first.state_dict()["_extra_state"] != other.state_dict()["_extra_state"]
    with pytest.raises(ValueError, match=r"mixed: the state must be of shares \(0\.4,\)"):
        other.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("counters", "shares", "message"),
    [
        ([], None, "at least one counter"),
        ([Tiny()], [0.5, 0.5], "a share for each of 1 counters, got 2"),
        ([Tiny(), Tiny()], [1.0, 0.0], "shares must be above 0"),
        ([Tiny(), Tiny()], [1.0, float("inf")], "shares must be above 0"),
    ],
)
def test_bad_mixtures(counters, shares, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        defense.mixed(counters, shares)


def test_another_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="counters must have one stride, got 4, 8"):
        defense.mixed([models.create("mcnn"), models.create("csrnet")])


@pytest.mark.long
@pytest.mark.parametrize("box", [Box(0, 0, 8, 12), Box(40, 52, 61, 70), Box(83, 110, 95, 125)])
def test_a_change_in_a_box_is_the_full_images(box: Box) -> None:
    """Of parts with and without masks, evaluated in windows."""
    plain = models.load("mcnn-synthetic")
    parts = [
        defense.masked(plain, patch_size=12, allowance=1.5),
        plain,
        defense.clipped(plain, 0.02),
    ]
    counter = defense.mixed(parts, [0.5, 0.3, 0.4])
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 95, 125, generator=generator)
    pixels = torch.rand(4, 3, *box.shape, generator=generator).requires_grad_()
    local = Local(counter, images, box)
    changed = images.repeat_interleave(2, 0).clone()
    changed[..., *box.slices] = pixels
    full, part = counter(changed), local(pixels)
    torch.testing.assert_close(part, full, rtol=1e-4, atol=1e-6)
    weight = torch.rand(full.shape, generator=generator)
    gradients = [torch.autograd.grad((m * weight).sum(), pixels)[0] for m in (full, part)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.command
@pytest.mark.parametrize("objective", ["over", "under"])
def test_an_attack_on_all_parts_stays_inside_the_sum_of_their_intervals(objective: str) -> None:
    torch.manual_seed(3)
    wide, other = models.load("mcnn-synthetic"), models.load("mcnn-synthetic")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    image = quantize(data.open("synthetic", shape=(96, 128))[0].image)
    sample = Sample("one", image, torch.tensor([[12.0, 12.0]], dtype=torch.float64))
    counter = defense.mixed(
        [
            defense.masked(wide, patch_size=10, allowance=40.0),
            defense.masked(other, patch_size=10, allowance=20.0),
        ],
        [0.4, 0.6],
    )
    parts = [
        certify.masked(member, image, patch_size=10, allowance=allowance)
        for member, allowance in ((wide, 40.0), (other, 20.0))
    ]
    interval = certify.mixed(parts, [0.4, 0.6])
    assert interval.width == pytest.approx(0.4 * parts[0].width + 0.6 * parts[1].width)
    apam = attack.APAM(patch_size=10, steps=8, step_size=0.3, objective=objective, transform="none")
    run = attack.run(counter, [sample], apam, pgd=None, checks=False)
    counts = {record["condition"]: record["count"] for record in run.run.records}
    assert counts["clean"] == pytest.approx(interval.count, abs=1e-3)
    assert all(count in interval for count in counts.values()), (interval, counts)
    lead = counts["apam"] - counts["noise"]
    assert lead > 0.5 if objective == "over" else lead < 0


def test_intervals_add_up() -> None:
    sure = Interval(1.0, 3.0, "masked", True, 1.0, 2.0)
    drawn = Interval(2.0, float("inf"), "quantile", False, 0.9, 4.0, False, "unbounded above")
    both = certify.mixed([sure, drawn], [2.0, 0.5])
    assert (both.low, both.high, both.count) == (3.0, float("inf"), 6.0)
    assert not both.deterministic
    assert both.confidence == pytest.approx(0.9)
    assert both.reason == "unbounded above"
    assert certify.mixed([sure], [1.0]) is sure
    with pytest.raises(ValueError, match="intervals with a share above 0 each"):
        certify.mixed([sure], [0.0])
    with pytest.raises(ValueError, match="got 0"):
        certify.mixed([], [])
