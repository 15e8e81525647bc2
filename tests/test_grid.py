"""Pixels and cells: weights of a region of interest, the heads in it, and who relies on them."""

from __future__ import annotations

import doctest
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.toys import Coarse, Tiny
from torch import Tensor, nn

from pycc import attack, defense, grid, models
from pycc.attack.evaluation.checked import counted_points
from pycc.backdoor.evaluation.gradcam import gradcam
from pycc.certify.maps import certified_map
from pycc.counters import count_of
from pycc.grid import cell_weight, heads_in, in_region, period_of, window_field
from pycc.models.recipe import Crop, Optimiser, Recipe
from pycc.train import truth
from pycc.train.items import Items
from pycc.types import Sample

SHAPE, STRIDE = (568, 728), 16
"""Of which the last row of cells is half an image cell high, and the last column half as wide."""
CELLS = (36, 46)


class Ones(nn.Module):
    """A counter that keeps incomplete cells and counts one person in each of them."""

    stride, receptive_field = STRIDE, STRIDE

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool2d(images, STRIDE, ceil_mode=True)
        return self.layer(pooled)


def sample(roi: Tensor | None) -> Sample:
    image = torch.full((3, *SHAPE), 1 / 3)
    return Sample("whole", image, torch.tensor([[3.0, 4.0]], dtype=torch.float64), roi)


def trained_on(one: Sample) -> float:
    """The weight of a training item of the whole image: only its whole cells are trained on."""
    recipe = Recipe(
        source="test", optimisers=(Optimiser("adam", 1e-5),), epochs=1, batch=1,
        density={"": "dots"}, down_sampling="sum", crop=Crop("whole"),
    )  # fmt: skip
    item = Items([one], [0], recipe, STRIDE, seed=0)[0, 0]
    assert item.region is not None
    return float(item.region.mean()) * CELLS[0] * CELLS[1]


def attacked(sample: Sample) -> float:
    done = attack.run(Ones(), [sample], [], checks=False, pgd=None, compare=False)
    return float(done.run.records[0]["count"])


COUNTS: dict[str, Callable[[Sample], float]] = {
    "attack": attacked,
    "certify": lambda sample: float(certified_map(Ones().eval(), sample).double().sum()),
    "train and backdoor": lambda sample: count_of(Ones().eval(), sample),
    "training items": trained_on,
    "Grad-CAM": lambda sample: gradcam(Ones().eval(), sample.image, "layer", sample.roi).count,
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_region_that_is_the_whole_image_changes_no_count(name: str) -> None:
    everywhere = torch.ones(SHAPE, dtype=torch.bool)
    # 8-bit values of a third are 85/255, so a cell holds one person exactly.
    assert COUNTS[name](sample(everywhere)) == pytest.approx(1656, rel=1e-6)
    if name != "training items":
        assert COUNTS[name](sample(None)) == pytest.approx(1656, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "training items"])
def test_a_cell_counts_by_the_share_of_its_existing_pixels(name: str) -> None:
    """The last 4 of 8 existing rows and the whole cells of two columns: half of 2 people."""
    roi = torch.zeros(SHAPE, dtype=torch.bool)
    roi[-4:, :32] = True
    assert COUNTS[name](sample(roi)) == pytest.approx(1.0, rel=1e-6)


@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.booleans(), st.booleans(),
    st.integers(0, 10**6),
)  # fmt: skip
def test_weights_are_shares_of_existing_pixels(
    height: int, width: int, stride: int, keeps_row: bool, keeps_column: bool, seed: int
) -> None:
    roi = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    rows = -(-height // stride) if keeps_row else height // stride
    columns = -(-width // stride) if keeps_column else width // stride
    result = cell_weight(roi, (rows, columns), stride)
    assert result.shape == (rows, columns)
    assert result.dtype == torch.float32
    for i in range(rows):
        for j in range(columns):
            pixels = roi[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].numpy()
            assert result[i, j] == pytest.approx(np.mean(pixels), abs=1e-6)
    everywhere = torch.ones(height, width, dtype=torch.bool)
    assert torch.equal(cell_weight(everywhere, (rows, columns), stride), torch.ones(rows, columns))


def test_without_a_region_all_counts() -> None:
    assert torch.equal(cell_weight(None, (2, 3), 4), torch.ones(2, 3))
    density = torch.rand(2, 1, 2, 3)
    assert in_region(density, None, 4) is density
    roi = torch.zeros(8, 13, dtype=torch.bool)
    roi[:4, :6] = True
    assert torch.equal(
        in_region(density, roi, 4), density * torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    )


@pytest.mark.parametrize(
    ("roi", "cells", "stride", "message"),
    [
        (torch.ones(8, 40, dtype=torch.bool), (2, 3), 4, "2x10 cells of stride 4, got 2x3"),
        (torch.ones(8, 8, dtype=torch.bool), (2, 2), 8, "1x1 cells of stride 8, got 2x2"),
        (torch.ones(8, 8, dtype=torch.bool), (2, 2), 0, "stride must be at least 1, got 0"),
        (torch.ones(8, 8), (2, 2), 4, r"roi must be \[H,W\] bool, got \[8, 8\] torch.float32"),
        (torch.ones(1, 8, 8, dtype=torch.bool), (2, 2), 4, r"must be \[H,W\] bool, got \[1, 8, 8"),
    ],
)
def test_bad_regions(roi: Tensor, cells: tuple[int, int], stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cell_weight(roi, cells, stride)


@given(st.lists(st.tuples(st.floats(-3, 12), st.floats(-3, 12)), max_size=12), st.integers(0, 99))
def test_heads_lie_in_the_pixel_that_holds_them(
    points: list[tuple[float, float]], seed: int
) -> None:
    roi = torch.rand(7, 9, generator=torch.Generator().manual_seed(seed)) < 0.5
    heads = torch.tensor(points, dtype=torch.float64).reshape(-1, 2)
    inside = [0 <= x < 9 and 0 <= y < 7 for x, y in points]
    assert heads_in(heads, (7, 9)).tolist() == inside
    expected = [
        here and bool(roi[int(y), int(x)]) for here, (x, y) in zip(inside, points, strict=True)
    ]
    assert heads_in(heads, roi).tolist() == expected
    sample = Sample("a", torch.zeros(3, 7, 9), heads[heads_in(heads, (7, 9))], roi)
    assert torch.equal(counted_points(sample), truth.heads(sample))


def test_a_head_at_no_number_is_in_no_region() -> None:
    heads = torch.tensor([[float("nan"), 1.0], [1.0, 1.0]])
    assert heads_in(heads, (4, 4)).tolist() == [False, True]


def test_models_that_keep_a_last_cell_and_those_that_drop_it() -> None:
    """Of 21 pixels MCNN's stride of 4 leaves five cells, DA-Net's poolings keep a sixth or not."""
    image = torch.rand(1, 3, 21, 22, generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones(21, 22, dtype=torch.bool)
    for name in ("mcnn", "danet"):
        counter = models.create(name).eval()
        with torch.no_grad():
            density = counter(image)
        assert torch.equal(in_region(density, everywhere, counter.stride), density)


def test_examples() -> None:
    assert doctest.testmod(grid).attempted >= 2
    assert doctest.testmod(grid).failed == 0


@pytest.mark.parametrize("stride", [1, 2, 3, 8])
@pytest.mark.parametrize("extra", [0, 2, 12, 30])
@pytest.mark.parametrize("patch_size", [1, 2, 7, 16])
def test_a_patch_reaches_so_many_cells_and_somewhere_as_many(
    patch_size: int, extra: int, stride: int
) -> None:
    margin, cells = extra // 2, 60 // stride
    reached = []
    for first in range(60 - patch_size):
        pixels = range(first, first + patch_size)
        reached.append(sum(
            i * stride - margin <= pixels[-1] and pixels[0] < (i + 1) * stride + margin
            for i in range(cells)
        ))  # fmt: skip
    assert grid.reached_window(patch_size, stride, stride + extra) == max(reached)


@pytest.mark.parametrize("numbers", [(0, 8, 8), (3, 0, 8), (3, 8, -1)])
def test_a_window_is_of_pixels(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"reached_window: \w+ must be at least 1 pixel, got"):
        grid.reached_window(*numbers)


def test_windows_replace_images_only_of_counters_on_their_own_grid() -> None:
    """Defended counters and mixtures are of their counters' grid, isolated tiles of their own."""
    fine, coarse = Tiny(), Coarse()
    assert [(period_of(c), window_field(c)) for c in (fine, coarse)] == [(2, 8), (4, None)]
    for defended in (defense.clipped(coarse, 0.5), defense.mixed([fine, coarse])):
        assert (period_of(defended), window_field(defended)) == (4, None)
        assert defended.receptive_field == 16
    assert window_field(defense.clipped(fine, 0.5)) == 8
    tiled = defense.tiled(coarse, 8)
    assert (period_of(tiled), window_field(tiled)) == (8, 8)
