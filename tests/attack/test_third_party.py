"""What a user adds outside the package works everywhere: an attack, a model, a data set layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.third_party import SignDescent, registered, small_dots, write_heads_in_text

from pycc import attack, data, models
from pycc.types import Sample

pytestmark = pytest.mark.command


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """The attack, the model and the layout are registered."""
    with registered():
        yield


@pytest.mark.long
def test_an_attack_runs_with_every_check(sample: Callable[..., Sample]) -> None:
    """With every location: ``tests/commands/test_third_party.py``."""
    chosen = SignDescent(patch_size=8, steps=20, objective="over", location="worst")
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


class Fewer(attack.Objective):
    """Fewer people, as objective ``under``."""

    sign = -1

    def __call__(
        self, change: torch.Tensor, region: attack.AttackedRegion, aim: attack.Aim, /
    ) -> torch.Tensor:
        return (region.weight[:, None] * change).sum((2, 3, 4))


def test_an_objective_runs_with_every_check(sample: Callable[..., Sample]) -> None:
    with attack.objectives.registered("fewer", Fewer()):
        mine, under = (
            attack.run(
                small_dots(), [sample(0), sample(1)],
                attack.APAM(patch_size=8, steps=4, objective=objective), pgd=None,
            )
            for objective in ("fewer", "under")
        )  # fmt: skip
    assert mine.rows == under.rows
    assert mine.summary == under.summary


@pytest.mark.parametrize("universal", [True, False])
def test_an_attack_that_trains_is_universal_and_only_that(universal: bool) -> None:
    train = {} if universal else {"train": attack.Universal.train}
    with pytest.raises(TypeError, match="Odd: an attack must define train if it is universal"):
        type("Odd", (SignDescent,), {"is_universal": universal, **train})
    with pytest.raises(TypeError, match="SignDescent: makes one patch per image"):
        SignDescent().train([], seed=0, step_done=lambda _: None)


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
        Sample(f"scene{number}", scene.image, scene.points)
        for number, scene in enumerate([sample(0), sample(1, heads=0)])
    ]
    opened = data.open(write_heads_in_text(tmp_path / "crowd", samples), split="all")
    assert [scene.name for scene in opened] == ["scene0", "scene1"]
    for scene, written in zip(opened, samples, strict=True):
        assert torch.equal(scene.image, written.image)
        assert torch.allclose(scene.points, written.points)
