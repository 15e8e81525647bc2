"""Counter-based randomness: every draw is a pure function of its key.

A stream is keyed by (seed, purpose, image, step, draw). So a result does not depend on batch size,
thread count, order or resume point. The generator is Philox4x32-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011); tests compare it with the published known answers.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

__all__ = ["Stream", "philox4x32"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Compute Philox4x32-10: counter [...,4] and a key of two words -> [...,4], 32-bit words.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    >>> [f"{word:08x}" for word in philox4x32(np.zeros(4, np.uint32), (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key[0] & _WORD, key[1] & _WORD
    for _ in range(10):
        product0, product1 = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & np.uint64(_WORD),
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & np.uint64(_WORD),
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


class Stream:
    """A sequence of random numbers that is determined by its key.

    ``seed`` is any integer (taken modulo 2**64), ``purpose`` a name; ``image``, ``step`` and
    ``draw`` are integers (modulo 2**32). Streams with different keys are independent.

    >>> Stream(0, "patch", image=3).integers(10, 5).tolist()
    [9, 8, 2, 8, 7]
    """

    def __init__(
        self, seed: int, purpose: str, *, image: int = 0, step: int = 0, draw: int = 0
    ) -> None:
        words = np.array(
            [zlib.crc32(purpose.encode()), image & _WORD, step & _WORD, draw & _WORD], np.uint32
        )
        mixed = philox4x32(words, (seed & _WORD, (seed >> 32) & _WORD))
        self._key = (int(mixed[0]), int(mixed[1]))
        self._tail = (int(mixed[2]), int(mixed[3]))
        self._block = 0

    def words(self, count: int) -> NDArray[np.uint32]:
        """Return the next ``count`` words of 32 random bits, [count] uint32.

        Words come in blocks of four; unused words of the last block are dropped.
        """
        blocks = -(-count // 4)
        index = np.arange(self._block, self._block + blocks, dtype=np.uint64)
        self._block += blocks
        counter = np.empty((blocks, 4), np.uint32)
        counter[:, 0] = index & np.uint64(_WORD)
        counter[:, 1] = index >> np.uint64(32)
        counter[:, 2], counter[:, 3] = self._tail
        return philox4x32(counter, self._key).reshape(-1)[:count]

    def uniform(
        self, low: float = 0.0, high: float = 1.0, size: int | tuple[int, ...] = ()
    ) -> NDArray[np.float64]:
        """Draw uniformly from [low, high), 53 bits, float64 of shape ``size``."""
        shape = (size,) if isinstance(size, int) else size
        pairs = self.words(2 * int(np.prod(shape, dtype=np.int64))).reshape(-1, 2)
        bits = (pairs[:, 0].astype(np.uint64) >> np.uint64(5)) << np.uint64(26)
        bits |= pairs[:, 1].astype(np.uint64) >> np.uint64(6)
        unit = bits.astype(np.float64) * 2.0**-53
        return (low + (high - low) * unit).reshape(shape)

    def normal(self, size: int | tuple[int, ...] = ()) -> NDArray[np.float64]:
        """Draw from the standard normal distribution, float64 of shape ``size``, by inversion."""
        return np.asarray(ndtri(np.maximum(self.uniform(size=size), 2.0**-54)))

    def integers(self, high: int, size: int | tuple[int, ...] = ()) -> NDArray[np.int64]:
        """Draw from {0, …, high − 1} (bias below high · 2**-53), int64 of shape ``size``.

        ValueError if ``high`` is below 1.
        """
        if high < 1:
            raise ValueError(f"Stream.integers: high must be at least 1, got {high}")
        return np.floor(self.uniform(0.0, high, size)).astype(np.int64)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """Draw a uniformly random order of {0, …, count − 1}, [count] int64."""
        return np.argsort(self.uniform(size=count), kind="stable")
