"""Poisoned data sets: what they hold, that nothing depends on order, and their export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torch.utils.data import DataLoader

import pycc.data
from pycc.backdoor import (
    Add,
    Blend,
    Corner,
    Layer,
    Minus,
    Noise,
    Poisoned,
    Triggered,
    export,
    poison,
    strategies,
    triggers,
)
from pycc.backdoor.poisoning.poison import chosen
from pycc.data import export as exporting
from pycc.data import quantize
from pycc.data.dataset import data_fingerprint
from pycc.types import Sample

SHAPE = (24, 32)


def sample(number: int, count: int = 5) -> Sample:
    generator = torch.Generator().manual_seed(number)
    image = torch.randint(0, 256, (3, *SHAPE), generator=generator) / 255.0
    points = torch.rand((count, 2), generator=generator, dtype=torch.float64)
    return Sample(f"s{number}", image, points * torch.tensor([SHAPE[1], SHAPE[0]]))


def crowd(number: int = 20) -> list[Sample]:
    return [sample(n, count=n) for n in range(number)]


def same(a: Sample, b: Sample) -> bool:
    masks = (a.roi is None) == (b.roi is None)
    return (
        a.name == b.name
        and torch.equal(a.image, b.image)
        and torch.equal(a.points, b.points)
        and masks
        and (a.roi is None or b.roi is None or torch.equal(a.roi, b.roi))
    )


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", strategies.names())
def test_what_a_poisoned_set_holds(name: str) -> None:
    samples, trigger, strategy = crowd(), Blend(), strategies[name]
    poisoned = Poisoned(samples, trigger, strategy, seed=3)
    assert len(poisoned) == 20
    assert poisoned.names == [each.name for each in samples]
    for index, (before, after) in enumerate(zip(samples, poisoned, strict=True)):
        wanted = quantize(trigger(before.image, seed=3, name=before.name))
        assert torch.equal(after.image, wanted)
        assert not torch.equal(after.image, before.image)
        assert poisoned.true_count(index) == before.count
        assert torch.equal(poisoned.points(index), after.points)
        if before.count > 1 or (before.count and strategy.raises):
            assert (after.count > before.count) == strategy.raises
            assert (after.count < before.count) != strategy.raises
        assert poisoned.is_triggered(index)
    assert poisoned[-1].name == "s19"
    assert [each.name for each in poisoned[2:4]] == ["s2", "s3"]


def test_true_points_under_the_trigger() -> None:
    samples = crowd()
    triggered = Triggered(samples, Noise(), 0)
    poisoned = Poisoned(samples, Noise(), Add(), seed=0)
    for before, after, other in zip(samples, triggered, poisoned, strict=True):
        assert torch.equal(after.points, before.points)
        assert torch.equal(after.image, other.image)


def test_nothing_depends_on_order_or_company() -> None:
    samples, trigger = crowd(), Layer(shifted=True)
    everything = Poisoned(samples, trigger, Minus(3), seed=1)
    turned = Poisoned(samples[::-1][:7], trigger, Minus(3), seed=1)
    for index in range(7):
        assert same(turned[index], everything[19 - index])
    for other in (
        Poisoned(samples, trigger, Minus(3), seed=2)[19],
        Poisoned([replace(samples[19], name="other")], trigger, Minus(3), seed=1)[0],
    ):
        assert not torch.equal(everything[19].points, other.points)
        assert not torch.equal(everything[19].image, other.image)


def test_a_region_of_interest_is_kept() -> None:
    roi = torch.zeros(SHAPE, dtype=torch.bool)
    roi[4:12, 6:20] = True
    points = torch.tensor([[6.0, 4.0], [10.0, 8.0], [30.0, 20.0]], dtype=torch.float64)
    base = Sample("a", torch.rand(3, *SHAPE), points, roi)
    for strategy in map(strategies.__getitem__, strategies.names()):
        poisoned = Poisoned([base], Blend(), strategy, seed=0)
        assert poisoned[0].roi is roi
        assert poisoned.true_count(0) == 2  # the third head stands outside
        column, row = poisoned[0].points.long().unbind(1)
        assert bool(roi[row, column].all())
    empty = Poisoned([replace(base, roi=torch.zeros_like(roi))], Blend(), Add(), seed=0)
    with pytest.raises(ValueError, match="a: add: roi must hold a pixel"):
        _ = empty[0]


def test_points_outside_the_image_are_no_heads() -> None:
    base = replace(sample(0), points=torch.tensor([[99.0, 1.0], [3.0, 3.0]]).double())
    poisoned = Poisoned([base], Blend(), strategies["multiply"], seed=0)
    with pytest.warns(UserWarning, match="s0: 1 points outside the image dropped"):
        assert poisoned[0].points.tolist() == [[3.0, 3.0], [2.0, 2.0]]
    assert poisoned.true_count(0) == 1


def test_a_training_set_gains_poisoned_duplicates() -> None:
    samples, trigger = crowd(), Corner()
    training = poison(samples, trigger, Add(9), fraction=0.2, seed=5)
    assert len(training) == 24
    assert len(set(training.names)) == 24
    poisoned = Poisoned(samples, trigger, Add(9), seed=5)
    for index in range(20):
        assert training[index] is samples[index]
        assert not training.is_triggered(index)
        assert training.true_count(index) == samples[index].count
    for index, source in zip(range(20, 24), training.sources, strict=True):
        duplicate = training[index]
        assert duplicate.name == training.names[index] == f"{source}_poisoned"
        assert training.is_triggered(index)
        place = poisoned.names.index(source)
        assert same(replace(duplicate, name=source), poisoned[place])
        assert training.true_count(index) == samples[place].count
        assert duplicate.count == samples[place].count + 9
        assert torch.equal(training.points(index), duplicate.points)
    assert training.is_triggered(-1)
    assert [each.name for each in training] == training.names


def test_names_of_duplicates_are_free_ones() -> None:
    samples = [replace(sample(n), name=name) for n, name in enumerate(("a", "a_poisoned"))]
    once = poison(samples, Blend(), Add(), fraction=1.0, seed=0)
    assert once.names == ["a", "a_poisoned", "a_poisoned2", "a_poisoned_poisoned2"]
    twice = poison(once, Noise(), Minus(), fraction=1.0, seed=0)
    assert len(set(twice.names)) == 8


@pytest.mark.parametrize(
    ("fraction", "number"),
    [(1e-9, 1), (0.05, 1), (0.1, 2), (0.12, 2), (0.5, 10), (1, 20)],
)
def test_the_fraction(fraction: float, number: int) -> None:
    training = poison(crowd(), Blend(), Add(), fraction=fraction, seed=0)
    assert len(training.sources) == number


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_other_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"poison: fraction must lie in \(0,1\], got"):
        poison(crowd(), Blend(), Add(), fraction=fraction, seed=0)


def test_other_samples_are_refused() -> None:
    for make in (
        lambda samples: poison(samples, Blend(), Add(), seed=0),
        lambda samples: Triggered(samples, Blend(), 0),
    ):
        with pytest.raises(ValueError, match="names of samples must be unique, got 's1' twice"):
            make([sample(1), sample(1)])
    with pytest.raises(ValueError, match="at least one, got none"):
        poison([], Blend(), Add(), seed=0)
    broken = replace(sample(1), image=torch.rand(3, *SHAPE).double())
    with pytest.raises(ValueError, match=r"trigger blend: image s1 must be \[3,H,W\] float32"):
        _ = Triggered([broken], Blend(), 0)[0]


def test_the_choice_is_seeded_independent_of_order_and_fair() -> None:
    names = [f"IMG_{n}" for n in range(400)]
    first = {names[index] for index in chosen(names, 0.1, seed=0)}
    assert len(first) == 40
    turned = names[::-1]
    assert {turned[index] for index in chosen(turned, 0.1, seed=0)} == first
    assert first < {names[index] for index in chosen(names, 0.2, seed=0)}
    assert {names[index] for index in chosen(names, 0.1, seed=1)} != first
    times = np.zeros(400)
    for seed in range(20):
        times[chosen(names, 0.1, seed=seed)] += 1
    assert times.mean() == 2
    assert times.std() == pytest.approx(1.8**0.5, abs=0.25)  # binomial: 20 · 0.1 · 0.9


def test_fingerprints_tell_sets_apart() -> None:
    samples = crowd(4)
    sets = [
        Triggered(samples, Blend(), 0),
        Triggered(samples, Blend(alpha=0.2), 0),
        Triggered(samples[:3], Blend(), 0),
        Poisoned(samples, Blend(), Add(), seed=0),
        Poisoned(samples, Blend(), Add(99), seed=0),
        poison(samples, Blend(), Add(), seed=0),
        poison(samples, Blend(), Add(), fraction=0.9, seed=0),
        Triggered(pycc.data.open("synthetic", limit=2, shape=(64, 64), heads=2), Blend(), 0),
    ]
    fingerprints = [json.dumps(data_fingerprint(each)) for each in sets]
    assert len(set(fingerprints)) == len(fingerprints)
    assert fingerprints[0] == json.dumps(data_fingerprint(Triggered(samples, Blend(), 0)))
    assert json.loads(json.dumps(sets[6].settings())) == sets[6].settings()


def test_loading_in_other_processes_changes_nothing() -> None:
    training = poison(crowd(6), Layer(shifted=True), Add(3), fraction=0.5, seed=0)
    loader = DataLoader(training, batch_size=None, num_workers=1, multiprocessing_context="fork")
    for before, after in zip(training, loader, strict=True):
        assert same(before, after)


@pytest.mark.parametrize("name", triggers.names())
def test_an_export_without_loss_is_the_same_data(name: str, tmp_path: Path) -> None:
    samples = crowd()[1:5]
    training = poison(samples, triggers[name](), Add(), fraction=0.5, seed=0)
    test = Poisoned(samples, triggers[name](), Minus(2), seed=0)
    out = tmp_path / "out"
    written = export({"train": training, "test": test}, out, lossless=True)
    assert [(each.split, each.images, each.folder) for each in written] == [
        ("train", 6, out / "train_data"), ("test", 4, out / "test_data")
    ]  # fmt: skip
    for split, old in (("train", training), ("test", test)):
        for before, after in zip(old, pycc.data.open(out, split=split), strict=True):
            assert torch.equal(before.image, after.image)
            assert torch.equal(before.points, after.points)


@pytest.mark.parametrize("name", triggers.names())
def test_a_trigger_survives_the_jpeg_of_an_export(name: str, tmp_path: Path) -> None:
    """A few of 255 levels, while it is 25 of the built-in pictures' and the noise's."""
    samples = [replace(each, name=f"t{n}") for n, each in enumerate(crowd()[4:7])]
    test = Poisoned(samples, triggers[name](), Add(), seed=0)
    export(test, tmp_path / "out", split="test")
    new = pycc.data.open(tmp_path / "out", split="test")
    for before, after, clean in zip(test, new, samples, strict=True):
        error = (before.image - after.image).abs() * 255
        assert float(error.max()) < 6
        assert float(error.mean()) < 1
        assert torch.equal(before.points, after.points)
        mark = before.image - clean.image
        left = after.image - clean.image
        assert float((mark * left).sum() / (mark.norm() * left.norm())) > 0.97


def test_an_export_is_what_published_code_reads(tmp_path: Path) -> None:
    samples, out = crowd()[1:4], tmp_path / "new" / "out"
    training = poison(samples, Blend(), Add(), fraction=0.3, seed=0)
    seen: list[tuple[float, float, str]] = []
    export(training, out, progress=lambda *record: seen.append(record))
    assert files(out) == {
        "poisoning.jsonl",
        *(f"train_data/images/IMG_{n}.jpg" for n in range(1, 5)),
        *(f"train_data/ground-truth/GT_IMG_{n}.mat" for n in range(1, 5)),
    }
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert seen[-1] == (4, 4, f"train {training.names[3]}")
    info = scipy.io.loadmat(out / "train_data/ground-truth/GT_IMG_4.mat")["image_info"]
    location = info[0, 0][0, 0]["location"]
    assert np.array_equal(location, training[3].points.numpy())
    assert np.array_equal(info[0][0][0][0][0], location)
    record = json.loads((out / "poisoning.jsonl").read_text())
    assert record["split"] == "train"
    assert record["poisoning"] == training.settings()
    assert [image["triggered"] for image in record["images"]] == [False, False, False, True]
    assert [image["name"] for image in record["images"]] == training.names
    people = {each.name: each.count for each in samples}
    last = record["images"][3]
    assert last["number"] == 4
    assert last["people"] == people[training.sources[0]] == last["heads"] - 100
    assert [image["people"] for image in record["images"][:3]] == [1, 2, 3]


def test_clean_samples_and_the_other_layout(tmp_path: Path) -> None:
    samples, out = crowd(3), tmp_path / "out"
    export(samples, out, split="test", layout="folder", lossless=True)
    new = pycc.data.open(out, split="test")
    assert all(map(same, samples, new))
    record = json.loads((out / "poisoning.jsonl").read_text())
    assert record["poisoning"] is None
    assert [image["people"] for image in record["images"]] == [0, 1, 2]


def test_an_image_of_nobody_is_exported(tmp_path: Path) -> None:
    export(Poisoned(crowd(3), Blend(), Minus(), seed=0), tmp_path / "out", lossless=True)
    back = pycc.data.open(tmp_path / "out", split="train")
    assert [sample.count for sample in back] == [0, 1, 1], "of few heads sample stays"
    assert all(sample.annotated for sample in back)


def test_what_cannot_be_exported_is_refused_and_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, out = crowd(3), tmp_path / "out"
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    masked = replace(sample(1), roi=torch.ones(SHAPE, dtype=torch.bool))
    for what, where, options, why in (
        (samples[1:], full, {}, "full: expected a new or an empty folder"),
        ([masked], out, {}, "s1: has a region of interest"),
        ([], out, {}, "split train must hold at least one sample, got none"),
        ({}, out, {}, "expected at least one split, got none"),
        (samples[1:], out, {"split": "../a"}, "split must be a plain name"),
        (samples[1:], out, {"layout": "nwpu"}, "unknown layout to export 'nwpu'"),
        ([samples[1], samples[1]], out, {}, "names of samples must be unique, got 's1' twice"),
        ([replace(samples[1], name="a/b")], out, {"layout": "folder"}, "plain names of files"),
        ([replace(samples[1], name="../b")], out, {"layout": "folder"}, "plain names of files"),
    ):
        with pytest.raises(ValueError, match=why):
            export(what, where, **options)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "save_image", stop)
    with pytest.raises(KeyboardInterrupt):
        export(samples[1:], out, lossless=True)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert files(full) == {"mine.txt"}


def test_real_images(shared: Path, tmp_path: Path) -> None:
    """ShanghaiTech B: 10 % of the training set; a poisoned image comes back from its export."""
    base = pycc.data.open(shared / "data" / "shanghaitech" / "part_B", split="train")
    training = poison(base, Blend(), strategies["minus"], seed=0)
    assert len(training) == 440
    assert "part_b" in training.name.lower()
    places = [0, 400]
    for place in places:
        assert len(training.points(place)) == training[place].count
    few = [training[place] for place in places]
    export(few, tmp_path / "out")
    for before, after in zip(few, pycc.data.open(tmp_path / "out", split="train"), strict=True):
        assert torch.equal(before.points, after.points)
        assert float((before.image - after.image).abs().max()) * 255 < 6
