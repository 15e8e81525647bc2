from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pycc.ops import adaptive_sigma, density_map, density_map_reference
from pycc.ops.density import BOUNDARIES
from pycc.random import Stream


def crowd(count: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.from_numpy(Stream(seed, "crowd").uniform(size=(count, 2)) * [width, height])


def dots(points: Tensor, height: int, width: int) -> np.ndarray:
    image = np.zeros((height, width))
    np.add.at(image, (points[:, 1].long().numpy(), points[:, 0].long().numpy()), 1.0)
    return image


def assert_close_maps(got: Tensor, expected: Tensor | np.ndarray, bound: float = 1e-6) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    assert got.shape == wanted.shape
    if wanted.numel():
        scale = max(float(wanted.abs().max()), 1e-30)
        assert float((got.double().cpu() - wanted).abs().max()) <= bound * scale


@pytest.mark.parametrize("sigma", [0.4, 1.0, 4.0, 15.0, 70.0])
@pytest.mark.parametrize(("boundary", "mode"), [("clip", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("truncate", [4.0, 2.5])
def test_fixed_width_is_a_gaussian_filter_over_dots(
    sigma: float, boundary: str, mode: str, truncate: float, device: torch.device
) -> None:
    height, width = 61, 83
    points = crowd(30, height, width)
    expected = gaussian_filter(dots(points, height, width), sigma, mode=mode, truncate=truncate)
    got = density_map(
        points.to(device), sigma, (height, width), boundary=boundary, truncate=truncate
    )
    assert got.dtype == torch.float32
    assert_close_maps(got, expected)


@pytest.mark.parametrize("case", ["a", "b", "odd"])
def test_published_adaptive_maps_of_float_coordinates(fixture, case: str, device) -> None:
    numbers = fixture("density_raw")
    points = torch.from_numpy(numbers[f"points_{case}"]).to(device)
    shape = numbers[f"shape_{case}"].tolist()
    got = density_map(points, adaptive_sigma(points), shape)
    assert_close_maps(got, numbers[f"csr_raw_{case}"], 1e-5)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    count = draw(st.integers(0, 12))
    seed = draw(st.integers(0, 2**32))
    widths = Stream(seed, "widths").uniform(0.0, draw(st.sampled_from([0.0, 1.0, 30.0])), count)
    return {
        "points": crowd(count, height, width, seed=seed),
        "sigma": torch.from_numpy(widths),
        "shape": (height, width),
        "truncate": draw(st.sampled_from([0.5, 3.0, 4.0])),
        "stride": draw(st.integers(1, 5)),
        "boundary": draw(st.sampled_from(BOUNDARIES)),
    }


@given(problems())
def test_kernel_and_twin_agree(problem) -> None:
    assert_close_maps(density_map(**problem), density_map_reference(**problem))


@given(problems())
def test_stride_sums_blocks_of_the_full_map(problem) -> None:
    stride = problem.pop("stride")
    full = density_map(**problem).double()
    rows, cols = full.shape[0] // stride, full.shape[1] // stride
    blocks = full[: rows * stride, : cols * stride].reshape(rows, stride, cols, stride).sum((1, 3))
    assert_close_maps(density_map(**problem, stride=stride), blocks)


@given(problems())
def test_mass(problem) -> None:
    """Every head keeps mass 1 unless the boundary clips it; then it can only lose."""
    problem["stride"] = 1
    mass, count = density_map(**problem).double().sum().item(), len(problem["points"])
    if problem["boundary"] == "clip":
        assert mass <= count * (1 + 1e-5)
    else:
        assert mass == pytest.approx(count, rel=1e-5)


def test_the_result_does_not_depend_on_threads(with_threads) -> None:
    points = crowd(4000, 600, 800)
    maps = []
    for threads in (1, 2, 3, 7):  # 20 million cells of work: enough for seven bands
        with_threads(threads)
        maps.append(density_map(points, 9.0, (600, 800)))
    assert all(torch.equal(maps[0], other) for other in maps[1:])


@pytest.mark.cuda
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("count", [40, 3000])
def test_cuda_agrees_with_the_cpu(boundary: str, stride: int, count: int, device) -> None:
    points = crowd(count, 768, 1024)
    sigma = adaptive_sigma(points)
    options = {"boundary": boundary, "stride": stride}
    got = density_map(points.to(device), sigma.to(device), (768, 1024), **options)
    assert_close_maps(got, density_map(points, sigma, (768, 1024), **options))


def test_a_width_of_zero_is_a_dot() -> None:
    density = density_map(torch.tensor([[2.9, 1.2], [2.0, 1.0]]), 0.0, (3, 4))
    expected = torch.zeros(3, 4)
    expected[1, 2] = 2.0
    assert torch.equal(density, expected)


@pytest.mark.parametrize("op", [density_map, density_map_reference])
def test_points_outside_are_counted_in_a_warning(op) -> None:
    points = torch.tensor([[1.0, 1.0], [-0.5, 1.0], [4.0, 1.0], [1.0, 3.0], [3.99, 2.99]])
    with pytest.warns(UserWarning, match="3 of 5 points lie outside the 3x4 image"):
        density = op(points, 0.0, (3, 4))
    assert density.sum() == 2


def test_no_heads_and_no_pixels(device: torch.device) -> None:
    none = torch.zeros(0, 2, device=device)
    assert not density_map(none, 3.0, (5, 7)).any()
    assert density_map(none, 3.0, (0, 7)).shape == (0, 7)
    assert density_map(none, 3.0, (5, 7), stride=6).shape == (0, 1)


def test_sizes_may_be_numpy_integers() -> None:
    shape = np.array([5, 7])
    assert density_map(torch.zeros(0, 2), 3.0, shape, stride=np.int64(2)).shape == (2, 3)


def test_a_far_point_is_dropped_whatever_its_width() -> None:
    points = torch.tensor([[5.0, 5.0], [1e7, 5.0]])
    with pytest.warns(UserWarning, match="1 of 2 points"):
        density = density_map(points, torch.tensor([1.0, 1e7]), (11, 11))
    assert_close_maps(density, density_map(points[:1], 1.0, (11, 11)))


def test_autograd_sees_that_out_is_written() -> None:
    buffer, factor = torch.ones(5, 5), torch.ones(5, 5).requires_grad_()
    product = (factor * buffer).sum()
    density_map(torch.ones(1, 2), 1.0, (5, 5), out=buffer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_out_is_overwritten(device: torch.device) -> None:
    points = crowd(10, 20, 30).to(device)
    buffer = torch.full((20, 30), float("nan"), device=device)
    result = density_map(points, 2.0, (20, 30), out=buffer)
    assert result is buffer
    assert torch.equal(buffer, density_map(points, 2.0, (20, 30)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"points": torch.zeros(3, 3)}, ValueError, r"points must be \[N,2\]"),
        ({"points": torch.full((1, 2), float("nan"))}, ValueError, "points must be finite"),
        ({"sigma": -1.0}, ValueError, r"sigma must be within \[0, 1e\+300\], got -1"),
        ({"sigma": float("nan")}, ValueError, "sigma must be within"),
        ({"sigma": float("inf")}, ValueError, "sigma must be within"),
        ({"sigma": 1e7}, ValueError, "sigma must be below"),
        ({"sigma": None}, TypeError, "sigma must be a number, got NoneType"),
        ({"sigma": torch.full((3,), float("nan"))}, ValueError, "sigma must be finite"),
        ({"sigma": torch.ones(2)}, ValueError, r"sigma must be a number or \[3\], got \[2\]"),
        ({"sigma": torch.ones(3, device="meta")}, ValueError, "sigma must be on the device"),
        ({"sigma": torch.ones(3, dtype=torch.int32)}, ValueError, "sigma must be float32"),
        ({"shape": (5,)}, ValueError, r"shape must be \(H, W\)"),
        ({"shape": 5}, TypeError, r"shape must be \(H, W\), got int"),
        ({"shape": (5, -1)}, ValueError, r"shape\[1\] must be within"),
        ({"shape": (5.0, 4)}, TypeError, r"shape\[0\] must be an int"),
        ({"truncate": 0.0}, ValueError, "truncate"),
        ({"boundary": "wrap"}, ValueError, "boundary must be one of 'clip', 'renormalize'"),
        ({"stride": 0}, ValueError, "stride"),
        ({"out": torch.zeros(5, 5)}, ValueError, r"out must be \[5, 4\], got \[5, 5\]"),
        ({"out": torch.zeros(4, 5).T}, ValueError, "out must be contiguous"),
        ({"out": torch.zeros(5, 4, dtype=torch.float64)}, ValueError, "out must be float32"),
    ],
)
@pytest.mark.parametrize("op", [density_map, density_map_reference])
def test_bad_arguments_change_nothing(op, change, error, message) -> None:
    arguments = {"points": torch.ones(3, 2), "sigma": 1.0, "shape": (5, 4), **change}
    before = arguments["out"].clone() if "out" in arguments else None
    with pytest.raises(error, match=f"density_map: .*{message}"):
        op(**arguments)
    if before is not None:
        assert torch.equal(arguments["out"], before)


def test_registration() -> None:
    from pycc.ops.density import _density_map

    pixels = crowd(9, 20, 30).flip(1).long()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside opcheck
        torch.library.opcheck(_density_map, (pixels, torch.rand(9).double(), 20, 30, 2, 4.0, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.zeros(3, 2)}, "pixels must be int64"),
        ({"sigma": torch.ones(2).double()}, "sigma must be"),
        ({"sigma": torch.ones(3)}, "sigma must be float64"),
        ({"boundary": 7}, "boundary must be within"),
    ],
)
def test_the_registered_op_checks_before_it_hands_out_pointers(change, message) -> None:
    arguments = {
        "pixels": torch.zeros(3, 2, dtype=torch.int64),
        "sigma": torch.ones(3).double(),
        "height": 5,
        "width": 5,
        "stride": 1,
        "truncate": 4.0,
        "boundary": 0,
    }
    torch.ops.pycc.density_map(**arguments)
    with pytest.raises(ValueError, match=message):
        torch.ops.pycc.density_map(**{**arguments, **change})
