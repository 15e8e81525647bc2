"""Cost of loading and ground truth beside a training step, MCNN on crops of 768x1024 images.

    python bench/train.py [--images N] [--epochs N] [--no-store]

The trainer's items (crops, flips, density maps made on the fly) with its step, against the bare
loop: the same model, loss and optimiser on prepared tensors. Both do the same steps and must end
with the same weights.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import replace
from functools import partial

import torch
from timer import Row, check, compare, store, table

from pycc import data, models
from pycc.ranks import Ranks
from pycc.train.config import TrainConfig, resolved
from pycc.train.items import Item, Items
from pycc.train.schedule import made
from pycc.train.step import Stepper

SHAPE = (768, 1024)
CROPS = 9
"""Per image and epoch; in the first epoch images are decoded and their maps made."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-store", action="store_true")
    parser.add_argument("--images", type=int, default=8, help="training images")
    parser.add_argument("--epochs", type=int, default=4, help="at least 2")
    options = parser.parse_args()
    measured = rows(options.images, options.epochs)
    print(table(measured))
    compare("train-cpu", measured)
    if not options.no_store:
        store("train-cpu", measured)


def rows(images: int, epochs: int) -> list[Row]:
    samples = list(data.open("synthetic", split="train", limit=images, shape=SHAPE))
    steps = CROPS * images
    start = models.load("mcnn-synthetic")
    recipe = resolved(TrainConfig(), start, "synthetic")
    recipe = replace(recipe, optimisers=(replace(recipe.optimisers[0], lr=1e-7),))
    keys = [(epoch, n) for epoch in range(epochs) for n in range(steps)]
    fresh = Items(samples, range(images), recipe, start.stride, seed=0)
    ready = [fresh[key] for key in keys]
    items = Items(samples, range(images), recipe, start.stride, seed=0)
    # Alternate, so that other load on the machine affects both equally.
    models_of = [copy.deepcopy(start), copy.deepcopy(start)]
    times = {epoch: [0.0, 0.0] for epoch in range(epochs)}
    optimisers = [made(recipe.optimisers[0], model.parameters()) for model in models_of]
    stepper = Stepper(models_of[0], TrainConfig(), 0, Ranks(), None)

    def trained(number: int, key: tuple[int, int]) -> None:
        optimisers[0].zero_grad(set_to_none=True)
        stepper.gradient(key[0], number, 1, [items[key]])
        optimisers[0].step()

    def bare(item: Item) -> None:
        optimisers[1].zero_grad(set_to_none=True)
        models_of[1].train()
        loss = models_of[1].loss(item.image[None], item.target[None])
        loss.backward()  # type: ignore[no-untyped-call]
        optimisers[1].step()

    for number, (key, item) in enumerate(zip(keys, ready, strict=True)):
        for which, step in enumerate((partial(trained, number, key), partial(bare, item))):
            begin = time.perf_counter()
            step()
            times[key[0]][which] += time.perf_counter() - begin
    for mine, plain in zip(*(model.parameters() for model in models_of), strict=True):
        check(mine.detach(), plain.detach(), 0.0)
    subject = f"training MCNN on quarter-side crops of {SHAPE[0]}x{SHAPE[1]}"
    measured = []
    for when, part in (("first epoch", [0]), ("later epochs", list(range(1, epochs)))):
        mine, plain = (
            sum(times[epoch][which] for epoch in part) / len(part) / steps for which in (0, 1)
        )
        measured.append(
            Row(f"{subject}, {when}", "a step with its item", mine, "bare step", plain, 0.95)
        )
    return measured


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
