"""The region of interest: what of a density map counts."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def in_region(density: Tensor, mask: Tensor | None) -> Tensor:
    """Maps [N,1,h,w] of an image, each cell times the share of its pixels that ``mask`` holds.

    ``mask`` [H,W] bool is a sample's region of interest; None: the whole image counts. Pixels that
    a last, incomplete cell lacks are outside. ValueError for a mask of another size than the maps'
    images.
    """
    if mask is None:
        return density
    height, width = density.shape[-2:]
    stride = max(1, round(mask.shape[0] / height))
    for size, cells in zip(mask.shape, (height, width), strict=True):
        if not size // stride <= cells <= -(-size // stride):
            raise ValueError(
                f"region: expected a mask of about {height * stride}x{width * stride} pixels for "
                f"{height}x{width} cells, got {list(mask.shape)}"
            )
    inside = mask.to(density)[None, None, : height * stride, : width * stride]
    missing = (0, width * stride - inside.shape[3], 0, height * stride - inside.shape[2])
    return density * functional.avg_pool2d(functional.pad(inside, missing), stride)
