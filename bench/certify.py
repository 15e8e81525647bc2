"""Cost of certificates beyond that of the counter, MCNN at 768x1024.

    python bench/certify.py [--no-store]

Masked, completed and capped counts and the check of the image's range against one forward pass;
pairs of masks against 666 passes over the whole image (some are timed, and the time is scaled); the
ablation of 1,000 draws of 45 pixels against the counter that evaluates them. Each is first checked
against the direct computation.
"""

from __future__ import annotations

import argparse
import time

import torch
from timer import Row, check, compare, seconds, store, table
from torch import Tensor

from pycc import data, models, ops
from pycc.certify.methods.additive import additive_of
from pycc.certify.methods.completion import completion_of
from pycc.certify.methods.masked import masked_of
from pycc.certify.methods.networks import packaged_completion
from pycc.checks import check_image
from pycc.counters import identity
from pycc.defense.capping import Caps
from pycc.defense.mask_pairs import hidden, mask_boxes, two_mask_table
from pycc.defense.min_max import WindowGrid
from pycc.defense.windows import window_of, window_sums

SHAPE = (768, 1024)
PATCH, MASKS, FILL = 81, 36, 0.45
DRAWS, KEPT = 1000, 45


@torch.no_grad()
def rows() -> list[Row]:
    counter = models.load("mcnn-synthetic").eval()
    image = data.open("synthetic", split="test", shape=SHAPE)[0].image
    cells = counter(image[None])[:, 0]
    forward = seconds(lambda: counter(image[None]), budget=3.0)
    subject = f"certificates, MCNN {SHAPE[0]}x{SHAPE[1]}, patch {PATCH}"
    window = window_of(counter, PATCH, SHAPE, (cells.shape[1], cells.shape[2]))
    completed = packaged_completion(identity(counter), PATCH, WindowGrid.of(window[0]))
    assert completed is not None
    measured = [
        Row(subject, name, seconds(call), "one forward pass", forward, least)
        for name, call, least in (
            ("masked interval", lambda: masked_of(cells, window, 20.0), 50),
            ("completed interval", lambda: completion_of(cells, completed.model), 1),
            ("capped interval", lambda: additive_of(cells, window, Caps(1.0, 20.0)), 50),
            ("check of the image's range", lambda: check_image("bench", image), 200),
        )
    ]
    check(torch.tensor([masked_of(cells, window, 0.0).count]), _masked(cells, window), 1e-6)
    measured.append(_pairs(subject, image, counter))
    measured.append(_ablation(subject, image, counter))
    return measured


def _masked(cells: Tensor, window: tuple[int, int]) -> Tensor:
    return (cells.double().sum() - window_sums(cells, window).max())[None]


def _pairs(subject: str, image: Tensor, counter: models.CounterModel) -> Row:
    """Count every pair of masks: local evaluation against whole images."""
    start = time.perf_counter()
    counts = two_mask_table(counter, image, patch_size=PATCH, masks=MASKS, fill=FILL)
    local = time.perf_counter() - start
    boxes = mask_boxes(SHAPE, patch_size=PATCH, masks=MASKS)
    colour = torch.full((3,), FILL)
    tried = [(m, n) for m in range(0, MASKS, 7) for n in range(m, MASKS, 9)]
    start = time.perf_counter()
    full = [
        float(counter(hidden(image, [boxes[m], boxes[n]], colour)[None]).double().sum())
        for m, n in tried
    ]
    a_pass = (time.perf_counter() - start) / len(tried)
    check(torch.stack([counts[m, n] for m, n in tried]), torch.tensor(full).double(), 1e-5)
    number = MASKS * (MASKS + 1) // 2
    name = f"{number} pairs of {MASKS} masks"
    return Row(subject, name, local, f"{number} passes", number * a_pass, 5)


def _ablation(subject: str, image: Tensor, counter: models.CounterModel) -> Row:
    """Time the ablation of draws, against the counter that evaluates them."""
    draws = 8
    out = torch.empty(draws, *image.shape)
    drawn = seconds(lambda: ops.ablate(image[None], KEPT, seed=0, fill=FILL, draws=draws, out=out))
    counted = seconds(lambda: counter(out), budget=5.0)
    scale = DRAWS / draws
    name = f"ablation of {DRAWS:,} draws of {KEPT} pixels"
    return Row(subject, name, drawn * scale, "counting them", counted * scale, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-store", action="store_true")
    options = parser.parse_args()
    measured = rows()
    print(table(measured))
    compare("certify-cpu", measured)
    if not options.no_store:
        store("certify-cpu", measured)


if __name__ == "__main__":
    main()
