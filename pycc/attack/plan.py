"""Whom patches are made on and tried on, and which images are worked on together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pycc.attack.base import PatchAttack
from pycc.attack.patch import Place
from pycc.attack.stage import Member, Stage
from pycc.attack.survey import Item

_BATCH_PIXELS = 1 << 19
"""Most pixels of windows that are attacked together. Not read from the machine, so that a batch,
and with it every bit of a result, is a function of the images and settings."""


@dataclass(frozen=True)
class Source:
    """Whom patches are optimised on, and on whom they are tried."""

    label: str | None
    """Its name; None where the victim itself is attacked (white-box)."""
    members: tuple[Member, ...]
    victims: tuple[Member, ...]

    def is_white_box(self, victim: Member) -> bool:
        """Whether the patches are made on this victim alone."""
        return len(self.members) == 1 and self.members[0] is victim


def everyone(sources: Sequence[Source]) -> list[Member]:
    """The counters of all sources, each once."""
    return list({id(m): m for s in sources for m in (*s.victims, *s.members)}.values())


def batches(
    attack: PatchAttack, stage: Stage, items: Sequence[Item], places: Sequence[Place]
) -> list[tuple[list[Item], list[Place]]]:
    """Items of one kind together, as many as a batch holds, as evenly as they go."""
    groups: dict[tuple[object, ...], list[tuple[Item, Place]]] = {}
    for item, place in zip(items, places, strict=True):
        groups.setdefault(stage.kind(attack, item, place), []).append((item, place))
    plan = []
    for pairs in groups.values():
        most = max(1, _BATCH_PIXELS // stage.pixels(attack, *pairs[0]))
        even = math.ceil(len(pairs) / math.ceil(len(pairs) / most))
        for start in range(0, len(pairs), even):
            part = pairs[start : start + even]
            plan.append(([item for item, _ in part], [place for _, place in part]))
    return plan
