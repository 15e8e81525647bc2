"""The stages of an experiment, their folders and their manifests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.scenes import scenes

from pycc import data, models
from pycc.backdoor import (
    Add,
    BlendConsistency,
    EvaluationSet,
    Experiment,
    Minus,
    Partitions,
    Sinusoid,
    contents,
    counted,
    poison,
)
from pycc.backdoor.defenses.detector import leave_one_out_deviations
from pycc.backdoor.evaluation.experiment import Stage
from pycc.backdoor.evaluation.measures import KEY
from pycc.backdoor.evaluation.training import held_out, train
from pycc.backdoor.evaluation.verdict import MEDIAN
from pycc.backdoor.poisoning.overlap import content_of
from pycc.certify.poisoned import partition_median, partitions
from pycc.data.dataset import Dataset
from pycc.models import CounterModel
from pycc.runs import Run, read_manifest
from pycc.train import NotFiniteError, TrainConfig, fit, held
from pycc.types import Interval, Sample

pytestmark = pytest.mark.command

PLAN = TrainConfig(epochs=1, lr=1e-5, batch=1, crop="whole", crops=1, validation_share=0.0)
TRIGGER = Sinusoid(amplitude=0.1, frequency=24.0)


class Few(Dataset):
    """Samples in memory."""

    def __init__(self, samples: Sequence[Sample], name: str = "few") -> None:
        self.name, self.samples = name, samples
        self.names = [sample.name for sample in samples]

    def _load(self, index: int) -> Sample:
        return self.samples[index]


def start() -> CounterModel:
    return models.load("mcnn-synthetic")


def small(number: int = 3, split: str = "train") -> Few:
    return Few(list(data.open("synthetic", split=split, limit=number, shape=(64, 96))))


def planned(**changed: Any) -> Experiment:
    training = small()
    made = Experiment(
        start=start, plan=PLAN, training=training, test=small(2, "test"), trigger=TRIGGER,
        strategies=[Minus()], fraction=0.5, seed=0, clean=training,
    )  # fmt: skip
    return replace(made, **changed)


def log() -> Run:
    return Run(None, {}, KEY)


def state(model: CounterModel) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def same(a: CounterModel, b: CounterModel) -> bool:
    first, second = state(a), state(b)
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def test_a_finished_training_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And has the weights that it kept, not those of its last step."""
    samples = scenes(8)
    plan = replace(PLAN, epochs=3, lr=1e-3, validation_share=0.25)
    model = start()
    fit(model, samples, plan, out=tmp_path / "run")
    kept = models.load(tmp_path / "run/weights.npz")
    assert same(model, kept)
    again = start()
    steps = []
    monkeypatch.setattr("pycc.train.step.Stepper.gradient", lambda *a: steps.append(a))
    fit(again, samples, plan, out=tmp_path / "run", resume=True)
    assert not steps
    assert same(again, kept)


def test_a_stage_is_made_once(tmp_path: Path) -> None:
    made = []

    def make(out: Path) -> Run:
        made.append(out)
        return train(start(), small(), PLAN, seed=0, out=out, fraction=0.5)

    first = Stage(tmp_path / "stage", make, torch.device("cpu"))
    assert not first.done
    assert first.made() is first.made()
    assert not first.made().training
    second = Stage(tmp_path / "stage", make, torch.device("cpu"))
    assert second.done
    assert same(second.made(), first.made())
    assert made == [tmp_path / "stage"]
    # One that was stopped before it was whole goes on; the same comes out.
    (tmp_path / "stage/summary.json").unlink()
    third = Stage(tmp_path / "stage", make, torch.device("cpu"))
    assert not third.done
    assert same(third.made(), first.made())
    assert len(made) == 2


def test_counters_differ_by_the_poison_alone(tmp_path: Path) -> None:
    """The clean one is trained by the same plan from the same start; the run says on what."""
    experiment = planned()
    plain = experiment.clean_counter(tmp_path).made()
    bad = experiment.backdoored(tmp_path, Minus()).made()
    direct = start()
    fit(direct, experiment.training, PLAN, out=tmp_path / "direct")
    assert same(plain, direct)
    assert not same(plain, bad)
    kept = [read_manifest(tmp_path / name) for name in ("clean", "minus/backdoored")]
    assert kept[0]["settings"]["config"] == kept[1]["settings"]["config"]
    assert "poisoned" not in kept[0]["settings"]
    poisoned = experiment.poisoned(Minus())
    assert kept[1]["settings"]["poisoned"] == [asdict(image) for image in contents(poisoned)]
    assert [image.original for image in contents(poisoned)] == poisoned.sources


def test_what_is_known_is_not_counted_again(tmp_path: Path) -> None:
    tested = EvaluationSet(small(2, "test"), TRIGGER, 0)
    results = log()
    model = start()
    condition: dict[str, Any] = {"strategy": Add(), "defense": None}
    counted(results, lambda: model, tested, **condition)
    assert len(results.records) == 4
    truth = [sample.count for sample in tested.samples]
    assert [(r["images"], r["truth"], r["target"]) for r in results.records] == [
        ("clean", truth[0], None), ("clean", truth[1], None),
        ("triggered", truth[0], truth[0] + 100), ("triggered", truth[1], truth[1] + 100),
    ]  # fmt: skip
    with torch.no_grad():
        expected = float(model(tested.triggered[1].image[None]).double().sum())
    assert results.records[3]["count"] == expected
    counted(results, lambda: pytest.fail("called again"), tested, **condition)


def test_truths_and_targets_are_found_once(tmp_path: Path) -> None:
    """After the first counter, images are read to be counted and for nothing else."""
    read: list[int] = []

    class Read(Few):
        def _load(self, index: int) -> Sample:
            read.append(index)
            return super()._load(index)

    tested = EvaluationSet(Read(small(2, "test").samples), TRIGGER, 0)
    model = start()
    counted(log(), lambda: model, tested, strategy=Add(), defense=None)
    read.clear()
    counted(log(), lambda: model, tested, strategy=Add(), defense="another")
    assert read == [0, 1, 0, 1]


@pytest.mark.long
def test_the_median_is_of_counters_that_learnt_different_images(tmp_path: Path) -> None:
    seen: list[list[float]] = []

    def median(counts: Sequence[float], /, *, poisoned: int) -> Interval:
        seen.append(list(counts))
        return partition_median(counts, poisoned=poisoned)

    experiment = planned(partitions=Partitions(3), training=small(4))
    results = log()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pycc.backdoor.evaluation.experiment.partition_median", median)
        summary = experiment.run(results, tmp_path)
    poisoned = experiment.poisoned(Minus())
    cut = partitions(poisoned, 3, seed=0)
    folders = {path.name for path in (tmp_path / "minus/partitions").iterdir() if path.is_dir()}
    assert folders == {f"{part:02}" for part, indices in enumerate(cut) if indices}
    assert sorted(index for part in cut for index in part) == list(range(6))
    rows = [r for r in results.records if r["defense"] == "partition-median"]
    assert [r["count"] for r in rows] == [sorted(votes)[1] for votes in seen]
    # Two poisoned images, as many as there are, can reach two of three counters: nothing is known.
    assert all(r["low"] == 0 and r["high"] is None for r in rows)
    (row,) = [r for r in summary.rows if r.defense == "partition-median"]
    assert row.certified is not None
    assert [intervals.unbounded for intervals in row.certified.values()] == [2, 2]
    # An error before anything is trained.
    with pytest.raises(ValueError, match=r"--partitions 3: at least 5 parts .* 2 images"):
        experiment.check()
    # Of one poisoned image the interval is that of the other two's counts; nothing is trained anew.
    again = log()
    once = replace(experiment, partitions=Partitions(3, 1))
    once.check()
    once.run(again, tmp_path)
    rows = [r for r in again.records if r["defense"] == "partition-median"]
    assert [(r["low"], r["high"]) for r in rows] == [
        (min(votes), max(votes)) for votes in seen
    ]  # fmt: skip


def test_a_part_without_heads_has_the_counter_that_all_start_from(tmp_path: Path) -> None:
    empty = [replace(s, points=s.points[:0]) for s in small(2).samples[:1]]
    training = Few([*empty, *small(3).samples[1:]])

    def cut(samples: Sequence[Sample], parts: int, /, *, seed: int) -> list[list[int]]:
        return [[0], [1, 2], []]

    votes: list[list[float]] = []

    def median(counts: Sequence[float], /, *, poisoned: int) -> Interval:
        votes.append(list(counts))
        return partition_median(counts, poisoned=poisoned)

    experiment = planned(training=training, clean=training, partitions=Partitions(3, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pycc.backdoor.evaluation.experiment.partition_median", median)
        patch.setattr("pycc.backdoor.evaluation.experiment.partitions", cut)
        experiment.run(log(), tmp_path)
    with torch.no_grad():
        plain = float(start()(experiment.test[0].image[None]).double().sum())
    assert votes[0][0] == votes[0][2] == plain
    assert votes[0][1] != plain
    assert not (tmp_path / "minus/partitions/00").exists()


def test_the_detector_is_scored_in_parts_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = planned(detector=BlendConsistency(blends=2), references=3)
    results = log()
    summary = experiment.run(results, tmp_path)
    names = {detection.defense for detection in summary.detections}
    assert names == {"blend-consistency, spread", "blend-consistency, shift"}
    scores = [r for r in results.records if "score" in r]
    assert len(scores) == 8
    assert all(r["score"] >= 0 for r in scores)
    # The threshold is that of the references alone: no test image has a part in it.
    lines = (tmp_path / "minus/blend-consistency/results.jsonl").read_text().splitlines()
    raw = [json.loads(line) for line in lines]
    for kind in ("spread", "shift"):
        known = [score[kind] for score in raw if score["images"] == "references"]
        assert len(known) == 3
        expected = min(
            1e300, float(np.sort(leave_one_out_deviations(known))[-1])
        )  # the 95 % quantile of 3
        thresholds = {r["threshold"] for r in scores if r["defense"].endswith(kind)}
        assert thresholds == {expected}
    monkeypatch.setattr(BlendConsistency, "__call__", lambda *_, **__: pytest.fail("scored again"))
    assert experiment.run(log(), tmp_path) == summary


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_neither_counter_is_chosen_by_poisoned_images(tmp_path: Path, share: float) -> None:
    """Both hold out the same clean images, of which no duplicate is poisoned."""
    training = Few(scenes(10))
    experiment = planned(
        training=training, clean=training, plan=replace(PLAN, validation_share=share), fraction=0.3
    )
    experiment.check()
    asked: dict[str, list[str]] = {}

    def noted(model: CounterModel, samples: Dataset, plan: TrainConfig, **more: Any) -> Run:
        training, validating = held.split(samples, share, more["seed"], more["held"])
        asked[more["out"].name] = sorted(samples.names[index] for index in validating)
        assert sorted([*training, *validating]) == list(range(len(samples)))
        return fit(model, samples, plan, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pycc.backdoor.evaluation.training.fit", noted)
        for stage in (experiment.clean_counter(tmp_path), experiment.backdoored(tmp_path, Minus())):
            stage.made()
            kept = json.loads((stage.folder / "summary.json").read_text())
            assert kept["validation"]["images"] == round(10 * share)
    assert asked["clean"] == asked["backdoored"]
    assert len(asked["clean"]) == round(10 * share)
    assert not set(asked["clean"]) & set(experiment.poisoned(Minus()).sources)
    assert asked["clean"] == sorted(held_out(training, share, 0.3, seed=0))
    with pytest.raises(ValueError, match="5 images are to validate, but 3 of 10 have no poisoned"):
        held_out(training, 0.5, 0.7, seed=0)
    assert held_out(training, 0.0, 1.0, seed=0) == []


def test_regions_are_content() -> None:
    (sample,) = scenes(1)
    region = replace(sample, roi=torch.zeros(sample.image.shape[1:], dtype=torch.bool))
    assert content_of([sample]) != content_of([region])


@pytest.mark.long
def test_a_part_that_cannot_be_trained_does_not_stop_the_others(tmp_path: Path) -> None:
    """Its counter is the one that all start from, the log says so, and no number is nobody."""
    training = small(4)

    def cut(samples: Sequence[Sample], parts: int, /, *, seed: int) -> list[list[int]]:
        return [[0], [1], [2, 3]]

    def diverging(model: CounterModel, samples: Dataset, *rest: Any, **more: Any) -> Run:
        if samples.names == training.names[1:2]:
            raise NotFiniteError("loss is not finite in epoch 1")
        return train(model, samples, *rest, **more)

    experiment = planned(training=training, clean=training, partitions=Partitions(3, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pycc.backdoor.evaluation.experiment.partitions", cut)
        patch.setattr("pycc.backdoor.evaluation.experiment.train", diverging)
        with pytest.warns(UserWarning, match="part 2 cannot be trained.* loss is not finite"):
            experiment.run(log(), tmp_path)
    lines = (tmp_path / "minus/partitions/results.jsonl").read_text().splitlines()
    votes = [json.loads(line) for line in lines]
    assert {vote["part"] for vote in votes if vote["untrained"]} == {1}
    with torch.no_grad():
        plain = float(start()(experiment.test[0].image[None]).double().sum())
    assert next(vote["count"] for vote in votes if vote["part"] == 1) == plain
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pycc.backdoor.evaluation.experiment.count_of", lambda *_: float("nan"))
        patch.setattr(
            "pycc.backdoor.evaluation.experiment.partitions", lambda *_, **__: [[0], [2], [3]]
        )
        again = planned(
            training=training, clean=training, strategies=[Add()], partitions=Partitions(3, 1)
        )
        results = log()
        again.run(results, tmp_path / "again")
    rows = [row for row in results.records if row["defense"] == MEDIAN]
    assert {(row["count"], row["low"], row["high"]) for row in rows} == {(0.0, 0.0, 0.0)}


def test_images_that_cannot_be_poisoned_are_refused_before_the_work() -> None:
    """Whatever the defenses are: the trigger of 24 waves does not fit into 40 columns."""
    training = small(3)
    (chosen,) = poison(training, TRIGGER, Minus(), fraction=0.3, seed=0).sources
    narrow = [
        replace(sample, image=sample.image[:, :, :40]) if sample.name == chosen else sample
        for sample in training
    ]
    with pytest.raises(ValueError, match=f"image {chosen} of 40 columns"):
        planned(training=Few(narrow), fraction=0.3).check()
