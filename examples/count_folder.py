"""Count a folder of images, a large one in tiles. As a command: pycc count FOLDER."""

from pathlib import Path

import pycc
from pycc import data, models
from pycc.report import draw_overlay

counter = models.load("mcnn-synthetic")  # or a file with published weights
samples = data.open("synthetic", split="test", limit=2)  # or a folder

counts = pycc.count(counter, samples, max_pixels=200_000)
for counted in counts:
    print(f"{counted.name}: {counted.count:.1f} people, {counted.truth} annotated")
picture = Path("count_folder.png")
draw_overlay(picture, samples[1].image, counts[1].density, counter.stride)
