"""Fit the completion networks of the built-in counter, which ``pycc certify`` takes by default.

``python tools/fit_builtin_completions.py`` renders training scenes, counts them with the weights
``mcnn-synthetic`` and writes one network for each published patch size, rounded to half precision,
into the package. The result depends on the scenes, the seed and the arithmetic of the machine.
"""

from __future__ import annotations

import argparse

from pycc import certify, data, defense, models
from pycc.certify import Completion
from pycc.certify.engine import PATCH_SIZES
from pycc.certify.methods.networks import PACKAGED
from pycc.commands.progress import TerminalProgress
from pycc.counters import identity
from pycc.runs import write_json

SHAPES = ((480, 640), (384, 512))
"""Sizes of the scenes."""


def main() -> None:
    """Count, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--scenes", type=int, default=60, help="training scenes of each size")
    given = parser.parse_args()
    counter = models.load("mcnn-synthetic")
    samples = [
        sample
        for shape in SHAPES
        for sample in data.open("synthetic", split="train", shape=shape, limit=given.scenes)
    ]
    progress = TerminalProgress("fit")
    calibration = certify.calibrate(
        counter, samples, method=Completion(refit=True), patch_sizes=PATCH_SIZES,
        source="synthetic, train", progress=progress,
    )  # fmt: skip
    progress.close()
    completions = []
    for fitted in calibration.completions:
        stored = fitted.json()
        stored["weights"] = fitted.model.network.halved().json()
        completions.append(stored)
    identities = [identity(counter), identity(defense.clipped(counter))]
    write_json(PACKAGED, {"identities": identities, "completions": completions})
    print(f"{PACKAGED}: {PACKAGED.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
