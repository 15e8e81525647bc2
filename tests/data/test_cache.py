"""The cache of the values that were used last."""

from __future__ import annotations

from pycc.data.cache import LastUsed


def test_the_value_that_was_used_longest_ago_is_dropped_first() -> None:
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key * 2

    cache: LastUsed[str, str] = LastUsed(6, size=len)
    first = [cache.get(key, make) for key in ("a", "b", "c", "a", "d")]
    assert first == ["aa", "bb", "cc", "aa", "dd"]
    assert len(cache) == 3
    assert [cache.get(key, make) for key in ("a", "c", "b")] == ["aa", "cc", "bb"]
    assert made == ["a", "b", "c", "d", "b"]


def test_a_value_above_the_limit_is_kept_until_the_next() -> None:
    cache: LastUsed[int, str] = LastUsed(3, size=len)
    large = cache.get(0, lambda _: "x" * 10)
    assert cache.get(0, lambda _: "another") is large
    assert cache.get(1, lambda _: "y") == "y"
    assert len(cache) == 1
