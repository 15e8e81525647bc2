"""The largest number of ablations that one patch can touch.

The certificate of a fixed family of M ablation masks uses it as a*: a patch changes the counts of
those masks whose retained pixels it touches. If it touches at most a*, the median count stays
between the order statistics that are a* ranks away from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pycc.ops import _check, _native

_OP = "mask_hits"
_MAX_SIDE = 1 << 20
_MAX_PIXELS = 1 << 32
"""The limit of ablation_indices. Rows of bitmaps are padded, so the sides are limited as well."""
_SCRATCH = 64 << 20
"""Size in bytes of each of the two bitmap buffers of a batch of sets on CUDA."""
_EXPECTED = "[M,k] int64 or [M,H,W] bool, or a list of int64 tensors"


@dataclass(frozen=True)
class _Sets:
    """Checked arguments: masks, or the concatenated indices of all sets."""

    masks: Tensor | None  # [M,H,W] bool
    indices: Tensor  # [total] int64
    offsets: list[int]  # [M+1], the start of each set in ``indices``
    height: int
    width: int
    patch: tuple[int, int]

    @property
    def count(self) -> int:
        return len(self.offsets) - 1

    @property
    def device(self) -> torch.device:
        return self.indices.device if self.masks is None else self.masks.device


def _checked(
    kept: Tensor | Sequence[Tensor], shape: tuple[int, int], patch: int | tuple[int, int]
) -> _Sets:
    height, width = _check.pair(_OP, "shape", shape, "(H, W)", _MAX_SIDE)
    _check.integer(_OP, "shape", min(height, width), 1, _MAX_SIDE)
    if height * width > _MAX_PIXELS:
        raise ValueError(f"{_OP}: shape must have at most 2^32 pixels, got {height} x {width}")
    both = patch if isinstance(patch, tuple | list | np.ndarray) else (patch, patch)
    sides = _check.pair(_OP, "patch", both, "p or (ph, pw)", _MAX_SIDE)
    if not (1 <= sides[0] <= height and 1 <= sides[1] <= width):
        raise ValueError(
            f"{_OP}: patch must be within (1, 1) and ({height}, {width}), got {list(sides)}"
        )
    if isinstance(kept, Tensor) and kept.dtype == torch.bool:
        expected = f"[M,{height},{width}] for bool masks"
        _check.shaped(_OP, "kept", kept, expected, (None, height, width))
        masks = _check.not_meta(_OP, "kept", kept).contiguous()
        nothing = torch.empty(0, dtype=torch.int64)
        return _Sets(masks, nothing, [0] * (len(kept) + 1), height, width, sides)
    indices, offsets = _flattened(kept)
    if indices.device.type == "cpu":
        least, most = _check.extremes(indices)
        if not (least >= 0 and most < height * width):
            raise ValueError(
                f"{_OP}: kept must be within [0, {height * width}), the pixels of "
                f"({height}, {width}), got {least} to {most}"
            )
    return _Sets(None, indices, offsets, height, width, sides)


def _flattened(kept: Tensor | Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Return the concatenated indices of all sets, and the start of each set."""
    if isinstance(kept, list | tuple):
        for m, pixels in enumerate(kept):
            _check.shaped(_OP, f"kept[{m}]", pixels, "[k] int64", (None,))
            _check.typed(_OP, f"kept[{m}]", pixels, torch.int64)
            _check.on_device(_OP, f"kept[{m}]", pixels, kept[0].device, "kept[0]")
            _check.not_meta(_OP, f"kept[{m}]", pixels)
        flat = torch.cat(list(kept)) if kept else torch.empty(0, dtype=torch.int64)
        return flat, [0, *itertools.accumulate(len(pixels) for pixels in kept)]
    tensor = _check.is_tensor(_OP, "kept", kept, _EXPECTED)
    _check.typed(_OP, "kept", tensor, torch.int64, torch.bool)
    _check.shaped(_OP, "kept", tensor, _EXPECTED, (None, None))
    _check.not_meta(_OP, "kept", tensor)
    size = tensor.shape[1]
    return tensor.reshape(-1), [m * size for m in range(len(tensor) + 1)]


def mask_hits(
    kept: Tensor | Sequence[Tensor], shape: tuple[int, int], patch: int | tuple[int, int]
) -> Tensor:
    """Find the largest number of pixel sets that one patch can touch, and its place: exact.

    A patch is a window inside the image; it touches a set if it contains a pixel of the set. After
    reading the sets, the time does not depend on their numbers of pixels.

    Args:
        kept: the M sets: [M,k] int64 flat indices (y * W + x) in any order, duplicates allowed; or
            a list of [k] int64, one per set, which may be empty; or [M,H,W] bool. On CUDA, indices
            outside the image are skipped, because reporting them would synchronise.
        shape: (H, W) of the image, 1 to 2^20 each and at most 2^32 pixels, the limit of
            :func:`ablation_indices`. The CPU uses about 2 bytes of memory per pixel, or up to 1 GB
            for several threads.
        patch: side p, or sides (ph, pw), of the window in pixels, 1 to those of the image.

    Returns:
        [3] int64 on the device of ``kept``: the number, and (y, x) of the top left pixel of the
        first such window in row-major order. (0, 0, 0) if there are no sets.

    Raises:
        ValueError, TypeError: a bad argument; on the CPU also an index outside the image.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> kept = torch.tensor([[0, 15], [1, 14]])  # two sets of two pixels each of a 4x4 image
        >>> ops.mask_hits(kept, (4, 4), 2)
        tensor([2, 0, 0])
    """
    if _native.use_reference():
        return mask_hits_reference(kept, shape, patch)
    sets = _checked(kept, shape, patch)
    if _native.kind_of(sets.device) == "cuda":
        return _worst(_hits_on_cuda(sets))
    sizes = _sizes(sets)
    worst = torch.empty(3, dtype=torch.int64)
    if sets.masks is not None:
        _native.run(f"{_OP}_dense", sets.device, worst, sets.masks.view(torch.uint8), sizes)
        return worst
    indices = _check.raw(_OP, "kept", sets.indices, torch.int64, (None,), sets.device)
    offsets = torch.tensor(sets.offsets, dtype=torch.int64)
    _native.run(_OP, sets.device, worst, indices, offsets, sizes)
    return worst


def mask_hits_reference(
    kept: Tensor | Sequence[Tensor], shape: tuple[int, int], patch: int | tuple[int, int]
) -> Tensor:
    """Compute :func:`mask_hits` in pure torch: a maximum over every window of every set.

    Time O(M H W (ph + pw)).

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> ops.mask_hits_reference([torch.tensor([5]), torch.tensor([0])], (2, 3), 1)
        tensor([1, 0, 0])
    """
    sets = _checked(kept, shape, patch)
    hits = torch.zeros(_windows(sets), dtype=torch.int64, device=sets.device)
    for m in range(sets.count):
        mask = _mask(sets, m)[None, None].to(torch.float32)
        down = F.max_pool2d(mask, (sets.patch[0], 1), stride=1)
        hits += F.max_pool2d(down, (1, sets.patch[1]), stride=1)[0, 0].to(torch.int64)
    return _worst(hits)


def _mask(sets: _Sets, m: int) -> Tensor:
    """Return set m as [H,W] bool."""
    if sets.masks is not None:
        return sets.masks[m]
    pixels, size = sets.indices[sets.offsets[m] : sets.offsets[m + 1]], sets.height * sets.width
    beyond = torch.where((pixels >= 0) & (pixels < size), pixels, size)
    mask = torch.zeros(size + 1, dtype=torch.bool, device=sets.device)
    return mask.index_fill_(0, beyond, True)[:size].reshape(sets.height, sets.width)


def _windows(sets: _Sets) -> tuple[int, int]:
    """Return the numbers of rows and columns of places that a window has."""
    return sets.height - sets.patch[0] + 1, sets.width - sets.patch[1] + 1


def _worst(hits: Tensor) -> Tensor:
    """Return (value, y, x) of the first maximum of ``hits`` [rows,cols], without synchronising."""
    flat = hits.reshape(-1)
    at = flat.argmax().reshape(1)  # of equal values the first
    value = flat.gather(0, at).to(torch.int64)
    return torch.cat([value, at // hits.shape[1], at % hits.shape[1]])


def _sizes(sets: _Sets) -> _native.HitSizes:
    return _native.module().HitSizes(
        sets=sets.count,
        height=sets.height,
        width=sets.width,
        patch_height=sets.patch[0],
        patch_width=sets.patch[1],
    )


def _offsets(sets: _Sets) -> Tensor:
    """Return the start [M+1] of each set of indices on their device, without synchronising."""
    size = sets.offsets[1] if sets.count else 0
    if sets.offsets == [m * size for m in range(sets.count + 1)]:
        return torch.arange(sets.count + 1, device=sets.device) * size
    offsets = torch.tensor(sets.offsets, dtype=torch.int64)
    return offsets.pin_memory().to(sets.device, non_blocking=True)


def _hits_on_cuda(sets: _Sets) -> Tensor:
    """Count the sets that each window touches, int32, in batches of sets queued on the device."""
    device, sizes = sets.device, _sizes(sets)
    hits = torch.zeros(_windows(sets), dtype=torch.int32, device=device)
    words = sizes.scratch_words
    batch = max(1, min(sets.count, _SCRATCH // (8 * words)))
    scratch = torch.empty(2 * batch * words, dtype=torch.uint64, device=device)
    indices = _check.raw(_OP, "kept", sets.indices, torch.int64, (None,), sets.indices.device)
    offsets = _offsets(sets)
    for first in range(0, sets.count, batch):
        last = min(first + batch, sets.count)
        if sets.masks is not None:
            masks = sets.masks.view(torch.uint8)
            _native.run(f"{_OP}_dense", device, hits, scratch, masks, first, last, sizes)
        else:
            span = (first, last, sets.offsets[first], sets.offsets[last])
            _native.run(_OP, device, hits, scratch, indices, offsets, *span, sizes)
    return hits
