"""Speed of one white-box step on MCNN: local evaluation against the whole image.

    python bench/attack.py [--no-store] [--quick]

A step is the count's gradient by the patch, forward and backward, without transform. The ways are
first checked to agree. Memory is what a step adds to the peak of a separate process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timer import Row, check, compare, seconds, store, table
from torch import Tensor
from torch.nn import functional

from pycc import data, models
from pycc.local import Box, Local, TracedGraph, aligned, influence, thin
from pycc.random import Stream
from pycc.types import Counter

SHAPE = (768, 1024)
TARGETS = {20: 70, 40: 45, 81: 28, 163: 13}
ROWS = 8
WAYS = ("whole image", "window", "local", f"local, {ROWS} images")
Step = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Scene:
    """An image, and a patch at one place of it."""

    counter: Counter
    image: Tensor
    """[1,3,H,W]."""
    patch: Tensor
    """[3,p,p]."""
    top: int
    left: int

    @classmethod
    def make(cls, side: int) -> Scene:
        counter = models.load("mcnn-synthetic")
        counter.requires_grad_(False)
        sample = data.open("synthetic", split="test", shape=SHAPE)[0]
        patch = Stream(0, "patch").uniform(size=(3, side, side))
        return cls(counter, sample.image[None], torch.from_numpy(patch).float(), 301, 402)

    def boxes(self) -> tuple[Box, Box]:
        """Return the window, and the box inside it that is passed to ``Local``."""
        side = self.patch.shape[-1]
        stride, field = self.counter.stride, self.counter.receptive_field
        extent = Box(self.top, self.left, self.top + side, self.left + side)
        changed = aligned(extent, SHAPE, stride)
        window = influence(changed, SHAPE, stride=stride, receptive_field=field)
        return window, changed.moved(-window.top, -window.left)

    def paste(self, images: Tensor, patch: Tensor, moved: Box) -> Tensor:
        """Paste the patch (or one per image) into images that begin at the corner of ``moved``."""
        side = patch.shape[-1]
        top, left = self.top - moved.top, self.left - moved.left
        attacked = images.clone()
        attacked[..., top : top + side, left : left + side] = patch
        return attacked

    def step(self, way: str) -> Step:
        """Return a step: it computes the count (up to a constant) and its gradient by the patch."""
        window, inner = self.boxes()
        rows = ROWS if way == WAYS[3] else 1
        images, moved = self.image, Box(0, 0, 0, 0)
        if way != WAYS[0]:
            images, moved = self.image[..., *window.slices], window
        network: Callable[[Tensor], Tensor] = self.counter
        if way in WAYS[2:]:
            images = images.expand(rows, -1, -1, -1).contiguous()
            network = Local(self.counter, images, inner, traced=TracedGraph(self.counter))
            if not network.follows_layers:
                raise SystemExit("Local does not follow the layers")
            images = images[..., *inner.slices].contiguous()
            moved = inner.moved(window.top, window.left)
        with torch.no_grad():
            clean = network(images).sum((1, 2, 3))

        def run() -> tuple[Tensor, Tensor]:
            patch = self.patch.expand(rows, -1, -1, -1).clone().requires_grad_()
            loss = network(self.paste(images, patch, moved)).sum((1, 2, 3)) - clean
            (grad,) = torch.autograd.grad(loss.sum(), patch)
            return loss.detach(), grad

        return run


def convolutions(scene: Scene) -> Callable[[], None]:
    """Time only the convolutions of a step of ``local``, at its shapes: the machine's limit."""
    window, inner = scene.boxes()
    images = scene.image[..., *window.slices].expand(ROWS, -1, -1, -1).contiguous()
    local = Local(scene.counter, images, inner)
    calls: list[tuple[Tensor, Tensor, Tensor | None]] = []
    usual = functional.conv2d

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        calls.append((x.detach().requires_grad_(), weight, bias))
        return usual(x, weight, bias, **options)

    vars(functional)["conv2d"] = noted
    try:
        local(images[..., *inner.slices])
    finally:
        vars(functional)["conv2d"] = usual
    networks = [
        thin.convolution(weight, bias)
        if weight.shape[1] <= thin.MOST_CHANNELS
        else partial(usual, weight=weight, bias=bias)
        for _, weight, bias in calls
    ]
    pairs = [(network, call[0]) for network, call in zip(networks, calls, strict=True)]
    upstream = [torch.rand_like(network(x)) for network, x in pairs]

    def run() -> None:
        for (network, x), grad in zip(pairs, upstream, strict=True):
            torch.autograd.grad(network(x), x, grad)

    return run


def agree(scene: Scene) -> None:
    """Stop unless all ways have the same loss and gradient."""
    loss, slope = scene.step(WAYS[0])()
    for way in WAYS[1:]:
        losses, slopes = scene.step(way)()
        # The loss is a difference of two counts, which are sums of thousands of cells.
        count = float(scene.counter(scene.image).sum())
        if float((losses - loss).abs().max()) > 1e-5 * max(abs(count), abs(float(loss))):
            raise SystemExit(f"{way}: losses {losses.tolist()}, {loss.tolist()} expected")
        check(slopes, slope.expand_as(slopes), 1e-5)


def speed(side: int, budget: float) -> list[Row]:
    scene = Scene.make(side)
    agree(scene)
    times = {way: seconds(scene.step(way), budget=budget) for way in WAYS}
    times[WAYS[3]] /= ROWS
    limit = seconds(convolutions(scene), budget=budget) / ROWS
    subject = f"MCNN 768x1024, patch {side}x{side}, forward + backward per image"
    targets = {WAYS[3]: float(TARGETS[side])}
    rows = [
        Row(subject, way, times[way], WAYS[0], times[WAYS[0]], targets.get(way)) for way in WAYS[1:]
    ]
    name = f"its convolutions alone, {ROWS} images"
    return [*rows, Row(subject, WAYS[3], times[WAYS[3]], name, limit, limit=True)]


def peak() -> int:
    """Return the peak memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory(job: tuple[int, str]) -> int:
    """Return the bytes per image that preparing and taking one step adds to the peak memory.

    Before, everything is loaded and a step is taken on a small image.
    """
    side, way = job
    scene = Scene.make(side)
    small = scene.image[..., :96, :96].contiguous().requires_grad_()
    torch.autograd.grad(scene.counter(small).sum(), small)
    Local(scene.counter, small.detach(), Box(40, 40, 48, 48))(small.detach()[..., 40:48, 40:48])
    before = peak()
    scene.step(way)()
    return (peak() - before) // (ROWS if way == WAYS[3] else 1)


def held(pool: ProcessPoolExecutor, sides: Sequence[int]) -> list[dict[str, Any]]:
    jobs = [(side, way) for side in sides for way in WAYS]
    peaks = dict(zip(jobs, pool.map(memory, jobs), strict=True))
    note = "growth of ru_maxrss by preparing and taking one step, bytes per image"
    return [
        {
            "subject": f"MCNN 768x1024, patch {side}x{side}, memory of a step",
            "way": way,
            "bytes": peaks[side, way],
            "ratio": peaks[side, WAYS[0]] / max(peaks[side, way], 1),
            "note": note,
        }
        for side, way in jobs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-store", action="store_true", help="print only")
    parser.add_argument(
        "--quick", action="store_true", help="one size, few repetitions; not stored"
    )
    arguments = parser.parse_args()
    sides = [81] if arguments.quick else list(TARGETS)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        measure = partial(speed, budget=0.2 if arguments.quick else 4.0)
        rows = [row for rows in pool.map(measure, sides) for row in rows]
        memories = held(pool, sides)
    print(table(rows))
    print("\n| memory of a step | way | MB per image | whole image : this |\n|---|---|---|---|")
    for entry in memories:
        print("| {subject} | {way} | {0:.1f} | {ratio:.1f} |".format(entry["bytes"] / 1e6, **entry))
    compare("attack-cpu", rows)
    for row in rows:
        if not row.met:
            print(f"missed: {row.subject}, {row.kernel}: {row.ratio:,.2f} of {row.target:,g}")
    if not (arguments.no_store or arguments.quick):
        path = store("attack-cpu", rows)
        content = {**json.loads(path.read_text()), "memory": memories}
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"stored in {path}")


if __name__ == "__main__":
    main()
