"""The count, or an alarm: margins of other images, and counts that leave only with an alarm."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from support.completions import model_of
from support.patched import counter_of, patched
from support.toys import Whole, pictures

from pycc import certify, data, defense, models
from pycc.certify import (
    Alarm,
    CalibratedCompletion,
    CalibratedNumber,
    Calibration,
    Completion,
    Interval,
    mixed,
)
from pycc.certify.attacked import _Tally
from pycc.certify.completion_fit import fit_completion
from pycc.certify.maps import certified_map
from pycc.certify.methods.alarm import alarm_of
from pycc.counters import identity
from pycc.defense.bands import Bands, score
from pycc.defense.completed import CompletionModel
from pycc.grid import reached_window
from pycc.runs import read_records, write_json
from pycc.types import Sample

PATCH, SHAPE = 3, (30, 38)
METHOD = Alarm(false_alarms=0.4)
"""A margin needs two images: the second smallest score of two, or of three."""


def scenes(number: int, seed: int = 0) -> list[Sample]:
    images = (pictures(SHAPE, number, seed=seed) * 255).round() / 255
    heads = torch.tensor([[6.0, 4.0]], dtype=torch.float64)
    return [Sample(f"scene {seed} {n}", image, heads) for n, image in enumerate(images)]


@pytest.fixture(scope="module")
def counter():
    return counter_of(1, side=3, stride=2)


@pytest.fixture(scope="module")
def calibration(counter) -> Calibration:
    return certify.calibrate(
        counter, scenes(7), method=[Completion(), METHOD], patch_sizes=[PATCH], source="here"
    )


def test_margins_are_ranks_of_scores_of_images_outside_the_fit(
    counter, calibration: Calibration, tmp_path
) -> None:
    assert [(n.kind, n.source, n.images) for n in calibration.numbers] == [
        ("rate of false alarms", "given", 0), ("margin", "here", 3),
    ]  # fmt: skip
    own = calibration.completed(PATCH, method="alarm")
    assert own.images == 4
    assert calibration.completed(PATCH).images == 7  # the method completion has its own network
    maps = [certified_map(counter, sample)[0] for sample in scenes(7)]
    network = fit_completion([maps[n] for n in (1, 2, 4, 5)], own.model.grid)
    assert own.model == CompletionModel(own.model.grid, network)
    assert own.model != calibration.completion(patch_size=PATCH)
    scores = sorted(score(maps[n], own.model) for n in (0, 3, 6))
    margin = calibration.value("margin", PATCH, 0)
    assert margin == scores[2]  # of rank ceil(4 x 0.6)
    alarms = [Bands.of(maps[n], own.model, margin).alarm for n in (0, 3, 6)]
    assert not any(alarms)
    write_json(tmp_path / "calibration.json", calibration.json())
    assert Calibration.load(tmp_path / "calibration.json") == calibration


@torch.no_grad()
def test_no_patch_without_an_alarm_leaves_the_interval(counter, calibration: Calibration) -> None:
    image = scenes(1, seed=5)[0].image
    options = {"patch_size": PATCH, "calibration": calibration}
    interval = certify.alarm(counter, image, **options)
    assert (interval.deterministic, interval.vacuous) == (True, False)
    assert interval.alarm is not None
    victim = METHOD.defended(counter, PATCH, calibration, seed=0)
    assert victim.alarms(image[None]).tolist() == [interval.alarm]
    clean = float(victim(image[None]).double().sum())
    assert clean == pytest.approx(interval.count, rel=1e-5)
    attacked = patched(image, PATCH, 200, 1, random.Random(2))
    alarms = victim.alarms(attacked)
    counts = counter(attacked).double().sum((1, 2, 3))[~alarms]
    assert 0 < int(alarms.sum()) < len(alarms)
    assert interval.low <= float(counts.min()) < float(counts.max()) <= interval.high


@pytest.mark.command
def test_an_attacked_run_in_a_region_and_in_an_ensemble(counter, tmp_path) -> None:
    both = defense.mixed([counter, counter_of(2, side=3, stride=2)])
    numbers, entries = [CalibratedNumber("rate of false alarms", 0.4, "given", 0)], []
    for number, part in enumerate(both.counters):
        reach = reached_window(PATCH, part.stride, part.receptive_field)
        model = model_of(number, reach)
        margin = 1.01 * max(score(certified_map(part, sample)[0], model) for sample in scenes(3))
        numbers.append(CalibratedNumber("margin", margin, "here", 3, PATCH, number))
        entries.append(CalibratedCompletion(model, PATCH, number, identity(part), "", 1, "alarm"))
    calibration = Calibration(tuple(numbers), completions=tuple(entries))
    roi = torch.zeros(SHAPE, dtype=torch.bool)
    roi[:, 5:30] = True
    samples = scenes(2, seed=5)
    samples[1] = replace(samples[1], roi=roi)
    result = certify.run(
        both, samples, method=METHOD, patch_sizes=[PATCH], calibration=calibration,
        attack=certify.adaptive_attack(steps=1), out=tmp_path / "run",
    )  # fmt: skip
    (row,), (attacked,) = result.rows, result.summary.attacks
    records = [r for r in result.records if r["method"] == "alarm"]
    assert row.false_alarms == sum(r["alarm"] for r in records) / 2
    assert (attacked.violations, attacked.images) == (0, 2)
    lines = [
        line
        for folder in (tmp_path / "run" / "attacks").iterdir()
        for line in read_records(folder)
        if line["condition"] != "clean"
    ]
    assert attacked.alarms == sum(line["alarm"] for line in lines) / len(lines)
    parts = [
        alarm_of(
            certified_map(part, samples[0]),
            calibration.completion(patch_size=PATCH, counter=number, method="alarm"),
            calibration.value("margin", PATCH, number),
        )
        for number, part in enumerate(both.counters)
    ]
    assert records[0]["high"] == mixed(parts, both.shares).high
    assert records[0]["alarm"] == any(part.alarm for part in parts)


def test_alarms_take_no_part_in_errors_and_violations() -> None:
    bound = {"low": 2.0, "high": 5.0, "truth": 3.0}
    tally = _Tally()
    for image, count, alarm in (("a", 9.0, True), ("a", 4.5, False), ("b", 0.0, True)):
        tally.add({"image": image, "count": count, "alarm": alarm}, bound)
    row = tally.row("alarm", 8)
    assert (row.attacked_mae, row.violations, row.images) == (1.5, 0, 2)
    assert row.alarms == pytest.approx(2 / 3)
    tally.add({"image": "b", "count": 5.5, "alarm": False}, bound)
    assert tally.row("alarm", 8).violations == 1
    loud = _Tally()
    loud.add({"image": "a", "count": 9.0, "alarm": True}, bound)
    assert (loud.row("alarm", 8).attacked_mae, loud.row("alarm", 8).alarms) == (None, 1.0)
    other = _Tally()
    other.add({"image": "a", "count": 9.0}, bound)
    assert (other.row("masked", 8).violations, other.row("masked", 8).alarms) == (1, None)
    parts = [Interval(0.0, 1.0, "m", deterministic=True, alarm=a) for a in (False, True, None)]
    shares = [1.0, 1.0]
    assert mixed(parts[:2], shares).alarm is True
    assert mixed([parts[0], parts[0]], shares).alarm is False
    assert mixed([parts[2], parts[2]], shares).alarm is None


def test_the_network_of_the_package_is_not_taken() -> None:
    """The images that the margin is fixed on may have been in its fit."""
    counter = models.load("mcnn-synthetic")
    small = data.open("synthetic", split="train", shape=(96, 128), limit=4)
    calibration = certify.calibrate(counter, small, method=METHOD, patch_sizes=[40])
    (entry,) = calibration.completions
    assert (entry.source, entry.method, entry.images) == ("synthetic/train", "alarm", 2)
    assert calibration.numbers[1].images == 2


def test_refusals(counter, calibration: Calibration) -> None:
    samples = scenes(1, seed=5)

    def run(counter=counter, calibration=calibration, patch=PATCH, **options) -> None:
        method = replace(METHOD, **options)
        certify.run(counter, samples, patch_sizes=[patch], calibration=calibration, method=method)

    def image(other, patch=PATCH) -> None:
        certify.alarm(other, samples[0].image, patch_size=patch, calibration=calibration)

    def calibrated(number: int, patch=PATCH, **options) -> None:
        method = Alarm(**options)
        certify.calibrate(counter, scenes(number), method=method, patch_sizes=[patch])

    other = counter_of(2, side=3, stride=2)
    both = defense.mixed([counter, other])
    few = {"method": METHOD, "patch_sizes": [PATCH]}
    unmatched = replace(calibration, numbers=calibration.numbers[:1])
    for call, message in (
        (lambda: run(other), "alarm: the network for 3 pixels was fitted for another counter"),
        (lambda: image(other), "fitted for another counter"),
        (lambda: run(counter_of(1, side=5, stride=2)), "alarm: .* reaches 6 cells"),
        (lambda: image(counter, 4), r"alarm network for 4 pixels and counter 1 is missing \(there"),
        (lambda: run(grid_step=4), "alarm: .* windows every 1 cells, and the grid step is 4"),
        (lambda: run(calibration=unmatched), "margin for 3 pixels and counter 1 is missing"),
        (lambda: run(false_alarms=0.3), "rate of false alarms is given as 0.3 and calibrated as"),
        (lambda: run(Whole()), "alarm: the counter must have a bounded receptive field"),
        (lambda: run(patch=31), "31"),
        (lambda: calibrated(3), r"rate of 0.05 false alarms needs 55 images .* got 3; give more"),
        (lambda: calibrated(3, 31), "31 pixels .* needs 55 images at least as large, got 0"),
        (lambda: certify.calibrate(both, scenes(3), **few), r"rate of 0.4 .* needs 10 images"),
        (lambda: calibrated(0), "give other images than the"),
        (lambda: Alarm(false_alarms=1.0), r"alarm: false_alarms must be inside \(0, 1\), got 1.0"),
        (lambda: Alarm(grid_step=0), "grid_step must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    wide = certify.calibrate(counter, scenes(4), method=METHOD, patch_sizes=[30])
    square = samples[0].image[:, :, :30].contiguous()
    interval = certify.alarm(counter, square, patch_size=30, calibration=wide)
    assert interval.vacuous
    assert interval.reason == "one window that a patch can touch is the full map"
