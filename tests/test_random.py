from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pycc.random import Stream, philox4x32

# Known answers published with Random123 for philox4x32-10: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_published_known_answers(counter: str, key: str, result: str) -> None:
    first, second = words(key)
    got = philox4x32(np.array(words(counter), np.uint32), (first, second))
    assert got.tolist() == words(result)


def test_a_stream_is_a_function_of_its_key() -> None:
    keys = [
        {"seed": seed, "purpose": purpose, "image": image, "step": step, "draw": draw}
        for seed in (0, 1, 2**32, -1)
        for purpose in ("noise", "transform")
        for image in (0, 1)
        for step in (0, 1)
        for draw in (0, 1)
    ]
    first = [tuple(Stream(**key).words(4).tolist()) for key in keys]
    assert first == [tuple(Stream(**key).words(4).tolist()) for key in keys]
    assert len(set(first)) == len(keys)


def test_drawing_in_parts_gives_the_same_words_by_blocks() -> None:
    whole, parts = Stream(3, "a"), Stream(3, "a")
    assert np.array_equal(whole.words(12), np.concatenate([parts.words(4), parts.words(8)]))


def test_distributions() -> None:
    stream = Stream(5, "distributions")
    uniform = stream.uniform(2.0, 5.0, (200, 300))
    assert uniform.shape == (200, 300)
    assert uniform.min() >= 2.0
    assert uniform.max() < 5.0
    assert stats.kstest(uniform.ravel(), "uniform", args=(2.0, 3.0)).pvalue > 1e-3
    assert stats.kstest(stream.normal(60_000), "norm").pvalue > 1e-3
    counts = np.bincount(stream.integers(7, 70_000), minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert sorted(stream.permutation(50).tolist()) == list(range(50))
    assert stream.uniform().shape == ()
    with pytest.raises(ValueError, match="high must be at least 1, got 0"):
        stream.integers(0)
