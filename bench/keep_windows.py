"""Band and block ablation: the kernel against torch expressions and a fill of the same memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timer import Row, seconds
from torch import Tensor

from pycc.ops import keep_windows, keep_windows_reference
from pycc.random import Stream

SHAPE = (768, 1024)
FILL = 0.5


def rolled(images: Tensor, places: list[list[int]], window: tuple[int, int]) -> Tensor:
    """Roll the mask of the window at the corner to each place, then use torch.where."""
    corner = torch.zeros(SHAPE, dtype=torch.bool)
    corner[: window[0], : window[1]] = True
    masks = torch.stack([corner.roll((y, x), (0, 1)) for y, x in places])
    return torch.where(masks[None, :, None], images[:, None], FILL).flatten(0, 1)


def sliced(images: Tensor, places: list[list[int]], window: tuple[int, int]) -> Tensor:
    """Fill everything, then copy the pieces of the window: up to four where it wraps."""
    rows = torch.full((len(images), len(places), *images.shape[1:]), FILL)
    for m, (top, left) in enumerate(places):
        for y in pieces(top, window[0], SHAPE[0]):
            for x in pieces(left, window[1], SHAPE[1]):
                rows[:, m, :, y, x] = images[:, :, y, x]
    return rows.flatten(0, 1)


def pieces(first: int, extent: int, size: int) -> list[slice]:
    return [slice(first, min(first + extent, size)), slice(0, max(first + extent - size, 0))]


def case(count: int, windows: int, window: tuple[int, int]) -> list[Row]:
    images = torch.from_numpy(Stream(0, "images").uniform(size=(count, 3, *SHAPE))).float()
    stream = Stream(1, "places")
    places = [[int(stream.integers(size)) for size in SHAPE] for _ in range(windows)]
    top_left = torch.tensor(places)
    buffer = torch.empty(count * windows, 3, *SHAPE).fill_(0.0)

    def fresh() -> Tensor:
        return keep_windows(images, top_left, window, fill=FILL)

    def into() -> Tensor:
        return keep_windows(images, top_left, window, fill=FILL, out=buffer)

    def twin() -> Tensor:
        return keep_windows_reference(images, top_left, window, fill=FILL)

    before = seconds(lambda: buffer.fill_(FILL))
    expected = into()
    others = (fresh(), rolled(images, places, window), sliced(images, places, window), twin())
    if not all(torch.equal(expected, other) for other in others):
        raise SystemExit("keep_windows and the other ways disagree")
    del others

    kind = "band" if window[0] == SHAPE[0] else "block"
    subject = f"keep {kind} {window[0]}x{window[1]}, {count}x{windows}x3x768x1024"
    name = "keep_windows"
    size = buffer.nbytes + 4 * 3 * len(buffer) * window[0] * window[1]  # all written, windows read
    new, filled = seconds(fresh), seconds(into)
    # Measured again: the kernel has requested huge pages, which may make the fill faster.
    limit = min(before, seconds(lambda: buffer.fill_(FILL)))
    return [
        Row(
            subject,
            name,
            new,
            "roll + where",
            seconds(lambda: rolled(images, places, window)),
            bytes=size,
        ),
        Row(
            subject,
            name,
            new,
            "full + slices",
            seconds(lambda: sliced(images, places, window)),
            bytes=size,
        ),
        Row(subject, name, new, "twin", seconds(twin), bytes=size),
        Row(
            subject,
            name,
            new,
            "full",
            seconds(lambda: torch.full_like(buffer, FILL)),
            bytes=size,
            limit=True,
        ),
        Row(subject, f"{name} out=", filled, "fill_", limit, 1.3, bytes=size, limit=True),
    ]


def backward(count: int, windows: int, window: tuple[int, int]) -> list[Row]:
    images = torch.zeros(count, 3, *SHAPE, requires_grad=True)
    stream = Stream(2, "places")
    top_left = torch.tensor(
        [[int(stream.integers(size)) for size in SHAPE] for _ in range(windows)]
    )
    upstream = torch.from_numpy(
        Stream(0, "grad").uniform(size=(count * windows, 3, *SHAPE))
    ).float()

    def pull(op: Callable[..., Tensor]) -> tuple[Tensor, float]:
        kept = op(images, top_left, window, fill=FILL)

        def back() -> Tensor:
            (grad,) = torch.autograd.grad(kept, images, upstream, retain_graph=True)
            return grad

        return back(), seconds(back)

    (grad, time), (expected, twin) = pull(keep_windows), pull(keep_windows_reference)
    if not torch.equal(grad, expected):
        raise SystemExit("keep_windows and its twin disagree in the gradient")
    subject = f"keep {window[0]}x{window[1]} backward, {count}x{windows}x3x768x1024"
    size = images.nbytes + 4 * 3 * len(upstream) * window[0] * window[1]  # only windows are read
    name, fill = "keep_windows backward", seconds(lambda: images.detach().fill_(0.0))
    return [
        Row(subject, name, time, "twin", twin, bytes=size),
        Row(subject, name, time, "fill of the gradient", fill, bytes=size, limit=True),
    ]


def rows() -> list[Row]:
    band, block = (SHAPE[0], 100), (200, 200)
    return [
        *case(16, 1, band),
        *case(16, 1, block),
        *case(1, 16, band),
        *case(1, 16, block),
        *backward(16, 1, band),
        *backward(1, 16, block),
    ]
