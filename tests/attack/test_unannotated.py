"""Images without annotation are counted and attacked; errors against heads stay unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pycc import attack
from pycc.attack.evaluation.cells import cell_density
from pycc.attack.evaluation.checked import check_samples
from pycc.data.dataset import Dataset
from pycc.types import Sample

UNKNOWN = ("mae", "rmse", "bias", "mae_low", "mae_high", "mae_by_seed", "gain_over_noise")


def bare(sample: Sample) -> Sample:
    return Sample(sample.name, sample.image, None, sample.roi)


@pytest.fixture
def pictures(folder: Path) -> Path:
    """The folder of images without its points."""
    for file in folder.glob("*.csv"):
        file.unlink()
    return folder


def test_counting(call, folder: Path, weights: Path, tmp_path: Path, refused) -> None:
    flags = ["--attack", "none", "--data", folder, "--weights", weights]
    known = call(*flags, "--out", tmp_path / "known")
    done = call(*flags, "--unannotated", "--out", tmp_path / "bare")
    assert done.code == 0
    (row,) = json.loads((tmp_path / "bare/summary.json").read_text())["rows"]
    (before,) = json.loads((tmp_path / "known/summary.json").read_text())["rows"]
    assert {name: row[name] for name in UNKNOWN} == dict.fromkeys(UNKNOWN)
    for name in ("images", "mean_count", "error_rate", "area", "seeds"):
        assert row[name] == before[name], "the counts are those of the same images"
    line = done.out.splitlines()[2].split()
    assert line[:5] == ["clean", "-", "-", "-", "-"]
    assert "images without annotation: errors against their heads are unknown" in done.out
    assert "images without annotation" not in known.out
    # It has to be said: a missing annotation is an error otherwise.
    for file in folder.glob("*.csv"):
        file.unlink()
    assert "scene_0.png: image without annotation" in refused(*flags)
    again = call(*flags, "--unannotated", "--out", tmp_path / "again")
    assert again.out.splitlines()[:-1] == done.out.splitlines()[:-1]


@pytest.mark.parametrize("wanted", [["over"], ["under"], ["target", "--target-count", "3"]])
def test_attacks_with_gates_and_a_resumed_run(
    wanted, call, pictures: Path, weights: Path, tmp_path: Path
) -> None:
    flags = ["--data", pictures, "--weights", weights, "--unannotated", "--objective", *wanted]
    flags += ["--steps", "4", "--patch-sizes", "8", "--pgd-steps", "2"]
    done = call(*flags, "--out", tmp_path / "run")
    assert done.err == ""
    before = (tmp_path / "run/summary.json").read_bytes()
    summary = json.loads(before)
    assert [row["condition"] for row in summary["rows"]] == [
        "clean", "pgd", "grey", "black", "noise", "crowd", "apam",
    ]  # fmt: skip
    for row in summary["rows"]:
        assert {name: row[name] for name in UNKNOWN} == dict.fromkeys(UNKNOWN)
        assert row["error_rate"] >= 0
    verdicts = {gate["name"]: gate["verdict"] for gate in summary["checks"]}
    assert verdicts["gradient agrees with finite differences"] == "pass"
    assert verdicts["finds a planted weakness"] in ("pass", "fail")  # of four steps
    assert (tmp_path / "run/pictures/0000-scene_0.png").exists()
    # Stopped in the middle and resumed: the same bytes.
    lines = (tmp_path / "run/results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run/results.jsonl").write_text("".join(lines[:7]) + lines[7][:20])
    (tmp_path / "run/summary.json").unlink()
    assert call("--resume", tmp_path / "run").code == done.code
    assert (tmp_path / "run/summary.json").read_bytes() == before
    assert json.loads((tmp_path / "run/manifest.json").read_text())["settings"]["flags"][
        "unannotated"
    ]


@pytest.mark.parametrize("objective", ["density", "pap", "target"])
def test_objectives_about_heads_are_refused(
    objective: str, refused, pictures: Path, weights: Path
) -> None:
    flags = ["--data", pictures, "--weights", weights, "--unannotated", "--objective", objective]
    message = refused(*flags, "--patch-sizes", "8")
    assert f"scene_0: not annotated, and objective {objective} is about annotated heads" in message


def test_a_resumed_run_keeps_what_is_known(call, refused, folder, weights, tmp_path) -> None:
    out = tmp_path / "run"
    call("--attack", "none", "--data", folder, "--weights", weights, "--out", out)
    assert "unannotated" in refused("--resume", out, "--unannotated")


def test_all_or_none(sample) -> None:
    mixed = [sample(0), bare(sample(1)), sample(2)]
    with pytest.raises(ValueError, match="scene 1: not annotated, but other images are"):
        check_samples(mixed, [], 4, seed=0)
    found = check_samples([bare(one) for one in mixed[::2]], [], 4, seed=0)
    assert [item.truth for item in found.items] == [None, None]
    assert found.fingerprint != check_samples(mixed[::2], [], 4, seed=0).fingerprint


def test_patches_are_those_of_annotated_images(tiny, sample) -> None:
    """What objective over does to an image does not depend on what is known of it."""
    chosen = attack.APAM(patch_size=9, steps=5, objective="over", location="worst")
    samples = [sample(index, region=True) for index in range(2)]
    counts = [
        [record["count"] for record in attack.run(tiny(), data, chosen, pgd=None).run.records
         if record["condition"] != "crowd"]
        for data in (samples, [bare(one) for one in samples])
    ]  # fmt: skip
    assert counts[0] == counts[1]


def test_a_universal_patch(tiny, sample) -> None:
    chosen = attack.Universal(patch_size=9, steps=2, objective="under")
    train = [bare(sample(index)) for index in (2, 3)]
    done = attack.run(tiny(), [bare(sample(0))], chosen, train=train, pgd=None, checks=False)
    assert [row["mae"] for row in done.summary["rows"]] == [None] * 5
    with pytest.raises(ValueError, match="not annotated, and objective density is about"):
        attack.run(tiny(), [sample(0)], attack.Universal(patch_size=9), train=train)


def test_there_is_no_true_density(sample) -> None:
    with pytest.raises(ValueError, match="scene 0: not annotated"):
        cell_density(bare(sample()), (16, 20), 4)


class AttackedRegion(Dataset):
    """Samples in memory, of two scenes."""

    name, groups = "scenes", ("S1", "S2", "S1")

    def __init__(self, samples: list[Sample]) -> None:
        self.samples, self.names = samples, [sample.name for sample in samples]

    def _load(self, index: int) -> Sample:
        return self.samples[index]


def test_errors_by_scene(tiny, sample) -> None:
    samples = [sample(index, heads=20 * index + 5) for index in range(3)]
    done = attack.run(tiny(), AttackedRegion(samples), [])
    errors = [abs(record["count"] - record["truth"]) for record in done.run.records]
    (row,) = done.summary["rows"]
    assert row["mae_by_group"] == {
        "S1": pytest.approx((errors[0] + errors[2]) / 2),
        "S2": pytest.approx(errors[1]),
    }
    assert row["mae_over_groups"] == pytest.approx(sum(row["mae_by_group"].values()) / 2)
    assert row["mae_over_groups"] != pytest.approx(row["mae"])
    (plain,) = attack.run(tiny(), samples, []).summary["rows"]
    assert plain == {name: row[name] for name in row if "group" not in name}
    (unknown,) = attack.run(tiny(), AttackedRegion([bare(one) for one in samples]), []).summary[
        "rows"
    ]
    assert "mae_by_group" not in unknown
