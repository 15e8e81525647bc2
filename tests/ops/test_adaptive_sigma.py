from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import cKDTree
from support.tensors import every_device, same_or_view
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


coordinates = hnp.arrays(
    np.float64,
    st.tuples(st.integers(0, 40), st.just(2)),
    elements=st.floats(-(2.0**30), 2.0**30, width=32),
)


@given(
    coordinates,
    same_or_view,
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(1, 32),
    st.floats(0.0, 2.0),
    st.floats(0.0, 1e9),
)
@every_device
def test_kernel_and_twin_agree_on_any_points(
    device: torch.device,
    points: np.ndarray,
    view: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    neighbours: int,
    beta: float,
    single: float,
) -> None:
    tensor = view(torch.from_numpy(points).to(device, dtype))
    options = {"neighbours": neighbours, "beta": beta, "single": single}
    got = adaptive_sigma(tensor, **options)
    assert got.shape == (len(points),)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(
        got, adaptive_sigma_reference(tensor, **options), rtol=1e-6, atol=1e-9
    )


@given(coordinates, st.sampled_from([float("nan"), float("inf"), float("-inf")]), st.data())
@pytest.mark.compiled
def test_points_that_are_nowhere_are_refused(points: np.ndarray, nowhere: float, data) -> None:
    tensor = torch.from_numpy(np.concatenate([points, np.zeros((2, 2))]))
    tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = nowhere
    for op in (adaptive_sigma, adaptive_sigma_reference):
        with pytest.raises(ValueError, match=r"adaptive_sigma: points must be finite .*, got"):
            op(tensor)
    with pytest.raises(ValueError, match=r"adaptive_sigma: points must be finite .*, got"):
        torch.ops.pycc.adaptive_sigma(tensor, 3, 0.3)


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


@pytest.mark.compiled
def test_fifty_thousand_points_in_one_place_have_width_zero() -> None:
    assert not adaptive_sigma(torch.full((50_000, 2), 3.5)).any()


def test_few_points(device: torch.device) -> None:
    head = torch.tensor([[3.0, 4.0]], device=device)
    assert adaptive_sigma(head[:0]).shape == (0,)
    assert adaptive_sigma(head, single=7.5).tolist() == [7.5]
    with pytest.raises(ValueError, match=r"adaptive_sigma: one point .* single="):
        adaptive_sigma(head)
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
        (torch.zeros(3, 2), {"neighbours": 33}, ValueError, "neighbours must be .*, got 33"),
        (torch.zeros(3, 2), {"neighbours": 2.0}, TypeError, "neighbours must be an int"),
        (torch.zeros(3, 2), {"beta": float("nan")}, ValueError, "beta must be within .*, got nan"),
        (torch.zeros(3, 2), {"beta": -1.0}, ValueError, "beta must be within .*, got -1"),
        (torch.zeros(3, 2), {"beta": 1e300}, ValueError, r"beta must be within .*, got 1e\+300"),
        (torch.zeros(3, 2), {"beta": "wide"}, TypeError, "beta must be a number, got str"),
        *(
            (torch.zeros(count, 2), {"single": single}, error, message)
            for count in (0, 1, 3)  # also where it is not needed
            for single, error, message in (
                (-1.0, ValueError, "single must be within .*, got -1"),
                (1e300, ValueError, r"single must be within .*, got 1e\+300"),
                (float("nan"), ValueError, "single must be within .*, got nan"),
                ("x", TypeError, "single must be a number, got str"),
                ({}, TypeError, "single must be a number, got dict"),
            )
        ),
    ],
)
@pytest.mark.parametrize("op", [adaptive_sigma, adaptive_sigma_reference])
def test_bad_arguments(op, points, options, error, message) -> None:
    with pytest.raises(error, match=f"adaptive_sigma: .*{message}"):
        op(points, **options)


@pytest.mark.parametrize("op", [adaptive_sigma, adaptive_sigma_reference])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_no_gradient_reaches_the_widths(op, count: int) -> None:
    assert not op(scattered(count).requires_grad_(), single=1.0).requires_grad


@pytest.mark.compiled
def test_registration(device: torch.device) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside opcheck
        torch.library.opcheck(
            torch.ops.pycc.adaptive_sigma.default, (scattered(20).to(device), 3, 0.3)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": scattered(5).float()}, "points must be float64, got float32"),
        ({"points": scattered(6).reshape(4, 3)}, r"points must be .*, got \[4, 3\]"),
        ({"points": scattered(5).to_sparse()}, "points must be a dense tensor"),
        ({"points": scattered(5) * float("nan")}, "points must be finite .*, got nan to nan"),
        ({"points": scattered(2)[:1]}, r"N must be within \[2, .*\], got 1"),
        ({"neighbours": 0}, r"neighbours must be within \[1, 32\], got 0"),
        ({"neighbours": 1000}, r"neighbours must be within \[1, 32\], got 1000"),
        ({"beta": float("nan")}, r"beta must be within \[0, 1e\+09\], got nan"),
        ({"beta": float("inf")}, r"beta must be within \[0, 1e\+09\], got inf"),
        ({"beta": -1.0}, r"beta must be within \[0, 1e\+09\], got -1"),
        ({"beta": 1e300}, r"beta must be within \[0, 1e\+09\], got 1e\+300"),
    ],
)
@pytest.mark.compiled
def test_the_registered_op_checks_before_it_hands_out_pointers(change, message) -> None:
    arguments = {"points": scattered(5), "neighbours": 3, "beta": 0.3}
    torch.ops.pycc.adaptive_sigma(**arguments)
    with pytest.raises(ValueError, match=f"adaptive_sigma: {message}"):
        torch.ops.pycc.adaptive_sigma(**{**arguments, **change})
