"""Make the density map of head annotations."""

from pathlib import Path

from pycc import data, ops
from pycc.report import draw_overlay

sample = data.open("synthetic", split="test", limit=1)[0]
heads = sample.points.float()  # [N,2] (x, y), pixels
sigma = ops.adaptive_sigma(heads, neighbours=3)
density = ops.density_map(heads, sigma, (480, 640), boundary="renormalize", stride=4)
print(f"{tuple(density.shape)} cells, {density.sum():.3f} people")
draw_overlay(Path("density_map.png"), sample.image, density, 4, heads=sample.points)
