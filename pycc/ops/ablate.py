"""Randomized ablation: keep a uniformly random set of k pixels (or array entries) of an image.

The set consists of the first k distinct integers of a stream of independent uniform integers; by
symmetry, all sets of k are equally likely. If more than half of the entries are kept, the stream
determines the dropped entries instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycc.ops import _autograd, _check, _native
from pycc.random import Stream

_OP = "ablate"
UNITS = ("pixel", "element")
_WORD = 1 << 32
_PURPOSE = "ablation"


class _Key(NamedTuple):
    """The values that determine the kept entries, in the order of the registered op's arguments."""

    k: int
    seed: int  # signed, 64 bits
    first_image: int
    draws: int
    first_draw: int
    by_element: bool


def _seed(op: str, seed: object) -> int:
    """Return ``seed`` modulo 2**64 as a signed 64-bit integer."""
    number = _check.integer(op, "seed", seed, -(2**63), 2**64 - 1)
    return number - 2**64 if number >= 2**63 else number


def _checked(
    images: Tensor,
    k: int,
    seed: int,
    fill: float | Tensor,
    draws: int,
    unit: str,
    first_image: int,
    first_draw: int,
    *dtypes: torch.dtype,
) -> tuple[Tensor, _Key]:
    """Check the arguments; return the fill of each channel, [C], and the key."""
    _check.shaped(_OP, "images", images, "[N,C,H,W]", (None,) * 4)
    _check.typed(_OP, "images", images, *dtypes)
    count, channels, height, width = images.shape
    by_element = _check.choice(_OP, "unit", unit, UNITS) == 1
    size = height * width * (channels if by_element else 1)
    if size > _WORD:
        raise ValueError(f"{_OP}: images must have at most 2^32 {unit}s, got {size}")
    key = _Key(
        _check.integer(_OP, "k", k, 0, size),
        _seed(_OP, seed),
        _check.integer(_OP, "first_image", first_image, 0, _WORD - max(count, 1)),
        _check.integer(_OP, "draws", draws, 1, _WORD),
        _check.integer(_OP, "first_draw", first_draw, 0, _WORD - draws),
        by_element,
    )
    return _check.fill(_OP, fill, channels, images.device), key


def ablate(
    images: Tensor,
    k: int,
    *,
    seed: int,
    fill: float | Tensor,
    draws: int = 1,
    unit: str = "pixel",
    first_image: int = 0,
    first_draw: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Keep k uniformly random pixels of each image, drawn without replacement, and fill the rest.

    Randomized ablation (Levine and Feizi, "Robustness certificates for sparse adversarial attacks
    by randomized ablation", AAAI 2020) as used on crowd counters by Wu et al., arXiv 2104.10868.
    The kept pixels are a function of (seed, first_image + n, first_draw + j, k, size) alone: they
    are the same on every device, for any number of threads and any split into batches. A patch of n
    of the d pixels is untouched with probability ``exp(log_probability_untouched(d, n, k))`` if all
    channels of a pixel are kept or filled together (``unit="pixel"``). The published code draws
    array entries (``unit="element"``), of which a patch contains C times as many.
    Differentiable in images, also twice. Kept values keep their bits, NaN included.

    Args:
        images: [N,C,H,W] float32; at most 2^32 pixels (array entries) per image.
        k: number of the H*W pixels (C*H*W array entries) to keep, from none to all.
        seed: any 64-bit integer.
        fill: value of the other pixels, a finite number or float32 [C] on the device of the images;
            for example the data set's mean, in the units of the images.
        draws: number of independent sets per image.
        unit: ``pixel`` or ``element``.
        first_image: the number that keys the first image; image n of the batch has this plus n.
        first_draw: the number that keys the first draw; draw j has this plus j.
        out: buffer for the result: [N*draws,C,H,W] float32, contiguous, not overlapping the inputs.
            The returned tensor shares its memory and carries the gradient. Not for use inside
            ``torch.compile``.

    Returns:
        [N*draws,C,H,W] float32; row n*draws+j is draw j of image n.

    Raises:
        ValueError, TypeError: a bad argument, before anything is written.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> ablated = ops.ablate(torch.ones(1, 3, 4, 5), 7, seed=0, fill=0.0, draws=2)
        >>> ablated.shape, ablated.sum((1, 2, 3)).tolist()  # 7 pixels of 3 channels each
        (torch.Size([2, 3, 4, 5]), [21.0, 21.0])
    """
    if _native.use_reference():
        return ablate_reference(
            images,
            k,
            seed=seed,
            fill=fill,
            draws=draws,
            unit=unit,
            first_image=first_image,
            first_draw=first_draw,
            out=out,
        )
    _check.reverse_only(_OP, images)
    fills, key = _checked(
        images, k, seed, fill, draws, unit, first_image, first_draw, torch.float32
    )
    if out is None:
        ablated: Tensor = _ablate(images, fills, *key)
        return ablated
    _checked_out(out, images, fills, draws)
    return _autograd.into(
        out,
        images,
        write=lambda target, source: _fill(target, source, fills, key),
        backward=lambda grad: _ablate_backward(grad, *key),
    )


def _checked_out(out: Tensor, images: Tensor, fill: Tensor, draws: int) -> None:
    shape = (len(images) * draws, *images.shape[1:])
    _check.output_apart(_OP, out, shape, images.device, images=images, fill=fill)


def _native_key(shape: Sequence[int], key: _Key) -> _native.Ablation:
    """Return the key for the kernel, checked: a registered op can be called from anywhere."""
    count, channels, plane = shape[0], shape[1], math.prod(shape[2:])
    size = plane * channels if key.by_element else plane
    _check.integer(_OP, "the number of pixels or elements", size, 0, _WORD)
    _check.integer(_OP, "k", key.k, 0, size)
    _check.integer(_OP, "first_image", key.first_image, 0, _WORD - max(count, 1))
    _check.integer(_OP, "first_draw", key.first_draw, 0, _WORD - key.draws)
    return _native.module().Ablation(
        images=count,
        channels=channels,
        plane=plane,
        draws=key.draws,
        kept=key.k,
        by_element=key.by_element,
        seed=key.seed % 2**64,
        first_image=key.first_image,
        first_draw=key.first_draw,
    )


def _run(op: str, result: Tensor, rows: int, native_key: _native.Ablation, *inputs: Tensor) -> None:
    """Run the kernel, on CUDA with bitmaps [rows,words] as scratch memory."""
    device = result.device
    scratch: tuple[Tensor, ...] = ()
    if _native.kind_of(device) == "cuda":
        scratch = (torch.empty((rows, native_key.words), dtype=torch.uint32, device=device),)
    _native.run(op, device, result, *scratch, *inputs, native_key)


def _fill(out: Tensor, images: Tensor, fill: Tensor, key: _Key) -> None:
    device = images.device
    images = _check.raw(_OP, "images", images, torch.float32, (None,) * 4, device)
    fill = _check.raw(_OP, "fill", fill, torch.float32, (images.shape[1],), device)
    _run(_OP, out, len(out), _native_key(images.shape, key), images, fill)


@torch.library.custom_op("pycc::ablate", mutates_args=())
def _ablate(
    images: Tensor,
    fill: Tensor,
    k: int,
    seed: int,
    first_image: int,
    draws: int,
    first_draw: int,
    by_element: bool,
) -> Tensor:
    _check.shaped(_OP, "images", images, "[N,C,H,W]", (None,) * 4)
    _check.integer(_OP, "draws", draws, 1, _WORD)
    out = images.new_empty((images.shape[0] * draws, *images.shape[1:]))
    _fill(out, images, fill, _Key(k, seed, first_image, draws, first_draw, by_element))
    return out


@_ablate.register_fake
def _(images: Tensor, fill: Tensor, *key: Any) -> Tensor:
    _check.same_device(_OP, images, fill)
    return images.new_empty((images.shape[0] * _Key(*key).draws, *images.shape[1:]))


@torch.library.custom_op("pycc::ablate_backward", mutates_args=())
def _ablate_backward(
    grad: Tensor,
    k: int,
    seed: int,
    first_image: int,
    draws: int,
    first_draw: int,
    by_element: bool,
) -> Tensor:
    """Return the gradient [N,C,H,W] of the images, summed over the draws of each image."""
    device = grad.device
    grad = _check.raw(_OP, "grad", grad, torch.float32, (None,) * 4, device)
    _check.integer(_OP, "draws", draws, 1, _WORD)
    if len(grad) % draws:
        raise ValueError(f"{_OP}: grad must have {draws} rows per image, got {len(grad)} rows")
    grad_images = grad.new_empty((grad.shape[0] // draws, *grad.shape[1:]))
    key = _Key(k, seed, first_image, draws, first_draw, by_element)
    native_key = _native_key(grad_images.shape, key)
    _run(f"{_OP}_backward", grad_images, len(grad), native_key, grad)
    return grad_images


@_ablate_backward.register_fake
def _(grad: Tensor, *key: Any) -> Tensor:
    return grad.new_empty((grad.shape[0] // _Key(*key).draws, *grad.shape[1:]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.key = inputs[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _ablate_backward(grad, *ctx.key), *(None,) * 7


def _setup_twice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.key = inputs[1:]


def _backward_twice(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _ablate(grad, grad.new_zeros(grad.shape[1]), *ctx.key), *(None,) * 6


_ablate.register_autograd(_backward, setup_context=_setup_context)
_ablate_backward.register_autograd(_backward_twice, setup_context=_setup_twice)


def ablate_reference(
    images: Tensor,
    k: int,
    *,
    seed: int,
    fill: float | Tensor,
    draws: int = 1,
    unit: str = "pixel",
    first_image: int = 0,
    first_draw: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Compute :func:`ablate` in pure torch, with the same arguments and bits; also for float64.

    Time and memory O(N * draws * C * H * W).

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> images = torch.rand(2, 3, 4, 5)
        >>> kept = ops.ablate_reference(images, 7, seed=0, fill=0.5)
        >>> torch.equal(kept, ops.ablate(images, 7, seed=0, fill=0.5))
        True
    """
    dtypes = (torch.float32, torch.float64)
    fills, *_ = _checked(images, k, seed, fill, draws, unit, first_image, first_draw, *dtypes)
    if out is not None:
        _checked_out(out, images, fills, draws)
    together = (images.shape[1] if unit == "element" else 1, *images.shape[2:])
    kept = torch.zeros((len(images) * draws, math.prod(together)), dtype=torch.bool)
    for row in range(len(kept)):
        image, draw = first_image + row // draws, first_draw + row % draws
        indices = ablation_indices_reference(kept.shape[1], k, seed=seed, image=image, draw=draw)
        kept[row, indices] = True
    ablated = torch.where(
        kept.view(len(kept), *together).to(images.device),
        images.repeat_interleave(draws, dim=0),
        fills.to(images.dtype).view(1, -1, 1, 1),
    )
    return ablated if out is None else out.detach().copy_(ablated)


def ablation_indices(
    size: int,
    k: int,
    *,
    seed: int,
    image: int = 0,
    draw: int = 0,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Draw the k entries of {0, …, size-1} that :func:`ablate` keeps: a uniformly random set.

    Args:
        size: number of entries, at most 2^32: H*W for ``unit="pixel"``, C*H*W for ``"element"``.
        k: number of kept entries, within [0, size].
        seed: any 64-bit integer.
        image: the number that keys the image, within [0, 2^32).
        draw: the number that keys the draw, within [0, 2^32).
        device: CPU or CUDA device of the result.

    Returns:
        [k] int64, ascending, distinct.

    Raises:
        ValueError, TypeError: a bad argument.

    Example:
        >>> from pycc import ops
        >>> indices = ops.ablation_indices(1000, 4, seed=0)
        >>> len(indices.unique())
        4
    """
    if _native.use_reference():
        return ablation_indices_reference(size, k, seed=seed, image=image, draw=draw, device=device)
    seed, image, draw = _checked_key(size, k, seed, image, draw)
    where = _check.device("ablation_indices", device)
    indices = torch.empty(k, dtype=torch.int64, device=where)
    key = _Key(k, seed, image, 1, draw, by_element=False)
    _run("ablation_indices", indices, 1, _native_key((1, 1, size), key))
    return indices


def _checked_key(size: int, k: int, seed: int, image: int, draw: int) -> tuple[int, int, int]:
    op = "ablation_indices"
    _check.integer(op, "size", size, 0, _WORD)
    _check.integer(op, "k", k, 0, size)
    last = _WORD - 1
    return (
        _seed(op, seed),
        _check.integer(op, "image", image, 0, last),
        _check.integer(op, "draw", draw, 0, last),
    )


def ablation_indices_reference(
    size: int,
    k: int,
    *,
    seed: int,
    image: int = 0,
    draw: int = 0,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Compute :func:`ablation_indices` with NumPy, with the same arguments and result.

    Expected time O(size) if more than half of the entries are kept, else O(k log k).

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> indices = ops.ablation_indices_reference(1000, 4, seed=0)
        >>> torch.equal(indices, ops.ablation_indices(1000, 4, seed=0))
        True
    """
    _checked_key(size, k, seed, image, draw)
    where = _check.device("ablation_indices", device)
    words = partial(_next_words, Stream(seed, _PURPOSE, image=image, draw=draw), [])
    drops = k > size // 2
    chosen = first_distinct(words, size, size - k if drops else k)
    if drops:
        chosen = np.setdiff1d(np.arange(size), chosen, assume_unique=True)
    return torch.from_numpy(chosen).to(where)


def _next_words(stream: Stream, left_over: list[int], count: int) -> NDArray[np.uint32]:
    """Return the next ``count`` words of a stream that produces them in blocks of four."""
    blocks = -(-max(count - len(left_over), 0) // 4)
    words = np.concatenate([np.array(left_over, np.uint32), stream.words(4 * blocks)])
    left_over[:] = words[count:].tolist()
    return words[:count]


def first_distinct(
    words: Callable[[int], NDArray[Any]], size: int, count: int, bits: int = 32
) -> NDArray[np.int64]:
    """Return the first ``count`` distinct integers of {0, …, size-1} of a stream of words, sorted.

    If n are missing, the next n words can be taken at once: they cannot give more than n integers.
    """
    chosen = np.empty(0, np.int64)
    while len(chosen) < count:
        chosen = np.union1d(chosen, bounded_words(words(count - len(chosen)), size, bits))
    return chosen


def bounded_words(words: NDArray[Any], size: int, bits: int = 32) -> NDArray[np.int64]:
    """Map words of ``bits`` random bits to integers of {0, …, size-1}, without bias.

    Lemire, "Fast random integer generation in an interval" (2019): a word is rejected if the lower
    half of word * size is below 2**bits mod size.
    """
    product = words.astype(np.uint64) * np.uint64(size)
    low = product & np.uint64(2**bits - 1)
    accepted = product[low >= np.uint64(2**bits % size)]
    return (accepted >> np.uint64(bits)).astype(np.int64)
