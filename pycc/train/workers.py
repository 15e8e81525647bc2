"""Batches of items, loaded by this process or by others, whose failures are told as its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pycc.train.items import Item, Items

Key = tuple[int, int]
"""(epoch, number) of an item."""


class Loader:
    """Loads the batches of a training; ``workers`` processes load ahead, and live as long as it.

    Each of them keeps the images that it has met: what 10 processes have read takes 10 times the
    memory of one.
    """

    def __init__(self, items: Items, workers: int) -> None:
        self._items = items
        self._batches = _Batches()
        self._others: Any = None
        if workers:
            self._others = torch.utils.data.DataLoader(
                _Told(items), batch_sampler=self._batches, num_workers=workers, collate_fn=list,
                persistent_workers=True,
            )  # fmt: skip

    def __call__(self, batches: Sequence[list[Key]]) -> Iterator[list[Item]]:
        """The items of each batch, in order.

        What an item raises arrives as it was raised. ChildProcessError where a process dies (killed
        for memory, a full /dev/shm).
        """
        if self._others is None:
            for keys in batches:
                yield [self._items[key] for key in keys]
            return
        self._batches.keys = batches
        try:
            for batch in self._others:
                for item in batch:
                    if isinstance(item, Exception):
                        raise item
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ChildProcessError(f"a process that loads images died: {error}") from None


class _Batches:
    """What the loading processes are asked for next: torch takes an object, and asks it anew."""

    keys: Sequence[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class _Told(torch.utils.data.Dataset[Any]):
    """Items, or what they raise: torch would pack that into a text of many lines."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __getitem__(self, key: Key) -> Item | Exception:
        try:
            return self.items[key]
        except (ValueError, OSError, ImportError, MemoryError) as error:
            return error
