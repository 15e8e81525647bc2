"""Completion of a data set: fitted, kept, refused for other counters, and never left."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
from support.patched import counter_of, patched
from support.toys import Whole, pictures
from torch import Tensor

from pycc import certify, data, defense, models
from pycc.certify import Calibration, Completion
from pycc.certify.completion_fit import fit_completion
from pycc.certify.engine import PATCH_SIZES
from pycc.certify.weakest import WeakestPlaces
from pycc.defense.min_max import Table, WindowGrid, plan_of
from pycc.defense.surroundings import UNIT, summed, whole_units
from pycc.runs import write_json
from pycc.types import Sample

PATCH, SHAPE = 3, (30, 38)


def scenes(number: int, seed: int = 0) -> list[Sample]:
    images = (pictures(SHAPE, number, seed=seed) * 255).round() / 255
    heads = torch.tensor([[6.0, 4.0]], dtype=torch.float64)
    return [Sample(f"scene {seed} {n}", image, heads) for n, image in enumerate(images)]


@pytest.fixture(scope="module")
def counter():
    return counter_of(1, side=3, stride=2)


@pytest.fixture(scope="module")
def calibration(counter) -> Calibration:
    return certify.calibrate(counter, scenes(3), patch_sizes=[PATCH], source="here")


def crowds(number: int, seed: int) -> list[Tensor]:
    """Maps [30,40] that grow denser downwards, each of another density."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.linspace(0.2, 1.0, 30)[:, None]
    noise = torch.rand(number, 30, 40, generator=generator)
    return list((0.7 + 0.3 * noise) * slope * torch.rand(number, 1, 1, generator=generator))


def test_a_fit_predicts_windows_of_other_maps_and_repeats_itself() -> None:
    grid = WindowGrid(6, 2)
    few = fit_completion(crowds(2, 0), grid, seed=3)
    assert few == fit_completion(crowds(2, 0), grid, seed=3)
    assert few != fit_completion(crowds(2, 0), grid, seed=4)
    network = fit_completion(crowds(12, 0), grid, seed=3)
    errors, spread = [], []
    for cells in crowds(4, 1):
        plan, table = plan_of(grid, (30, 40)), summed(whole_units(cells))
        sums = plan.sums(table).double() * UNIT
        people = Table(whole_units(cells), plan, network).alone.double() * UNIT
        errors.append(people - (cells.double().sum() - sums) - sums)
        spread.append(sums - sums.mean())
    # Of the differences between windows of one map, three quarters are predicted.
    assert float(torch.cat(errors).abs().mean()) < 0.25 * float(torch.cat(spread).abs().mean())


def test_a_calibration_is_kept_without_code(calibration: Calibration, tmp_path) -> None:
    write_json(tmp_path / "calibration.json", calibration.json())
    loaded = Calibration.load(tmp_path / "calibration.json")
    assert loaded == calibration
    (entry,) = loaded.completions
    assert (entry.source, entry.images, entry.patch_size) == ("here", 3, PATCH)
    stored = json.loads((tmp_path / "calibration.json").read_text())
    stored["completions"][0]["weights"]["third"]["shape"] = [3]
    (tmp_path / "calibration.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"calibration.json: expected the calibration of a run"):
        Calibration.load(tmp_path / "calibration.json")


@torch.no_grad()
def test_no_patch_leaves_the_interval(counter, calibration: Calibration) -> None:
    image = scenes(1, seed=5)[0].image
    interval = certify.completion(counter, image, patch_size=PATCH, calibration=calibration)
    assert interval.deterministic
    assert not interval.vacuous
    completion = calibration.completion(patch_size=PATCH)
    victim = defense.completed(counter, patch_size=PATCH, completion=completion)
    clean = float(victim(image[None]).double().sum())
    assert clean == pytest.approx(interval.count, rel=1e-5)
    counts = victim(patched(image, PATCH, 60, 1, random.Random(2))).double().sum((1, 2, 3))
    assert interval.low <= float(counts.min()) < float(counts.max()) <= interval.high


@pytest.mark.command
def test_a_run_is_attacked_at_the_weakest_windows(counter, calibration: Calibration) -> None:
    samples = scenes(1, seed=5)
    result = certify.run(
        counter, samples, patch_sizes=[PATCH], calibration=calibration,
        attack=certify.adaptive_attack(steps=1),
    )  # fmt: skip
    (attacked,), (row,) = result.summary.attacks, result.rows
    assert (row.method, attacked.method) == ("completion", "completion")
    assert (attacked.violations, attacked.images) == (0, 1)
    for objective in ("over", "under"):
        places = WeakestPlaces(counter, calibration).candidates(Completion(), objective)
        assert places is not None
        for y, x in places(samples[0], PATCH):
            assert 0 <= y <= SHAPE[0] - PATCH
            assert 0 <= x <= SHAPE[1] - PATCH
    roi = torch.zeros(SHAPE, dtype=torch.bool)
    roi[:, 5:30] = True
    inside = certify.run(
        counter, [replace(sample, roi=roi) for sample in samples], patch_sizes=[PATCH],
        calibration=calibration,
    )  # fmt: skip
    assert inside.rows[0].width > 0
    assert inside.records[1]["count"] < result.records[1]["count"]


def test_each_counter_of_an_ensemble_has_a_network(counter) -> None:
    both = defense.mixed([counter, counter_of(2, side=3, stride=2)])
    calibration = certify.calibrate(both, scenes(2), patch_sizes=[PATCH])
    assert [entry.counter for entry in calibration.completions] == [0, 1]
    samples = scenes(1, seed=5)
    result = certify.run(both, samples, patch_sizes=[PATCH], calibration=calibration)
    parts = [
        certify.Completion().interval(
            part, certify.methods.base.CertifiedImage(
                samples[0].image, cells, (cells,)), PATCH,
            Calibration(completions=(replace(entry, counter=0),)),
        )
        for part, entry in zip(both.counters, calibration.completions, strict=True)
        for cells in [part(samples[0].image[None]).detach()[:, 0]]
    ]  # fmt: skip
    record = result.records[1]
    assert record["high"] == pytest.approx(sum(part.high for part in parts) / 2, rel=1e-6)


def test_refusals(counter, calibration: Calibration) -> None:
    samples = scenes(1, seed=5)

    def run(counter=counter, calibration=calibration, patch=PATCH, **options) -> None:
        certify.run(
            counter, samples, patch_sizes=[patch], calibration=calibration,
            method=Completion(**options),
        )  # fmt: skip

    def image(other) -> None:
        certify.completion(other, samples[0].image, patch_size=PATCH, calibration=calibration)

    for call, message in (
        (lambda: run(counter_of(2, side=3, stride=2)), "fitted for another counter"),
        (lambda: image(counter_of(2, side=3, stride=2)), "fitted for another counter"),
        (lambda: run(counter_of(1, side=5, stride=2)), "reaches 6 cells .* fitted for 5"),
        (lambda: run(patch=4), r"network for 4 pixels and counter 1 is missing \(there are .* 3\)"),
        (lambda: run(grid_step=4), "windows every 1 cells, and the grid step is 4"),
        (lambda: run(calibration=Calibration()), "is missing; calibrate again"),
        (lambda: run(Whole()), "completion: the counter must have a bounded .* any counter"),
        (lambda: certify.calibrate(counter, scenes(1), patch_sizes=[31]), "31 pixels must be fit"),
        (lambda: certify.calibrate(counter, [], patch_sizes=[3]), "give other images than the"),
        (lambda: Completion(grid_step=0), "grid_step must be at least 1, got 0"),
        (lambda: fit_completion([], WindowGrid(3, 1)), "needs calibration maps, got none"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_window_that_is_the_full_map_is_vacuous(counter) -> None:
    calibration = certify.calibrate(counter, scenes(1), patch_sizes=[30])
    image = scenes(1, seed=5)[0].image[:, :, :30].contiguous()
    interval = certify.completion(counter, image, patch_size=30, calibration=calibration)
    assert interval.vacuous
    assert interval.reason == "one window that a patch can touch is the full map"


def test_the_built_in_counter_has_its_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are taken without a fit or a map, for the command's counter too, unless refused."""
    counter = models.load("mcnn-synthetic")
    monkeypatch.setattr(certify.engine, "certified_map", None)
    small = data.open("synthetic", split="train", shape=(192, 256), limit=2)
    for part in (counter, defense.clipped(counter)):
        calibration = certify.calibrate(part, small, patch_sizes=PATCH_SIZES)
        assert [entry.patch_size for entry in calibration.completions] == list(PATCH_SIZES)
        assert {entry.source for entry in calibration.completions} == {"synthetic, train"}
        assert all(entry.images > 100 for entry in calibration.completions)


@pytest.mark.long
def test_many_scenes_fit_better_than_two() -> None:
    counter = models.load("mcnn-synthetic")
    small = data.open("synthetic", split="train", shape=(192, 256), limit=2)
    own = certify.calibrate(counter, small, method=Completion(refit=True), patch_sizes=[81])
    assert own.completions[0].images == 2
    image = data.open("synthetic", shape=(480, 640))[0].image
    intervals = [
        certify.completion(counter, image, patch_size=81, calibration=calibration)
        for calibration in (certify.calibrate(counter, small, patch_sizes=[81]), own)
    ]
    assert intervals[0].width < intervals[1].width
