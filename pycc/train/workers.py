"""Batches of items, loaded by this process or by others, whose failures are told as its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pycc.train.items import Item, Items

Key = tuple[int, int]
"""(epoch, number) of an item."""


def loaded(items: Items, batches: Sequence[list[Key]], workers: int) -> Iterator[list[Item]]:
    """The items of each batch, in order; with ``workers`` that many processes load ahead.

    What an item raises arrives as it was raised. ChildProcessError where a process dies (killed for
    memory, a full /dev/shm).
    """
    if workers == 0:
        for keys in batches:
            yield [items[key] for key in keys]
        return
    loader = torch.utils.data.DataLoader(
        _Told(items), batch_sampler=batches, num_workers=workers, collate_fn=list
    )
    try:
        for batch in loader:
            for item in batch:
                if isinstance(item, Exception):
                    raise item
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(f"a process that loads images died: {error}") from None


class _Told(torch.utils.data.Dataset[Any]):
    """Items, or what they raise: torch would pack that into a text of many lines."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __getitem__(self, key: Key) -> Item | Exception:
        try:
            return self.items[key]
        except (ValueError, OSError, ImportError, MemoryError) as error:
            return error
