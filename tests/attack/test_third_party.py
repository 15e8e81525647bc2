"""What a user adds outside the package works everywhere: an attack, a model, a data set layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.third_party import SignDescent, registered, small_dots, write_heads_in_text

from pycc import attack, data, models
from pycc.attack.base import LOCATIONS
from pycc.types import Sample


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """The attack, the model and the layout are registered."""
    with registered():
        yield


@pytest.mark.parametrize("location", LOCATIONS)
def test_an_attack_runs_with_every_location_and_every_check(
    location: str, sample: Callable[..., Sample]
) -> None:
    top_left = (3, 5) if location == "given" else None
    chosen = SignDescent(
        patch_size=8, steps=20, objective="over", location=location, top_left=top_left
    )
    done = attack.run(small_dots(), [sample(0, heads=5), sample(1, heads=7)], chosen, pgd=None)
    assert len(done.checks) == 16
    verdicts = {check.name: check.verdict for check in done.checks}
    for name in ("gradient agrees with finite differences", "finds a planted weakness",
                 "beats baseline patches", "the counter stays as it was"):  # fmt: skip
        assert verdicts[name] == "pass", done.checks
    count = {(row.index, row.condition): row.count for row in done.rows}
    for index in range(2):
        assert count[index, "sign"] > max(count[index, c] for c in ("clean", "noise", "black"))


def test_an_attack_is_in_the_registry_by_one_decorator() -> None:
    assert attack.attacks["sign"] is SignDescent


def test_an_attack_transfers(
    sample: Callable[..., Sample], tiny: Callable[..., torch.nn.Module]
) -> None:
    chosen = SignDescent(patch_size=8, steps=4, objective="over")
    counters = {"dots": small_dots(), "tiny": tiny()}
    done = attack.transfer(counters, [sample(0)], chosen, compare=False, checks=False)
    pairs = {(row.surrogates, row.victim) for row in done.rows if row.condition == "sign"}
    assert pairs == {(a, b) for a in counters for b in counters}


class TwoRestarts(SignDescent):
    """Claims two restarts, but returns the history of one."""

    @property
    def restarts(self) -> int:
        return 2


def test_an_attack_whose_history_has_another_length_is_refused(
    sample: Callable[..., Sample],
) -> None:
    chosen = TwoRestarts(patch_size=8, steps=2, objective="over")
    with pytest.raises(ValueError, match=r"TwoRestarts: optimise must return .* 42 losses"):
        attack.run(small_dots(), [sample(0)], chosen, pgd=None)


def test_a_model_is_created_saved_loaded_and_attacked(
    tmp_path: Path, sample: Callable[..., Sample]
) -> None:
    assert "dots" in models.names()
    assert models.create("dots", channels=2).net[0].out_channels == 2
    counter = small_dots()
    models.save(counter, tmp_path / "dots.npz", metadata={})
    loaded = models.load(tmp_path / "dots.npz", name="dots").eval()
    image = sample(0).image[None]
    assert torch.equal(loaded(image), counter(image))
    result = attack.Query(patch_size=6, steps=20, objective="over")(loaded, image)
    assert float(result.attacked_counts[0]) > float(result.clean_counts[0])


def test_a_data_set_layout_is_opened(tmp_path: Path, sample: Callable[..., Sample]) -> None:
    samples = [
        Sample(f"scene{number}", one.image, one.points)
        for number, one in enumerate([sample(0), sample(1, heads=0)])
    ]
    opened = data.open(write_heads_in_text(tmp_path / "crowd", samples), split="all")
    assert [one.name for one in opened] == ["scene0", "scene1"]
    for one, written in zip(opened, samples, strict=True):
        assert torch.equal(one.image, written.image)
        assert torch.allclose(one.points, written.points)
