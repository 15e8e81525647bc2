"""Validation: the error that chooses the best weights, under the recipe that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from pycc.attack import InnerAttack
from pycc.counters import count_of, device_of
from pycc.defense.ablated_maps import Elements, Pixels, ablated_maps
from pycc.grid import in_region
from pycc.models.recipe import Crop
from pycc.random import Stream
from pycc.ranks import Ranks
from pycc.train import schedule
from pycc.train.certified import CertifiedError
from pycc.train.config import TrainConfig
from pycc.train.held import measured
from pycc.train.items import Ablation, Items
from pycc.train.results import ValidationRow
from pycc.types import Counter, Sample

DRAWS = 4
"""Ablated draws of a validation image: the first ones of ``pycc.defense.ablated`` of the seed."""


class Validator:
    """Measures a counter on the images that only validate.

    Always the MAE on whole images, unchanged. Once the recipe is in force, the error under the
    recipe chooses the best weights and stops the training:

    * plain: that MAE, from the first epoch on;
    * ablation, after its warm-up: the MAE of the mean of ``DRAWS`` ablated draws of each image, of
      which k pixels of the whole are kept, the same in every epoch;
    * certified, after its warm-up: the mean over images of the largest error of the masked count
      that a patch can cause;
    * adversarial, after warm-up and decline: lambda x the MAE + (1 - lambda) x that of the same
      images with a patch, made anew each time, from the same start at the same place.
    """

    def __init__(
        self,
        config: TrainConfig,
        items: Items,
        held: Sequence[int],
        ablation: Ablation | None,
        inner_attack: InnerAttack | None,
    ) -> None:
        self.config, self.samples, self.held = config, items.samples, list(held)
        self.seed, self.ablation, self.inner_attack = items.seed, ablation, inner_attack
        uncropped = Crop("whole", multiple=items.recipe.crop.multiple)
        recipe = replace(items.recipe, crop=uncropped, flip=0.0, augmentations=())
        self._uncropped = Items(items.samples, held, recipe, items.stride, seed=items.seed)
        self.certified: CertifiedError | None = None
        """The error under the recipe ``certified``."""
        self.first_epoch = sum(config.phases)
        """The first epoch that can be the best."""

    def __call__(self, counter: Counter, epoch: int, ranks: Ranks) -> ValidationRow:
        """The errors of a counter, and the score that chooses, once the recipe is in force.

        NotFiniteError for counts that are not finite.
        """
        errors = measured(counter, self.samples, self.held, ranks)
        if epoch < self.first_epoch:
            return ValidationRow(epoch, errors)
        if self.config.recipe == "plain":
            return ValidationRow(epoch, errors, score=errors.mae)
        counts = {
            "ablation": self._ablated, "certified": self._worst, "adversarial": self._patched,
        }  # fmt: skip
        count = counts[self.config.recipe]
        mae = measured(counter, self.samples, self.held, ranks, count=count).mae
        if self.config.recipe == "certified":
            return ValidationRow(epoch, errors, score=mae, certified_mae=mae)
        if self.config.recipe == "ablation":
            return ValidationRow(epoch, errors, score=mae, ablated_mae=mae)
        clean = schedule.clean_share(epoch, *self.config.phases)
        score = clean * errors.mae + (1.0 - clean) * mae
        return ValidationRow(epoch, errors, score=score, patched_mae=mae)

    def _ablated(self, counter: Counter, sample: Sample, index: int) -> float:
        assert self.ablation is not None
        kind = (Elements if self.ablation.unit == "element" else Pixels)(self.ablation.k)
        draws = ablated_maps(
            counter, sample.image.to(device_of(counter)), kind, draws=DRAWS, seed=self.seed,
            fill=self.ablation.fill,
        )  # fmt: skip
        density = torch.cat([maps for _, maps in draws]).double().mean(0, keepdim=True)
        return float(in_region(density, sample.roi, counter.stride).sum())

    def _worst(self, counter: Counter, sample: Sample, index: int) -> float:
        assert self.certified is not None
        return self.certified.worst_count(counter, sample)

    def _patched(self, counter: Counter, sample: Sample, index: int) -> float:
        assert self.inner_attack is not None
        item = self._uncropped[0, self.held.index(index)]
        key = Stream(self.seed, f"train, validation patch, {sample.name}")
        device = device_of(counter)
        attacked = self.inner_attack(
            counter, item.image.to(device), item.target.to(device), int(key.words(1)[0]),
            region=None if item.region is None else item.region.to(device),
        )  # fmt: skip
        image = sample.image.clone()
        image[:, : item.image.shape[1], : item.image.shape[2]] = attacked
        return count_of(counter, replace(sample, image=image))


def check_images(config: TrainConfig, items: Items, ablation: Ablation | None) -> None:
    """ValueError, naming the image, for one too small for the k or the patch of the config.

    Images that only validate are checked too. Every image is read.
    """
    if config.recipe == "plain":
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
        uncropped = (side // items.step * items.step for side in (height, width))
        if config.patch_size > min(*sides, *uncropped):
            raise ValueError(
                f"train: {sample.name}: crops of {sides[0]}x{sides[1]} of an image of {height}x"
                f"{width} do not hold a patch of {config.patch_size} pixels; ask for a smaller "
                "--patch-size, or larger crops (--crop whole)"
            )
