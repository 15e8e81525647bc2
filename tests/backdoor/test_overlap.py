"""What images for defenses share with the poisoned ones, and test images with those learnt from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pycc import data, models
from pycc.backdoor import (
    Experiment,
    FineTuning,
    Minus,
    Sinusoid,
    clean_images,
    contents,
    overlap,
    poisoned_training,
)
from pycc.backdoor.__main__ import main
from pycc.backdoor.overlap import unseen
from pycc.data.dataset import Dataset
from pycc.train import Plan
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

    def fingerprint(self) -> str:
        return self.name


def small(number: int = 3, split: str = "train") -> Few:
    return Few(list(data.open("synthetic", split=split, limit=number, shape=(64, 96))), split)


def planned(own: Dataset, test: Dataset, other: Dataset | None = None) -> Experiment:
    return Experiment(
        start=lambda: models.load("mcnn-synthetic"), plan=Plan(epochs=1), own=own, test=test,
        trigger=TRIGGER, strategies=[Minus()], portion=0.5, seed=0, defenses=[FineTuning()],
        clean=clean_images(own, other, share=0.5, seed=0),
    )  # fmt: skip


def images(folder: Path, samples: Sequence[Sample]) -> Path:
    """A folder of the samples' images with points."""
    folder.mkdir(parents=True)
    for sample in samples:
        data.save_image(folder / f"{sample.name}.png", sample.image)
        (folder / f"{sample.name}.json").write_text(json.dumps(sample.points.tolist()))
    return folder


def test_overlap_is_of_pixels_not_of_names() -> None:
    own = small(4)
    poisoned = poisoned_training(own, TRIGGER, Minus(), portion=0.5, seed=0)
    told = contents(poisoned)
    renamed = [replace(sample, name=f"other-{k}") for k, sample in enumerate(own)]
    found = overlap(told, renamed)
    assert found.poisoned == 2
    assert list(found.originals) == poisoned.sources
    assert found.triggered == ()
    assert overlap(told, small(2, "val")).warnings() == []
    both = overlap(told, [*renamed, poisoned[4]])
    assert both.triggered == (poisoned.names[4],)
    said = both.warnings(shown=1)
    assert len(said) == 2
    assert said[0].endswith(f"as they were before poisoning: {poisoned.sources[0]} and 1 more")
    assert "1 of 2 poisoned images are there themselves" in said[1]


def test_test_images_that_are_trained_on_are_refused_or_named() -> None:
    own, others = small(4), small(2, "test")
    renamed = [replace(sample, name=f"other-{k}") for k, sample in enumerate(own)]
    planned(own, others).check()
    with pytest.raises(ValueError, match=r"got 2 of 2 that are: other-0, other-1; see --test-spl"):
        planned(own, Few(renamed[:2])).check()
    some = Few([*renamed[:1], *others])
    with pytest.warns(UserWarning, match=r"trained on, got 1 of 3 that are: other-0; see"):
        planned(own, some).check()
    with pytest.warns(UserWarning, match="got 2 of 2"):  # what was begun before goes on
        planned(own, Few(renamed[:2])).check(resumed=True)
    # What defenses learn from is trained on, too.
    another = small(2, "val")
    whole = planned(own, Few([]), another)
    learnt = Few([replace(whole.clean[len(own)], name="x")])
    with pytest.raises(ValueError, match="got 1 of 1"):
        replace(whole, test=learnt).check()
    with pytest.warns(UserWarning, match="x-8, x-9 and 3 more; see"):
        unseen({f"x-{k}": "a" for k in range(13)} | {"y": "b"}, "a")


def test_checking_reads_no_image_more_often_than_it_must() -> None:
    """One that is poisoned is marked, too, and then its heads are altered. Overlap reads none."""
    own, test, other = small(4), small(2, "test"), small(2, "val")
    whole = planned(own, test, other)
    whole.check()
    overlap(whole.contents, whole.clean, known=whole.clean_pixels)
    poisoned = whole.poisoned(Minus()).sources
    assert own.read == {name: 1 + 2 * (name in poisoned) for name in own.names}
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
    argv += ["--data-b", str(flat), "--strategy", "multiply"]
    if command == "run":
        argv += ["--weights", "mcnn-synthetic", "--epochs", "1", "--crop", "whole", "--crops", "1",
                 "--lr", "1e-6", "--defense", "none", "--no-pictures"]  # fmt: skip
    assert main(argv) == 2
    assert "test images are to be others than those that are trained on, got 3 of 3" in (
        capsys.readouterr().err
    )
    assert not out.exists()
    assert main([*argv, "--test-data", str(others)]) == 0
    if command == "poison":
        assert len(data.open(out, split="test")) == 2
    else:
        assert json.loads((out / "summary.json").read_text())["rows"][0]["clean"]["images"] == 2
