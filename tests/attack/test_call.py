"""Calling an attack on images gives the tensors of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pycc import attack
from pycc.types import Sample

pytestmark = pytest.mark.command

ATTACKS = {
    "apam": attack.APAM(patch_size=9, steps=5, objective="over", restarts=2),
    "worst place": attack.APAM(patch_size=9, steps=5, objective="over", location="worst"),
    "disc at random": attack.APAM(
        patch_size=12, steps=5, objective="under", shape="disc", location="random"
    ),
    "query": attack.Query(patch_size=9, steps=20, objective="over"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_the_run(
    name: str, tiny: Callable[..., nn.Module], sample: Callable[..., Sample]
) -> None:
    chosen, counter = ATTACKS[name], tiny()
    samples = [sample(0), sample(1)]
    images = torch.stack([scene.image for scene in samples])
    result = chosen(counter, images, seed=3)
    done = attack.run(counter, samples, chosen, seed=3, pgd=None, compare=False, checks=False)
    rows = [row for row in done.rows if row.condition == chosen.name]
    assert result.attacked_counts.tolist() == [row.count for row in rows]
    assert result.clean_counts.tolist() == [
        row.count for row in done.rows if row.condition == "clean"
    ]
    assert result.places.tolist() == [list(row.top_left or ()) for row in rows]
    assert result.loss_history.tolist() == [list(row.loss_history) for row in rows]
    for index, row in enumerate(rows):
        assert torch.equal(result.patches[index], done.patches[str(row.file)])
        assert torch.equal(result.images[index], done.images(index)[str(row.file)])


def test_counts_are_those_of_the_images_that_it_returns(
    tiny: Callable[..., nn.Module], sample: Callable[..., Sample]
) -> None:
    counter = tiny().eval()
    chosen = ATTACKS["disc at random"]
    images = torch.stack([sample(0).image, sample(1).image])
    result = chosen(counter, images)
    assert isinstance(result.images, torch.Tensor)
    assert result.images.shape == images.shape
    levels = result.images * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    with torch.no_grad():
        counts = counter(result.images).double().sum((1, 2, 3))
    torch.testing.assert_close(counts, result.attacked_counts, rtol=1e-6, atol=1e-6)
    changed = (result.images != images).any(1)
    mask = chosen.patch_mask(12).bool()
    for row, (y, x) in zip(changed, result.places.tolist(), strict=True):
        assert not row[y : y + 12, x : x + 12][~mask].any()
        row[y : y + 12, x : x + 12] = False
        assert not row.any()


def test_images_of_several_sizes_and_a_universal_patch(
    tiny: Callable[..., nn.Module], sample: Callable[..., Sample]
) -> None:
    images = [sample(0).image, sample(1, shape=(48, 64)).image]
    result = attack.Universal(patch_size=8, steps=5, objective="over")(tiny(), images)
    assert [tuple(image.shape) for image in result.images] == [(3, 64, 80), (3, 48, 64)]
    assert torch.equal(result.patches[0], result.patches[1])
    assert result.loss_history.shape == (2, 21)


def test_heads_are_needed_by_objectives_that_are_about_them(
    tiny: Callable[..., nn.Module], sample: Callable[..., Sample]
) -> None:
    scene, chosen = sample(0), attack.APAM(patch_size=8, steps=2)
    with pytest.raises(ValueError, match="objective density is about annotated heads; take over"):
        chosen(tiny(), scene.image[None])
    with pytest.raises(ValueError, match=r"APAM: points must be one tensor .* got 2"):
        chosen(tiny(), scene.image[None], points=[scene.points, scene.points])
    result = chosen(tiny(), scene.image[None], points=[scene.points])
    assert result.patches[0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64), r"APAM: images must be \[N,3,H,W\]"),
        (torch.full((1, 3, 64, 64), 255.0), "divide by 255"),
        ([torch.zeros(1, 64, 64)], r"APAM: image must be \[3,H,W\]"),
        (torch.zeros(0, 3, 64, 64), "APAM: images must be"),
        ([], "APAM: images must be at least one, got none"),
    ],
)
def test_bad_images(images: Any, message: str, tiny: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match=message):
        attack.APAM(patch_size=8, steps=1, objective="over")(tiny(), images)


def test_a_run_has_the_same_patches_and_images_with_and_without_a_folder(
    tiny: Callable[..., nn.Module], sample: Callable[..., Sample], tmp_path: Path
) -> None:
    chosen = [
        attack.APAM(patch_size=12, steps=3, objective="over", shape="disc"),
        attack.APAM(patch_size=0.2, steps=3, objective="over"),
    ]
    samples = [sample(0), sample(1, region=True)]
    memory, folder = (
        attack.run(tiny(), samples, chosen, pgd=None, checks=False, out=out)
        for out in (None, tmp_path / "run")
    )
    assert memory.rows == folder.rows
    assert memory.summary == folder.summary
    assert memory.patches.keys() == folder.patches.keys()
    assert len(memory.patches) == 4
    for name, patch in memory.patches.items():
        assert torch.equal(patch, folder.patches[name])
    from pycc.data import load_image

    for name, image in memory.images(1).items():
        assert torch.equal(image, folder.images(1)[name])
        assert torch.equal(image, load_image(tmp_path / "run" / "images" / f"{name}.png"))
    again = attack.run(
        tiny(), samples, chosen, pgd=None, checks=False, out=tmp_path / "run", resume=True
    )
    assert again.rows == memory.rows
    assert again.patches.keys() == memory.patches.keys()


def test_an_attack_must_not_have_the_name_of_a_condition(
    tiny: Callable[..., nn.Module], sample: Callable[..., Sample]
) -> None:
    class Grey(attack.Query):
        name = "grey"

    with pytest.raises(ValueError, match="an attack must not be named 'grey'"):
        attack.run(tiny(), [sample(0)], Grey(patch_size=8, steps=1, objective="over"))
