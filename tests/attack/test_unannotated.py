"""Images without annotation are counted and attacked; errors against heads stay unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pycc import attack
from pycc.attack.evaluation.cells import cell_density
from pycc.attack.evaluation.checked import check_samples
from pycc.data.dataset import Dataset
from pycc.types import Sample


def bare(sample: Sample) -> Sample:
    return Sample(sample.name, sample.image, None, sample.roi)


def test_all_or_none(sample) -> None:
    mixed = [sample(0), bare(sample(1)), sample(2)]
    with pytest.raises(ValueError, match="scene 1: not annotated, but other images are"):
        check_samples(mixed, [], 4, seed=0)
    checked = check_samples([bare(scene) for scene in mixed[::2]], [], 4, seed=0)
    assert [item.truth for item in checked.items] == [None, None]
    assert checked.fingerprint != check_samples(mixed[::2], [], 4, seed=0).fingerprint


@pytest.mark.long
def test_patches_are_those_of_annotated_images(tiny, sample) -> None:
    """What objective over does to an image does not depend on what is known of it."""
    chosen = attack.APAM(patch_size=9, steps=5, objective="over", location="worst")
    samples = [sample(index, region=True) for index in range(2)]
    runs = [
        attack.run(tiny(), images, chosen, pgd=None, checks=False)
        for images in (samples, [bare(scene) for scene in samples])
    ]
    counts = [[row.count for row in done.rows if row.condition != "crowd"] for done in runs]
    assert counts[0] == counts[1]


def test_a_universal_patch(tiny, sample) -> None:
    chosen = attack.Universal(patch_size=9, steps=2, objective="under")
    train = [bare(sample(index)) for index in (2, 3)]
    done = attack.run(tiny(), [bare(sample(0))], chosen, train=train, pgd=None, checks=False)
    assert [row.mae for row in done.summary.rows] == [None] * 5
    with pytest.raises(ValueError, match="not annotated, and objective density is about"):
        attack.run(tiny(), [sample(0)], attack.Universal(patch_size=9), train=train)


def test_there_is_no_true_density(sample) -> None:
    with pytest.raises(ValueError, match="scene 0: not annotated"):
        cell_density(bare(sample()), (16, 20), 4)


class Scenes(Dataset):
    """Samples in memory, of two scenes."""

    name, groups = "scenes", ("S1", "S2", "S1")

    def __init__(self, samples: list[Sample]) -> None:
        self.samples, self.names = samples, [sample.name for sample in samples]

    def _load(self, index: int) -> Sample:
        return self.samples[index]


def test_errors_by_scene(tiny, sample) -> None:
    samples = [sample(index, heads=20 * index + 5) for index in range(3)]
    done = attack.run(tiny(), Scenes(samples), [])
    errors = [abs(record["count"] - record["truth"]) for record in done.run.records]
    (row,) = done.summary.rows
    assert row.mae_by_group == {
        "S1": pytest.approx((errors[0] + errors[2]) / 2),
        "S2": pytest.approx(errors[1]),
    }
    assert row.mae_over_groups == pytest.approx(sum(row.mae_by_group.values()) / 2)
    assert row.mae_over_groups != pytest.approx(row.mae)
    (plain,) = attack.run(tiny(), samples, []).summary.rows
    assert plain == replace(row, mae_by_group=None, mae_over_groups=None)
    assert plain.json() == {name: v for name, v in row.json().items() if "group" not in name}
    bare_scenes = Scenes([bare(scene) for scene in samples])
    (unknown,) = attack.run(tiny(), bare_scenes, []).summary.rows
    assert unknown.mae_by_group is None
