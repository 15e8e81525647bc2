"""ShanghaiTech A and B, from the published folders (Zhang et al., CVPR 2016)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray

from pycc.data.dataset import (
    PairedFiles,
    Refuse,
    by_name,
    check_split,
    formats,
    listing,
    pair_up,
)
from pycc.data.matlab import points_of, read_variable
from pycc.data.missing import Places
from pycc.data.pictures import pictures
from pycc.data.target import Picture, Target, targets

_TRUTHS = ("ground-truth", "ground_truth")
_SPLITS = ("train", "test")


class ShanghaiTech:
    """``{train,test}_data/images/IMG_n.jpg`` with ``ground-truth/GT_IMG_n.mat`` beside ``images``.

    Both editions (``ground-truth``, ``ground_truth``) are read. The folder may be that of a part
    (``part_A``) or of one split (``part_A/test_data``); the latter is opened for any requested
    split. Samples are in numeric order.
    """

    def recognises(self, root: Path) -> bool:
        """Return whether ``root`` is a part or one of its splits."""
        images = (root / f"{name}_data" / "images" for name in _SPLITS)
        return _is_split(root) or any(folder.is_dir() for folder in images)

    def splits(self, root: Path) -> tuple[str, ...]:
        """Return the existing ones of train and test."""
        if _is_split(root):
            return ("all",)
        return tuple(name for name in _SPLITS if (root / f"{name}_data").is_dir())

    def open(
        self, root: Path, *, split: str, refuse: Refuse, annotated: bool = True
    ) -> PairedFiles:
        """Pair up one split, in numeric order."""
        root = root.resolve()
        folder = root
        if not _is_split(root):
            check_split(root, split, self.splits(root))
            folder = root / f"{split}_data"
        annotations, places = None, None
        if annotated:
            truth = _truth(folder)
            annotations = by_name(_mats(truth), "GT_")
            places = Places([truth], ["GT_{name}.mat"])
        images = pictures(folder / "images")
        if not images and not annotations:
            raise ValueError(f"{folder / 'images'}: no images")
        pairs = pair_up(by_name(images), annotations, refuse, places)
        return PairedFiles(f"{folder.parent.name}/{folder.name}", pairs, read_points)


def _truth(folder: Path) -> Path:
    """Return the folder of a split's annotations, in the edition that exists."""
    folders = [folder / name for name in _TRUTHS if (folder / name).is_dir()]
    truths = [path for path in folders if _mats(path)] or folders
    if len(truths) != 1:
        present = "both: keep one of them" if truths else "neither"
        raise ValueError(
            f"{folder}: expected {' or '.join(_TRUTHS)}, found {present}; to count or attack the "
            "images alone use annotated=False (--unannotated)"
        )
    return truths[0]


def _mats(truth: Path) -> list[Path]:
    return [path for path in listing(truth) if path.suffix.lower() == ".mat"]


def _is_split(folder: Path) -> bool:
    truths = (folder / name for name in _TRUTHS)
    return (folder / "images").is_dir() and any(path.is_dir() and _mats(path) for path in truths)


def read_points(path: Path) -> NDArray[np.float64]:
    """Read points [N,2] (x, y) of a ``GT_IMG_n.mat``; N may be 0.

    ValueError naming a file without points.
    """
    info = read_variable(path, "image_info")
    try:
        points = info[0, 0][0, 0]["location"]
    except (TypeError, IndexError, ValueError):
        message = f"{path}: no points: image_info{{1}}.location is missing"
        raise ValueError(message) from None
    return points_of(path, "image_info{1}.location", points)


def _write(path: Path, picture: Picture) -> None:
    """Write points as published: image_info{1} holds location [N,2] and number [1,1]."""
    info = np.empty((1, 1), object)
    info[0, 0] = {
        "location": np.array(picture.points, np.float64).reshape(-1, 2),
        "number": np.array([[float(len(picture.points))]]),
    }
    scipy.io.savemat(path, {"image_info": info}, do_compression=True)


formats.register("shanghaitech")(ShanghaiTech())
targets.register("shanghaitech")(
    Target(
        "{split}_data",
        "images/IMG_{number}",
        "ground-truth/GT_IMG_{number}.mat",
        _write,
        kept=frozenset((".jpg", ".png")),
    )
)
