"""What validation chooses by: the error under the recipe that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pycc.counters import count_of, device_of
from pycc.defense.ablated_maps import Elements, Pixels, ablated_maps
from pycc.grid import in_region
from pycc.models.recipe import Crop
from pycc.random import Stream
from pycc.ranks import Ranks
from pycc.train import schedule
from pycc.train.held import measured
from pycc.train.items import Ablation, Items
from pycc.train.plan import Plan
from pycc.train.step import Adversary
from pycc.types import Counter, Sample

DRAWS = 4
"""Ablated draws of a validation image: the first ones of ``pycc.defense.ablated`` of the seed."""


class Judge:
    """Measures a counter on the images that only validate.

    Always the MAE on whole images as they are. Once the recipe is in force it is the error under
    the recipe that chooses the best weights and stops the training:

    * plain: that MAE, from the first epoch on;
    * ablation, after its warm-up: the MAE of the mean of ``DRAWS`` ablated draws of each image, of
      which k pixels of the whole are kept, the same in every epoch;
    * adversarial, after warm-up and decline: lambda x the MAE + (1 - lambda) x that of the same
      images with a patch, which the adversary makes anew, from the same start at the same place.
    """

    def __init__(
        self,
        plan: Plan,
        items: Items,
        held: Sequence[int],
        ablation: Ablation | None,
        adversary: Adversary | None,
    ) -> None:
        self.plan, self.samples, self.held = plan, items.samples, list(held)
        self.seed, self.ablation, self.adversary = items.seed, ablation, adversary
        whole = Crop("whole", multiple=items.recipe.crop.multiple)
        recipe = replace(items.recipe, crop=whole, flip=0.0, augmentation={})
        self._wholes = Items(items.samples, held, recipe, items.stride, seed=items.seed)
        self.begins = sum(plan.phases)
        """The first epoch that can be the best."""

    def __call__(self, counter: Counter, epoch: int, ranks: Ranks) -> dict[str, Any]:
        """What ``measured`` tells, and under ``score`` what chooses: less is better.

        ``score`` is missing before the recipe is in force; under ``ablated_mae`` and
        ``patched_mae`` stand the errors that it is made of. NotFiniteError for counts that are no
        numbers.
        """
        found = measured(counter, self.samples, self.held, ranks)
        if epoch < self.begins:
            return found
        if self.plan.recipe == "plain":
            return {**found, "score": found["mae"]}
        count = self._ablated if self.plan.recipe == "ablation" else self._patched
        error = measured(counter, self.samples, self.held, ranks, count=count)["mae"]
        if self.plan.recipe == "ablation":
            return {**found, "ablated_mae": error, "score": error}
        clean = schedule.clean_share(epoch, *self.plan.phases)
        score = clean * found["mae"] + (1.0 - clean) * error
        return {**found, "patched_mae": error, "score": score}

    def _ablated(self, counter: Counter, sample: Sample, index: int) -> float:
        assert self.ablation is not None
        kind = (Elements if self.ablation.unit == "element" else Pixels)(self.ablation.k)
        found = ablated_maps(
            counter, sample.image.to(device_of(counter)), kind, draws=DRAWS, seed=self.seed,
            fill=self.ablation.fill,
        )  # fmt: skip
        density = torch.cat([maps for _, maps in found]).double().mean(0, keepdim=True)
        return float(in_region(density, sample.roi, counter.stride).sum())

    def _patched(self, counter: Counter, sample: Sample, index: int) -> float:
        assert self.adversary is not None
        item = self._wholes[0, self.held.index(index)]
        key = Stream(self.seed, f"train, validation patch, {sample.name}")
        device = device_of(counter)
        attacked = self.adversary(
            counter, item.image.to(device), item.target.to(device), int(key.words(1)[0]),
            region=None if item.region is None else item.region.to(device),
        )  # fmt: skip
        image = sample.image.clone()
        image[:, : item.image.shape[1], : item.image.shape[2]] = attacked
        return count_of(counter, replace(sample, image=image))


def check_images(plan: Plan, items: Items, ablation: Ablation | None) -> None:
    """ValueError, naming the image, for one too small for the k or the patch of the plan.

    Those that only validate are among them. Every image is read.
    """
    if plan.recipe == "plain":
        return
    for index in range(len(items.samples)):
        sample = items.samples[index]
        height, width = sample.image.shape[1:]
        if ablation is not None:
            rows, columns = items.smallest((height, width))
            most = ablation.channels * rows * columns
            if ablation.k > most:
                raise ValueError(
                    f"train: {sample.name}: k must be at most the {most} {ablation.unit}s of an "
                    f"image of {rows}x{columns}, got {ablation.k}"
                )
            continue
        sides = items.sides((height, width))
        whole = (side // items.step * items.step for side in (height, width))
        if plan.patch > min(*sides, *whole):
            raise ValueError(
                f"train: {sample.name}: crops of {sides[0]}x{sides[1]} of an image of {height}x"
                f"{width} do not hold a patch of {plan.patch} pixels; ask for a smaller --patch, "
                "or larger crops (--crop whole)"
            )
