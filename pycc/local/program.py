"""The part of each layer that changes with the image, and the program that computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, autograd
from torch.nn import functional

from pycc.local.box import Box


class UnsupportedError(Exception):
    """No rule determines how a change spreads through this layer."""


class UnchangedError(UnsupportedError):
    """The change does not reach this layer's result."""


@dataclass(frozen=True, eq=False)
class Field:
    """A tensor of the network that changes with the image."""

    clean: Tensor
    """[N,…,h,w]: the values for the clean window."""
    box: Box
    """The part that changes, on the tensor's own grid."""
    slot: int
    """The slot that holds the changed part [N·draws,…] while the program runs."""
    grid: bool = True
    """Whether the first axis is the batch and the last two are a grid. If not, ``clean`` holds
    results for one image each, [N,…], and all of it changes."""
    parts: tuple[Field, ...] = ()
    """The fields that were joined along the channels to make this one."""

    @property
    def unchanged(self) -> bool:
        """Whether nothing changes."""
        return self.box.empty

    @property
    def shape(self) -> tuple[int, int]:
        """The grid of the tensor, (h, w)."""
        return self.clean.shape[-2], self.clean.shape[-1]


class _Embed(autograd.Function):
    """Copy the changed values [N·draws,…] into the unchanged values around them, rest [N,…]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rest: Tensor, source: Box, hole: Box) -> Tensor:
        ctx.source, ctx.hole, ctx.shape = source, hole, values.shape
        draws = len(values) // len(rest)
        filled = rest.repeat_interleave(draws, 0) if draws > 1 else rest.clone()
        filled[..., *hole.slices] = values[..., *source.slices]
        return filled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inner = grad[..., *ctx.hole.slices]
        if inner.shape != ctx.shape:
            source, (height, width) = ctx.source, ctx.shape[-2:]
            across, down = (source.left, width - source.right), (source.top, height - source.bottom)
            inner = functional.pad(inner, (*across, *down))
        return inner, None, None, None


def embedding(field: Field, wanted: Box, outside: float = 0.0) -> Callable[[Tensor], Tensor]:
    """Return a function from the changed part of a field to its values in the box ``wanted``.

    The box may extend beyond the field's grid; values there are ``outside``.
    """
    if wanted == field.box:
        return lambda values: values
    common = field.box.intersection(wanted)
    inside = wanted.clipped(field.shape)
    if common.empty or inside.empty:
        raise UnchangedError("a layer reads only unchanged values")
    margins = (
        inside.left - wanted.left,
        wanted.right - inside.right,
        inside.top - wanted.top,
        wanted.bottom - inside.bottom,
    )
    source = common.moved(-field.box.top, -field.box.left)
    if common == inside:  # all that is wanted changes
        return lambda values: functional.pad(values[..., *source.slices], margins, value=outside)
    crop = field.clean[..., *inside.slices]
    rest = functional.pad(crop, margins, value=outside) if any(margins) else crop.clone()
    hole = common.moved(-wanted.top, -wanted.left)

    def embed(values: Tensor) -> Tensor:
        filled: Tensor = _Embed.apply(values, rest, source, hole)  # type: ignore[no-untyped-call]
        return filled

    return embed


class Program:
    """The ordered steps that compute the changed part of each layer; built by the rules."""

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[..., Tensor], tuple[int, ...]]] = []

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self._steps)

    def start(self, clean: Tensor, box: Box) -> Field:
        """Return the field of the image itself, in slot 0."""
        return Field(clean, box, 0)

    def add(self, clean: Tensor, box: Box, compute: Callable[..., Any], *inputs: Field) -> Field:
        """Add a step: ``compute`` maps the changed parts of ``inputs`` to that of a new field."""
        if box.empty:
            raise UnchangedError("nothing changes")
        self._steps.append((compute, tuple(field.slot for field in inputs)))
        return Field(clean, box, len(self._steps))

    def still(self, field: Field, box: Box) -> Field:
        """Return an unchanged field as one that changes, inside ``box``, to its clean values."""
        crop = field.clean[..., *box.slices].clone() if field.grid else field.clean

        def compute(pixels: Tensor) -> Tensor:
            return crop.repeat_interleave(len(pixels) // len(crop), 0)

        image = Field(field.clean, box, 0)
        return replace(self.add(field.clean, box, compute, image), grid=field.grid)

    def to(self, goal: Field) -> Callable[[Tensor], Tensor]:
        """Return a function from the changed pixels to the changed part of ``goal``."""
        needed = {goal.slot}
        for number in range(goal.slot, 0, -1):  # the inputs of a step come before it
            if number in needed:
                needed.update(self._steps[number - 1][1])
        steps = [(number, *self._steps[number - 1]) for number in sorted(needed - {0})]
        last = {slot: number for number, _, slots in steps for slot in slots}

        def run(pixels: Tensor) -> Tensor:
            values: dict[int, Any] = {0: pixels}
            for number, compute, slots in steps:
                values[number] = compute(*(values[slot] for slot in slots))
                for slot in set(slots):  # free values after their last use
                    if last[slot] == number:
                        del values[slot]
            result: Tensor = values[goal.slot]
            return result

        return run
