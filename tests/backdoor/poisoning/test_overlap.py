"""Overlaps: of images for defenses with poisoned ones, of test images with training images."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.backdoor import main

from pycc import data, models
from pycc.backdoor import (
    Experiment,
    FineTuning,
    Minus,
    Sinusoid,
    clean_images,
    contents,
    export,
    overlap,
    poison,
)
from pycc.backdoor.poisoning.overlap import check_unseen, recorded
from pycc.data.dataset import Dataset
from pycc.data.scaled import Scaled
from pycc.data.subset import Subset
from pycc.train import TrainConfig
from pycc.train.items import Joined
from pycc.types import Sample

TRIGGER = Sinusoid(amplitude=0.1, frequency=24.0)


class Few(Dataset):
    """Samples in memory, which know how often each was read."""

    def __init__(self, samples: Sequence[Sample], name: str = "few") -> None:
        self.name, self.samples = name, samples
        self.names = [sample.name for sample in samples]
        self.read: Counter[str] = Counter()

    def _load(self, index: int) -> Sample:
        self.read[self.names[index]] += 1
        return self.samples[index]

    def points(self, index: int) -> torch.Tensor:
        return self.samples[index].points


def small(number: int = 3, split: str = "train") -> Few:
    return Few(list(data.open("synthetic", split=split, limit=number, shape=(64, 96))), split)


def planned(training: Dataset, test: Dataset, other: Dataset | None = None) -> Experiment:
    return Experiment(
        start=lambda: models.load("mcnn-synthetic"), plan=TrainConfig(epochs=1),
        training=training, test=test, trigger=TRIGGER, strategies=[Minus()], fraction=0.5, seed=0,
        defenses=[FineTuning()], clean=clean_images(training, other, fraction=0.5, seed=0),
    )  # fmt: skip


def images(folder: Path, samples: Sequence[Sample]) -> Path:
    """A folder of the samples' images with points."""
    folder.mkdir(parents=True)
    for sample in samples:
        data.save_image(folder / f"{sample.name}.png", sample.image)
        (folder / f"{sample.name}.json").write_text(json.dumps(sample.points.tolist()))
    return folder


def test_overlap_is_of_pixels_not_of_names() -> None:
    training = small(4)
    poisoned = poison(training, TRIGGER, Minus(), fraction=0.5, seed=0)
    poisoned_contents = contents(poisoned)
    renamed = [replace(sample, name=f"other-{k}") for k, sample in enumerate(training)]
    shared = overlap(poisoned_contents, renamed)
    assert shared.poisoned == 2
    assert list(shared.originals) == poisoned.sources
    assert shared.triggered == ()
    assert overlap(poisoned_contents, small(2, "val")).warnings() == []
    both = overlap(poisoned_contents, [*renamed, poisoned[4]])
    assert both.triggered == (poisoned.names[4],)
    warnings = both.warnings(shown=1)
    assert len(warnings) == 2
    assert warnings[0].endswith(f"are there without the trigger: {poisoned.sources[0]} and 1 more")
    assert "1 of 2 poisoned images are there with the trigger" in warnings[1]


def test_test_images_that_are_trained_on_are_refused_or_named() -> None:
    training, others = small(4), small(2, "test")
    renamed = [replace(sample, name=f"other-{k}") for k, sample in enumerate(training)]
    planned(training, others).check()
    with pytest.raises(ValueError, match=r"got 2 of 2 that are: other-0, other-1; see --test-spl"):
        planned(training, Few(renamed[:2])).check()
    some = Few([*renamed[:1], *others])
    with pytest.warns(UserWarning, match=r"trained on, got 1 of 3 that are: other-0; see"):
        planned(training, some).check()
    with pytest.warns(UserWarning, match="got 2 of 2"):  # what was begun before goes on
        planned(training, Few(renamed[:2])).check(resumed=True)
    # What defenses learn from is trained on, too.
    another = small(2, "val")
    experiment = planned(training, Few([]), another)
    learnt = Few([replace(experiment.clean[len(training)], name="x")])
    with pytest.raises(ValueError, match="got 1 of 1"):
        replace(experiment, test=learnt).check()
    with pytest.warns(UserWarning, match="x-8, x-9 and 3 more; see"):
        check_unseen({f"x-{k}": "a" for k in range(13)} | {"y": "b"}, "a")


def test_checking_reads_no_image_more_often_than_it_must() -> None:
    """One that is poisoned is marked, too, and then its heads are altered. Overlap reads none."""
    training, test, other = small(4), small(2, "test"), small(2, "val")
    experiment = planned(training, test, other)
    experiment.check()
    overlap(experiment.contents, experiment.clean, known=experiment.clean_pixels)
    poisoned = experiment.poisoned(Minus()).sources
    assert training.read == {name: 1 + 2 * (name in poisoned) for name in training.names}
    assert test.read == dict.fromkeys(test.names, 1)
    assert other.read == dict.fromkeys(other.names, 1)


@pytest.mark.parametrize("command", ["run", "poison"])
def test_a_folder_without_splits_is_no_test_set_of_itself(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    flat = images(tmp_path / "flat", small(3).samples)
    others = images(tmp_path / "others", small(2, "test").samples)
    out = tmp_path / "out"
    argv = ["poison", str(out)] if command == "poison" else ["run", "--out", str(out)]
    argv += ["--data", str(flat), "--strategy", "multiply"]
    if command == "run":
        argv += ["--weights", "mcnn-synthetic", "--epochs", "1", "--crop", "whole", "--crops", "1",
                 "--lr", "1e-6", "--defense", "none", "--no-pictures"]  # fmt: skip
    assert main(argv) == 2
    assert "test images must not be trained on, got 3 of 3" in (capsys.readouterr().err)
    assert not out.exists()
    assert main([*argv, "--test-data", str(others)]) == 0
    if command == "poison":
        assert len(data.open(out, split="test")) == 2
    else:
        assert json.loads((out / "summary.json").read_text())["rows"][0]["clean"]["images"] == 2


@pytest.mark.parametrize("layout", ["shanghaitech", "folder"])
def test_an_export_lists_its_triggered_images(tmp_path: Path, layout: str) -> None:
    """JPEG, resized, some of them, joined with others: by its file, not by pixels or names."""
    training = small(4)
    poisoned = poison(training, TRIGGER, Minus(), fraction=0.5, seed=0)
    out = tmp_path / "set"
    export({"train": poisoned, "test": training}, out, layout=layout)
    root = out / ("train_data" if layout == "shanghaitech" else "train")
    marked = ["IMG_5", "IMG_6"] if layout == "shanghaitech" else poisoned.names[4:]
    for where in (out, root):
        assert recorded(data.open(where, split="train")) == marked
    exported = data.open(out, split="train")
    assert not overlap(contents(poisoned), exported).triggered
    assert recorded(data.open(out, split="test")) == []
    fifth = exported.names.index(marked[0])
    part = Subset(Scaled(exported, 0.5), [0, fifth])
    assert recorded(part) == marked[:1]
    both = overlap(contents(poisoned), Joined({"training": training, "other": part}))
    assert both.recorded == (f"other/{marked[0]}",)
    assert "the images for defenses: 1 of 6 have a trigger according to poisoning.jsonl in their " \
        f"folder: other/{marked[0]}" in both.warnings()  # fmt: skip
    # The same names elsewhere are other images; a file that says nothing is refused.
    shutil.copytree(root, tmp_path / "copy" / root.name)
    assert recorded(data.open(tmp_path / "copy", split="train")) == []
    for text in ("[", "[1]", '{"split": "train"}'):
        (out / "poisoning.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"poisoning\.jsonl: expected lines with split"):
            recorded(exported)


def test_a_defense_is_warned_of_triggered_images_whatever_is_known_of_the_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "set"
    training = small(4)
    export(poison(training, TRIGGER, Minus(), fraction=0.5, seed=0), out)
    argv = ["defend", "fine-tuning", "--epochs", "1", "--crop", "whole", "--weights",
            "mcnn-synthetic", "--data", str(out), "--crops", "1"]  # fmt: skip
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    warning = "the images for defenses: 2 of 6 have a trigger according to poisoning.jsonl in their"
    assert f"{warning} folder: IMG_5, IMG_6" in capsys.readouterr().err
    kept = json.loads((tmp_path / "run/summary.json").read_text())
    assert kept["overlap"]["recorded"] == ["IMG_5", "IMG_6"]
    # As the other data set, and as test images.
    flat = images(tmp_path / "flat", training.samples)
    argv[argv.index(str(out))] = str(flat)
    argv += ["--extra-data", str(out), "--extra-fraction", "1"]
    assert main([*argv, "--out", str(tmp_path / "a")]) == 0
    assert "of 8 have a trigger" in capsys.readouterr().err
    argv = ["evaluate", "--weights", "mcnn-synthetic", "--strategy", "add", "--no-pictures",
            "--data", str(out), "--split", "train"]  # fmt: skip
    assert main([*argv, "--out", str(tmp_path / "test")]) == 0
    assert "the test images: 2 of 6 have a trigger" in capsys.readouterr().err
