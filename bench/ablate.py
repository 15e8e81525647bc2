"""Randomized ablation of a batch: the kernel against torch's ways of drawing a set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timer import Row, seconds
from torch import Tensor

from pycc.ops import ablate, ablate_reference
from pycc.random import Stream

SHAPE = (16, 3, 768, 1024)
FILL = 0.5


def randperm(images: Tensor, k: int) -> Tensor:
    indices = [torch.randperm(images[0, 0].numel())[:k] for _ in images]
    return scattered(images, torch.stack(indices))


def rand_topk(images: Tensor, k: int) -> Tensor:
    return scattered(images, torch.rand(len(images), images[0, 0].numel()).topk(k).indices)


def multinomial(images: Tensor, k: int) -> Tensor:
    weights = torch.ones(len(images), images[0, 0].numel())
    return scattered(images, weights.multinomial(k))


def scattered(images: Tensor, indices: Tensor) -> Tensor:
    """Keep only the pixels [N,k] of images [N,C,H,W]."""
    index = indices[:, None].expand(-1, images.shape[1], -1)
    flat = images.flatten(2)
    return torch.full_like(flat, FILL).scatter_(2, index, flat.gather(2, index)).view_as(images)


IDIOMS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "randperm + scatter": randperm,
    "rand + topk + scatter": rand_topk,
    "multinomial + scatter": multinomial,
}


def check_kept(ablated: Tensor, images: Tensor, k: int) -> None:
    kept = (ablated != FILL).any(1)
    right = torch.where(kept[:, None], images, FILL)
    if not (
        torch.equal(kept.flatten(1).sum(1), torch.full((len(images),), k))
        and torch.equal(ablated, right)
    ):
        raise SystemExit(f"not every image keeps {k} pixels unchanged")


def compare(images: Tensor, k: int, most: float | None) -> list[Row]:
    """Measure one k; with ``out=``, the target is at most ``most`` times the time of a fill."""
    buffer = torch.empty_like(images)

    def fresh() -> Tensor:
        return ablate(images, k, seed=0, fill=FILL)

    def into() -> Tensor:
        return ablate(images, k, seed=0, fill=FILL, out=buffer)

    def twin() -> Tensor:
        return ablate_reference(images, k, seed=0, fill=FILL)

    idioms = {name: partial(idiom, images, k) for name, idiom in IDIOMS.items()}
    ways: list[Callable[[], Tensor]] = [fresh, into, *idioms.values()]
    for way in ways:
        check_kept(way(), images, k)
    if not torch.equal(into(), twin()):
        raise SystemExit("ablate and its twin disagree")
    subject = f"ablate {'x'.join(map(str, SHAPE))}, k = {k:,}"
    new, filled = seconds(fresh), seconds(into)
    times = {name: seconds(idiom) for name, idiom in idioms.items()}
    times["twin"] = seconds(twin)
    limit = seconds(lambda: buffer.fill_(FILL))
    size = buffer.nbytes + 12 * k * SHAPE[0]
    best = min(times[name] for name in IDIOMS)
    return [
        *(
            Row(subject, "ablate", new, name, time, 10 if time == best else None, bytes=size)
            for name, time in times.items()
        ),
        Row(subject, "ablate", new, "fill of existing memory", limit, bytes=size, limit=True),
        Row(subject, "ablate out=", filled, "fill of out", limit, most, bytes=size, limit=True),
    ]


def most_of_it(images: Tensor) -> Row:
    """Compare keeping 90 % with keeping 10 %, for which the dropped pixels are drawn instead."""
    buffer = torch.empty_like(images)
    pixels = images[0, 0].numel()

    def keep(k: int) -> float:
        check_kept(ablate(images, k, seed=0, fill=FILL, out=buffer), images, k)
        return seconds(lambda: ablate(images, k, seed=0, fill=FILL, out=buffer))

    few = pixels // 10
    subject = f"ablate {'x'.join(map(str, SHAPE))}, k = {pixels - few:,}"
    time, other = keep(pixels - few), keep(few)
    size = buffer.nbytes + 4 * images.numel() // 10 * 9
    return Row(subject, "ablate out=", time, f"k = {few:,}", other, 0.9, bytes=size)


def rows() -> list[Row]:
    images = torch.from_numpy(Stream(0, "images").uniform(1.0, 2.0, SHAPE)).float()
    pixels = SHAPE[2] * SHAPE[3]
    return [
        *compare(images, 45, 1.6),
        *compare(images, 5_000, 1.6),
        *compare(images, pixels // 10, None),
        most_of_it(images),
    ]
