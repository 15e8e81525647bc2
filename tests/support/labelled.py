"""Folders of small images, for tests of annotation formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def add_images(folder: Path, *names: str, size: tuple[int, int] = (40, 20)) -> Path:
    """Write images of this (width, height), each of its own colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        colour = np.random.default_rng(list(name.encode())).integers(0, 256, 3, np.uint8)
        Image.new("RGB", size, tuple(colour.tolist())).save(folder / name)
    return folder
