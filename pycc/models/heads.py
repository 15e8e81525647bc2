"""The heads of a crop, for losses that compare a map with points rather than with a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pycc.models.options import shown

_WHOLE = 1e-3  # how far a number of heads may be from a whole number


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads that an image or crop should be counted for.

    >>> Heads(torch.zeros(2, 2), torch.ones(2), side=512.0).flipped(64).points[:, 0].tolist()
    [64.0, 64.0]
    """

    points: Tensor
    """[M,2] (x, y) in pixels of the crop; some may lie outside it."""
    people: Tensor
    """[M]: what each counts for, 1 or the part of it that lies in the crop."""
    side: float
    """Short side in pixels of the image that the crop was cut from."""

    def flipped(self, width: int) -> Heads:
        """Return the heads of the crop, ``width`` pixels wide, seen in a mirror."""
        mirrored = torch.stack([width - self.points[:, 0], self.points[:, 1]], 1)
        return Heads(mirrored, self.people, self.side)

    def each(self) -> Tensor:
        """Return one point for each person; ValueError for parts of people."""
        return self.points.repeat_interleave(self._whole_people(), 0)

    def _whole_people(self) -> Tensor:
        number = self.people.round()
        whole = self.people.isfinite() & (number >= 0) & ((number - self.people).abs() <= _WHOLE)
        if not whole.all():
            raise ValueError(
                "heads: each must count for whole people, as the dots of a target without points "
                f"do, got {float(self.people[~whole][0]):g}"
            )
        return number.long()

    def to(self, device: torch.device) -> Heads:
        """Return the same heads on a device."""
        return Heads(self.points.to(device), self.people.to(device), self.side)


def heads_of(
    name: str,
    images: Tensor,
    target: Tensor,
    points: Sequence[Tensor] | None,
    *,
    stride: int,
) -> list[Heads]:
    """Return the heads of whole images [N,3,H,W]: their points, or the target's if there are none.

    ``points`` are [M,2] (x, y) of each image. Without them, the people of each cell of ``target``
    [N,1,h,w] stand in its centre. ValueError, in the name of a model, for points of another number
    of images or another shape, and for points that are not finite.
    """
    side = float(min(images.shape[2:]))
    if points is None:
        return [_of_cells(cells, stride, side) for cells in target[:, 0]]
    check_points(f"{name}.loss", points, len(images))
    return [Heads(xy, torch.ones(len(xy), device=xy.device), side) for xy in points]


def check_points(op: str, points: Sequence[Tensor], images: int) -> None:
    """Check that points are those of so many images: [M,2] (x, y) for each, and finite.

    ValueError otherwise, in the name of ``op``.

    >>> check_points("vgg19.loss", [torch.zeros(3, 2)], 1)
    """
    if len(points) != images:
        raise ValueError(f"{op}: points must be those of {images} images, got {len(points)}")
    for xy in points:
        if not isinstance(xy, Tensor) or xy.ndim != 2 or xy.shape[1] != 2:
            got = list(xy.shape) if isinstance(xy, Tensor) else type(xy).__name__
            raise ValueError(f"{op}: points must be [M,2] (x, y) of each image, got {got}")
        if not torch.isfinite(xy).all():
            raise ValueError(f"{op}: points must be finite, got NaN or infinity")


def whole_heads(op: str, target: Tensor) -> Tensor:
    """Round a target [N,1,h,w] to numbers of heads per cell.

    ValueError, in the name of ``op``, for a value that is not a number of heads (within 0.001),
    such as those of a smoothed density map.

    >>> whole_heads("vgg19.loss", torch.tensor([0.0, 2.0004])).tolist()
    [0.0, 2.0]
    """
    if target.is_complex():
        raise ValueError(f"{op}: target must be real, got {target.dtype}")
    heads = target.round() if target.is_floating_point() else target
    wrong = ~((heads >= 0) & ((target - heads).abs() <= _WHOLE))
    if wrong.any():
        raise ValueError(
            f"{op}: target must hold numbers of heads per cell (dots, summed over cells; not a "
            f"smoothed density map), got {shown(float(target[wrong][0]))}"
        )
    return heads


def _of_cells(cells: Tensor, stride: int, side: float) -> Heads:
    places = cells.nonzero()
    points = stride * places.flip(1).double() + stride / 2
    heads = Heads(points, cells[places[:, 0], places[:, 1]], side)
    heads.each()  # a smoothed map holds no heads
    return heads
