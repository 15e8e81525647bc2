from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import cKDTree
from torch import Tensor

from pycc.ops import adaptive_sigma, adaptive_sigma_reference, reference
from pycc.random import Stream


def scattered(count: int, *, seed: int = 0) -> Tensor:
    return torch.from_numpy(Stream(seed, "points").uniform(0.0, 700.0, (count, 2)))


def clustered(count: int) -> Tensor:
    """Almost everything in one spot, a few points far away, many duplicates."""
    points = Stream(1, "points").normal((count, 2)).round(1)
    points[:3] += 1e6
    return torch.from_numpy(points)


@pytest.mark.parametrize("neighbours", [1, 3, 7, 32])
@pytest.mark.parametrize("points", [scattered(2), scattered(9), scattered(700), clustered(3000)])
def test_it_is_the_mean_distance_to_the_nearest_others(
    points: Tensor, neighbours: int, device: torch.device
) -> None:
    wanted = min(neighbours, len(points) - 1)
    distances, _ = cKDTree(points.numpy()).query(points.numpy(), k=wanted + 1)
    expected = 0.3 * distances[:, 1:].mean(1)
    got = adaptive_sigma(points.to(device), neighbours=neighbours)
    assert got.dtype == torch.float32
    assert got.device.type == device.type
    np.testing.assert_allclose(got.cpu().numpy(), expected, rtol=1e-6, atol=1e-9)


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(2, 40), st.just(2)),
        elements=st.floats(-(2.0**30), 2.0**30, width=32),
    ),
    st.integers(1, 8),
    st.floats(0.0, 2.0),
)
def test_kernel_and_twin_agree_on_any_points(
    points: np.ndarray, neighbours: int, beta: float
) -> None:
    tensor = torch.from_numpy(points)
    got = adaptive_sigma(tensor, neighbours=neighbours, beta=beta)
    expected = adaptive_sigma_reference(tensor, neighbours=neighbours, beta=beta)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_the_result_does_not_depend_on_threads(with_threads) -> None:
    results = []
    for threads in (1, 2, 5):
        with_threads(threads)
        results.append(adaptive_sigma(scattered(5000)))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.cuda
@pytest.mark.parametrize("points", [scattered(2), scattered(3000), clustered(3000)])
def test_cuda_gives_the_same_bits(points: Tensor, device: torch.device) -> None:
    assert torch.equal(adaptive_sigma(points.to(device)).cpu(), adaptive_sigma(points))


def test_fifty_thousand_points_in_one_place_have_width_zero() -> None:
    assert not adaptive_sigma(torch.full((50_000, 2), 3.5)).any()


def test_few_points(device: torch.device) -> None:
    one = torch.tensor([[3.0, 4.0]], device=device)
    assert adaptive_sigma(one[:0]).shape == (0,)
    assert adaptive_sigma(one, single=7.5).tolist() == [7.5]
    with pytest.raises(ValueError, match=r"adaptive_sigma: one point .* single="):
        adaptive_sigma(one)
    # Two heads: the one neighbour there is, not an infinite distance.
    two = torch.tensor([[0.0, 0.0], [3.0, 4.0]], device=device)
    torch.testing.assert_close(adaptive_sigma(two, beta=0.5).cpu(), torch.tensor([2.5, 2.5]))


def test_views_are_read_right(device: torch.device) -> None:
    wide = scattered(50).to(device)
    reversed_columns = wide.flip(1).contiguous().T.contiguous().T
    torch.testing.assert_close(adaptive_sigma(reversed_columns), adaptive_sigma(wide))
    assert torch.equal(adaptive_sigma(wide[::3]), adaptive_sigma(wide[::3].contiguous()))


def test_reference_runs_the_twin() -> None:
    points = scattered(30)
    with reference():
        inside = adaptive_sigma(points)
    assert torch.equal(inside, adaptive_sigma_reference(points))


@pytest.mark.parametrize(
    ("points", "options", "error", "message"),
    [
        ([[1.0, 2.0]], {}, TypeError, "points must be a tensor"),
        (torch.zeros(3, 5), {}, ValueError, r"points must be \[N,2\] \(x, y\), got \[3, 5\]"),
        (torch.zeros(3, 2, dtype=torch.int64), {}, ValueError, "float32 or float64, got int64"),
        (torch.tensor([[0.0, float("nan")]] * 2), {}, ValueError, "points must be finite"),
        (torch.tensor([[0.0, float("inf")]] * 2), {}, ValueError, "points must be finite"),
        (torch.tensor([[0.0, 1e200]] * 2).double() * 1e200, {}, ValueError, "points must be"),
        (torch.tensor([[0.0, 2e9]] * 2), {}, ValueError, "within ±2\\^30 pixels"),
        (torch.zeros(3, 2, device="meta"), {}, ValueError, "points must hold values"),
        (torch.zeros(3, 2), {"neighbours": 0}, ValueError, r"neighbours must be within \[1, 32\]"),
        (torch.zeros(3, 2), {"neighbours": 33}, ValueError, "neighbours"),
        (torch.zeros(3, 2), {"neighbours": 2.0}, TypeError, "neighbours must be an int"),
        (torch.zeros(3, 2), {"beta": float("nan")}, ValueError, "beta"),
        (torch.zeros(3, 2), {"beta": -1.0}, ValueError, "beta"),
        (torch.zeros(3, 2), {"beta": 1e300}, ValueError, "beta"),
        (torch.zeros(3, 2), {"beta": "wide"}, TypeError, "beta must be a number, got str"),
        (torch.zeros(1, 2), {"single": -1.0}, ValueError, "single"),
        (torch.zeros(1, 2), {"single": 1e300}, ValueError, "single"),
    ],
)
@pytest.mark.parametrize("op", [adaptive_sigma, adaptive_sigma_reference])
def test_bad_arguments(op, points, options, error, message) -> None:
    with pytest.raises(error, match=f"adaptive_sigma: .*{message}"):
        op(points, **options)


def test_registration() -> None:
    from pycc.ops.sigma import _adaptive_sigma

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside opcheck
        torch.library.opcheck(_adaptive_sigma, (scattered(20), 3, 0.3))


@pytest.mark.parametrize(
    ("points", "neighbours", "message"),
    [
        (scattered(5).float(), 3, "points must be float64"),
        (scattered(5), 1000, "neighbours must be within"),
        (scattered(2)[:1], 3, "N must be within"),
        (scattered(6).reshape(4, 3), 3, "points must be"),
    ],
)
def test_the_registered_op_checks_before_it_hands_out_pointers(points, neighbours, message) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.pycc.adaptive_sigma(points, neighbours, 0.3)
