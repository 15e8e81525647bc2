"""The counters that patches are made on and tried on, and the batches of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pycc.attack.base import PatchAttack
from pycc.attack.evaluation.builder import Member, ProblemBuilder
from pycc.attack.evaluation.checked import CheckedImage
from pycc.attack.patch import Place

_BATCH_PIXELS = 1 << 19
"""Most pixels of windows that are attacked together. Not read from the machine, so that a batch,
and with it every bit of a result, is a function of the images and settings."""


@dataclass(frozen=True)
class Surrogates:
    """The counters that patches are optimised on, and the victims that they are tried on."""

    label: str | None
    """The name of the surrogates; None if the victim itself is attacked (white-box)."""
    members: tuple[Member, ...]
    victims: tuple[Member, ...]

    def is_white_box(self, victim: Member) -> bool:
        """Whether the patches are made on this victim alone."""
        return len(self.members) == 1 and self.members[0] is victim


def all_members(surrogates: Sequence[Surrogates]) -> list[Member]:
    """The surrogates and victims, each once."""
    return list({id(m): m for s in surrogates for m in (*s.victims, *s.members)}.values())


def batches(
    attack: PatchAttack,
    builder: ProblemBuilder,
    items: Sequence[CheckedImage],
    places: Sequence[Place],
) -> list[tuple[list[CheckedImage], list[Place]]]:
    """Batches of images of one kind, as large as allowed and as even as possible."""
    groups: dict[tuple[object, ...], list[tuple[CheckedImage, Place]]] = {}
    for item, place in zip(items, places, strict=True):
        groups.setdefault(builder.kind(attack, item, place), []).append((item, place))
    plan = []
    for pairs in groups.values():
        most = max(1, _BATCH_PIXELS // builder.pixels(attack, *pairs[0]))
        even = math.ceil(len(pairs) / math.ceil(len(pairs) / most))
        for start in range(0, len(pairs), even):
            part = pairs[start : start + even]
            plan.append(([item for item, _ in part], [place for _, place in part]))
    return plan
