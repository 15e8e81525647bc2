"""Heads as detections of supervision (extra ``supervision``): to draw, track and count in zones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pycc.report.overlay import peaks

try:
    from supervision import Detections
except ImportError:
    raise ImportError(
        "pycc.adapters.supervision needs supervision: pip install 'pycc[supervision]'"
    ) from None

__all__ = ["density_detections", "detections"]


def detections(points: Tensor, *, side: float | Tensor) -> Detections:
    """Return heads as detections: squares around the annotated points, of class 0, ``head``.

    Args:
        points: [N,2] (x, y), in pixels.
        side: of the squares in pixels: one for all, or [N]. An annotated head has no size.

    Raises:
        ValueError: points or sides of another shape, or a side that is not positive and finite.

    >>> detections(torch.tensor([[10.0, 20.0]]), side=8.0).xyxy.tolist()
    [[6.0, 16.0, 14.0, 24.0]]
    """
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"detections: points must be [N,2] (x, y), got {list(points.shape)}")
    sides = torch.as_tensor(side, dtype=torch.float64).cpu()
    if sides.ndim and sides.shape != points.shape[:1]:
        raise ValueError(
            f"detections: side must be a number or [{len(points)}], got {list(sides.shape)}"
        )
    if not (torch.isfinite(sides).all() and (sides > 0).all()):
        raise ValueError(f"detections: side must be positive pixels, got {side}")
    centres = points.detach().cpu().double()
    half = (sides / 2).expand(len(points))[:, None]
    return Detections(
        xyxy=torch.cat([centres - half, centres + half], 1).numpy().astype(np.float32),
        class_id=np.zeros(len(points), int),
        data={"class_name": np.full(len(points), "head")},
    )


def density_detections(density: Tensor, stride: int, *, side: float | Tensor) -> Detections:
    """Return the heads that a density map shows as detections: its local maxima.

    In dense crowds, where heads share cells, these are fewer than the people: the count is the sum
    of the map.

    Args:
        density: [h,w], people per cell, such as ``pycc.Count.density``.
        stride: pixels per cell.
        side: of the squares, in pixels.

    Raises:
        ValueError: as of ``detections``.

    >>> density = torch.zeros(5, 6)
    >>> density[1, 2] = 1.0
    >>> density_detections(density, 4, side=4.0).xyxy.tolist()
    [[8.0, 4.0, 12.0, 8.0]]
    """
    return detections(peaks(density, stride), side=side)
