"""Completion networks: the people in a window of a density map, from what surrounds it."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pycc.defense.surroundings import FEATURES, SPANS, STEEPEST, UNIT

MOST_GUESSED = 2.0**20
"""The most people that a network may predict in a window."""
_KINDS = {"float16": "<f2", "float32": "<f4"}


@dataclass(frozen=True, eq=False)
class CompletionNetwork:
    """A perceptron with two hidden layers: from a window's surroundings to the people in it.

    The first layer is linear in the features of single blocks. Blanking blocks therefore leaves out
    terms of a sum: hidden blocks are never added, rather than subtracted, and cannot change a bit.

    Raises:
        ValueError: weights of other shapes, or that are not finite.
    """

    first: Tensor
    """[36,8,a] float32: for each pair of blocks by pair of blocks, from its features."""
    first_bias: Tensor
    """[a]"""
    second: Tensor
    """[b,a]"""
    second_bias: Tensor
    """[b]"""
    third: Tensor
    """[b], people"""
    third_bias: Tensor
    """[1], people"""

    def __post_init__(self) -> None:
        a, b = self.first.shape[-1], self.third.shape[-1]
        expected = [(SPANS * SPANS, FEATURES, a), (a,), (b, a), (b,), (b,), (1,)]
        for field, shape in zip(fields(self), expected, strict=True):
            weight: Tensor = getattr(self, field.name)
            if tuple(weight.shape) != shape or not bool(torch.isfinite(weight).all()):
                raise ValueError(
                    f"completion: {field.name} must be finite numbers {list(shape)}, got "
                    f"{list(weight.shape)}"
                )

    def to(self, device: torch.device) -> CompletionNetwork:
        """Return the network on a device."""
        return CompletionNetwork(*(tensor.to(device) for tensor in self.tensors()))

    def tensors(self) -> list[Tensor]:
        """Return the weights, in the order of the fields."""
        return [getattr(self, field.name) for field in fields(self)]

    def __repr__(self) -> str:
        """Describe the network by a hash: networks with other weights have another text."""
        return f"CompletionNetwork({self.digest})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CompletionNetwork) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """The first 16 digits of a SHA-256 of the weights."""
        return sha256(b"".join(map(_bytes, self.tensors()))).hexdigest()[:16]

    @property
    def slope(self) -> float:
        """Bound by how many people the prediction moves if blocks' sums move by one in all.

        The layers are ReLUs, so the prediction is Lipschitz: of a block's root with the constant
        |third| |second| |first_block|, the largest over blocks and roots. Both the product of
        absolute values and that of spectral norms are bounds; the smaller one counts.
        """
        roots = self.first[:, : FEATURES // 2].double().flatten(0, 1)  # [144,a]
        second, third = self.second.double(), self.third.double()
        absolute = (roots.abs() @ second.abs().T @ third.abs()).max()
        norms = [torch.linalg.vector_norm(roots, dim=1).max(), torch.linalg.vector_norm(third)]
        spectral = norms[0] * torch.linalg.matrix_norm(second, 2) * norms[1]
        steepest: float = STEEPEST * min(float(absolute), float(spectral))
        return steepest

    def people(self, hidden: Tensor) -> Tensor:
        """Compute the predictions [n], people, from the sums [n,a] of the first layer."""
        second = functional.linear(functional.relu(hidden), self.second, self.second_bias)
        third = functional.relu(second) @ self.third + self.third_bias
        return third.clamp(0.0, MOST_GUESSED)

    def units(self, hidden: Tensor) -> Tensor:
        """Compute the predictions [n] as whole units: int64.

        Raises:
            ValueError: predictions that are not finite.
        """
        people = self.people(hidden)
        if not bool(torch.isfinite(people).all()):
            raise ValueError("completion: the network must predict finite numbers, got NaN")
        return (people.double() / UNIT).round().to(torch.int64)

    def json(self) -> dict[str, object]:
        """Return the weights as JSON: shapes, and little-endian numbers in base64.

        The numbers are float16 if the weights are all of that precision, else float32.
        """
        halved = all(torch.equal(tensor.half().float(), tensor) for tensor in self.tensors())
        kind = "float16" if halved else "float32"
        return {
            field.name: {
                "shape": list(tensor.shape),
                kind: base64.b64encode(_bytes(tensor, _KINDS[kind])).decode(),
            }
            for field, tensor in zip(fields(self), self.tensors(), strict=True)
        }

    def halved(self) -> CompletionNetwork:
        """Return the network with its weights rounded to float16, which take half the space."""
        return CompletionNetwork(*(tensor.half().float() for tensor in self.tensors()))

    @classmethod
    def of_json(cls, stored: Mapping[str, Mapping[str, object]]) -> CompletionNetwork:
        """Return the network that ``json`` describes; ValueError for anything else."""
        tensors = []
        for field in fields(cls):
            entry = stored[field.name]
            shape = [int(size) for size in entry["shape"]]  # type: ignore[attr-defined]
            kind = next((name for name in _KINDS if name in entry), "float32")
            data = base64.b64decode(str(entry[kind]), validate=True)
            if len(data) != np.dtype(_KINDS[kind]).itemsize * math.prod(shape):
                raise ValueError(f"{field.name} of {shape} numbers, got {len(data)} bytes")
            values = np.frombuffer(data, _KINDS[kind]).astype(np.float32)
            tensors.append(torch.from_numpy(values).reshape(shape))
        return cls(*tensors)


def _bytes(tensor: Tensor, kind: str = "<f4") -> bytes:
    return tensor.detach().cpu().contiguous().numpy().astype(kind).tobytes()


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """The first layer's sums over visible blocks of n windows, for every blanked rectangle.

    All are sums of terms of visible blocks alone: whole rows above and below the rectangle, and the
    left and right parts of the rows beside it.
    """

    above: Tensor
    """[7,n,a]: sums over the rows before each row of pairs of blocks."""
    below: Tensor
    """[7,n,a]: sums over this row and those after it."""
    left: Tensor
    """[6,7,n,a]: of each row, sums over the columns before each."""
    right: Tensor
    """[6,7,n,a]: of each row, sums over this column and those after it."""
    bias: Tensor
    """[a]"""

    @classmethod
    def of(cls, network: CompletionNetwork, features: Tensor) -> FirstLayer:
        """Multiply features [36,n,8] by the weights and sum them up."""
        terms = torch.bmm(features, network.first)
        grid = terms.reshape(SPANS, SPANS, *terms.shape[1:])
        left, right = _before(grid, 1), _after(grid, 1)
        lines = left[:, SPANS]
        return cls(_before(lines, 0), _after(lines, 0), left, right, network.first_bias)

    def full(self) -> Tensor:
        """Return the sums [n,a] with no rectangle blanked."""
        return self.above[SPANS] + self.bias

    def beside(self, rows: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a rectangle of these rows [first, end) leaves visible.

        The rows above and below [n,a], and the left and right parts [7,n,a] beside it by column.
        """
        first, end = rows
        whole = self.above[first] + self.below[end] + self.bias
        return whole, self.left[first:end].sum(0), self.right[first:end].sum(0)


def _before(values: Tensor, dim: int) -> Tensor:
    """Sum over the entries before each along ``dim``, and over all: one entry more."""
    zero = torch.zeros_like(values.narrow(dim, 0, 1))
    return torch.cat((zero, values.cumsum(dim)), dim)


def _after(values: Tensor, dim: int) -> Tensor:
    """Sum over each entry and those after it along ``dim``, and over none: one entry more."""
    zero = torch.zeros_like(values.narrow(dim, 0, 1))
    return torch.cat((values.flip(dim).cumsum(dim).flip(dim), zero), dim)
