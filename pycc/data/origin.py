"""The published data set that a folder holds: it decides the ground truths and recipes."""

from __future__ import annotations

import re
from pathlib import Path

from pycc.data.pictures import number_of_pictures

_BY_LAYOUT = {
    "ucf_cc_50": "ucf_cc_50",
    "ucf_qnrf": "ucf_qnrf",
    "ucsd": "ucsd",
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
"""Numbers of images of the published splits."""


def origin(layout: str, root: Path) -> str:
    """Return the name of the published data set in a folder of this layout, "" if unknown.

    UCF_CC_50 (``ucf_cc_50``), UCF-QNRF (``ucf_qnrf``), WorldExpo'10 (``worldexpo10``), NWPU-Crowd
    (``nwpu``), JHU-Crowd++ (``jhu``) and UCSD (``ucsd``) each have a layout of their own, which
    identifies them. The layout of ShanghaiTech is shared by both parts (``shanghaitech_a``,
    ``shanghaitech_b``) and by data exported in it. There the name of the part's folder, which holds
    ``train_data`` and ``test_data``, is used (``part_A``, ``part_B_final``, ``SHB``,
    ``ShanghaiTech_A``, ...), but never the names of the folders above it. If that name is not
    conclusive, the numbers of images of its splits are: 300 and 182, or 400 and 316. Plain folders
    and the formats of labelling tools have no origin.
    """
    if layout != "shanghaitech":
        return _BY_LAYOUT.get(layout, "")
    for path in (root.absolute(), root.resolve()):  # the name of a link counts too
        part = path.parent if path.name in _SPLITS else path
        named = _PART.fullmatch(part.name)
        if named:
            return f"shanghaitech_{named[1].lower()}"
    images_of = {name: _images(part / name) for name in _SPLITS if (part / name).is_dir()}
    for name, numbers in _IMAGES.items():
        if images_of and all(numbers[split] == images for split, images in images_of.items()):
            return name
        if not images_of and _images(part) in numbers.values():  # one split, under another name
            return name
    return ""


def _images(split: Path) -> int:
    """Return the number of images in a split."""
    folder = split / "images"
    return number_of_pictures(folder) if folder.is_dir() else 0
