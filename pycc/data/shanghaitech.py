"""ShanghaiTech A and B, from the published folders (Zhang et al., CVPR 2016)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pycc.data.dataset import (
    IMAGE_SUFFIXES,
    PairedFiles,
    Refuse,
    by_name,
    formats,
    listing,
    pair_up,
)
from pycc.data.matlab import read_variable

_TRUTHS = ("ground-truth", "ground_truth")
_SPLITS = ("train", "test")


class ShanghaiTech:
    """``{train,test}_data/images/IMG_n.jpg`` with ``ground-truth/GT_IMG_n.mat`` beside ``images``.

    Both editions (``ground-truth``, ``ground_truth``) are read. The folder may be that of a part
    (``part_A``) or of one split (``part_A/test_data``), which then serves as whichever split is
    asked for. Samples are in numeric order.
    """

    def recognises(self, root: Path) -> bool:
        """Whether ``root`` is a part or one of its splits."""
        return _is_split(root) or any((root / f"{name}_data").is_dir() for name in _SPLITS)

    def splits(self, root: Path) -> tuple[str, ...]:
        """Those of train and test that are there."""
        if _is_split(root):
            return ("all",)
        return tuple(name for name in _SPLITS if (root / f"{name}_data").is_dir())

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """One split, in numeric order."""
        root = root.resolve()
        folder = root
        if not _is_split(root):
            if split not in _SPLITS:
                raise ValueError(f"{root}: has splits {' and '.join(_SPLITS)}, got {split!r}")
            folder = root / f"{split}_data"
        annotations = _annotations(folder) if annotated else None
        pictures = listing(folder / "images")
        images = [path for path in pictures if path.suffix.lower() in IMAGE_SUFFIXES]
        if not images and not annotations:
            raise ValueError(f"{folder / 'images'}: no images")
        pairs = pair_up(by_name(images), annotations, refuse)
        return PairedFiles(f"{folder.parent.name}/{folder.name}", pairs, read_points)


def _annotations(folder: Path) -> dict[str, list[Path]]:
    """The annotations of a split by the name of their image."""
    truths = [folder / name for name in _TRUTHS if (folder / name).is_dir()]
    if len(truths) != 1:
        found = "both" if truths else "neither"
        raise ValueError(f"{folder}: expected {' or '.join(_TRUTHS)}, found {found}")
    files = [path for path in listing(truths[0]) if path.suffix.lower() == ".mat"]
    return by_name(files, "GT_")


def _is_split(folder: Path) -> bool:
    return (folder / "images").is_dir() and any((folder / name).is_dir() for name in _TRUTHS)


def read_points(path: Path) -> NDArray[np.float64]:
    """Points [N,2] (x, y) of a ``GT_IMG_n.mat``; ValueError naming the file if it holds none."""
    info = read_variable(path, "image_info")
    try:
        points = info[0, 0][0, 0]["location"]
    except (TypeError, IndexError, ValueError):
        message = f"{path}: no points: image_info{{1}}.location is missing"
        raise ValueError(message) from None
    if not isinstance(points, np.ndarray) or points.dtype.kind not in "iuf":
        raise ValueError(f"{path}: image_info{{1}}.location must be N x 2 numbers")
    if points.size == 0:
        raise ValueError(f"{path}: no points: image_info{{1}}.location is empty")
    if points.ndim != 2 or points.shape[1] != 2:
        got = " x ".join(map(str, points.shape))
        raise ValueError(f"{path}: image_info{{1}}.location must be N x 2 numbers, got {got}")
    if not np.isfinite(points).all():
        raise ValueError(f"{path}: points must be finite, got NaN or infinity")
    return points.astype(np.float64)


formats.register("shanghaitech")(ShanghaiTech())
