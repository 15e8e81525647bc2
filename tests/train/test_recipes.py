"""What the robust recipes show to the loss, and by what they choose the best weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.scenes import counter, scenes
from torch import Tensor, nn

from pycc import ops
from pycc.models import CounterModel
from pycc.ranks import Ranks
from pycc.train import BestErrors, TrainConfig, fit
from pycc.train.held import fill_of, measured, split
from pycc.train.items import Item
from pycc.train.step import Stepper
from pycc.train.validation import DRAWS
from pycc.types import Counter, Sample

pytestmark = pytest.mark.command

PLAN = TrainConfig(
    epochs=6, batch=2, lr=1e-2, crop="32x32", crops=2, validation_share=0.25, density="dots",
    down_sampling="sum",
)  # fmt: skip


def changed(**fields: object) -> TrainConfig:
    return TrainConfig(**{**PLAN.__dict__, **fields})


class Recorder(CounterModel):
    """A counter of one parameter; its loss remembers what it is shown, and is its mean."""

    name = "recorder"

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 1, 4, stride=4), stride=4, receptive_field=4)
        self.shown: list[Tensor] = []

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        assert self.training
        self.shown.append(images.clone())
        return images.mean() + 0.0 * self(images).sum()


class Fake:
    """In place of ``InnerAttack``: paints the image in one grey and remembers its calls."""

    def __init__(self, grey: float = 0.75) -> None:
        self.grey = grey
        self.calls: list[tuple[bool, int]] = []

    def __call__(
        self,
        model: Counter,
        image: Tensor,
        target: Tensor,
        seed: int,
        /,
        *,
        region: Tensor | None = None,
    ) -> Tensor:
        assert isinstance(model, nn.Module)
        self.calls.append((any(part.training for part in model.modules()), seed))
        assert target.shape == (1, image.shape[1] // 4, image.shape[2] // 4)
        return torch.full_like(image, self.grey)


def items(number: int) -> list[Item]:
    generator = torch.Generator().manual_seed(number)
    nobody = torch.zeros(0, 2)
    return [
        Item(
            f"{n}", torch.rand(3, 8, 8, generator=generator), torch.ones(1, 2, 2), nobody, number=n
        )
        for n in range(number)
    ]


@pytest.mark.parametrize(("epoch", "clean"), [(2, 1.0), (4, 0.75), (6, 0.5), (99, 0.5)])
def test_clean_and_patched_images_have_their_weights(epoch: int, clean: float) -> None:
    """lambda x the loss of the clean + (1 - lambda) x that of the patched (eq. 18)."""
    model, adversary = Recorder(), Fake()
    plan = changed(recipe="adversarial", warmup=2, decline=4)
    batch = items(3)
    stepper = Stepper(model, plan, 5, Ranks(), adversary)
    loss = stepper.gradient(epoch, 0, 3, batch)
    images = torch.stack([item.image for item in batch])
    assert torch.equal(model.shown[0], images)
    if clean == 1.0:
        assert len(model.shown) == 1
        assert adversary.calls == []
    else:
        assert len(model.shown) == 2
        assert torch.equal(model.shown[1], torch.full_like(images, 0.75))
    assert loss == pytest.approx(clean * float(images.mean()) + (1 - clean) * 0.75, rel=1e-6)
    assert not any(training for training, _ in adversary.calls)
    assert len({seed for _, seed in adversary.calls}) == len(adversary.calls)
    assert model.training


def test_patches_are_made_anew_in_each_epoch() -> None:
    model, adversary = Recorder(), Fake()
    stepper = Stepper(
        model, changed(recipe="adversarial", warmup=0, decline=0), 5, Ranks(), adversary
    )
    for epoch in (0, 1, 0):
        stepper.gradient(epoch, 0, 2, items(2))
    seeds = [seed for _, seed in adversary.calls]
    assert seeds[:2] == seeds[4:]
    assert len(set(seeds)) == 4


def test_ablated_images_reach_the_loss_after_the_warm_up(tmp_path: Path) -> None:
    """And no other: each pixel is the fill or the image's own."""
    model, samples = Recorder(), scenes()
    plan = changed(recipe="ablation", k=700, warmup=2, epochs=4, validation_share=0.0, fill=0.25)
    with pytest.warns(UserWarning, match="every gradient was exactly 0"):  # nothing to learn
        fit(model, samples, plan, out=tmp_path)
    batches = len(samples) * 2 // 2
    assert len(model.shown) == 4 * batches
    for number, images in enumerate(model.shown):
        hidden = (images == 0.25).all(1).float().mean()
        # 700 of 48x64 pixels are kept: 23 %.
        assert hidden == 0 if number < 2 * batches else 0.68 < float(hidden) < 0.86


def weights(model: CounterModel) -> list[Tensor]:
    return [value.detach().clone() for value in model.parameters()]


def test_ablation_is_chosen_by_its_ablated_error_after_the_warm_up(tmp_path: Path) -> None:
    samples = scenes()
    model = counter()
    log = fit(model, samples, changed(recipe="ablation", k=700, warmup=3), out=tmp_path)
    held = log.validations
    assert [r.score is not None for r in held] == [False] * 3 + [True] * 3
    assert all(r.score == r.ablated_mae != r.errors.mae for r in held[3:])
    best = min(held[3:], key=lambda r: r.score)
    assert log.summary.best_epoch == best.epoch >= 3
    best_errors = log.summary.validation
    assert best_errors == BestErrors(2, mae=best.errors.mae, ablated_mae=best.ablated_mae)
    # The error is that of the weights which are left, on draws of the whole image.
    training, validation = split(samples, 0.25, 0)
    fill = torch.tensor(fill_of(PLAN, samples, training))
    assert log.summary.fill == pytest.approx(fill.tolist())

    def count(model: Counter, sample: Sample, index: int) -> float:
        shown = ops.ablate(sample.image[None], 700, seed=0, fill=fill, draws=DRAWS)
        with torch.no_grad():
            return float(model(shown).double().sum()) / DRAWS

    error = measured(model, samples, validation, count=count).mae
    assert error == pytest.approx(best.ablated_mae, rel=1e-6)


def test_adversarial_training_is_chosen_by_both_errors_after_the_decline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = scenes()
    model, adversary = counter(), Fake(0.5)
    monkeypatch.setattr("pycc.train.loop.InnerAttack", lambda *_: adversary)
    plan = changed(recipe="adversarial", warmup=1, decline=2, patch_size=8)
    log = fit(model, samples, plan, out=tmp_path)
    held = log.validations
    assert [r.score is not None for r in held] == [False] * 3 + [True] * 3
    for record in held[3:]:
        both = 0.5 * record.errors.mae + 0.5 * record.patched_mae
        assert record.score == pytest.approx(both)
    best = min(held[3:], key=lambda r: r.score)
    assert log.summary.best_epoch == best.epoch
    _, validation = split(samples, 0.25, 0)
    grey = [Sample(s.name, torch.full_like(s.image, 0.5), s.points) for s in samples]
    error = measured(model, grey, validation).mae
    assert error == pytest.approx(log.summary.validation.patched_mae, rel=1e-6)
    assert not any(training for training, _ in adversary.calls)


def test_validation_patches_start_alike_in_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that epochs are compared on the same images."""
    adversary = Fake()
    monkeypatch.setattr("pycc.train.loop.InnerAttack", lambda *_: adversary)
    plan = changed(recipe="adversarial", warmup=0, decline=0, patch_size=8, epochs=3)
    fit(counter(), scenes(), plan, out=tmp_path)
    calls = [seed for _, seed in adversary.calls]
    epochs = [calls[n * 14 : n * 14 + 14] for n in range(3)]  # 6 images x 2 crops, 2 of validation
    assert epochs[0][12:] == epochs[1][12:] == epochs[2][12:]
    assert len({seed for epoch in epochs for seed in epoch}) == 3 * 12 + 2


def test_an_early_stop_counts_from_where_the_recipe_is_in_force(tmp_path: Path) -> None:
    """Of a rate of nothing no validation after the first one is better."""
    plan = changed(recipe="ablation", warmup=4, patience=2, epochs=30, lr=1e-12)
    log = fit(counter(), scenes(), plan, out=tmp_path)
    assert log.summary.best_epoch >= 4
    assert 6 <= log.summary.epochs <= 12


def test_a_patch_must_fit_into_every_crop(tmp_path: Path) -> None:
    plan = changed(recipe="adversarial", warmup=0, decline=0, crop="quarter_sides", patch_size=20)
    problem = (
        "scene-0: crops of 8x16 of an image of 48x64 do not hold a patch of 20 pixels; ask for a "
        "smaller --patch-size"
    )
    with pytest.raises(ValueError, match=problem):
        fit(counter(), scenes(), plan, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_inner_attack_trains_a_counter(tmp_path: Path) -> None:
    """Patched images have larger errors than clean ones."""
    plan = changed(
        recipe="adversarial",
        warmup=0,
        decline=0,
        patch_size=16,
        patch_steps=3,
        patch_step_size=0.2,
        lr=1e-9,
    )
    model = counter()
    log = fit(model, scenes(), plan, out=tmp_path)
    assert log.summary.validation.patched_mae > log.summary.validation.mae


def test_phases_are_those_of_the_recipe() -> None:
    assert TrainConfig().phases == TrainConfig(warmup=3, decline=4).phases == (0, 0)
    assert TrainConfig(recipe="ablation").phases == (20, 0)
    assert TrainConfig(recipe="ablation", warmup=3, decline=4).phases == (3, 0)
    assert TrainConfig(recipe="adversarial").phases == (50, 350)
    assert TrainConfig(recipe="adversarial", warmup=0, decline=7).phases == (0, 7)
