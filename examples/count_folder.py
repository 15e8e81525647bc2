"""Count a folder of images, a large one in tiles. As a command: pycc count FOLDER."""

import pycc
from pycc import data, models

counter = models.load("mcnn-synthetic")  # or a file with published weights
samples = data.open("synthetic", split="test", limit=2)  # or a folder

for counted in pycc.count(counter, samples, max_pixels=200_000):
    print(f"{counted.name}: {counted.count:.1f} people, {counted.truth} annotated")
