"""Layers that are computed whole, because no rule limits what a change of their inputs changes.

Examples are a mean over the image, an attention, and a custom operator. The layers before them are
still computed only where they change. Such a layer is applied to one image at a time, exactly as it
was traced, so that nothing need be known about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from pycc.local.box import Box
from pycc.local.program import Field, Program, UnsupportedError, embedding

_NOTHING, _ANYTHING = Box(0, 0, 0, 0), Box(0, 0, 1, 1)


@dataclass(frozen=True)
class _Place:
    """The place of a field among a layer's arguments."""

    number: int


class WholeLayer:
    """A layer with its arguments, some of which are fields."""

    def __init__(self, target: Any, args: Any, kwargs: Any) -> None:
        self._target = target
        self._fields: list[Field] = []
        self._arguments = map_aggregate((args, kwargs), self._place)
        results = self._each_image([field.clean for field in self._fields])
        self._several = isinstance(results[0], (list, tuple))
        columns = zip(*results, strict=True) if self._several else [results]
        self._clean = [_batch(column) for column in columns]

    def _place(self, value: Any) -> Any:
        if not isinstance(value, Field):
            return value
        self._fields.append(value)
        return _Place(len(self._fields) - 1)

    def _each_image(self, values: Sequence[Tensor]) -> list[Any]:
        """Apply the layer to each image of the complete inputs ``values``, [N,...] each."""

        def result(image: int) -> Any:
            inputs = [
                value[image : image + 1] if field.grid else value[image]
                for value, field in zip(values, self._fields, strict=True)
            ]
            args, kwargs = map_aggregate(
                self._arguments, lambda a: inputs[a.number] if isinstance(a, _Place) else a
            )
            return self._target(*args, **kwargs)

        return [result(image) for image in range(len(values[0]))]

    def unchanged(self) -> Field | list[Field]:
        """The result, if no input changes."""
        fields = [Field(clean, _NOTHING, 0, grid) for clean, grid in self._clean]
        return fields if self._several else fields[0]

    def add_to(self, program: Program) -> Field | list[Field]:
        """Add the layer to a program; return its result, which changes everywhere."""
        completed = [self._completion(field) for field in self._fields]

        def compute(*values: Tensor) -> list[Any]:
            return self._each_image(
                [complete(value) for complete, value in zip(completed, values, strict=True)]
            )

        results = program.add(self._clean[0][0], _ANYTHING, compute, *self._fields)
        fields = []
        for number, (clean, grid) in enumerate(self._clean):
            box = Box(0, 0, clean.shape[-2], clean.shape[-1]) if grid else _ANYTHING
            fields.append(replace(program.add(clean, box, self._pick(number), results), grid=grid))
        return fields if self._several else fields[0]

    def _completion(self, field: Field) -> Callable[[Tensor], Tensor]:
        """Return the function from the changed part of a field to all its values."""
        return embedding(field, Box(0, 0, *field.shape)) if field.grid else lambda values: values

    def _pick(self, number: int) -> Any:
        """Return the function from the results of all images to the result of this number."""
        return lambda results: _batch([r[number] if self._several else r for r in results])[0]


def _batch(results: Sequence[Any]) -> tuple[Tensor, bool]:
    """Put the results of all images together: [N,...], and whether the last axes are a grid."""
    if not all(isinstance(result, Tensor) for result in results):
        raise UnsupportedError("a layer that does not give tensors")
    if results[0].ndim >= 3 and len(results[0]) == 1:
        return torch.cat(list(results)), True
    return torch.stack(list(results)), False
