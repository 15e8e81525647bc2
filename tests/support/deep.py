"""A folder of grey pictures in two files each: of 8 bits, and of the same values in 16."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image


def two_depths(folder: Path) -> tuple[Path, Path]:
    """Copies of a folder of PNG with points: with ``bit_depth`` 8 both hold the same pixels."""
    copies = (folder.with_name("eight"), folder.with_name("sixteen"))
    for copy, depth in zip(copies, (np.uint8, np.uint16), strict=True):
        shutil.copytree(folder, copy)
        for path in copy.glob("*.png"):
            with Image.open(path) as picture:
                grey = np.asarray(picture.convert("L"))
            Image.fromarray(grey.astype(depth)).save(path)
    return copies
