import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pycc.data
from pycc.data import density, downsample
from pycc.data.density import recipes
from pycc.ops import density_map

RECIPES = recipes.names()
CASES = [
    ("density", "csr", "csrnet_adaptive", ("a", "b", "odd", "single")),
    ("density_raw", "csr_raw", "csrnet_raw", ("a", "b", "odd")),
    ("density_fixed15", "fixed15_reflect", "fixed15_reflect", ("a", "b", "odd")),
    ("density_fixed15", "shhb15", "shhb15", ("a", "b", "odd")),
    ("density_window", "svishwa", "svishwa_window", ("a", "b", "odd", "outside")),
    ("density_window", "danet", "danet_geometry", ("a", "b", "odd", "single")),
]


def close(ours: torch.Tensor, published: np.ndarray, tolerance: float = 1e-5) -> bool:
    """Whether maps agree to a share of the published map's maximum."""
    assert tuple(ours.shape) == published.shape
    return bool(np.abs(ours.numpy() - published).max() <= tolerance * np.abs(published).max())


def case(arrays, name: str) -> tuple[torch.Tensor, tuple[int, int]]:
    height, width = arrays[f"shape_{name}"].tolist()
    return torch.from_numpy(arrays[f"points_{name}"]), (height, width)


def test_all_published_recipes_are_offered() -> None:
    assert set(RECIPES) == {recipe for _, _, recipe, _ in CASES} | {"fixed5_reflect"}


def test_sfanets_map_is_scipys_of_the_dots() -> None:
    """Heads of one pixel merge, mass is reflected at the border, the kernel ends at 4 sigma."""
    points = torch.tensor([[3.2, 2.9], [3.8, 2.1], [30.0, 20.0], [54.9, 39.9]])
    dots = np.zeros((40, 56))
    dots[2, 3] = dots[20, 30] = dots[39, 54] = 1
    wanted = scipy.ndimage.gaussian_filter(dots, 5.0)
    assert close(density(points, (40, 56), recipe="fixed5_reflect"), wanted)


@pytest.mark.parametrize(
    ("file", "key", "recipe", "name"),
    [(file, key, recipe, name) for file, key, recipe, names in CASES for name in names],
)
def test_published_maps(fixture, file: str, key: str, recipe: str, name: str) -> None:
    arrays = fixture(file)
    points, shape = case(arrays, name)
    ours = density(points, shape, recipe=recipe)
    assert ours.dtype == torch.float32
    published = arrays[f"{key}_{name}"]
    thinned = ours if published.shape == shape else ours[::3, ::3]
    assert close(thinned, published)
    if f"sum_{key}_{name}" in arrays:
        total = float(arrays[f"sum_{key}_{name}"])
        assert float(ours.double().sum()) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("name", ["a", "b", "odd"])
@pytest.mark.parametrize(
    ("sigma", "boundary", "published_boundary"),
    [(15, "clip", "constant"), (4, "clip", "constant"), (4, "reflect", "reflect")],
)
def test_published_maps_of_fixed_width_come_from_the_op(
    fixture, name: str, sigma: int, boundary: str, published_boundary: str
) -> None:
    arrays = fixture(f"density_fixed{sigma}")
    points, shape = case(arrays, name)
    ours = density_map(points.long().unique(dim=0).double(), float(sigma), shape, boundary=boundary)
    key = f"fixed{sigma}_{published_boundary}_{name}"
    published = arrays[key]
    assert close(ours if published.shape == shape else ours[::3, ::3], published)
    total = float(arrays[f"sum_{key}"])
    assert float(ours.double().sum()) == pytest.approx(total, rel=1e-6)


def test_the_published_lone_head_is_a_switch(fixture) -> None:
    arrays = fixture("density_window")
    points, shape = case(arrays, "single")
    published = density(points, shape, recipe="svishwa_window", published_single_head=True)
    assert np.array_equal(published.numpy(), arrays["svishwa_single"])
    plain = density(points, shape, recipe="svishwa_window")
    assert float(plain.sum()) == pytest.approx(1.0)
    two = points.repeat(2, 1)
    assert torch.equal(
        density(two, shape, recipe="svishwa_window", published_single_head=True),
        density(two, shape, recipe="svishwa_window"),
    )
    with pytest.raises(
        ValueError, match="published_single_head belongs to svishwa_window, got shhb15"
    ):
        density(points, shape, recipe="shhb15", published_single_head=True)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (40, 56)])
def test_no_head_gives_zeros(recipe: str, shape: tuple[int, int]) -> None:
    spread = density(torch.zeros(0, 2), shape, recipe=recipe)
    assert spread.shape == shape
    assert not spread.any()


FULL_MASS = ("fixed5_reflect", "fixed15_reflect", "shhb15", "svishwa_window", "danet_geometry")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_few_heads_work(recipe: str, heads: int) -> None:
    points = torch.tensor([[20.5, 14.2], [33.0, 17.5], [8.1, 30.9]])[:heads]
    spread = density(points, (40, 56), recipe=recipe)
    assert bool(torch.isfinite(spread).all())
    assert bool((spread >= 0).all())
    total = float(spread.double().sum())
    if recipe in FULL_MASS:
        assert total == pytest.approx(heads, rel=1e-5)
    else:
        assert 0.5 * heads < total <= heads * (1 + 1e-6)


def test_two_heads_take_the_one_distance_there_is() -> None:
    points = torch.tensor([[20.0, 20.0], [30.0, 20.0]])
    wanted = np.zeros((48, 60))
    for x, y in ((20, 20), (30, 20)):
        dot = np.zeros((48, 60))
        dot[y, x] = 1
        wanted += scipy.ndimage.gaussian_filter(dot, 3.0, mode="constant")
    for recipe in ("csrnet_adaptive", "csrnet_raw"):
        assert close(density(points, (48, 60), recipe=recipe), wanted, 1e-6)


def test_coincident_heads_merge_or_not() -> None:
    points = 50 + torch.tensor([[9.0, 9.0]] * 4 + [[19.0, 9.0], [9.0, 20.0], [0.0, 0.0]])
    for recipe, total in (
        ("csrnet_adaptive", 4.0),
        ("csrnet_raw", 7.0),
        ("fixed15_reflect", 4.0),
        ("shhb15", 7.0),
        ("svishwa_window", 7.0),
        ("danet_geometry", 7.0),
    ):
        spread = density(points, (120, 120), recipe=recipe).double()
        assert float(spread.sum()) == pytest.approx(total, rel=0.02), recipe
    raw = density(points, (120, 120), recipe="csrnet_raw")
    assert float(raw[59, 59]) > 4.0  # Three coincident neighbours: sigma 0, so four dots.


@st.composite
def crowds(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[int, int]]:
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    axis = [st.floats(0, size, exclude_max=True) for size in (width, height)]
    points = draw(st.lists(st.tuples(*axis), min_size=1, max_size=30))
    return torch.tensor(points, dtype=torch.float64), (height, width)


@settings(max_examples=60)
@given(crowd=crowds(), recipe=st.sampled_from(RECIPES))
def test_mass_is_that_of_the_recipe(crowd, recipe: str) -> None:
    points, shape = crowd
    spread = density(points, shape, recipe=recipe).double()
    assert spread.shape == shape
    assert float(spread.min()) >= 0.0
    total, heads = float(spread.sum()), len(points)
    pixels = len(points.long().unique(dim=0))
    if recipe in ("shhb15", "svishwa_window", "danet_geometry"):
        assert total == pytest.approx(heads, rel=1e-5)
    elif recipe in ("fixed5_reflect", "fixed15_reflect"):
        assert total == pytest.approx(pixels, rel=1e-5)
    else:
        drawn = heads if recipe == "csrnet_raw" else pixels
        assert 0.0 < total <= drawn * (1 + 1e-5)


@settings(max_examples=30)
@given(crowd=crowds(), recipe=st.sampled_from(RECIPES), seed=st.integers(0, 9))
def test_the_order_of_heads_does_not_matter(crowd, recipe: str, seed: int) -> None:
    points, shape = crowd
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    first = density(points, shape, recipe=recipe)
    second = density(points[order], shape, recipe=recipe)
    assert float((first - second).abs().max()) <= 1e-5 * float(first.max())


OUTSIDE = torch.tensor(
    [[5.0, 5.0], [60.0, 5.0], [5.0, 40.0], [-3.5, 5.0], [20.5, 8.0], [9.0, 30.0]]
)


@pytest.mark.parametrize(
    ("recipe", "dropped"),
    [("csrnet_adaptive", 3), ("csrnet_raw", 3), ("fixed15_reflect", 3), ("fixed5_reflect", 3),
     ("danet_geometry", 2)],
)  # fmt: skip
def test_heads_outside_are_dropped_and_counted(recipe: str, dropped: int) -> None:
    with pytest.warns(UserWarning, match=f"dropped {dropped} of 6 heads outside the image"):
        spread = density(OUTSIDE, (40, 56), recipe=recipe).double()
    assert float(spread.sum()) <= 6 - dropped + 1e-5
    with pytest.warns(UserWarning, match="dropped 1 of 1"):
        assert not density(OUTSIDE[1:2], (40, 56), recipe=recipe).any()


@pytest.mark.parametrize("recipe", ["shhb15", "svishwa_window"])
def test_heads_outside_are_moved_in(recipe: str) -> None:
    spread = density(OUTSIDE, (40, 56), recipe=recipe).double()
    assert float(spread.sum()) == pytest.approx(6.0, rel=1e-5)


@pytest.mark.parametrize("rule", ["cubic8", "linear8", "linear4", "linear16"])
@pytest.mark.parametrize("name", ["a", "b", "odd"])
def test_published_downsampling(fixture, rule: str, name: str) -> None:
    small = fixture("density_down")
    full = (
        fixture("density")[f"csr_{name}"]
        if rule.endswith("8")
        else fixture("density_window")[f"svishwa_{name}"]
    )
    assert close(downsample(torch.from_numpy(full), rule), small[f"{rule}_{name}"])


def test_bad_input_is_refused() -> None:
    points = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="unknown density recipe 'csr'; known: csrnet_adaptive"):
        density(points, (4, 4), recipe="csr")
    with pytest.raises(ValueError, match=r"points must be \[N,2\] \(x, y\), got \[2, 3\]"):
        density(torch.zeros(2, 3), (4, 4), recipe="shhb15")
    with pytest.raises(ValueError, match="points must be finite"):
        density(torch.tensor([[1.0, float("nan")]]), (4, 4), recipe="shhb15")
    with pytest.raises(ValueError, match="shape must be positive, got 0 x 4"):
        density(points, (0, 4), recipe="shhb15")
    with pytest.raises(ValueError, match="unknown down-sampling rule 'area8'; known: cubic8"):
        downsample(torch.zeros(8, 8), "area8")
    with pytest.raises(ValueError, match=r"\[H,W\] of at least 16 x 16, got \[15, 99\]"):
        downsample(torch.zeros(15, 99), "linear16")


def test_density_is_the_function() -> None:
    assert pycc.data.density is density
