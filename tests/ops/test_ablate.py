from __future__ import annotations

import itertools
import warnings
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from support.tensors import bits, noise, views
from torch import Tensor

from pycc.ops import (
    ablate,
    ablate_reference,
    ablation_indices,
    ablation_indices_reference,
)
from pycc.ops.ablate import UNITS, bounded_words, first_distinct
from pycc.random import Stream


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    shape = [draw(st.integers(low, high)) for low, high in ((0, 3), (0, 4), (0, 20), (0, 20))]
    unit = draw(st.sampled_from(UNITS))
    size = shape[2] * shape[3] * (shape[1] if unit == "element" else 1)
    images = noise(*shape, seed=draw(st.integers(0, 2**32)))
    ks = {0, 1, size // 3, size // 2, size // 2 + 1, size - 1, size}
    special = draw(st.sampled_from([None, float("nan"), float("inf"), -float("inf"), -0.0]))
    if special is not None:
        images[images < 0.3] = special
    fill = draw(st.sampled_from([0.5, "channels"]))
    return {
        "images": draw(views(images)),
        "k": draw(st.sampled_from(sorted(k for k in ks if 0 <= k <= size))),
        "seed": draw(st.integers(-(2**63), 2**64 - 1)),
        "fill": draw(views(noise(shape[1], seed=1))) if fill == "channels" else fill,
        "draws": draw(st.integers(1, 3)),
        "unit": unit,
        "first_image": draw(st.integers(0, 2**32 - 4)),
        "first_draw": draw(st.integers(0, 2**32 - 4)),
    }


@given(problems())
def test_kernel_and_twin_agree_to_the_bit(problem) -> None:
    upstream = noise(
        len(problem["images"]) * problem["draws"], *problem["images"].shape[1:], seed=3
    )
    results, gradients = [], []
    for op in (ablate, ablate_reference):
        leaf = problem["images"].detach().requires_grad_()
        ablated = op(**{**problem, "images": leaf})
        ablated.backward(upstream)
        results.append(bits(ablated.detach()))
        gradients.append(leaf.grad)
    assert torch.equal(*results)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
    assert torch.equal(gradients[0] != 0, gradients[1] != 0)


@given(problems())
def test_out_gives_the_same_bits_and_gradients(problem) -> None:
    leaves = [problem["images"].detach().requires_grad_() for _ in range(2)]
    expected = ablate(**{**problem, "images": leaves[0]})
    buffer = torch.full_like(expected, float("nan"), requires_grad=False)
    got = ablate(**{**problem, "images": leaves[1]}, out=buffer)
    assert got.data_ptr() == buffer.data_ptr()
    assert torch.equal(bits(got.detach()), bits(expected.detach()))
    upstream = noise(*expected.shape, seed=3)
    expected.backward(upstream)
    got.backward(upstream)
    assert torch.equal(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.7, 1.0])
def test_it_keeps_the_indices_and_fills_the_rest(unit: str, share: float, device) -> None:
    images = noise(2, 3, 37, 41).to(device) + 1.0
    fill = torch.tensor([-1.0, -2.0, -3.0], device=device)
    size = 37 * 41 * (3 if unit == "element" else 1)
    k = round(share * size)
    ablated = ablate(images, k, seed=9, fill=fill, draws=2, unit=unit, first_image=5, first_draw=7)
    for row in range(4):
        indices = ablation_indices(size, k, seed=9, image=5 + row // 2, draw=7 + row % 2)
        kept = torch.zeros(size, dtype=torch.bool)
        kept[indices] = True
        mask = kept.view(-1 if unit == "element" else 1, 37, 41).to(device)
        expected = torch.where(mask, images[row // 2], fill.view(3, 1, 1))
        assert torch.equal(ablated[row], expected)


@pytest.mark.parametrize(
    ("size", "k"),
    [
        *((size, k) for size in (1, 2, 31, 32, 33, 64, 65) for k in {0, 1, size // 2, size}),
        (786_432, 45),
        (786_432, 5_000),
        (786_432, 700_000),
        (10**9, 45),
        (2**32 - 1, 300),
        (2**32, 300),
    ],
)
def test_indices_are_those_of_the_twin(size: int, k: int, device) -> None:
    if device.type == "cuda" and size > 2**31:
        pytest.skip("a bitmap of so many entries is no test for every device")
    indices = ablation_indices(size, k, seed=11, image=2, draw=3, device=device).cpu()
    assert torch.equal(indices, ablation_indices_reference(size, k, seed=11, image=2, draw=3))
    assert indices.dtype == torch.int64
    assert len(indices) == k
    assert bool((indices[1:] > indices[:-1]).all())
    assert k == 0 or (indices[0] >= 0 and indices[-1] < size)


@given(st.integers(0, 3000), st.data())
def test_indices_of_any_size(size: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, size))
    key = {
        "seed": data.draw(st.integers(-(2**63), 2**64 - 1)),
        "image": data.draw(st.integers(0, 2**32 - 1)),
        "draw": data.draw(st.integers(0, 2**32 - 1)),
    }
    indices = ablation_indices(size, k, **key)
    assert torch.equal(indices, ablation_indices_reference(size, k, **key))
    assert len(set(indices.tolist()) & set(range(size))) == k


def test_sets_do_not_depend_on_batches_draws_or_threads(with_threads, device) -> None:
    images = noise(4, 2, 150, 200).to(device).requires_grad_()
    options = {"seed": 3, "fill": 0.0}
    for k in (100, 15_000, 28_000):  # enough work for several threads
        with_threads(1)
        full = ablate(images, k, draws=3, **options)
        upstream = noise(*full.shape, seed=1).to(device)
        (gradient,) = torch.autograd.grad(full, images, upstream)
        for threads in (2, 5):
            with_threads(threads)
            again = ablate(images, k, draws=3, **options)
            assert torch.equal(again, full)
            assert torch.equal(torch.autograd.grad(again, images, upstream)[0], gradient)
        for n, j in itertools.product(range(4), range(3)):
            alone = ablate(images[n : n + 1], k, first_image=n, first_draw=j, **options)
            assert torch.equal(alone[0], full[3 * n + j])


def test_every_part_of_the_key_matters() -> None:
    def indices(**change: int) -> list[int]:
        key = {"seed": 1, "image": 2, "draw": 3, **change}
        return ablation_indices(10_000, 20, **key).tolist()

    others = [indices(seed=2), indices(seed=1 + 2**32), indices(image=3), indices(draw=4)]
    assert all(indices() != other for other in others)
    assert indices(seed=-1) == indices(seed=2**64 - 1)


def test_bounded_integers_are_each_given_by_as_many_words() -> None:
    words = np.arange(2**12)
    for size in range(1, 200):
        counts = np.bincount(bounded_words(words, size, bits=12), minlength=size)
        assert (counts == 2**12 // size).all()


@pytest.mark.parametrize(("size", "k"), [(2, 1), (3, 1), (4, 2), (5, 2), (6, 3)])
def test_by_enumeration_every_set_is_as_likely(size: int, k: int) -> None:
    """Over all sequences of words (of three bits) the sets that are complete come equally often."""
    length = 5
    weight: Counter[tuple[int, ...]] = Counter()
    for sequence in itertools.product(range(8), repeat=length):
        left = list(sequence)

        def words(count: int, left: list[int] = left) -> np.ndarray:
            if len(left) < count:
                raise IndexError
            taken, left[:count] = left[:count], []
            return np.array(taken)

        try:
            chosen = first_distinct(words, size, k, bits=3)
        except IndexError:  # the sequence is too short to complete a set
            continue
        weight[tuple(chosen.tolist())] += 1
    subsets = set(itertools.combinations(range(size), k))
    assert set(weight) == subsets
    assert len(set(weight.values())) == 1
    assert Fraction(sum(weight.values()), 8**length) > Fraction(1, 2)


def uniformity(size: int, k: int, order: int, draws: int) -> float:
    """p-value of the counts of single entries (order 1) or pairs (order 2) of uniform k-sets.

    The statistic is the squared length of the counts in the metric of their exact covariance,
    which under uniformity has a chi-square distribution with that covariance's rank.
    """
    groups = list(itertools.combinations(range(size), order))
    index = {group: i for i, group in enumerate(groups)}
    rows = []
    for subset in itertools.combinations(range(size), k):
        row = np.zeros(len(groups))
        row[[index[group] for group in itertools.combinations(subset, order)]] = 1
        rows.append(row)
    subsets = np.array(rows)
    covariance = np.cov(subsets.T, bias=True)
    total = np.zeros(len(groups))
    for draw in range(draws):
        chosen = ablation_indices(size, k, seed=2024, draw=draw).tolist()
        total[[index[group] for group in itertools.combinations(chosen, order)]] += 1
    centred = (total - draws * subsets.mean(0)) / np.sqrt(draws)
    statistic = centred @ np.linalg.pinv(covariance, rcond=1e-9) @ centred
    return float(chi2.sf(statistic, np.linalg.matrix_rank(covariance, tol=1e-9)))


@pytest.mark.parametrize(
    ("size", "k", "order"), [(12, 5, 1), (12, 7, 1), (12, 5, 2), (12, 9, 2), (40, 2, 2)]
)
def test_single_entries_and_pairs_are_uniform(size: int, k: int, order: int) -> None:
    """A true uniform sampler fails one such test of 1,000; the seed is fixed."""
    assert uniformity(size, k, order, draws=20_000) > 1e-3


def test_positions_of_a_large_image_are_uniform() -> None:
    """All 100 tiles of a plane are hit as often as a fair draw would; fails one of 1,000."""
    size, k, draws = 10_000, 500, 200
    counts = np.zeros(100)
    for draw in range(draws):
        counts += np.bincount(
            ablation_indices(size, k, seed=5, draw=draw).numpy() // 100, None, 100
        )
    expected = k * draws / 100
    statistic = ((counts - expected) ** 2).sum() / expected * (size - 1) / (size - k)
    assert chi2.sf(statistic, 99) > 1e-3


@pytest.mark.long
def test_the_chi_square_test_finds_a_biased_sampler(monkeypatch) -> None:
    """Integers below a size by taking words modulo it, kept below 3/4 of their range."""

    def biased(size: int, k: int, *, seed: int, draw: int) -> Tensor:
        words = Stream(seed, "biased", draw=draw).words(200) >> np.uint32(27)
        chosen = dict.fromkeys((words % size).tolist())
        return torch.tensor(sorted(list(chosen)[:k]))

    monkeypatch.setitem(uniformity.__globals__, "ablation_indices", biased)
    assert uniformity(12, 5, 1, draws=20_000) < 1e-9


def test_a_patch_is_untouched_with_the_hypergeometric_probability() -> None:
    size, k, draws = 400, 20, 4_000
    patch = set(range(37, 61))
    untouched = sum(
        not patch.intersection(ablation_indices(size, k, seed=8, draw=draw).tolist())
        for draw in range(draws)
    )
    expected = float(np.prod([(size - len(patch) - i) / (size - i) for i in range(k)]))
    deviation = np.sqrt(draws * expected * (1 - expected))
    assert abs(untouched - draws * expected) < 4 * deviation


def test_views_of_any_strides_are_read_right() -> None:
    images = noise(2, 3, 12, 10)
    expected = ablate(images, 30, seed=1, fill=0.5, draws=2)
    views = [
        images.to(memory_format=torch.channels_last),
        images.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        torch.stack([images, images], -1)[..., 1],
        images.flip(2).flip(2),
        torch._neg_view(-images),  # a lazy negation, contiguous
    ]
    for view in views:
        assert torch.equal(ablate(view, 30, seed=1, fill=0.5, draws=2), expected)
    single = noise(1, 3, 12, 10)
    spread = single.expand(4, 3, 12, 10)
    assert torch.equal(
        ablate(spread, 30, seed=1, fill=0.5), ablate(spread.clone(), 30, seed=1, fill=0.5)
    )
    fill = torch.tensor([[0.1, 9.0], [0.2, 9.0], [0.3, 9.0]])[:, 0]
    assert torch.equal(
        ablate(images, 30, seed=1, fill=fill), ablate(images, 30, seed=1, fill=fill.clone())
    )


def test_gradcheck_and_second_derivatives() -> None:
    images = noise(2, 2, 3, 4).double().requires_grad_()
    fill = torch.tensor([0.1, 0.2])

    def function(images: Tensor) -> Tensor:
        return ablate_reference(images, 5, seed=1, fill=fill, draws=2)

    assert torch.autograd.gradcheck(function, (images,))
    single = images.detach().float().requires_grad_()
    upstream = noise(4, 2, 3, 4, seed=5).requires_grad_()
    ablated = ablate(single, 5, seed=1, fill=fill, draws=2)
    (first,) = torch.autograd.grad(ablated, single, upstream, create_graph=True)
    weights = noise(2, 2, 3, 4, seed=6)
    (second,) = torch.autograd.grad((first * weights).sum(), upstream)  # the adjoint's adjoint
    assert torch.equal(second, ablate(weights, 5, seed=1, fill=0.0, draws=2))


def test_autograd_sees_that_out_is_written() -> None:
    weight, buffer = torch.ones(1, 1, 4, 4, requires_grad=True), torch.ones(1, 1, 4, 4)
    loss = (weight * buffer).sum()
    ablate(torch.zeros(1, 1, 4, 4), 3, seed=0, fill=0.0, out=buffer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.compiled
def test_registration(device) -> None:
    forward, backward = torch.ops.pycc.ablate.default, torch.ops.pycc.ablate_backward.default
    key = (7, 3, 0, 2, 1, False)
    images = noise(2, 3, 8, 8).to(device).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside opcheck
        for given_images in (images, images.to(memory_format=torch.channels_last)):
            torch.library.opcheck(forward, (given_images, torch.zeros(3, device=device), *key))
            grad = noise(4, 3, 8, 8).to(device).requires_grad_()
            torch.library.opcheck(backward, (grad, *key))
