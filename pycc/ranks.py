"""One process or several: how they share the work and exchange results.

The launcher is torchrun, which sets ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``. Without it there
is one process and no communication. Processes communicate through gloo on CPUs and nccl on CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

__all__ = ["Ranks", "exact", "own_device", "ranks"]
T = TypeVar("T")
U = TypeVar("U")

_LOST = ("connection closed", "connection reset", "connection refused", "broken pipe",
         "connection was likely closed", "remote process exited", "socket closed")  # fmt: skip
"""Parts of the messages of gloo, nccl and torchrun's store about a process that ended."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run: the number of this one (``rank``) and of all (``world``).

    >>> Ranks(rank=1, world=2).share(["a", "b", "c", "d"])
    ['b', 'd']
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the results of all."""
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> list[Any]:
        """Return this process's part of the items: every world-th, from the rank-th on."""
        return list(items[self.rank :: self.world])

    def gathered(self, part: Sequence[Any]) -> list[Any]:
        """Return the parts of all processes in the order that the items had before ``share``."""
        if self.world == 1:
            return list(part)
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, list(part))
        total = sum(map(len, parts))
        return [parts[n % self.world][n // self.world] for n in range(total)]

    def agreed(self, value: T) -> T:
        """Return the first process's ``value`` in all processes."""
        first: T = self.gathered([value] if self.first else [])[0]
        return first

    def mapped(self, work: Callable[[T], U], items: Sequence[T]) -> Iterator[U]:
        """``work`` of each item, in order: every process does its share and gets all results.

        Each round is one item per process, so that results arrive as the work goes on.
        """
        for start in range(0, len(items), self.world):
            part = self.share(items[start : start + self.world])
            yield from self.gathered([work(item) for item in part])

    def same(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors with their values on the first process."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), 0)

    def wait(self) -> None:
        """Wait until all processes have arrived here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun started; ``device`` is this process's (``own_device``).

    It becomes the current CUDA device. ValueError for environment variables that are not whole
    numbers; ChildProcessError if another process ended while this one waited for it.

    >>> with ranks(torch.device("cpu")) as processes:
    ...     processes
    Ranks(rank=0, world=1)
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
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
    # Processes wait for the slowest, which may need hours for its share; torchrun ends all of
    # them if one dies.
    patience = timedelta(days=7)
    if device.type == "cuda":
        distributed.init_process_group("nccl", timeout=patience, device_id=device)
    else:
        distributed.init_process_group("gloo", timeout=patience)
    try:
        yield Ranks(rank, world)
    except RuntimeError as error:
        if not any(text in str(error).lower() for text in _LOST):
            raise
        raise ChildProcessError(
            "torchrun: another process of this run ended; its own message says why, or it was "
            "killed (for memory, say)"
        ) from None
    finally:
        with suppress(RuntimeError):  # of processes that are gone
            distributed.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process: for ``cuda`` without a number, the GPU of ``LOCAL_RANK``.

    ValueError if the machine has fewer GPUs than processes, or if several processes would share one
    GPU.

    >>> own_device(torch.device("cpu"))
    device(type='cpu')
    """
    if device.type != "cuda":
        return device
    if device.index is not None:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise ValueError(
                f"torchrun: each process needs a GPU of its own, give --device cuda; got {device}"
            )
        return device
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise ValueError(
            f"torchrun: expected a GPU for each process of this machine, got process {number + 1} "
            f"and {there} GPUs"
        )
    return torch.device("cuda", number)


@contextmanager
def exact() -> Iterator[None]:
    """Make convolutions on CUDA deterministic, at the full precision of float32.

    Counts are then those of a CPU but for rounding: TF32, which torch uses otherwise, rounds to 10
    bits instead of 23. Other layers may still add in any order (the gradients of interpolation and
    of adaptive pooling). Also a decorator: ``@exact()``.

    >>> with exact():
    ...     torch.backends.cudnn.deterministic
    True
    """
    with torch.backends.cudnn.flags(
        enabled=True, deterministic=True, benchmark=False, allow_tf32=False
    ):
        yield
