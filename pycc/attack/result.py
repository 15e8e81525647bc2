"""The results of attacks: tensors of one call, and the rows of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycc.attack.evaluation.recorder import with_patch
from pycc.data import load_image, quantize
from pycc.report import AttackSummary, Check
from pycc.runs import Record, Run
from pycc.types import Sample

if TYPE_CHECKING:
    from pycc.attack.base import PatchAttack


@dataclass(frozen=True, eq=False)
class AttackResult:
    """The result of calling an attack on N images.

    ``images`` and ``patches`` are lists of tensors if their sizes differ.

    >>> from pycc import models
    >>> from pycc.attack import APAM
    >>> attack = APAM(patch_size=16, steps=1, objective="over")
    >>> result = attack(models.load("mcnn-synthetic"), torch.rand(2, 3, 64, 64))
    >>> result.places.tolist(), list(result.loss_history.shape)
    ([[24, 24], [24, 24]], [2, 21])
    """

    images: Tensor | list[Tensor]
    """[N,3,H,W]: the attacked images, multiples of 1/255 in [0,1]."""
    patches: Tensor | list[Tensor]
    """[N,3,p,p]: the patches, multiples of 1/255 in [0,1], white outside their shape."""
    places: Tensor
    """[N,2] int64 (y, x): the top left pixel of each patch."""
    clean_counts: Tensor
    """[N] float64, people counted in the clean images, rounded to 8 bits."""
    attacked_counts: Tensor
    """[N] float64, people counted in the attacked images."""
    loss_history: Tensor
    """[N,K] float64: the objective's loss of the best patch so far, at 21 evenly spaced steps from
    the first to the last, one restart after the other."""


@dataclass(frozen=True)
class AttackRow:
    """The count of one image under one condition: one line of ``results.jsonl``.

    >>> record = {"index": 0, "image": "street", "condition": "clean", "patch_size": None,
    ...           "surrogates": None, "victim": None, "seed": 0, "height": 64, "width": 96,
    ...           "truth": 3, "count": 3.5, "area": 0.0, "cells": [16, 24]}
    >>> row = AttackRow.of(record)
    >>> row.condition, row.cells, row.top_left
    ('clean', (16, 24), None)
    """

    index: int
    """The image's position in the samples."""
    image: str
    """The image's name."""
    condition: str
    """``clean``, the name of an attack or of a baseline, or ``pgd``."""
    patch_size: int | float | None
    """As the attack has it: pixels, or a share of the width; None without patch."""
    surrogates: str | None
    """The counters that the patch was made on; None: the victim itself, or not optimised."""
    victim: str | None
    """The counter; None in a run of one counter."""
    seed: int
    height: int
    width: int
    truth: int | None
    """Annotated heads inside the region of interest; None without annotation."""
    count: float
    """People counted inside the region of interest."""
    area: float
    """The patch's share of the image's pixels."""
    cells: tuple[int, int]
    """(h, w) of the density map."""
    top_left: tuple[int, int] | None = None
    """(y, x) of the patch."""
    side: int | None = None
    """Pixels of the patch's side."""
    file: str | None = None
    """The stem of the files of a clean or attacked image; the key of ``patches`` and ``images``."""
    group: str | None = None
    """The group of the image, if the data set has groups."""
    reach: float | None = None
    """Cells of the region of interest that the patch can change."""
    loss_history: tuple[float, ...] = ()
    """As ``AttackResult.loss_history``; () for a patch that was not optimised."""
    zero_gradient: float | None = None
    """Share of the patch's pixels where the objective's first gradient is exactly 0."""
    unrounded: float | None = None
    """People that the patch adds before it is rounded to 8 bits."""

    @classmethod
    def of(cls, record: Record) -> AttackRow:
        """The row of a JSON record."""
        values = {entry.name: record[entry.name] for entry in fields(cls) if entry.name in record}
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values | lists)


class AttackRun:
    """The results of a run: rows, summary, checks, patches and images.

    With a run folder, patches are read from it; without one, they are kept in memory. Attacked
    images are made anew from the samples and the patches.

    >>> from pycc import data, models
    >>> from pycc.attack import APAM, run
    >>> samples = data.open("synthetic", split="test", limit=1)
    >>> attack = APAM(patch_size=16, steps=1, objective="over")
    >>> counter = models.load("mcnn-synthetic")
    >>> done = run(counter, samples, attack, pgd=None, compare=False, checks=False)
    >>> sorted(done.patches) == [row.file for row in done.rows if row.condition == "apam"]
    True
    """

    def __init__(
        self,
        run: Run,
        records: Sequence[Record],
        summary: AttackSummary,
        samples: Sequence[Sample],
        attacks: Sequence[PatchAttack],
        patches: dict[str, Tensor],
    ) -> None:
        self.run = run
        """The run itself: its manifest, records and folder."""
        self.rows = tuple(AttackRow.of(record) for record in records)
        """One row for each image and condition, in the order of the settings."""
        self.summary = summary
        """Means for each condition, size and victim, and the checks; empty in all processes of
        torchrun but the first."""
        self._samples, self._patches = samples, patches
        self._attacks = {(attack.name, attack.patch_size): attack for attack in attacks}

    @property
    def checks(self) -> tuple[Check, ...]:
        """The outcomes of the sanity checks; () without checks."""
        return self.summary.checks

    @property
    def folder(self) -> Path | None:
        """The run folder; None for a run in memory."""
        return self.run.path

    @property
    def patches(self) -> dict[str, Tensor]:
        """The optimised patches [3,p,p], multiples of 1/255, white outside their shape."""
        return {
            row.file: self._patch(row.file)
            for row in self.rows
            if row.file is not None and row.top_left is not None
        }

    def _patch(self, file: str) -> Tensor:
        if self.folder is None:
            return self._patches[file]
        return load_image(self.folder / "patches" / f"{file}.png")

    def images(self, index: int) -> dict[str, Tensor]:
        """The clean and attacked images [3,H,W] of sample ``index``, by the ``file`` of their rows.

        Multiples of 1/255: the images that were counted.
        """
        sample = self._samples[index]
        images: dict[str, Tensor] = {}
        for row in self.rows:
            if row.index != index or row.file is None or row.file in images:
                continue
            image = sample.image
            if row.top_left is not None and row.side is not None:
                patch_mask = self._attacks[row.condition, row.patch_size or 0].patch_mask(row.side)
                image = with_patch(image, self._patch(row.file), row.top_left, patch_mask)
            images[row.file] = quantize(image)
        return images


def stacked(tensors: Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Tensors of one shape as one tensor; a list if their shapes differ."""
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(list(tensors))
    return list(tensors)
