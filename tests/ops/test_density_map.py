from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from support.tensors import every_device, views
from torch import Tensor

from pycc.ops import adaptive_sigma, density_map, density_map_reference
from pycc.ops.density_map import BOUNDARIES
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
    height, width = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    count = draw(st.integers(0, 12))
    seed = draw(st.integers(0, 2**32))
    widths = Stream(seed, "widths").uniform(0.0, draw(st.sampled_from([0.0, 1.0, 30.0])), count)
    dtypes = st.sampled_from([torch.float32, torch.float64])
    points = crowd(count, height, width, seed=seed) * draw(st.sampled_from([1.0, 1.3]))
    points -= draw(st.sampled_from([0.0, 2.5]))  # these may lie outside
    widths = draw(views(torch.from_numpy(widths)))
    return {
        "points": draw(views(points.to(draw(dtypes)))),
        "sigma": draw(st.one_of(st.floats(0.0, 30.0), st.just(widths), st.just(widths.float()))),
        "shape": (height, width),
        "truncate": draw(st.sampled_from([0.5, 3.0, 4.0])),
        "stride": draw(st.integers(1, 5)),
        "boundary": draw(st.sampled_from(BOUNDARIES)),
    }


def inside(points: Tensor, shape: tuple[int, int]) -> int:
    return int(((points >= 0) & (points < torch.tensor(shape[::-1]))).all(1).sum())


# That points outside are dropped is said in a warning, which has a test of its own.
drops = pytest.mark.filterwarnings("ignore:density_map.*lie outside:UserWarning")


@drops
@every_device
@given(problem=problems())
def test_kernel_and_twin_agree(problem, device: torch.device) -> None:
    expected = density_map_reference(**problem)
    there = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in problem.items()
    }
    got = density_map(**there)
    assert_close_maps(got, expected)
    for op in (density_map, density_map_reference):
        buffer = torch.full_like(got, float("nan"))
        assert op(**there, out=buffer) is buffer
        assert_close_maps(buffer, expected)


@drops
@given(problems(), st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e30]), st.data())
def test_points_that_are_nowhere_are_refused(problem, nowhere: float, data) -> None:
    points = torch.cat([problem["points"], problem["points"].new_zeros(1, 2)])
    points.view(-1)[data.draw(st.integers(0, points.numel() - 1))] = nowhere
    sigma = {"sigma": 1.0} if isinstance(problem["sigma"], Tensor) else {}
    for op in (density_map, density_map_reference):
        with pytest.raises(ValueError, match=r"density_map: points must be finite .*, got"):
            op(**{**problem, **sigma, "points": points})


@drops
@given(problems())
def test_stride_sums_blocks_of_the_full_map(problem) -> None:
    stride = problem.pop("stride")
    full = density_map(**problem).double()
    rows, cols = full.shape[0] // stride, full.shape[1] // stride
    blocks = full[: rows * stride, : cols * stride].reshape(rows, stride, cols, stride).sum((1, 3))
    assert_close_maps(density_map(**problem, stride=stride), blocks)


@drops
@given(problems())
def test_mass(problem) -> None:
    """Every head keeps mass 1 unless the boundary clips it; then it can only lose."""
    problem["stride"] = 1
    mass = density_map(**problem).double().sum().item()
    count = inside(problem["points"], problem["shape"])
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


@pytest.mark.parametrize("op", [density_map, density_map_reference])
def test_out_may_not_overlap_sigma(op) -> None:
    widths = torch.ones(10, dtype=torch.float64)
    with pytest.raises(ValueError, match="density_map: out must not overlap sigma"):
        op(torch.ones(10, 2), widths, (4, 5), out=widths.view(torch.float32).view(4, 5))
    assert torch.equal(widths, torch.ones_like(widths))


@pytest.mark.parametrize("op", [density_map, density_map_reference])
def test_no_gradient_reaches_the_map(op) -> None:
    points, sigma = torch.ones(3, 2).requires_grad_(), torch.ones(3).requires_grad_()
    assert not op(points, sigma, (4, 5)).requires_grad
    assert not op(points, sigma, (4, 5), out=torch.empty(4, 5)).requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"points": torch.zeros(3, 3)}, ValueError, r"points must be \[N,2\]"),
        ({"points": torch.full((1, 2), float("nan"))}, ValueError, "points must be finite"),
        ({"points": [[1.0, 2.0]]}, TypeError, r"points must be a tensor \[N,2\].*, got list"),
        ({"points": torch.ones(3, 2).half()}, ValueError, "points must be float32.*, got float16"),
        ({"points": torch.ones(3, 2).to("meta")}, ValueError, "points must hold values"),
        ({"points": torch.ones(3, 2).to_sparse()}, ValueError, "points must be a dense tensor"),
        ({"sigma": -1.0}, ValueError, r"sigma must be within \[0, 1e\+300\], got -1"),
        ({"sigma": float("nan")}, ValueError, "sigma must be within"),
        ({"sigma": float("inf")}, ValueError, "sigma must be within"),
        ({"sigma": 1e7}, ValueError, r"sigma below 1048576 pixels, got sigma 1e\+07 to"),
        ({"sigma": None}, TypeError, "sigma must be a number, got NoneType"),
        ({"sigma": torch.full((3,), float("nan"))}, ValueError, "sigma must be finite"),
        ({"sigma": torch.ones(2)}, ValueError, r"sigma must be a number or \[3\], got \[2\]"),
        ({"sigma": torch.ones(3, device="meta")}, ValueError, "sigma must be on the device"),
        ({"sigma": torch.ones(3, dtype=torch.int32)}, ValueError, "sigma must be float32"),
        ({"shape": (5,)}, ValueError, r"shape must be \(H, W\)"),
        ({"shape": 5}, TypeError, r"shape must be \(H, W\), got int"),
        ({"shape": (5, -1)}, ValueError, r"shape\[1\] must be within"),
        ({"shape": (5.0, 4)}, TypeError, r"shape\[0\] must be an int"),
        ({"truncate": 0.0}, ValueError, r"truncate must be within \[1e-09, .*\], got 0"),
        ({"truncate": float("nan")}, ValueError, r"truncate must be within .*, got nan"),
        ({"truncate": "4"}, TypeError, "truncate must be a number, got str"),
        ({"boundary": "wrap"}, ValueError, "boundary must be one of 'clip', 'renormalize'"),
        ({"boundary": 0}, TypeError, "boundary must be a string, got int"),
        ({"stride": 0}, ValueError, r"stride must be within \[1, .*\], got 0"),
        ({"stride": 2.0}, TypeError, "stride must be an int, got float"),
        ({"out": "map"}, TypeError, r"out must be a tensor \[5, 4\], got str"),
        ({"out": torch.zeros(5, 5)}, ValueError, r"out must be \[5, 4\], got \[5, 5\]"),
        ({"out": torch.zeros(4, 5).T}, ValueError, "out must be contiguous"),
        ({"out": torch.zeros(5, 4, dtype=torch.float64)}, ValueError, "out must be float32"),
    ],
)
@pytest.mark.parametrize("op", [density_map, density_map_reference])
def test_bad_arguments_change_nothing(op, change, error, message) -> None:
    arguments = {"points": torch.ones(3, 2), "sigma": 1.0, "shape": (5, 4), **change}
    before = arguments["out"].clone() if isinstance(arguments.get("out"), Tensor) else None
    with pytest.raises(error, match=f"density_map: .*{message}"):
        op(**arguments)
    if before is not None:
        assert torch.equal(arguments["out"], before)


@pytest.mark.compiled
def test_registration(device: torch.device) -> None:
    pixels = crowd(9, 20, 30).flip(1).long().to(device)
    sigma = torch.rand(9, generator=torch.Generator().manual_seed(0)).double().to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside opcheck
        for arguments in (
            (pixels, sigma, 20, 30, 2, 4.0, 0),
            (pixels[:0], sigma[:0], 0, 3, 1, 4.0, 2),
        ):
            torch.library.opcheck(torch.ops.pycc.density_map.default, arguments)


NAN, WIDE = float("nan"), 2**30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.zeros(3, 2)}, "pixels must be int64, got float32"),
        ({"pixels": torch.zeros(3, 2).long().to_sparse()}, "pixels must be a dense tensor"),
        ({"pixels": torch.zeros(3, 3).long()}, "pixels must be"),
        (
            {"pixels": torch.tensor([[1, 1], [5, 3], [0, 0]])},
            r"5x6 image, got \[0, 0\] to \[5, 3\]",
        ),
        ({"pixels": torch.tensor([[-5, 1]] * 3)}, r"5x6 image, got \[-5, 1\] to"),
        ({"pixels": torch.tensor([[1, 10**6]] * 3)}, r"5x6 image, got .* to \[1, 1000000\]"),
        ({"pixels": torch.tensor([[1, -(2**63)]] * 3)}, r"5x6 image, got \[1, -9223372036854"),
        ({"height": 0}, r"0x6 image, got \[0, 0\] to \[0, 0\]"),
        ({"width": 0}, r"5x0 image, got \[0, 0\] to \[0, 0\]"),
        ({"height": -1}, r"height must be within \[0, 1073741824\], got -1"),
        ({"width": WIDE + 1}, "width must be within .*, got 1073741825"),
        ({"stride": 0}, r"stride must be within \[1, 1073741824\], got 0"),
        ({"stride": -2}, r"stride must be within \[1, 1073741824\], got -2"),
        ({"truncate": NAN}, r"truncate must be within \[.*\], got nan"),
        ({"truncate": 1e300}, r"truncate must be within \[.*\], got 1e\+300"),
        ({"truncate": -1.0}, r"truncate must be within \[.*\], got -1"),
        ({"sigma": torch.ones(2).double()}, r"sigma must be \[3\], got \[2\]"),
        ({"sigma": torch.ones(3)}, "sigma must be float64, got float32"),
        ({"sigma": torch.tensor([1.0, NAN, 1.0]).double()}, "sigma must be at least 0"),
        ({"sigma": torch.ones(3).double() * 1e300}, r"below 1048576 pixels, got sigma 1e\+300"),
        ({"sigma": torch.full((3,), -1.0).double()}, "sigma must be at least 0 .*, got sigma -1"),
        ({"sigma": torch.ones(3, device="meta").double()}, "one device, got cpu and meta"),
        ({"boundary": 7}, r"boundary must be within \[0, 2\], got 7"),
    ],
)
@pytest.mark.compiled
def test_the_registered_op_checks_before_it_hands_out_pointers(change, message) -> None:
    arguments = {
        "pixels": torch.zeros(3, 2, dtype=torch.int64),
        "sigma": torch.ones(3).double(),
        "height": 5,
        "width": 6,
        "stride": 1,
        "truncate": 4.0,
        "boundary": 0,
    }
    torch.ops.pycc.density_map(**arguments)
    with pytest.raises(ValueError, match=f"density_map: .*{message}"):
        torch.ops.pycc.density_map(**{**arguments, **change})


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 90)),
    sigma=st.sampled_from([0.0, 0.4, 2.0, 7.3, 40.0]),
    boundary=st.sampled_from(BOUNDARIES),
    stride=st.integers(1, 5),
    count=st.sampled_from([2, 40, 700]),
    seed=st.integers(0, 2**32),
)
def test_many_heads_of_one_width(shape, sigma, boundary, stride, count, seed) -> None:
    """Heads so many that rows and columns are summed in two passes, and too few for that."""
    points = crowd(count, *shape, seed=seed)
    options = {"boundary": boundary, "stride": stride}
    expected = density_map_reference(points, sigma, shape, **options)
    assert_close_maps(density_map(points, sigma, shape, **options), expected, 2e-6)


def test_two_passes_give_the_same_bits_on_any_number_of_threads(with_threads) -> None:
    points = crowd(9000, 300, 420)
    points[:100] = points[0]  # many in one pixel
    results = []
    for threads in (1, 2, 7):
        with_threads(threads)
        results.append(density_map(points, 6.0, (300, 420)))
    assert all(torch.equal(result, results[0]) for result in results)
    assert abs(float(results[0].double().sum()) / 9000 - 1) < 0.05
    windows = density_map(points, torch.full((9000,), 6.0) + torch.arange(9000) * 1e-12, (300, 420))
    assert_close_maps(results[0], windows, 2e-6)
