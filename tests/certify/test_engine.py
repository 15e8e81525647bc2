"""A data set certified from Python: in memory, in a folder, and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.scenes import counter as small_counter
from support.scenes import scenes as small_scenes

from pycc import certify, data, defense
from pycc.certify import Additive, Calibration, FixedAblations, Masked, Quantile, TwoMask
from pycc.certify.engine import CALIBRATION
from pycc.data import quantize
from pycc.runs import read_records
from pycc.types import Counter, Sample

SIZES = (8, 20)
METHODS = [Masked(), Additive(block_cap=30.0), Quantile(k=900, ablation_samples=9, alpha=0.4)]


@pytest.fixture(scope="module")
def scenes() -> list[Sample]:
    return small_scenes(2, (64, 80))


@pytest.fixture(scope="module")
def others() -> list[Sample]:
    return small_scenes(4, (64, 80))[2:]


@pytest.fixture(scope="module")
def counter() -> Counter:
    return defense.clipped(small_counter().eval())


@pytest.fixture(scope="module")
def calibration(counter: Counter, others: list[Sample]) -> Calibration:
    return certify.calibrate(counter, others, method=METHODS, patch_sizes=SIZES, source="others")


@pytest.fixture(scope="module")
def result(counter: Counter, scenes: list[Sample], calibration: Calibration) -> certify.CertifyRun:
    return certify.run(
        counter, scenes, method=METHODS, patch_sizes=SIZES, calibration=calibration, seed=3
    )


def untimed(records) -> list[dict]:
    return [{name: r[name] for name in r if name != "seconds"} for r in records]


def test_a_calibration_has_a_number_for_each_method_and_size(
    calibration: Calibration, others: list[Sample]
) -> None:
    kinds = [(n.kind, n.patch_size, n.source, n.images) for n in calibration.numbers]
    assert kinds == [
        ("allowance", 8, "others", 2), ("allowance", 20, "others", 2),
        ("cap", None, "others", 2), ("block cap", None, "given", 0),
    ]  # fmt: skip
    assert calibration.value("block cap") == 30.0
    mean = torch.stack([sample.image.mean((1, 2)) for sample in others]).mean(0)
    assert calibration.fill == pytest.approx(mean.tolist(), abs=1e-3)


def test_intervals_of_a_run_are_those_of_the_images(
    result: certify.CertifyRun, counter: Counter, scenes: list[Sample], calibration: Calibration
) -> None:
    assert [(row.method, row.patch_size) for row in result.rows] == [
        (name, size) for size in SIZES for name in ("additive", "masked", "quantile")
    ]
    records = {(r["image"], r["method"], r["patch_size"]): r for r in result.records}
    assert len(records) == 2 * (1 + 3 * 2)
    for sample in scenes:
        image = data.quantize(sample.image)
        allowance = calibration.value("allowance", 20, 0)
        interval = certify.masked(counter, image, patch_size=20, allowance=allowance)
        record = records[sample.name, "masked", 20]
        assert (record["low"], record["high"]) == (interval.low, interval.high)


def test_a_folder_holds_the_same_and_is_resumed(
    result: certify.CertifyRun, counter: Counter, scenes: list[Sample], calibration: Calibration,
    tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "run"

    def run(calibration: Calibration = calibration, **options) -> certify.CertifyRun:
        return certify.run(
            counter, scenes, method=METHODS, patch_sizes=SIZES, calibration=calibration, seed=3,
            out=out, **options,
        )  # fmt: skip

    stored = run()
    assert stored.folder == out
    assert stored.summary == result.summary
    assert untimed(stored.records) == untimed(result.records)
    assert json.loads((out / "summary.json").read_text()) == result.summary.json()
    assert Calibration.load(out / CALIBRATION) == calibration
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:-3]))
    (out / "summary.json").unlink()
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        run()
    other = replace(calibration, fill=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"keeps its settings, data and weights; settings\.fill"):
        run(other, resume=True)
    resumed = run(resume=True)
    assert resumed.summary == result.summary
    assert untimed(resumed.records) == untimed(result.records)
    assert [r["seconds"] for r in read_records(out)][: len(lines) - 3] == [
        json.loads(line)["seconds"] for line in lines[:-3]
    ]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Masked(allowance=3.0), "masked: the allowance is given as 3.0 people and calibrated as"),
        ("two-mask", "the colour of hidden pixels is missing"),
        ("additive", "the cap is missing"),
        (["masked", Masked()], "methods of different names"),
        ("mask", "unknown certificate method 'mask'; .* did you mean 'masked'"),
        (Quantile(k=64 * 80 + 1), "k must be at most the 5120 pixels of an image of 64x80"),
    ],
)
def test_a_calibration_of_other_methods_is_refused(
    method, message: str, counter: Counter, scenes: list[Sample]
) -> None:
    numbers = tuple(
        certify.CalibratedNumber("allowance", 1.0, "here", 1, size, 0) for size in SIZES
    )
    with pytest.raises(ValueError, match=message):
        certify.run(
            counter, scenes, method=method, patch_sizes=SIZES, calibration=Calibration(numbers)
        )


class Endless:
    """Samples as data sets of other libraries have them: a length, items, and no IndexError."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index % len(self)]


def test_samples_without_an_end_of_their_own_are_certified(
    result: certify.CertifyRun, counter: Counter, scenes: list[Sample], others: list[Sample],
    calibration: Calibration,
) -> None:  # fmt: skip
    again = certify.calibrate(
        counter, Endless(others), method=METHODS, patch_sizes=SIZES, source="others"
    )
    assert again == calibration
    run = certify.run(
        counter, Endless(scenes), method=METHODS, patch_sizes=SIZES, calibration=again, seed=3
    )
    assert untimed(run.records) == untimed(result.records)


def test_two_images_of_one_name_are_refused(
    counter: Counter, scenes: list[Sample], calibration: Calibration, tmp_path: Path
) -> None:
    same = [scenes[0], replace(scenes[1], name=scenes[0].name)]
    with pytest.raises(ValueError, match=r"certify: names of samples must be unique, got .* twice"):
        certify.run(
            counter, same, method=METHODS, patch_sizes=SIZES, calibration=calibration,
            out=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_counts_are_exact_on_cuda(
    scenes: list[Sample], others: list[Sample], counter: Counter
) -> None:
    seen = []

    class Watching(torch.nn.Module):
        stride, receptive_field = counter.stride, counter.receptive_field

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            flags = torch.backends.cudnn
            seen.append((flags.deterministic, flags.benchmark, flags.allow_tf32))
            density: torch.Tensor = counter(images)
            return density

    watching = Watching().eval()
    methods = [*METHODS, TwoMask(masks=4), FixedAblations(k=900, ablation_samples=9)]
    calibration = certify.calibrate(watching, others, method=methods, patch_sizes=[8])
    certify.run(watching, scenes, method=methods, patch_sizes=[8], calibration=calibration)
    assert len(seen) > 4
    assert set(seen) == {(True, False, False)}


@pytest.mark.parametrize(
    "methods",
    [
        [Additive(cap=0.5, block_cap=30.0, patches=n) for n in (1, 2)],
        [FixedAblations(k=90, ablation_samples=41, patches=n) for n in (1, 2)],
        [Quantile(k=90, ablation_samples=400, alpha=0.4, patches=n) for n in (1, 2)],
    ],
    ids=lambda methods: methods[0].name,
)
def test_two_patches_widen_the_intervals_of_a_run(
    methods: list[certify.Certificate], counter: Counter, scenes: list[Sample]
) -> None:
    ends = []
    for method in methods:
        calibration = certify.calibrate(counter, scenes[1:], method=[method], patch_sizes=[2])
        done = certify.run(
            counter, scenes[:1], method=[method], patch_sizes=[2], calibration=calibration
        )
        record = next(r for r in done.records if r["method"] == method.name)
        ends.append((record["low"], record["high"]))
        if isinstance(method, Additive):
            interval = certify.additive(
                counter, quantize(scenes[0].image), patch_size=2, caps=0.5, block_cap=30.0,
                patches=method.patches,
            )  # fmt: skip
            assert ends[-1] == (interval.low, interval.high)
    (low, high), (lower, higher) = ends
    assert lower < low < high < higher
