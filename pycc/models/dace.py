"""DACE, the loss of CLIP-EBC: classification of blocks plus a distance between counts.

Ma, Sanchez and Guha, "CLIP-EBC: CLIP Can Count Accurately through Enhanced Blockwise
Classification"; its distance between distributions is that of Wang et al., "Distribution Matching
for Crowd Counting" (DM-Count), NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pycc.models.options import choice, shown

CountLoss = Literal["mae", "mse", "dmcount"]
COUNT_LOSSES: tuple[CountLoss, ...] = ("mae", "mse", "dmcount")

# DM-Count's constants, as CLIP-EBC uses them.
_VARIATION_WEIGHT = 0.01
_TRANSPORT_WEIGHT = 0.1
_REGULARISATION = 10.0  # of the transport, in pixels squared
_ITERATIONS = 100
_CHECKED_EVERY = 10
_CONVERGED = 1e-9
_NEVER_ZERO = 1e-16
_NEVER_ZERO_COUNT = 1e-8
_WHOLE = 1e-3  # how far a number of heads may be from a whole number


def dace_loss(
    logits: Tensor,
    density: Tensor,
    target: Tensor,
    *,
    count_loss: CountLoss = "mae",
    points: Sequence[Tensor] | None = None,
    stride: int = 8,
    region: Tensor | None = None,
) -> Tensor:
    """Compute cross-entropy over blocks plus a count loss; a scalar.

    It is differentiable in ``logits`` and ``density``. ``logits`` [N,B,h,w] are of the bins 0, 1,
    …, B - 2 and "B - 1 or more" heads, ``density`` [N,1,h,w] people per block, ``target`` [N,1,h,w]
    heads per block of ``stride`` x ``stride`` pixels. The cross-entropy is summed over an image's
    blocks and averaged over images. ``count_loss`` is added, averaged over images:

    * ``"mae"``, ``"mse"``: the sum over blocks of absolute or squared differences;
    * ``"dmcount"``: the difference of counts, 0.01 x the count x the difference of the normalised
      maps, and 0.1 x ``transport_loss``. It needs ``points``, the heads of each image [M,2] (x, y)
      in its pixels, which also give the true counts. (The published code sums the transport over
      images; a batch's loss would then depend on how it is divided among processes.)

    ``region`` [N,1,h,w] is the share of each block that counts for the cross-entropy (None: all of
    it); ``density`` and ``target`` must be 0 outside.

    ValueError for shapes that do not agree, a target that is not a number of heads, an unknown
    count loss and missing or invalid points.
    """
    choice("dace_loss", "count_loss", count_loss, COUNT_LOSSES)
    if logits.ndim != 4 or logits.shape[1] < 2:
        raise ValueError(f"dace_loss: logits must be [N,B,h,w], got {list(logits.shape)}")
    maps = [logits.shape[0], 1, *logits.shape[2:]]
    for name, tensor in (("density", density), ("target", target)):
        if list(tensor.shape) != maps:
            raise ValueError(
                f"dace_loss: {name} must be {maps} like the logits, got {list(tensor.shape)}"
            )
    # Sums over thousands of blocks, with 1e-16 added, exceed half precision.
    logits, density = (single(tensor) for tensor in (logits, density))
    loss = classification_loss(logits, target, region)
    target = target.to(density)
    if count_loss == "mae":
        return loss + (density - target).abs().sum((1, 2, 3)).mean()
    if count_loss == "mse":
        return loss + torch.square(density - target).sum((1, 2, 3)).mean()
    heads = _checked_points(points, density)
    return loss + dm_loss(density, target, heads, stride=stride)


def dm_loss(
    density: Tensor,
    target: Tensor,
    points: Sequence[Tensor],
    *,
    transport: float = _TRANSPORT_WEIGHT,
    stride: int = 8,
) -> Tensor:
    """Compute DM-Count's loss, a scalar; a mean over images.

    It is the difference of counts, 0.01 x ``variation`` and ``transport`` x ``transport_loss``.
    ``density`` [N,1,h,w] are people per cell, ``target`` [N,1,h,w] heads per cell, ``points`` the
    heads of each image, [M,2] (x, y) in its pixels, which also give the true counts.
    """
    counts = density.new_tensor([float(len(xy)) for xy in points])  # [N]
    loss = (density.sum((1, 2, 3)) - counts).abs().mean()
    loss = loss + _VARIATION_WEIGHT * variation(density, target, counts).mean()
    return loss + transport * transport_loss(density, points, stride=stride)


def block_classes(target: Tensor, bins: int) -> Tensor:
    """Return the bins of numbers of heads, int64; the last is ``bins - 1`` or more heads.

    ValueError for a target with a value that is not a number of heads (within 0.001), such as a
    smoothed density map, whose blocks nearly all lie between the bins.
    """
    return whole_heads("dace_loss", target).clamp(max=bins - 1).long()


def whole_heads(name: str, target: Tensor) -> Tensor:
    """Return ``target`` in whole numbers of heads; ValueError, in ``name``, as above."""
    if target.is_complex():
        raise ValueError(f"{name}: target must be real, got {target.dtype}")
    heads = target if not target.is_floating_point() else target.round()
    wrong = ~((heads >= 0) & ((target - heads).abs() <= _WHOLE))
    if wrong.any():
        raise ValueError(
            f"{name}: target must hold numbers of heads per block (dots, summed over blocks; "
            f"not a smoothed density map), got {shown(float(target[wrong][0]))}"
        )
    return heads


def classification_loss(logits: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """Compute the cross-entropy of ``logits`` [N,B,h,w] for ``target`` [N,1,h,w] heads per block.

    It is summed over blocks, each weighted by its share of ``region`` [N,1,h,w] (None: all), and
    averaged over images. ValueError as for ``block_classes``.
    """
    classes = block_classes(target, logits.shape[1])[:, 0].to(logits.device)
    losses = functional.cross_entropy(logits, classes, reduction="none")  # [N,h,w]
    if region is not None:
        losses = losses * region[:, 0]
    return losses.sum((1, 2)).mean()


def variation(density: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Compute [N]: the count times the summed differences of both maps, each normalised to sum 1.

    Multiplied by the count, an image without heads gives 0 instead of 0 / 0.
    """
    total = density.sum((1, 2, 3), keepdim=True) + _NEVER_ZERO_COUNT
    scaled = counts.view(-1, 1, 1, 1) * (density / total)
    return (scaled - target).abs().sum((1, 2, 3))


def transport_loss(density: Tensor, points: Sequence[Tensor], *, stride: int) -> Tensor:
    """Compute a term whose gradient moves ``density`` [N,1,h,w] towards heads.

    It is averaged over images.

    ``points`` are the heads of each image, [M,2]. The derivative of the entropic transport cost
    (squared pixel distances between heads and block centres, Sinkhorn's iteration) by the
    normalised map is held fixed and multiplied by the map. So the *value* is 0 up to rounding and
    carries no information; only the gradient does. Images without heads are left out.
    """
    loss = density.new_zeros(())
    for cells, xy in zip(density[:, 0], points, strict=True):
        if len(xy):
            loss = loss + (cells * _pull(cells.detach(), xy.to(cells), stride)).sum()
    return loss / len(points)


@torch.no_grad()
def _pull(cells: Tensor, xy: Tensor, stride: int) -> Tensor:
    """Compute the fixed factor [h,w] of one map [h,w] with heads [M,2]."""
    total = cells.sum()
    with torch.autocast(cells.device.type, enabled=False):
        # A network that ends in a ReLU may count nobody.
        potential = _potential(cells / (total + _NEVER_ZERO), xy, stride)
    square = total.square() + _NEVER_ZERO_COUNT
    return total / square * potential - (cells * potential).sum() / square


def _potential(share: Tensor, xy: Tensor, stride: int) -> Tensor:
    """Compute Sinkhorn's dual potential [h,w] of shares [h,w] with sum 1.

    All heads have equal weights.
    """
    height, width = share.shape
    rows = stride * torch.arange(height, device=share.device).to(share) + stride / 2
    columns = stride * torch.arange(width, device=share.device).to(share) + stride / 2
    # The kernel exp(-(dx² + dy²) / reg) is a product of one factor for each axis, [M,h] and [M,w];
    # the [M,h·w] matrix is never needed.
    down = torch.exp(-torch.square(xy[:, 1:] - rows) / _REGULARISATION)
    across = torch.exp(-torch.square(xy[:, :1] - columns) / _REGULARISATION)
    weight = 1.0 / len(xy)
    heads = torch.full_like(xy[:, 0], weight)
    for iteration in range(1, _ITERATIONS + 1):
        blocks = share / (down.T @ (heads[:, None] * across) + _NEVER_ZERO)
        heads = weight / (((down @ blocks) * across).sum(1) + _NEVER_ZERO)
        if iteration % _CHECKED_EVERY == 0:
            marginal = (down.T @ (heads[:, None] * across)) * blocks
            if torch.square(marginal - share).sum() <= _CONVERGED:
                break
    return _REGULARISATION * torch.log(blocks + _NEVER_ZERO)


def single(tensor: Tensor) -> Tensor:
    """Return a tensor of half precision in single precision, any other unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _checked_points(points: Sequence[Tensor] | None, density: Tensor) -> Sequence[Tensor]:
    if points is None:
        raise ValueError("dace_loss: count_loss 'dmcount' needs points, the heads of each image")
    if len(points) != len(density):
        raise ValueError(
            f"dace_loss: points must be those of {len(density)} images, got {len(points)}"
        )
    for xy in points:
        if not isinstance(xy, Tensor) or xy.ndim != 2 or xy.shape[1] != 2:
            got = list(xy.shape) if isinstance(xy, Tensor) else type(xy).__name__
            raise ValueError(f"dace_loss: points must be [M,2] (x, y) of each image, got {got}")
        if not torch.isfinite(xy).all():
            raise ValueError("dace_loss: points must be finite, got NaN or infinity")
    return points
