"""Which published data set a folder holds: what published ground truths and recipes go by."""

from __future__ import annotations

import re
from pathlib import Path

from pycc.data.pictures import number_of_pictures

_BY_LAYOUT = {
    "ucf_cc_50": "ucf_cc_50",
    "ucf_qnrf": "ucf_qnrf",
    "worldexpo": "worldexpo10",
    "nwpu": "nwpu",
    "jhu": "jhu",
}
_PART = re.compile(
    r"(?:(?:shanghai|sht|shh|sh)(?:tech)?[ _-]*(?:part[ _-]*)?|part[ _-]*)([ab])(?:[ _-]*final)?",
    re.IGNORECASE,
)
_SPLITS = ("train_data", "test_data")
_IMAGES = {
    "shanghaitech_a": {"train_data": 300, "test_data": 182},
    "shanghaitech_b": {"train_data": 400, "test_data": 316},
}
"""Images of the published splits."""


def origin(layout: str, root: Path) -> str:
    """The published data set that a folder in a layout holds, "" where that is not known.

    UCF_CC_50 (``ucf_cc_50``), UCF-QNRF (``ucf_qnrf``), WorldExpo'10 (``worldexpo10``), NWPU-Crowd
    (``nwpu``) and JHU-Crowd++ (``jhu``) each have a layout of their own, which tells. That of
    ShanghaiTech is shared by both parts (``shanghaitech_a``, ``shanghaitech_b``) and by what is
    exported in it. There the folder of the part, the one that holds ``train_data`` and
    ``test_data``, tells by its own name (``part_A``, ``part_B_final``, ``SHB``, ``ShanghaiTech_A``,
    ...), never those above it; where the name does not, the numbers of images of its splits do: 300
    and 182, or 400 and 316. A plain folder has no origin.
    """
    if layout != "shanghaitech":
        return _BY_LAYOUT.get(layout, "")
    for known in (root.absolute(), root.resolve()):  # a link's own name tells too
        part = known.parent if known.name in _SPLITS else known
        named = _PART.fullmatch(part.name)
        if named:
            return f"shanghaitech_{named[1].lower()}"
    found = {name: _images(part / name) for name in _SPLITS if (part / name).is_dir()}
    for name, numbers in _IMAGES.items():
        if found and all(numbers[split] == images for split, images in found.items()):
            return name
        if not found and _images(part) in numbers.values():  # one split, under another name
            return name
    return ""


def _images(split: Path) -> int:
    """How many images a split holds."""
    folder = split / "images"
    return number_of_pictures(folder) if folder.is_dir() else 0
