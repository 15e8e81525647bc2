"""Calling an attack on images: a run in memory, with tensors as its result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pycc.attack.base import PatchAttack
from pycc.attack.engine import execute
from pycc.attack.evaluation.builder import Member
from pycc.attack.evaluation.plan import Surrogates
from pycc.attack.result import AttackResult, AttackRow, stacked
from pycc.checks import check_image, check_images, check_type
from pycc.types import Counter, Sample


def attack_images(
    attack: PatchAttack,
    counter: Counter,
    images: Tensor | Sequence[Tensor],
    *,
    points: Sequence[Tensor] | None = None,
    seed: int = 0,
) -> AttackResult:
    """The result of ``attack(counter, images)``: see ``PatchAttack.__call__``."""
    samples = _samples(type(attack).__name__, images, points)
    train = samples if attack.is_universal else None
    victim = Member(counter)
    done = execute(
        [Surrogates(None, (victim,), (victim,))], samples, attack, seed=seed, train=train,
        unseen=False, compare=False, checks=False,
    )  # fmt: skip
    clean = [row for row in done.rows if row.condition == "clean"]
    rows = [row for row in done.rows if row.condition == attack.name]
    patches, device = done.patches, images[0].device
    attacked = [done.images(row.index)[_file(row)].to(device) for row in rows]
    return AttackResult(
        images=stacked(attacked),
        patches=stacked([patches[_file(row)].to(device) for row in rows]),
        places=torch.tensor([row.top_left for row in rows]),
        clean_counts=torch.tensor([row.count for row in clean], dtype=torch.float64),
        attacked_counts=torch.tensor([row.count for row in rows], dtype=torch.float64),
        loss_history=torch.tensor([row.loss_history for row in rows], dtype=torch.float64),
    )


def _file(row: AttackRow) -> str:
    assert row.file is not None  # rows of attacks have one
    return row.file


def _samples(
    kind: str, images: Tensor | Sequence[Tensor], points: Sequence[Tensor] | None
) -> list[Sample]:
    if isinstance(images, Tensor):
        check_images(kind, images)
    elif isinstance(images, Sequence) and not isinstance(images, str):
        if not images:
            raise ValueError(f"{kind}: images must be at least one, got none")
        for image in images:
            if isinstance(image, Sample):
                raise TypeError(f"{kind}: images must be tensors, got samples; use pycc.attack.run")
            check_image(kind, image)
    else:
        raise TypeError(
            f"{kind}: images must be a tensor [N,3,H,W] or a list of tensors [3,H,W], got "
            f"{type(images).__name__}"
        )
    if points is not None and len(points) != len(images):
        raise ValueError(
            f"{kind}: points must be one tensor [M,2] for each of {len(images)} images, "
            f"got {len(points)}"
        )
    for each in points or ():
        check_type(kind, "points", each, Tensor, "one tensor [M,2] for each image")
    return [
        Sample(
            f"image {index}",
            image.detach().cpu().float(),
            None if points is None else points[index].detach().cpu().double(),
        )
        for index, image in enumerate(images)
    ]
