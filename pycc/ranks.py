"""One process or many: who takes which part, and how they tell each other what they found.

The launcher is torchrun, which sets ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``; without it there
is one process and nothing to tell. Ranks talk over gloo on CPUs and over nccl on CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees them."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what all have found."""
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> list[Any]:
        """Every world-th item, from the rank-th on: this process's part."""
        return list(items[self.rank :: self.world])

    def gathered(self, part: Sequence[Any]) -> list[Any]:
        """The items whose shares the processes give, in the order before they were shared out."""
        if self.world == 1:
            return list(part)
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, list(part))
        total = sum(map(len, parts))
        return [parts[n % self.world][n // self.world] for n in range(total)]

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def ranks(device: torch.device) -> Iterator[Ranks]:
    """The processes that torchrun has started; ValueError for variables that make no sense."""
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if given["WORLD_SIZE"] in (None, "1"):
        yield Ranks()
        return
    try:
        rank, world = (int(str(value)) for value in given.values())
    except ValueError:
        raise ValueError(
            f"torchrun: RANK and WORLD_SIZE must be whole numbers, got {given['RANK']!r} and "
            f"{given['WORLD_SIZE']!r}"
        ) from None
    # Processes wait for the slowest, which may take hours over its share; torchrun ends them all
    # where one dies.
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=7)
    )
    try:
        yield Ranks(rank, world)
    finally:
        distributed.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """Of ``cuda`` without a number, the GPU of this process's ``LOCAL_RANK``."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device
