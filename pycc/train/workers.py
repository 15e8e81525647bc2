"""Batches of items, loaded by this process or by others; failures of these are raised here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pycc.train.items import Item, Items

Key = tuple[int, int]
"""(epoch, number) of an item."""


class Loader:
    """Loads the batches of a training; ``workers`` processes load ahead, until the training ends.

    Each process has a cache of its own: 10 processes take 10 times the memory of one.
    """

    def __init__(self, items: Items, workers: int) -> None:
        self._items = items
        self._batches = _Batches()
        self._others: torch.utils.data.DataLoader[Item | Exception] | None = None
        if workers:
            self._others = torch.utils.data.DataLoader(
                _ItemsOrErrors(items), batch_sampler=self._batches, num_workers=workers,
                collate_fn=list, persistent_workers=True,
            )  # fmt: skip

    def __call__(self, batches: Sequence[list[Key]]) -> Iterator[list[Item]]:
        """The items of each batch, in order.

        An item's exception is raised unchanged. ChildProcessError if a process dies (killed for
        memory, a full /dev/shm).
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
    """The batches that are loaded next: torch takes an object, and reads it in each epoch."""

    keys: Sequence[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class _ItemsOrErrors(torch.utils.data.Dataset[Item | Exception]):
    """Items, or the exceptions that they raise: torch would wrap these in a long text."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __getitem__(self, key: Key) -> Item | Exception:
        try:
            return self.items[key]
        except (ValueError, OSError, ImportError, MemoryError) as error:
            return error
