"""Small crowds: samples, a folder of them, and weights of a counter that reacts to them."""

from __future__ import annotations

from pathlib import Path

import torch

from pycc import models
from pycc.data import save_image
from pycc.types import Sample


def make_sample(
    index: int = 0, shape: tuple[int, int] = (64, 80), heads: int = 9, region: bool = False
) -> Sample:
    """A random picture with random heads; the region of interest is its right part."""
    generator = torch.Generator().manual_seed(100 + index)
    image = (torch.rand(3, *shape, generator=generator) * 255).round() / 255
    points = torch.rand(heads, 2, generator=generator, dtype=torch.float64)
    mask = None
    if region:
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[5:, 30:] = True
    return Sample(f"scene {index}", image, points * torch.tensor([shape[1], shape[0]]), mask)


def write_folder(root: Path) -> Path:
    """Write a data set of three small images with points in CSV files; returns ``root``."""
    root.mkdir()
    for index, shape in enumerate([(48, 64), (48, 64), (52, 60)]):
        sample = make_sample(index, shape)
        name = sample.name.replace(" ", "_")
        save_image(root / f"{name}.png", sample.image)
        lines = [f"{x},{y}" for x, y in sample.points.tolist()]
        (root / f"{name}.csv").write_text("x,y\n" + "\n".join(lines))
    return root


def write_weights(path: Path) -> Path:
    """Write weights of an MCNN whose count depends on the image; returns ``path``."""
    counter = models.create("mcnn")
    generator = torch.Generator().manual_seed(2)
    for parameter in counter.parameters():
        draw = torch.randn(parameter.shape, generator=generator)
        fan = parameter[0].numel() if parameter.ndim > 1 else 10_000
        parameter.data.copy_(draw * (2 / fan) ** 0.5)
    counter.net.fuse[0].conv.weight.data.abs_().mul_(1e-3)
    models.save(counter, path, metadata={})
    return path
