"""Frames of videos whose annotation is one file for many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pycc.data.dataset import Pair, Refuse, numeric, pair_up
from pycc.data.matlab import points_of


@dataclass(frozen=True)
class Frame:
    """An annotated frame."""

    name: str
    """Of its image, without suffix."""
    annotation: Path
    variable: str
    """Where its heads are in that file."""
    heads: object
    """Its heads: [N,2] or more columns, of which the first are x, y."""


def pairs_of(
    images: dict[str, list[Path]], frames: Sequence[Frame] | None, refuse: Refuse
) -> list[Pair]:
    """Pair images with annotated frames by name, in numeric order; None: the images alone.

    Frames without image, images without frame, several images of a name, and heads that are not
    [N,2] numbers are refused.
    """
    if frames is None:
        return pair_up(images, None, refuse)
    by_name = {frame.name: frame for frame in frames}
    pairs = []
    for name in sorted(images.keys() | by_name.keys(), key=numeric):
        files, frame = images.get(name, []), by_name.get(name)
        if frame is None:
            refuse(f"{files[0]}: image without annotation in {frames[0].annotation.parent}")
        elif not files:
            refuse(f"{frame.annotation}: {frame.variable}: no image {name}")
        elif len(files) > 1:
            refuse(f"{files[1]}: one file expected per name, but there is also {files[0].name}")
        else:
            try:
                points = points_of(frame.annotation, frame.variable, frame.heads)
            except ValueError as error:
                refuse(str(error))
            else:
                pairs.append(Pair(name, files[0], frame.annotation, points=points))
    return pairs
