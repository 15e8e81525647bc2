"""Time per megapixel of rendering the built-in scenes, on one thread.

python bench/data.py [--no-store]
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timer import Row, compare, seconds, store, table

from pycc.data.synthetic import scene

BUDGET = 0.3  # seconds per megapixel


def scenes(shape: tuple[int, int], heads: int) -> Row:
    """Return the mean over eight new scenes, after the first scene has filled the sprite cache."""
    megapixels = shape[0] * shape[1] / 1e6
    indices = range(8)
    scene(0, 0, shape=shape, heads=heads)
    total = sum(
        seconds(partial(scene, 0, index, shape=shape, heads=heads), budget=0.3) for index in indices
    )
    per_megapixel = total / len(indices) / megapixels
    subject = f"scene {shape[0]}x{shape[1]}, {heads} heads, per megapixel"
    return Row(subject, "scene", per_megapixel, "budget of 0.3 s", BUDGET, 1.0, bytes=12 * 10**6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-store", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        scenes(shape, heads)
        for shape in ((480, 640), (768, 1024), (1536, 2048))
        for heads in (20, 200, 800)
    ]
    print(table(rows))
    compare("data-cpu", rows)
    if not arguments.no_store:
        print(f"stored in {store('data-cpu', rows)}")


if __name__ == "__main__":
    main()
